"""Result files as tables: every row, every field that any row of its table has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from foretell.formatting import NONE, text, title
from foretell.report.sources import Source
from foretell.results import Row
from foretell.results.rows import Scalar
from foretell.tally import Estimate

FOLDED = 24
"""Rows from which on a table is folded away."""

Value = Scalar | Estimate
UNKNOWN = (None, Estimate())


@dataclass(frozen=True)
class Table:
    """Text to be shown as a table.

    Attributes:
        name: its place in the page.
        title: what it is.
        header: names of columns.
        numeric: which columns hold numbers.
        cells: rows.
        folded: whether it is long.
    """

    name: str
    title: str
    header: Sequence[str]
    numeric: Sequence[bool]
    cells: Sequence[Sequence[str]]
    folded: bool


def tables_of(source: Source, place: int) -> list[Table]:
    """The tables of one result file; `place` is its number in the report."""
    return [
        _table(f"table-{place}-{number}", f"{source.result.command}: {rows[0].title}", rows)
        for number, rows in enumerate(source.result.tables, start=1)
    ]


def _table(name: str, heading: str, rows: Sequence[Row]) -> Table:
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(rows[0])}
    known = {
        field: values
        for field, values in columns.items()
        if any(value not in UNKNOWN for value in values)
    }
    return Table(
        name,
        heading,
        [title(field) for field in known],
        [_is_numeric(values) for values in known.values()],
        [
            [_cell(field, value) for field, value in zip(known, values, strict=True)]
            for values in zip(*known.values(), strict=True)
        ],
        len(rows) > FOLDED,
    )


def _is_numeric(values: Sequence[Value]) -> bool:
    return not any(isinstance(value, str | bool) for value in values)


def _cell(field: str, value: Value) -> str:
    """A value; of an estimate its confidence interval and the bounds on what is known in part."""
    if not isinstance(value, Estimate):
        return text(field, value)
    shown = text(field, value.value)
    if value.low is not None and value.high is not None:
        shown += f" ({_range(field, value.low, value.high)})"
    if value.min is not None and value.max is not None:
        bounds = _range(field, value.min, value.max)
        shown = bounds if shown == NONE else f"{shown} [{bounds}]"
    return shown


def _range(field: str, low: float, high: float) -> str:
    first, last = text(field, low), text(field, high)
    unit = " %" if first.endswith(" %") else "×" if first.endswith("×") else ""
    return f"{first.removesuffix(unit)} to {last}"
