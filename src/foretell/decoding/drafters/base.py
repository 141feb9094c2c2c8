"""What every drafter is, and what it is shown.

Shapes: B rows, S tokens kept per row, W nodes of a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from foretell.backbone import BackboneOutput
from foretell.decoding.cache import Past
from foretell.decoding.draft import Draft
from foretell.decoding.length import Measured
from foretell.decoding.sampling import Sampler


@dataclass(frozen=True)
class Committed:
    """What stands after a verdict.

    Attributes:
        tokens: (B, S) the tokens that stand of each row, then filling.
        lengths: how many of them do, by row; the backbone has not read the last one yet.
        begin: the position of the first token of the pass that was just judged, by row.
        output: that pass.
        last: (B,) the place in that pass of the last token of it that stands.
        path: (B, W) the places of those that stand, where the draft was a tree; None: the first.
        reach: how deep a draft can count, by row: further there is no room.
    """

    tokens: Tensor
    lengths: Sequence[int]
    begin: Sequence[int]
    output: BackboneOutput
    last: Tensor
    path: Tensor | None
    reach: Sequence[int]


class Drafter(Protocol):
    """Proposes tokens for the rows of one batch, from their prompts on."""

    @cached_property
    def measured(self) -> dict[tuple[Any, ...], Measured]:
        """What was measured with it, to choose lengths by: see `DecodeOptions.lengths`."""
        return {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual states of the backbone that it reads."""
        ...

    @property
    def longest(self) -> int:
        """How deep its drafts go at most."""
        ...

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        """Forget everything; `rows` new rows of up to `capacity` tokens begin.

        Args:
            past: the backbone's.
            sampler: how tokens are drawn.
        """
        ...

    def draft(self, committed: Committed, limit: int) -> Draft:
        """Up to `limit` tokens deep, for every row; called once after every verdict."""
        ...

    def select(self, places: Sequence[int]) -> None:
        """Go on with the rows at some places alone; the backbone's past has done so by then."""
        ...
