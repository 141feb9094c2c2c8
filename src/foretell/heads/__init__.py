"""Head designs. One file each; `HEADS` is the list that the command line and checkpoints go by."""

from collections.abc import Mapping
from typing import Any

from foretell.errors import InputError
from foretell.heads.base import (
    DEPTH,
    HEADS,
    BlockInit,
    BlockKind,
    EmbedAhead,
    Head,
    HeadConfig,
    Parts,
    RunBlock,
)
from foretell.heads.parallel import ParallelHeads
from foretell.heads.residual import ResidualHeads
from foretell.heads.sequential import SequentialHeads
from foretell.heads.taps import FINAL, States, Tap, WeightedTap
from foretell.heads.vocabulary import DraftVocabulary


def head_class(kind: str) -> type[Head]:
    """The design called `kind`."""
    try:
        return HEADS[kind]
    except KeyError:
        raise InputError(f"head {kind!r} is unknown; choose from {', '.join(HEADS)}.") from None


def new_heads(told: Mapping[str, Any]) -> HeadConfig:
    """The config of heads that are new: `parallel` ones of depth `DEPTH`, if nothing else is told.

    Raises:
        InputError: the kind is unknown, or told something it cannot do.
    """
    told = {"kind": "parallel", "depth": DEPTH, **told}
    return head_class(str(told["kind"])).Config.from_dict(told)


__all__ = [
    "DEPTH",
    "FINAL",
    "HEADS",
    "BlockInit",
    "BlockKind",
    "DraftVocabulary",
    "EmbedAhead",
    "Head",
    "HeadConfig",
    "ParallelHeads",
    "Parts",
    "ResidualHeads",
    "RunBlock",
    "SequentialHeads",
    "States",
    "Tap",
    "WeightedTap",
    "head_class",
    "new_heads",
]
