"""What charts and tables share: rows that belong together, and what to call them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foretell.report.sources import Source
from foretell.results.benchmarks import Recipe
from foretell.results.rows import Kind
from foretell.results.tables import AcceptedByDepth, Baseline, ScoredByDepth

ByDepth = ScoredByDepth | AcceptedByDepth
"""What tells how many drafted tokens of a depth stand: on held-out text, or while decoding."""

UNSAID = frozenset({"parallel", "sequential", "residual"})
"""Kinds of heads whose scores may be from before rows said that they are of heads."""


def by_depth(source: Source) -> list[ScoredByDepth]:
    """What methods predict of held-out text; recipes are too many and have their own chart."""
    return [*source.table(ScoredByDepth), *source.table(Baseline)]


def of_heads(source: Source) -> list[ScoredByDepth]:
    """What heads predict of held-out text, those of recipes too."""
    rows = [*source.table(ScoredByDepth), *source.table(Recipe)]
    return [row for row in rows if row.head or row.method in UNSAID]


def accepted(source: Source) -> list[ByDepth]:
    """All rows in which acceptance is known."""
    rows: list[ByDepth] = [*by_depth(source), *source.table(AcceptedByDepth)]
    return [row for row in rows if row.acceptance.value is not None]


def reached_by_length(rows: Iterable[ByDepth], *, chained: bool) -> list[float]:
    """Tokens per forward of drafts of 0, 1, 2, … tokens: 1 + Σ of what is accepted at each depth.

    Args:
        rows: of one method.
        chained: shares are of the steps that reached a depth, as `AcceptedByDepth` has them.
    """
    shares = {row.depth: row.acceptance.value or 0.0 for row in rows}
    values, stands = [1.0], 1.0
    for depth in range(1, max(shares, default=0) + 1):
        share = shares.get(depth, 0.0)
        stands = stands * share if chained else share
        values.append(values[-1] + stands)
    return values


def groups(
    rows: Iterable[Kind], fields: Sequence[str] = ("model", "method")
) -> dict[tuple[str, ...], list[Kind]]:
    """Rows that agree in some fields, by these."""
    found: dict[tuple[str, ...], list[Kind]] = {}
    for row in rows:
        key = tuple(str(getattr(row, field) or "") for field in fields)
        found.setdefault(key, []).append(row)
    return found


def names(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """What to call (model, method): the model is named only where there are several."""
    keys = list(keys)
    several = len({model for model, *_ in keys}) > 1
    return {
        key: ", ".join(part for part in (key if several else key[1:]) if part) or "all"
        for key in keys
    }


def described(source: Source) -> str:
    """What was measured: the file, the data, and how many positions or prompts."""
    settings = source.result.settings
    data = settings.get("data") or settings.get("prompts")
    return f"{source.name}{f' ({data})' if isinstance(data, str) else ''}"
