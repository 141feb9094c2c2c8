"""No drafter: with it the loop is plain decoding."""

from collections.abc import Sequence

from foretell.backbone import Backbone
from foretell.decoding.cache import Past
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import Committed, Drafter, require_chains
from foretell.decoding.sampling import Sampler
from foretell.decoding.tree import TreeShape
from foretell.errors import InputError
from foretell.heads import Head


class NoDrafter(Drafter, name="none"):
    """Proposes nothing."""

    layers: tuple[int, ...] = ()
    longest = 0

    @classmethod
    def make(
        cls, backbone: Backbone, head: Head | None, length: int | None, shape: TreeShape | None
    ) -> "NoDrafter":
        require_chains("none", shape)
        if length is not None:
            raise InputError("without a drafter there is no draft; leave out the draft length.")
        return cls()

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        """There is nothing to forget."""

    def draft(self, committed: Committed, limit: int) -> Draft:
        """An empty draft."""
        return Draft.nothing(len(committed.last), committed.last.device)

    def select(self, places: Sequence[int]) -> None:
        """There is nothing to select from."""
