"""foretell: multi-token prediction for any Hugging Face causal language model.

Probe what a model already knows about its future tokens, train heads that predict them, and decode
several tokens per forward pass with unchanged output.
"""

from foretell.errors import BackboneError, CheckpointError, ForetellError, HeadError, InputError
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
    "patch",
    "unpatch",
]
