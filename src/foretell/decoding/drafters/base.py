"""What every drafter is, and what it is shown.

Shapes: B rows, S tokens kept per row, W nodes of a pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn

from foretell.backbone import Backbone, BackboneOutput
from foretell.decoding.cache import Past
from foretell.decoding.draft import Draft
from foretell.decoding.length import Measured
from foretell.decoding.sampling import Sampler
from foretell.decoding.tree import TreeShape
from foretell.errors import InputError
from foretell.heads import Head


@dataclass(frozen=True)
class Committed:
    """What stands after a verdict.

    Attributes:
        tokens: (B, S) the tokens that stand of each row, then filling.
        lengths: how many of them do, by row; the backbone has not read the last one yet.
        begin: the position of the first token of the pass that was just judged, by row.
        output: that pass; where passes are compiled, the next one may write over it.
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


Make = Callable[[Backbone, Any, int | None, TreeShape | None], "Drafter"]
"""Makes a drafter for a backbone and its heads, of a length and a tree's shape; None: its own."""

DRAFT_LENGTH = 4
"""Tokens per draft of drafters that have no length of their own, unless asked for otherwise."""

NAMED: dict[str, Make] = {}
"""Drafters by the names that commands and `MTPModel.decode` use."""

OF_HEADS: dict[str, Make] = {}
"""Drafters of heads by the names that heads have for them (`Head.drafter`)."""


class Drafter(Protocol):
    """Proposes tokens for the rows of one batch, from their prompts on.

    `class Mine(Drafter, name="mine")` is asked for by that name, and made by its `make`;
    `class Mine(Drafter, of_heads="mine")` drafts from heads whose `drafter` is that name, and is
    made like any other: `Mine(backbone, head, length, shape)`.
    """

    def __init_subclass__(
        cls, *, name: str | None = None, of_heads: str | None = None, **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            NAMED[name] = cls.make
        if of_heads is not None:
            OF_HEADS[of_heads] = cls

    @classmethod
    def make(
        cls, backbone: Backbone, head: Head | None, length: int | None, shape: TreeShape | None
    ) -> "Drafter":
        """A new one for a model, where it has a name.

        Raises:
            InputError: it cannot draft so.
            HeadError: it needs heads, and there are none.
        """
        raise InputError(f"{cls.__name__} is not made by name; build one and give that.")

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

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What it runs beside the backbone, for which fast kernels are then chosen."""
        return ()

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


def require_chains(name: str, shape: TreeShape | None) -> None:
    """Refuse trees for a drafter that makes none."""
    if shape is not None:
        raise InputError(f"drafter {name} makes no trees; leave out the tree.")
