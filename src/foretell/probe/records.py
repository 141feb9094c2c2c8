"""What was measured as the flat records of result files, told apart by `table`.

depths          by method and depth
token-classes   by method, depth and class of the predicted token
document-kinds  by method, depth and kind of document, where there are several
expected        tokens per forward by method, rule and draft length
"""

from typing import Any

import numpy as np

from foretell.tally import Means, Tally, estimate

Where = dict[str, str | int]
EXPECTED = (
    ("exact", "text", "acceptance"),
    ("exact", "own", "own_acceptance"),
    ("speculative", "text", "speculative"),
    ("speculative", "own", "own_speculative"),
)
"""Rule, behind what is drafted, and the share of steps that accept so many tokens."""
BY_PART = ("top1", "top5", "nll", "agreement")
"""What is told of parts of the positions."""


def depth_records(tally: Tally) -> list[dict[str, Any]]:
    """Everything, by method and depth."""
    return [
        {"table": "depths", **where, "positions": tally.count("top1", **where)}
        | tally.estimates(**where)
        for where in _cells(tally)
    ]


def part_records(tally: Tally, axis: str) -> list[dict[str, Any]]:
    """By `token_class` or `document_kind`; nothing where all positions are of one."""
    parts = sorted(map(str, tally.keys(axis)))
    rows: list[dict[str, Any]] = []
    if len(parts) < 2:
        return rows
    table = {"token_class": "token-classes", "document_kind": "document-kinds"}[axis]
    for where in _cells(tally):
        for part in parts:
            inside = {**where, axis: part}
            if count := tally.count("top1", **inside):
                row: dict[str, Any] = {"table": table, **inside, "positions": count}
                for name in (name for name in BY_PART if tally.count(name, **inside)):
                    row |= estimate(name, tally.means(name, **inside))
                rows.append(row)
    return rows


def expected_records(tally: Tally) -> list[dict[str, Any]]:
    """1 + Σ_{k≤g} of what is accepted at depth k, by method, rule and draft length g."""
    rows = []
    for where in (where for where in _cells(tally) if where["depth"]):
        for rule, behind, name in EXPECTED:
            if row := _expected(tally, where, name):
                rows.append({"table": "expected", **where, "rule": rule, "behind": behind, **row})
    return rows


def _expected(tally: Tally, where: Where, name: str) -> dict[str, Any]:
    """The mean with its interval, and bounds where only a part is known."""
    row: dict[str, Any] = {}
    for ending in ("", "_min", "_max"):
        if tally.count(name + ending, **where):
            means = _sum(tally, name + ending, where)
            found = estimate("tokens_per_forward", means)
            bound = {f"tokens_per_forward{ending}": found["tokens_per_forward"]}
            row |= bound if ending else found
    return row


def _sum(tally: Tally, name: str, where: Where) -> Means:
    depths = range(1, int(where["depth"]) + 1)
    means = [tally.means(name, **{**where, "depth": depth}) for depth in depths]
    return np.asarray(1.0 + np.sum(means, axis=0))


def _cells(tally: Tally) -> list[Where]:
    """Methods and depths that were measured."""
    cells: list[Where] = [
        {"method": method, "depth": depth}
        for method in tally.keys("method")
        for depth in sorted(map(int, tally.keys("depth")))
    ]
    return [where for where in cells if tally.names(**where)]
