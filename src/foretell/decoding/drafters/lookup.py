"""Drafting from the text itself: what followed the last words where they stood before.

Saxena 2023, "Prompt lookup decoding"; transformers has it as `prompt_lookup_num_tokens`.

Shapes: B rows, S tokens kept per row.
"""

from collections.abc import Sequence

from torch import Tensor

from foretell.backbone import Backbone
from foretell.decoding.cache import Past
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import DRAFT_LENGTH, Committed, Drafter, require_chains
from foretell.decoding.sampling import Sampler
from foretell.decoding.transfer import to_device
from foretell.decoding.tree import TreeShape
from foretell.errors import InputError
from foretell.heads import Head

MATCH = 3
"""Tokens that have to be the same before what follows them is copied, if that many are anywhere."""


class LookupDrafter(Drafter, name="lookup"):
    """Copies the tokens after the latest earlier place that ends with the same tokens.

    Args:
        length: tokens per draft.
        match: how many last tokens must be the same; if nowhere, fewer are tried, down to one.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, length: int = DRAFT_LENGTH, match: int = MATCH) -> None:
        if min(length, match) < 1:
            raise InputError("prompt lookup drafts at least 1 token, after at least 1 that match.")
        self.length, self.match = length, match

    @classmethod
    def make(
        cls, backbone: Backbone, head: Head | None, length: int | None, shape: TreeShape | None
    ) -> "LookupDrafter":
        require_chains("lookup", shape)
        return cls(DRAFT_LENGTH if length is None else length)

    @property
    def longest(self) -> int:
        return self.length

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        """There is nothing to forget: the text is all it reads."""

    def draft(self, committed: Committed, limit: int) -> Draft:
        length = min(self.length, limit)
        found = [
            self.continuation(row[:count], length)
            for row, count in zip(committed.tokens, committed.lengths, strict=True)
        ]
        counts = [len(copied) for copied in found]
        tokens = committed.tokens.new_zeros(len(found), max(counts))
        for row, copied in zip(tokens, found, strict=True):
            row[: len(copied)] = copied
        if min(counts) == max(counts):
            return Draft(tokens)
        return Draft(tokens, reach=to_device(counts, tokens.device))

    def select(self, places: Sequence[int]) -> None:
        """The text is all it reads."""

    def continuation(self, tokens: Tensor, length: int) -> Tensor:
        """What is copied after `tokens` (S,): at most `length` tokens, none without a match."""
        for size in range(min(self.match, len(tokens) - 1), 0, -1):
            places = tokens[:-1].unfold(0, size, 1)  # every stretch that something follows
            same = (places == tokens[-size:]).all(1).nonzero()
            if len(same):
                after = int(same[-1]) + size
                return tokens[after : after + max(0, length)]
        return tokens[:0]
