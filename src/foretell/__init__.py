"""foretell: multi-token prediction for any Hugging Face causal language model.

Probe what a model already knows about its future tokens, train heads that predict them, and decode
several tokens per forward pass with unchanged output.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foretell.errors import BackboneError, CheckpointError, ForetellError, HeadError, InputError

if TYPE_CHECKING:
    from foretell.checkpoints import load_tokenizer
    from foretell.heads import ParallelHeads, ResidualHeads, SequentialHeads
    from foretell.model import MTPModel, attach
    from foretell.patching import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "BackboneError",
    "CheckpointError",
    "ForetellError",
    "HeadError",
    "InputError",
    "MTPModel",
    "ParallelHeads",
    "ResidualHeads",
    "SequentialHeads",
    "attach",
    "load_tokenizer",
    "patch",
    "unpatch",
]

_HOMES = {
    "MTPModel": "foretell.model",
    "ParallelHeads": "foretell.heads",
    "ResidualHeads": "foretell.heads",
    "SequentialHeads": "foretell.heads",
    "attach": "foretell.model",
    "load_tokenizer": "foretell.checkpoints",
    "patch": "foretell.patching",
    "unpatch": "foretell.patching",
}
"""Imported when first asked for: torch takes seconds, and `foretell --help` does without it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
