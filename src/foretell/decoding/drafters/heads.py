"""The drafter that goes with a head."""

from foretell.backbone import Backbone
from foretell.decoding.drafters.base import NAMED, OF_HEADS, Drafter
from foretell.decoding.tree import TreeShape
from foretell.errors import HeadError
from foretell.heads import Head


def drafter_for(
    backbone: Backbone,
    head: Head | None,
    length: int | None = None,
    shape: TreeShape | None = None,
) -> Drafter:
    """A new drafter for `head`, of chains or of trees.

    Raises:
        HeadError: there is no head.
        InputError: it cannot draft so.
    """
    if head is None:
        raise HeadError("the model has no heads; train some with `foretell train`.")
    return OF_HEADS[head.drafter](backbone, head, length, shape)


NAMED["heads"] = drafter_for
