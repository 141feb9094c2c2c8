"""What follows the last few tokens, however far ahead, in a text that was read before.

An n-gram model per depth: the tokens k + 1 places after every earlier place that ends with the
same tokens, smoothed with those after shorter endings (Witten and Bell 1991, "The zero-frequency
problem"; interpolated as in Chen and Goodman 1999, section 2.4):

    q_n(v) = (c(v) + d · q_{n-1}(v)) / (c + d)

where c counts what follows the last n tokens, d how many different tokens do, and q_{-1} = 1 / V.

Shapes: V vocabulary.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from foretell.errors import InputError

LONGEST = 3
"""Tokens that have to be the same, at most."""


class NGram:
    """Counts by ending, looked up in sorted lists of places.

    Args:
        documents: their token ids.
        vocab_size: V.
        depth: the deepest depth K that is asked for.
    """

    def __init__(self, documents: Iterable[NDArray[np.int32]], vocab_size: int, depth: int) -> None:
        gap = np.full(depth + 1, -1, np.int64)  # nothing is predicted across it
        parts = [part for document in documents for part in (document.astype(np.int64), gap)]
        if not parts:
            raise InputError("there is no text to count: give some to learn from.")
        self.text, self.vocab_size = np.concatenate(parts), vocab_size
        self._places: list[NDArray[np.int64]] = []
        self._keys: list[NDArray[np.int64]] = []
        self._all = np.bincount(self.text[self.text >= 0], minlength=vocab_size).astype(np.float64)
        keys, whole = np.zeros_like(self.text), np.ones(len(self.text), bool)
        for back in range(LONGEST):
            token = np.concatenate([np.full(back, -1), self.text[: len(self.text) - back]])
            keys, whole = keys + token * vocab_size**back, whole & (token >= 0)
            places = whole.nonzero()[0]
            order = np.argsort(keys[places], kind="stable")
            self._places.append(places[order])
            self._keys.append(keys[places][order])

    def distribution(self, tokens: NDArray[np.int64], depth: int) -> NDArray[np.float64]:
        """Of the token that comes `depth` + 1 places after the last of `tokens`: (V,)."""
        found = np.full(self.vocab_size, 1 / self.vocab_size)
        for length in range(min(LONGEST, len(tokens)) + 1):
            counts = self._counts(tokens[len(tokens) - length :], depth + 1)
            different = np.count_nonzero(counts)
            if different:
                found = (counts + different * found) / (counts.sum() + different)
        return found

    def _counts(self, ending: NDArray[np.int64], distance: int) -> NDArray[np.float64]:
        """How often each token comes `distance` places after `ending`: (V,)."""
        if not len(ending):
            return self._all
        key = sum(int(t) * self.vocab_size**back for back, t in enumerate(ending[::-1]))
        keys, places = self._keys[len(ending) - 1], self._places[len(ending) - 1]
        first, last = np.searchsorted(keys, [key, key + 1])
        ahead = places[first:last] + distance
        following = self.text[ahead[ahead < len(self.text)]]
        return np.bincount(following[following >= 0], minlength=self.vocab_size).astype(np.float64)
