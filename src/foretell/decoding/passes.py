"""Passes of the backbone over what the rows of a batch have not read yet, drafts after it.

Shapes: B rows, W nodes of a draft, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretell.backbone import Backbone, BackboneOutput
from foretell.decoding.acceptance import Verdict
from foretell.decoding.batch import Batch
from foretell.decoding.cache import READ_AGAIN, new_past, require_steps
from foretell.decoding.compiling import compile_fixed
from foretell.decoding.draft import Draft
from foretell.decoding.drafters import Committed
from foretell.decoding.invariance import require_invariance
from foretell.decoding.sampling import WIDEST

DRAFT_SLOTS = 32
"""Set aside after the last token of each row: near its end drafts reach beyond it. Where they need
more the past is copied."""


def capacity(batch: Batch, width: int | None = None) -> int:
    """Slots per row: for tokens, and for drafts after them; `width` as in `Passes`."""
    return max(batch.lengths) + batch.room + max(DRAFT_SLOTS, width or 0)


@dataclass(frozen=True)
class Verified:
    """A pass.

    Attributes:
        logits: (B, W, V) at the nodes of the draft.
        output: of the backbone, at every place of the pass.
        begin: the position of its first place, by row.
        first: (B,) the place of node 0.
    """

    logits: Tensor
    output: BackboneOutput
    begin: list[int]
    first: Tensor

    def committed(self, batch: Batch, verdict: Verdict) -> Committed:
        """What a drafter is shown once the verdict is committed."""
        last = self.first + verdict.last
        return Committed(
            batch.tokens, batch.lengths, self.begin, self.output, last, verdict.path, batch.reach
        )


class Passes:
    """The passes of one batch.

    Args:
        backbone: that reads.
        batch: whose rows are continued.
        width: of every pass but the first, whatever is drafted (see
            `foretell.decoding.invariance`); None: what is drafted.
        compiled: run every pass but the first in few shapes, see `compile_fixed`.

    Attributes:
        past: what the rows have read.
        capacity: see `capacity`.

    Raises:
        BackboneError: the backbone cannot take a draft back, or has no passes of one shape.
    """

    def __init__(self, backbone: Backbone, batch: Batch, width: int | None, compiled: bool) -> None:
        self.backbone, self.width, self.compiled = backbone, width, compiled
        self.rows = len(batch)
        self.capacity = capacity(batch, width)
        fixed = width is not None
        require_steps(backbone, max(batch.lengths) + batch.room)
        self.past = new_past(backbone, self.rows, self.capacity, fixed=fixed, compiled=compiled)
        if width is not None:
            require_invariance(backbone, self.rows, width, self.capacity)
        self._steady = compile_fixed(_verify, backbone) if compiled else _verify

    def verify(self, batch: Batch, draft: Draft, layers: tuple[int, ...]) -> Verified:
        """One pass over what the backbone has not read, and the draft; `layers` are kept."""
        run = self._steady if all(self.past.read) else _verify
        begin = self.past.read
        first = batch.behind(begin) - 1
        window = torch.cat([batch.unread(begin), draft.tokens], dim=1)
        given = self.past.enter(window.shape[1], draft, batch.lengths)
        output, logits = run(self.backbone, window, layers, given, first, draft.size + 1)
        return Verified(logits, output, begin, first)

    @property
    def fewest(self) -> int:
        """Rows that a pass holds at least. One alone would be compiled anew."""
        if self.width is not None:
            return self.rows
        return 2 if self.compiled else 1

    def limit(self, batch: Batch) -> int:
        """How deep a draft may go. The backbone adds one token of its own, so leave it room."""
        widest = (self.width or WIDEST) - 1
        standing = zip(batch.lengths, self.past.read, strict=True)
        if max(length - 1 - read for length, read in standing) > READ_AGAIN:
            return 0
        if not all(self.past.read):  # a row is read anew
            return 0
        return widest if self.compiled else min(widest, batch.limit)

    def fitted(self, draft: Draft, longest: int) -> Draft:
        """A draft as wide as every pass, where they have one width.

        Compiled passes have that of the `longest` chain that there can be, where any is drafted.
        """
        if self.width is not None:
            return draft.padded(self.width - 1)
        if self.compiled and draft.size and draft.parents is None:
            return draft.padded(max(draft.size, min(longest, WIDEST - 1)))
        return draft


def _verify(
    backbone: Backbone,
    window: Tensor,
    layers: tuple[int, ...],
    given: dict[str, Any],
    first: Tensor,
    nodes: int,
) -> tuple[BackboneOutput, Tensor]:
    """A pass over `window`, and the logits at a draft's nodes, which begin at place `first`."""
    output = backbone(window, layers=layers, **given)
    final = output.final
    if final.shape[1] != nodes:
        places = first.unsqueeze(1) + torch.arange(nodes, device=first.device)
        final = final.gather(1, places.unsqueeze(-1).expand(-1, -1, final.shape[-1]))
    return output, backbone.unembed(final)
