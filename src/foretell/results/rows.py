"""What the rows of result files have in common: a table is one frozen dataclass.

    @dataclass(frozen=True, kw_only=True)
    class StepPart(Row, table="step-time", title="by part of a step"):
        part: str
        seconds: float

That is all it takes to write such rows, to read them back, and to ask for them:
`result.table(StepPart)`. In a file a row is one flat JSON object: `table` names its type, the rest
are its fields. An `Estimate` named `x` stands there as `x`, with `x_low` and `x_high` for its
interval and `x_min` and `x_max` for its bounds. What is not known is left out, or null.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import NoneType
from typing import Any, ClassVar, TypeAlias, TypeVar, get_args, get_type_hints

from foretell.errors import InputError
from foretell.tally import Estimate

Scalar: TypeAlias = str | int | float | bool | None

ENDS = {"value": "", "low": "_low", "high": "_high", "min": "_min", "max": "_max"}
"""How the parts of an estimate are called in a file, after the name of its field."""
AGAIN = "another version of foretell wrote it; make it again with --json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table, which is its type.

    Fields are `str`, `int`, `float`, `bool`, a union of these and None, or an `Estimate`.

    Attributes:
        table: the table's name in files.
        title: its heading in reports.
        model: as the user named it; None where the rows are of no one model.
    """

    table: ClassVar[str]
    title: ClassVar[str]

    model: str | None = None

    def __init_subclass__(cls, *, table: str, title: str | None = None) -> None:
        super().__init_subclass__()
        other = TABLES.get(table)
        if other is not None and other.__qualname__ != cls.__qualname__:
            raise TypeError(
                f"the table {table!r} is one of {other.__qualname__}; name it otherwise."
            )
        cls.table, cls.title = table, title or table
        TABLES[table] = cls

    def flat(self) -> dict[str, Any]:
        """As it stands in a file."""
        record: dict[str, Any] = {"table": self.table}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Estimate):
                ends = {field.name + end: getattr(value, part) for part, end in ENDS.items()}
            else:
                ends = {field.name: value}
            record |= {name: known for name, known in ends.items() if known is not None}
        return record


TABLES: dict[str, type[Row]] = {}
"""The types of rows, by the name of their table."""

Kind = TypeVar("Kind", bound=Row)


def select(rows: Iterable[Row], kind: type[Kind]) -> list[Kind]:
    """The rows of one table, in order; a type that extends it is a table of its own."""
    return [row for row in rows if type(row) is kind]


def of_model(name: str, rows: Iterable[Kind]) -> list[Kind]:
    """The same rows, which say whose they are."""
    return [replace(row, model=name) for row in rows]


def parse_row(record: object, where: str) -> Row:
    """The row that stands in a file as `record`, see `Row.flat`.

    Args:
        record: what was read.
        where: it stands, for messages.

    Raises:
        InputError: it is of no known table, lacks a field or has one more, or a value is of another
            type than its field.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where} is not a record of fields")
    left = dict(record)
    name = left.pop("table", None)
    kind = TABLES.get(name) if isinstance(name, str) else None
    if kind is None:
        which = "names no table" if name is None else f"is of the unknown table {name!r}"
        raise InputError(f"{where} {which}: {AGAIN}")
    where = f"{where} of the table {name!r}"
    values: dict[str, Any] = {}
    for field, hint in _types(kind).items():
        if hint is Estimate:
            ends = {part: left.pop(field + end, None) for part, end in ENDS.items()}
            known = {part: _fitting(end, float | None, field, where) for part, end in ends.items()}
            values[field] = Estimate(**known)
        elif field in left:
            values[field] = _fitting(left.pop(field), hint, field, where)
    if left:
        raise InputError(f"{where} has the unknown field {min(left)!r}: {AGAIN}")
    if lacking := _required(kind) - values.keys():
        raise InputError(f"{where} lacks the field {min(lacking)!r}: {AGAIN}")
    return kind(**values)


def _types(kind: type[Row]) -> dict[str, Any]:
    """The types of its fields, by name."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _required(kind: type[Row]) -> set[str]:
    return {
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }


def _fitting(value: object, hint: Any, field: str, where: str) -> Any:
    """`value`, if it is of the type that its field has."""
    kinds = get_args(hint) or (hint,)
    if type(value) in kinds or (type(value) is int and float in kinds):
        return value
    if value is None and float in kinds:
        return math.nan  # which JSON does not have
    wanted = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
    raise InputError(f"{where}, field {field!r}, is {value!r} in place of {wanted}")
