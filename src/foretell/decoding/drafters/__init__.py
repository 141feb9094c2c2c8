"""Drafters, one file each: anything that proposes tokens."""

from foretell.backbone import Backbone
from foretell.decoding.drafters.base import Committed, Drafter
from foretell.decoding.drafters.lookup import LookupDrafter
from foretell.decoding.drafters.model import ModelDrafter
from foretell.decoding.drafters.none import NoDrafter
from foretell.decoding.drafters.parallel import ParallelDrafter
from foretell.decoding.drafters.rollout import RolloutDrafter
from foretell.decoding.drafters.sequential import SequentialDrafter
from foretell.decoding.tree import TreeShape
from foretell.heads import Head, SequentialHeads


def drafter_for(
    backbone: Backbone,
    head: Head,
    length: int | None = None,
    shape: TreeShape | None = None,
) -> Drafter:
    """A new drafter for `head`, of chains or of trees."""
    if isinstance(head, SequentialHeads):
        if head.contract.rollout == "token":
            return RolloutDrafter(backbone, head, length, shape)
        return SequentialDrafter(backbone, head, length, shape)
    return ParallelDrafter(backbone, head, length, shape)


__all__ = [
    "Committed",
    "Drafter",
    "LookupDrafter",
    "ModelDrafter",
    "NoDrafter",
    "ParallelDrafter",
    "RolloutDrafter",
    "SequentialDrafter",
    "drafter_for",
]
