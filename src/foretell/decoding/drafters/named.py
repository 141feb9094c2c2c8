"""Drafters by the names that commands and `MTPModel.decode` use."""

from collections.abc import Callable

from foretell.backbone import Backbone
from foretell.decoding.cache import takes_masks
from foretell.decoding.drafters.base import Drafter
from foretell.decoding.drafters.heads import drafter_for
from foretell.decoding.drafters.lookup import LookupDrafter
from foretell.decoding.drafters.none import NoDrafter
from foretell.decoding.tree import TreeShape
from foretell.errors import HeadError, InputError
from foretell.heads import Head

DRAFT_LENGTH = 4
"""Tokens per draft of prompt lookup and of draft models, unless asked for otherwise."""

Make = Callable[[Backbone, Head | None, int | None, TreeShape | None], Drafter]
"""Makes a drafter for a backbone and its heads, of a length and a tree's shape."""


def drafter_named(
    name: str,
    backbone: Backbone,
    head: Head | None,
    length: int | None = None,
    shape: TreeShape | None = None,
) -> Drafter:
    """A new drafter.

    Args:
        name: one of `NAMED`.
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


def _none(
    backbone: Backbone, head: Head | None, length: int | None, shape: TreeShape | None
) -> Drafter:
    _require_chains("none", shape)
    if length is not None:
        raise InputError("without a drafter there is no draft; leave out the draft length.")
    return NoDrafter()


def _lookup(
    backbone: Backbone, head: Head | None, length: int | None, shape: TreeShape | None
) -> Drafter:
    _require_chains("lookup", shape)
    return LookupDrafter(DRAFT_LENGTH if length is None else length)


def _heads(
    backbone: Backbone, head: Head | None, length: int | None, shape: TreeShape | None
) -> Drafter:
    if head is None:
        raise HeadError("the model has no heads; train some with `foretell train`.")
    return drafter_for(backbone, head, length, shape)


def _require_chains(name: str, shape: TreeShape | None) -> None:
    if shape is not None:
        raise InputError(f"drafter {name} makes no trees; leave out the tree.")


NAMED: dict[str, Make] = {"heads": _heads, "lookup": _lookup, "none": _none}
"""Any other name is that of a draft model."""
