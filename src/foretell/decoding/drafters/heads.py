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
        HeadError: there is no head, or it names a drafter that there is not.
        InputError: it cannot draft so.
    """
    if head is None:
        raise HeadError("the model has no heads; train some with `foretell train`.")
    if head.drafter not in OF_HEADS:
        raise HeadError(
            f"the heads name the drafter {head.drafter!r}; there are {', '.join(OF_HEADS)}."
        )
    return OF_HEADS[head.drafter](backbone, head, length, shape)


NAMED["heads"] = drafter_for
