"""The drafter that goes with a head."""

from foretell.backbone import Backbone
from foretell.decoding.drafters.base import Drafter
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
