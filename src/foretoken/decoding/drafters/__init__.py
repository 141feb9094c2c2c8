"""Drafters, one file each: anything that proposes tokens."""

from foretoken.backbone import Backbone
from foretoken.decoding.drafters.base import Committed, Drafter
from foretoken.decoding.drafters.lookup import LookupDrafter
from foretoken.decoding.drafters.model import ModelDrafter
from foretoken.decoding.drafters.none import NoDrafter
from foretoken.decoding.drafters.parallel import ParallelDrafter
from foretoken.decoding.drafters.rollout import RolloutDrafter
from foretoken.decoding.drafters.sequential import SequentialDrafter
from foretoken.decoding.tree import TreeShape
from foretoken.heads import Head, SequentialHeads


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
