"""What has been read, as drafters and passes know it.

Shapes: B rows, W nodes of a pass.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor
from transformers import Cache

from foretell.backbone import Ability, Backbone
from foretell.backbone.anatomy import name_of
from foretell.backbone.masks import last_threshold
from foretell.decoding.cache.restoring import (
    TRIED,
    RestoringPast,
    refuse_unless,
    steps_as_it_reads,
    takes_back,
)
from foretell.decoding.cache.slotted import SlottedPast, takes_masks
from foretell.decoding.draft import Draft
from foretell.errors import BackboneError


class Past(Protocol):
    """What the rows of a batch have read.

    Attributes:
        cache: the backbone's.
        read: how many tokens of each row; the next pass begins there.
        compiled: whether what runs over its passes is compiled.
    """

    cache: Cache
    read: list[int]
    compiled: bool

    def beside(self) -> Cache:
        """The cache of one more block, which is always as far as this one."""
        ...

    def enter(
        self, width: int, draft: Draft | None = None, stands: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Arguments of a pass over `width` more tokens: `cache`, positions, mask and rotation.

        The tokens are a chain, or the nodes of `draft`. Of each row as many as `stands` says stand,
        the rest is filling; by default all of them do.
        """
        ...

    def reenter(self, width: int, begin: Sequence[int]) -> dict[str, Any]:
        """The same for a block that is behind: over `width` tokens from positions `begin` on."""
        ...

    def keep(self, read: Sequence[int], path: Tensor | None = None) -> None:
        """Take back all but the first `read` tokens of each row; it may take back some more.

        `path` (B, W) are the nodes of the last pass, if it was a tree, that come first.
        """
        ...

    def assume(self) -> None:
        """Go on after what was entered last; the next `keep` may still take all of it back."""
        ...

    def select(self, places: Sequence[int]) -> None:
        """Go on with the rows at some places alone, in that order.

        One that moves comes from after those that stay, see `Batch.let_go`.
        """
        ...


def decodes(backbone: Backbone) -> Ability:
    """Whether `new_past` has one for texts of any length: row by row at least."""
    kept = takes_back(backbone)
    return kept if kept or not takes_masks(backbone) else Ability()


def require_decoding(backbone: Backbone) -> None:
    """Refuse a backbone that cannot be decoded in drafts, with the reason.

    Raises:
        BackboneError: `decodes` does not hold.
    """
    refuse_unless(decodes(backbone), backbone)


def new_past(
    backbone: Backbone, rows: int, capacity: int, *, fixed: bool = False, compiled: bool = False
) -> Past:
    """The past of `rows` rows of up to `capacity` tokens; see `SlottedPast`.

    Raises:
        BackboneError: the backbone's rows cannot share a batch, or no draft can be taken back.
    """
    if masked := takes_masks(backbone, capacity):
        return SlottedPast(backbone, rows, capacity, fixed=fixed, compiled=compiled)
    if rows > 1:
        raise BackboneError(
            f"{name_of(backbone.model)} takes no attention mask that tells rows of different "
            f"lengths apart ({masked.lacking}); decode its rows one by one."
        )
    if fixed or compiled:
        raise BackboneError(
            f"{name_of(backbone.model)} cannot be decoded in passes of one shape, compiled "
            "or of one width: it takes no attention mask that lets them see pasts of any length "
            f"({masked.lacking})."
        )
    return RestoringPast(backbone)


def require_steps(backbone: Backbone, length: int) -> None:
    """Refuse texts of `length` tokens in which drafts cannot leave the output as it is.

    Raises:
        BackboneError: its passes over this many tokens are not what `generate` computes.
    """
    if backbone.rotary is not None:  # after its switch the passes of a trial rotate otherwise
        length = min(length, backbone.rotary.switch - TRIED)
    threshold = last_threshold(backbone.config, length)
    if not threshold or takes_masks(backbone, length):
        return
    if not (able := steps_as_it_reads(backbone, threshold)):
        raise BackboneError(
            f"{name_of(backbone.model)} cannot be decoded in drafts that far: {able.lacking}; ask "
            "for less, or use transformers' generate."
        )
