"""No drafter: with it the loop is plain decoding."""

from collections.abc import Sequence

from foretell.decoding.cache import Past
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import Committed, Drafter
from foretell.decoding.sampling import Sampler


class NoDrafter(Drafter):
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
