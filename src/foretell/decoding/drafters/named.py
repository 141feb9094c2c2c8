"""Drafters by the names that commands and `MTPModel.decode` use."""

from foretell.backbone import Backbone
from foretell.decoding.cache import takes_masks
from foretell.decoding.drafters.base import NAMED, Drafter
from foretell.decoding.tree import TreeShape
from foretell.errors import InputError
from foretell.heads import Head


def drafter_named(
    name: str,
    backbone: Backbone,
    head: Head | None,
    length: int | None = None,
    shape: TreeShape | None = None,
) -> Drafter:
    """A new drafter.

    Args:
        name: one of `NAMED`; any other name is that of a draft model.
        backbone: that is drafted for.
        head: its heads, if it has some.
        length: tokens per draft; None: the drafter's own.
        shape: of trees; None drafts chains.

    Raises:
        InputError: it cannot draft so.
        HeadError: it needs heads, and there are none.
    """
    require_trees(backbone, shape)
    return NAMED[name](backbone, head, length, shape)


def require_trees(backbone: Backbone, shape: TreeShape | None) -> None:
    """Refuse trees for a backbone that cannot verify any; longer texts are tried when they come."""
    if shape is not None and not takes_masks(backbone, 0):
        raise InputError(
            f"{type(backbone.model).__name__} cannot verify trees, only chains; draft no trees."
        )
