"""What every drafter is, and what it is shown."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from foretoken.backbone import BackboneOutput


@dataclass(frozen=True)
class Committed:
    """What stands after a verdict.

    Attributes:
        tokens: (1, N) all tokens that stand; the backbone has not read the last one yet.
        output: the pass that was just judged.
        kept: how many of its positions stand; the last of them is position N-2.
    """

    tokens: Tensor
    output: BackboneOutput
    kept: int


class Drafter(Protocol):
    """Proposes tokens. A drafter follows one sequence from its prompt on."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual states of the backbone that it reads."""
        ...

    def draft(self, committed: Committed, limit: int) -> Tensor:
        """(G,) tokens after `committed.tokens`, G ≤ limit; called once after every verdict."""
        ...
