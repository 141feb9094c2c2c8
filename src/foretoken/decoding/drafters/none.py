"""No drafter: with it the loop is plain decoding."""

from collections.abc import Sequence

from foretoken.decoding.cache import Past
from foretoken.decoding.draft import Draft
from foretoken.decoding.drafters.base import Committed
from foretoken.decoding.sampling import Sampler


class NoDrafter:
    """Proposes nothing."""

    layers: tuple[int, ...] = ()
    longest = 0

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        """There is nothing to forget."""

    def draft(self, committed: Committed, limit: int) -> Draft:
        """An empty draft."""
        return Draft.nothing(len(committed.last), committed.last.device)

    def select(self, places: Sequence[int]) -> None:
        """There is nothing to select from."""
