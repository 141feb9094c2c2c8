"""Drafters, one file each: anything that proposes tokens."""

from foretoken.backbone import Backbone
from foretoken.decoding.drafters.base import Committed, Drafter
from foretoken.decoding.drafters.none import NoDrafter
from foretoken.decoding.drafters.parallel import ParallelDrafter
from foretoken.decoding.drafters.sequential import SequentialDrafter
from foretoken.heads import Head, SequentialHeads


def drafter_for(backbone: Backbone, head: Head) -> Drafter:
    """A new drafter for `head`."""
    if isinstance(head, SequentialHeads):
        return SequentialDrafter(backbone, head)
    return ParallelDrafter(backbone, head)


__all__ = [
    "Committed",
    "Drafter",
    "NoDrafter",
    "ParallelDrafter",
    "SequentialDrafter",
    "drafter_for",
]
