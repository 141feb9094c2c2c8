"""Head designs. One file each; `HEADS` is the list that the command line and checkpoints go by."""

from foretoken.errors import InputError
from foretoken.heads.base import (
    EmbedAhead,
    Head,
    HeadConfig,
    Parts,
    RunBlock,
)
from foretoken.heads.parallel import ParallelHeads
from foretoken.heads.residual import ResidualHeads
from foretoken.heads.sequential import SequentialHeads
from foretoken.heads.taps import FINAL, States, Tap, WeightedTap

HEADS: dict[str, type[Head]] = {
    head.Config.kind: head for head in (ParallelHeads, SequentialHeads, ResidualHeads)
}
"""Every design by its kind."""


def head_class(kind: str) -> type[Head]:
    """The design called `kind`."""
    try:
        return HEADS[kind]
    except KeyError:
        raise InputError(f"head {kind!r} is unknown; choose from {', '.join(HEADS)}.") from None


__all__ = [
    "FINAL",
    "HEADS",
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
]
