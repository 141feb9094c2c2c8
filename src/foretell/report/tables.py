"""Result files as tables: every row, every field that any row of its table has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretell.formatting import NONE, text, title
from foretell.provenance import FIELDS, Row
from foretell.report.sources import Source

FOLDED = 24
"""Rows from which on a table is folded away."""
ENDINGS = ("_low", "_high", "_min", "_max")
TITLES = {
    "depths": "By depth",
    "token-classes": "By class of token",
    "document-kinds": "By kind of document",
    "expected": "Tokens per forward to expect, by draft length",
    "layers": "By layer and depth",
    "drift": "From layer to layer",
    "costs": "Cost of a pass",
    "prediction": "Predicted",
    "rules": "What each acceptance rule would accept",
    "calibration": "Calibration of the head's confidence",
    "quality": "Next-token quality",
    "difference": "Difference in next-token quality",
    "baselines": "Baselines, from the probe",
    "lm-eval": "lm-eval",
}


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
    parts: dict[object, list[Row]] = {}
    for row in source.rows:
        parts.setdefault(row.get("table") or _kind(row), []).append(row)
    return [
        _table(f"table-{place}-{number}", _title(source, key), rows)
        for number, (key, rows) in enumerate(parts.items(), start=1)
    ]


def _kind(row: Row) -> str:
    """What tells tables apart where rows do not say: speeds of methods, or their depths."""
    return "by method and depth" if row.get("depth") is not None else "by method"


def _title(source: Source, key: object) -> str:
    return f"{source.result.command}: {TITLES.get(str(key), key)}"


def _table(name: str, heading: str, rows: Sequence[Row]) -> Table:
    present = {field for row in rows for field, value in row.items() if value is not None}
    main = {_stem(field) for field in present}
    fields = [field for field in FIELDS if field in main and field != "table"]
    if not any(field != "model" for field in fields):  # nothing but empty rows
        fields = [field for field in FIELDS if any(field in row for row in rows)]
    return Table(
        name,
        heading,
        [title(field) for field in fields],
        [_is_numeric(field, rows) for field in fields],
        [[_cell(field, row) for field in fields] for row in rows],
        len(rows) > FOLDED,
    )


def _stem(field: str) -> str:
    """The quantity that an end of an interval belongs to."""
    ending = next((e for e in ENDINGS if field.endswith(e) and field[: -len(e)] in FIELDS), "")
    return field.removesuffix(ending)


def _is_numeric(field: str, rows: Sequence[Row]) -> bool:
    values = [row.get(name) for name in (field, f"{field}_max") for row in rows]
    known = [value for value in values if value is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def _cell(field: str, row: Row) -> str:
    """A value, its confidence interval, and the bounds on what is known in part."""
    value = text(field, row.get(field))
    low, high = row.get(f"{field}_low"), row.get(f"{field}_high")
    least, most = row.get(f"{field}_min"), row.get(f"{field}_max")
    if low is not None and high is not None:
        value += f" ({_range(field, low, high)})"
    if least is not None and most is not None:
        bounds = _range(field, least, most)
        value = bounds if value == NONE else f"{value} [{bounds}]"
    return value


def _range(field: str, low: object, high: object) -> str:
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    first, last = text(field, low), text(field, high)
    unit = " %" if first.endswith(" %") else "×" if first.endswith("×") else ""
    return f"{first.removesuffix(unit)} to {last}"
