"""Drafters, one file each: anything that proposes tokens."""

from foretoken.backbone import Backbone
from foretoken.decoding.drafters.base import Committed, Drafter
from foretoken.decoding.drafters.none import NoDrafter
from foretoken.decoding.drafters.parallel import ParallelDrafter
from foretoken.decoding.drafters.sequential import SequentialDrafter
from foretoken.errors import HeadError
from foretoken.heads import Head, ParallelHeads, SequentialHeads, Tap


def drafter_for(backbone: Backbone, head: Head, tap: Tap) -> Drafter:
    """A new drafter for `head`."""
    match head:
        case ParallelHeads():
            return ParallelDrafter(backbone, head, tap)
        case SequentialHeads():
            return SequentialDrafter(backbone, head, tap)
        case _:
            raise HeadError(f"heads of kind {head.config.kind!r} cannot draft yet.")


__all__ = [
    "Committed",
    "Drafter",
    "NoDrafter",
    "ParallelDrafter",
    "SequentialDrafter",
    "drafter_for",
]
