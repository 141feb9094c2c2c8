"""What was measured as rows of result files: by method and depth, and by part of the text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foretell.results.tables import Expected, ScoredByClass, ScoredByDepth, ScoredByKind
from foretell.tally import Estimate, Means, Tally, estimate

EXPECTED = (
    ("exact", "text", "acceptance"),
    ("exact", "own", "own_acceptance"),
    ("speculative", "text", "speculative"),
    ("speculative", "own", "own_speculative"),
)
"""Rule, after what is drafted, and the share of steps that accept this many tokens."""
BY_PART = ("top1", "top5", "nll", "agreement")
"""What is told of parts of the positions."""
PARTS: dict[str, type[ScoredByClass | ScoredByKind]] = {
    "token_class": ScoredByClass,
    "document_kind": ScoredByKind,
}
"""The tables of parts, by what tells these apart."""


def depth_rows(tally: Tally) -> list[ScoredByDepth]:
    """Everything, by method and depth."""
    rows = []
    for method, depth in _cells(tally):
        count = tally.count("top1", method=method, depth=depth)
        known = tally.estimates(method=method, depth=depth)
        rows.append(ScoredByDepth(method=method, depth=depth, positions=count, **known))
    return rows


def part_rows(tally: Tally, axis: str) -> Sequence[ScoredByDepth]:
    """By `token_class` or `document_kind`; nothing where all positions are of one."""
    parts = sorted(map(str, tally.keys(axis)))
    if len(parts) < 2:
        return []
    rows = []
    for method, depth in _cells(tally):
        for part in parts:
            where: dict[str, Any] = {"method": method, "depth": depth, axis: part}
            if count := tally.count("top1", **where):
                known: dict[str, Any] = {
                    name: estimate(tally.means(name, **where))
                    for name in BY_PART
                    if tally.count(name, **where)
                }
                rows.append(PARTS[axis](**where, positions=count, **known))
    return rows


def expected_rows(tally: Tally) -> list[Expected]:
    """1 + Σ_{k≤g} of what is accepted at depth k, by method, rule and draft length g."""
    rows = []
    for method, depth in _cells(tally):
        for rule, behind, name in EXPECTED if depth else ():
            found = _expected(tally, name, method, depth)
            if found != Estimate():
                rows.append(
                    Expected(
                        method=method,
                        depth=depth,
                        rule=rule,
                        behind=behind,
                        tokens_per_forward=found,
                    )
                )
    return rows


def _expected(tally: Tally, name: str, method: str, depth: int) -> Estimate:
    """The mean with its interval, and bounds where only a part is known."""

    def total(end: str) -> Means | None:
        means = [tally.means(name + end, method=method, depth=k) for k in range(1, depth + 1)]
        known = tally.count(name + end, method=method, depth=depth)
        return np.asarray(1.0 + np.sum(means, axis=0)) if known else None

    mean, least, most = map(total, ("", "_min", "_max"))
    return replace(
        Estimate() if mean is None else estimate(mean),
        min=None if least is None else float(least[0]),
        max=None if most is None else float(most[0]),
    )


def _cells(tally: Tally) -> list[tuple[str, int]]:
    """Methods and depths that were measured."""
    return [
        (str(method), depth)
        for method in tally.keys("method")
        for depth in sorted(map(int, tally.keys("depth")))
        if tally.names(method=method, depth=depth)
    ]
