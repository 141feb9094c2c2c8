"""Which rows belong to which chart, told by the fields that they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foretell.provenance import Row
from foretell.report.sources import Source

PARTS = ("layer", "token_class", "document_kind", "rule", "bin")
"""What tells rows of one method and depth apart; rows of the whole have none of these."""

UNSAID = frozenset({"parallel", "sequential", "residual"})
"""Kinds of heads whose results may be from before rows said what drafts."""


def number(row: Row, field: str) -> float | None:
    """A field as a number; None where it is missing or none."""
    value = row.get(field)
    return float(value) if isinstance(value, int | float) else None


def table(source: Source, name: str) -> list[Row]:
    """The rows of one of the tables of a command that has several."""
    return [row for row in source.rows if row.get("table") == name]


def by_depth(source: Source) -> list[Row]:
    """Teacher-forced results of whole methods by depth, as probe and eval write them."""
    if source.result.command == "recipes":  # too many lines: they have a chart of their own
        return []
    return teacher_forced(source)


def teacher_forced(source: Source) -> list[Row]:
    """The same of every command."""
    return [
        row
        for row in source.rows
        if number(row, "depth") is not None
        and number(row, "top1") is not None
        and not any(row.get(part) is not None for part in PARTS)
    ]


def while_decoding(source: Source) -> list[Row]:
    """Of the steps that reached a depth, the share that accepted it: what bench writes."""
    return [
        row
        for row in source.rows
        if row.keys() <= {"model", "method", "depth", "acceptance", "table"}
        and number(row, "acceptance") is not None
        and number(row, "depth") is not None
    ]


def reached_by_length(rows: Iterable[Row], *, chained: bool) -> list[float]:
    """Tokens per forward of drafts of 0, 1, 2, … tokens: 1 + Σ of what is accepted at each depth.

    Args:
        rows: of one method, with the acceptance of each depth.
        chained: shares are of the steps that reached a depth, as `while_decoding` has them.
    """
    shares = {int(number(row, "depth") or 0): number(row, "acceptance") or 0.0 for row in rows}
    values, stands = [1.0], 1.0
    for depth in range(1, max(shares, default=0) + 1):
        share = shares.get(depth, 0.0)
        stands = stands * share if chained else share
        values.append(values[-1] + stands)
    return values


def speeds(source: Source) -> list[Row]:
    """One row per decoding method."""
    return [
        row
        for row in source.rows
        if None not in (number(row, "speedup"), number(row, "tokens_per_second"))
        and row.get("method") is not None
    ]


def of_heads(row: Row, source: Source) -> bool:
    """Whether a row is about heads: what `eval` measures by depth, or a method that drafts so."""
    if row.get("head") or (source.result.command, row.get("table")) == ("eval", "depths"):
        return True
    method = str(row.get("method"))
    if method in source.drafters:
        return source.drafters[method] == "heads"
    return method.split("-")[0] in UNSAID


def groups(
    rows: Iterable[Row], fields: Sequence[str] = ("model", "method")
) -> dict[tuple[str, ...], list[Row]]:
    """Rows that agree in some fields, by these."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(str(row.get(field) or "") for field in fields)
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
