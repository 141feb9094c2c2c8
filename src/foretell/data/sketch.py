"""Which documents a corpus holds, in a few kilobytes.

A bottom-k sketch (Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"): the smallest
hashes of all documents. Of two corpora it tells how many of the documents of one are in the other,
wherever they lie and whatever the files are called. It grows no further than `SIZE` hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from foretell.data.records import Document
from foretell.errors import CheckpointError

SIZE = 256
"""Hashes that are kept: enough to tell a share to a few per cent."""
FEWEST = 8
"""Documents of a sample that tell a share at all."""


def digest_of(document: Document) -> int:
    """64 bits of a hash of what it says, wherever it stands."""
    return int.from_bytes(sha256(document.content.encode()).digest()[:8])


class Sketch:
    """Of documents, by their digests; more can be added.

    Args:
        digests: of the documents, see `digest_of`.
        bound: only digests below it are known; None: all are.
    """

    def __init__(self, digests: Iterable[int] = (), bound: int | None = None) -> None:
        self.bound = bound
        self._known: set[int] = set()
        self.add(digests)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, digests: Iterable[int]) -> None:
        """Take further documents in."""
        self._known.update(d for d in digests if self.bound is None or d < self.bound)
        if len(self._known) > SIZE:
            *kept, self.bound = sorted(self._known)[: SIZE + 1]
            self._known = set(kept)

    def __or__(self, other: Sketch) -> Sketch:
        """Of the documents of both."""
        bounds = [bound for bound in (self.bound, other.bound) if bound is not None]
        return Sketch(self._known | other._known, min(bounds, default=None))

    def share_in(self, other: Sketch) -> float | None:
        """The share of these documents that are in `other`, 0…1, from those that both know.

        None where nothing can be said, or where chance would say it.
        """
        bounds = [bound for bound in (self.bound, other.bound) if bound is not None]
        mine = {d for d in self._known if not bounds or d < min(bounds)}
        if not mine or not other._known or (bounds and len(mine) < FEWEST):
            return None
        return len(mine & other._known) / len(mine)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be kept with a model."""
        digests = " ".join(f"{digest:016x}" for digest in sorted(self._known))
        return {"digests": digests, "bound": None if self.bound is None else f"{self.bound:016x}"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sketch:
        """The inverse of `to_dict`; of no values an empty one.

        Raises:
            CheckpointError: they are not such values.
        """
        try:
            digests = [int(digest, 16) for digest in values.get("digests", "").split()]
            bound = values.get("bound")
            return cls(digests, None if bound is None else int(bound, 16))
        except (AttributeError, TypeError, ValueError):
            raise CheckpointError(
                "trained_on, in the config of the heads, does not say what they were trained on; "
                "save them again, or take it out of that file."
            ) from None
