"""Means over positions, with confidence intervals over documents.

Positions of one document are alike, so that treating them as independent would make intervals far
too narrow. A `Tally` therefore keeps sums by document, and draws documents with replacement (Efron
1979, "Bootstrap methods: another look at the jackknife"; for texts: Koehn 2004). Every mean comes
as one number per draw, the first being the mean itself, so that anything computed from means (a
sum, a ratio, the difference of two models on the same documents) has an interval too.

Shapes: N positions, G groups of documents, R draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

GROUPS = 1000
"""Documents are drawn in at most this many groups, which bounds memory for any corpus."""
DRAWS = 1000
CONFIDENCE = 0.95

Key: TypeAlias = tuple[str | int, ...]
Means: TypeAlias = NDArray[np.float64]
"""(1 + R,): the mean, then the mean of every draw."""


@dataclass(frozen=True)
class Estimate:
    """A figure and how well it is known; None, or not a number, where it is not.

    Attributes:
        value: the mean.
        low: lower end of its confidence interval over documents.
        high: upper end.
        min: what it is at least, where only a part of it is known.
        max: what it is at most.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    min: float | None = None
    max: float | None = None


class Tally:
    """Sums of named values, by cell and document.

    Args:
        axes: what tells cells apart, in the order of their keys.
    """

    def __init__(self, *axes: str) -> None:
        self.axes = axes
        self._sums: dict[Key, dict[int, dict[str, NDArray[np.float64]]]] = {}

    def add(
        self,
        key: Key,
        documents: ArrayLike,
        values: Mapping[str, ArrayLike],
        labels: Sequence[str | int] | None = None,
    ) -> None:
        """Count N positions.

        Args:
            key: of their cell, without the last axis where `labels` are given.
            documents: (N,), the number of each position's document.
            values: (N,) each; what is not a number does not count.
            labels: (N,), the last part of each position's key.
        """
        groups = np.asarray(documents, np.int64) % GROUPS
        names, codes = np.unique(
            [""] * len(groups) if labels is None else labels, return_inverse=True
        )
        places, where = np.unique(groups * len(names) + codes, return_inverse=True)
        for name, column in values.items():
            numbers = np.asarray(column, np.float64)
            counted = np.isfinite(numbers)
            sums = np.bincount(where, np.where(counted, numbers, 0.0), len(places))
            counts = np.bincount(where, counted, len(places))
            for place, total, count in zip(places.tolist(), sums, counts, strict=True):
                group, code = divmod(place, len(names))
                full = key if labels is None else (*key, names[code].item())
                self._cell(full, group, name)[:] += total, count

    def _cell(self, key: Key, group: int, name: str) -> NDArray[np.float64]:
        values = self._sums.setdefault(key, {}).setdefault(group, {})
        return values.setdefault(name, np.zeros(2))

    def merge(self, records: Iterable[Sequence[Any]]) -> None:
        """Add what `records` of another tally gave."""
        for key, group, name, total, count in records:
            self._cell(tuple(key), group, name)[:] += total, count

    def records(self) -> list[list[Any]]:
        """Everything in plain types, for `merge`."""
        return [
            [list(key), group, name, *pair.tolist()]
            for key, groups in self._sums.items()
            for group, values in groups.items()
            for name, pair in values.items()
        ]

    # -- what it comes to -----------------------------------------------------------------------

    def keys(self, axis: str) -> list[str | int]:
        """The different keys along an axis, in the order in which they came."""
        place = self.axes.index(axis)
        return list(dict.fromkeys(key[place] for key in self._sums))

    def names(self, **where: str | int) -> list[str]:
        """The values that any of the cells has, in the order in which they came."""
        cells = (cell for key, cell in self._sums.items() if self._fits(key, where))
        return list(dict.fromkeys(name for c in cells for values in c.values() for name in values))

    def count(self, name: str, **where: str | int) -> int:
        """How many positions have the value."""
        return int(self._by_group(name, where)[:, 1].sum())

    def means(self, name: str, **where: str | int) -> Means:
        """Of the cells that agree with `where`; not a number where nothing was counted.

        Draws are none where a single group has the value: all would be the mean itself.
        """
        sums = self._by_group(name, where)
        totals, counts = self._weights @ sums[:, 0], self._weights @ sums[:, 1]
        found = np.full(len(totals), np.nan)
        np.divide(totals, counts, out=found, where=counts > 0)
        if np.count_nonzero(sums[:, 1]) < 2:
            found[1:] = np.nan
        return found

    def total(self, name: str, **where: str | int) -> Means:
        """Sums in place of means, of the documents drawn."""
        return np.asarray(self._weights @ self._by_group(name, where)[:, 0])

    def counts(self, name: str, **where: str | int) -> Means:
        """How many positions have the value, in the documents drawn."""
        return np.asarray(self._weights @ self._by_group(name, where)[:, 1])

    def estimates(self, **where: str | int) -> dict[str, Any]:
        """All values of the cells that agree with `where`, an `Estimate` each: fields of a row.

        `x_min` and `x_max` are the bounds of `x`, and have no interval of their own.
        """
        means = {name: self.means(name, **where) for name in self.names(**where)}
        bounds = [name for name in means if name.endswith(("_min", "_max"))]
        found = {name: estimate(means[name]) for name in means if name not in bounds}
        for name in bounds:
            base, _, end = name.rpartition("_")
            known = found.get(base, Estimate())
            found[base] = replace(known, **{end: float(means[name][0])})
        return found

    def _fits(self, key: Key, where: Mapping[str, str | int]) -> bool:
        return all(key[self.axes.index(axis)] == value for axis, value in where.items())

    def _by_group(self, name: str, where: Mapping[str, str | int]) -> NDArray[np.float64]:
        sums = np.zeros((len(self.groups), 2))
        place = {group: number for number, group in enumerate(self.groups)}
        for key, groups in self._sums.items():
            if self._fits(key, where):
                for group, values in groups.items():
                    sums[place[group]] += values.get(name, 0.0)
        return sums

    @property
    def groups(self) -> list[int]:
        """The groups of documents that were counted."""
        return sorted({group for groups in self._sums.values() for group in groups})

    @property
    def _weights(self) -> NDArray[np.int64]:
        return _weights(len(self.groups))


@lru_cache(maxsize=8)
def _weights(groups: int) -> NDArray[np.int64]:
    """(1 + R, G): how often each group counts; once each, then as drawn.

    The same for every tally of as many groups, so that differences between two are paired. There is
    nothing to draw from fewer than two: then draws are empty, and their means no numbers.
    """
    drawn = np.zeros((DRAWS, groups), np.int64)
    if groups > 1:
        drawn = np.random.default_rng(0).multinomial(groups, [1 / groups] * groups, DRAWS)
    return np.concatenate([np.ones((1, groups), np.int64), drawn])


def estimate(means: Means) -> Estimate:
    """The mean and its interval.

    With a single document there is nothing to draw, and no interval.
    """
    drawn = means[1:][np.isfinite(means[1:])]
    tail = (1 - CONFIDENCE) / 2
    low = high = None
    if len(drawn):
        low, high = np.quantile(drawn, [tail, 1 - tail]).tolist()
    return Estimate(float(means[0]), low, high)
