"""No drafter: with it the loop is plain decoding."""

from torch import Tensor

from foretoken.decoding.drafters.base import Committed


class NoDrafter:
    """Proposes nothing."""

    layers: tuple[int, ...] = ()

    def draft(self, committed: Committed, limit: int) -> Tensor:
        """An empty draft."""
        return committed.tokens.new_empty(0)
