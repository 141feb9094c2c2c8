"""The files that keep numbers and where they come from together.

A *result file* is one JSON object:

    {
      "command":    which command made it, as "bench"
      "provenance": command line, versions, git sha, device, dtype, seed, time
      "settings":   what the numbers depend on; free in form
      "rows":       a list of flat records, each of which names its `table`
    }
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn, TextIO

import numpy as np

from foretell.errors import InputError
from foretell.files import local_path, replace_file
from foretell.results.rows import Kind, Row, parse_row, select

_PARTS = ("command", "provenance", "settings", "rows")


@dataclass(frozen=True, slots=True)
class Result:
    """A result file as read back."""

    command: str
    provenance: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]

    def table(self, kind: type[Kind]) -> list[Kind]:
        """The rows of one table, in order."""
        return select(self.rows, kind)

    @property
    def tables(self) -> list[list[Row]]:
        """All its rows, table by table."""
        kinds = dict.fromkeys(map(type, self.rows))
        return [[row for row in self.rows if type(row) is kind] for kind in kinds]


def write_result(
    path: str | Path | TextIO,
    command: str,
    settings: Mapping[str, Any],
    rows: Iterable[Row],
    provenance: Mapping[str, Any],
) -> None:
    """Write a result file, all of it or nothing: `path` is replaced when the new file is complete.

    `path` may be an open file too, such as standard output. Folders that lack are made.

    Numbers that are not finite become null, numpy's become Python's, and paths text.

    Raises:
        InputError: a value of a row is not of its field's type, something is not JSON, or `path`
            cannot be written or is another file than a result.
    """
    records = [_record(row, f"row {number}") for number, row in enumerate(rows, start=1)]
    result = {
        "command": command,
        "provenance": _plain(provenance, "provenance"),
        "settings": _plain(settings, "settings"),
        "rows": records,
    }
    text = json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if isinstance(path, str | Path):
        replace_file(Path(path), text.encode("utf-8"), "result file", is_result)
    else:
        path.write(text)


def read_result(path: str | Path) -> Result:
    """Read a result file and check that it is one.

    Raises:
        InputError: it does not exist, is not JSON, lacks a part, or has a row that is of no known
            table or does not fit it.
    """
    path = local_path(path)
    try:
        content = _parsed(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such result file; check the path") from None
    except OSError as error:
        raise InputError(f"cannot read the result file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise InputError(f"{path} is not a result file: {error}") from None
    if not isinstance(content, dict) or set(content) != set(_PARTS):
        raise InputError(
            f"{path} is not a result file: expected an object of {', '.join(_PARTS)}; "
            "write one with --json"
        )
    for name, kind in zip(_PARTS, (str, dict, dict, list), strict=True):
        if not isinstance(content[name], kind):
            raise InputError(f"{path} is not a result file: {name!r} is not a {kind.__name__}")
    rows = [
        parse_row(row, f"{path}, row {number}")
        for number, row in enumerate(content["rows"], start=1)
    ]
    return Result(content["command"], content["provenance"], content["settings"], rows)


def is_result(content: bytes) -> bool:
    """Whether a file with this content is a result file."""
    try:
        return set(_parsed(content)) == set(_PARTS)
    except (ValueError, RecursionError, TypeError):
        return False


def _parsed(content: bytes) -> Any:
    return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; an unknown number is written null")


def _record(row: Row, where: str) -> dict[str, Any]:
    """`row` in plain types, of which can be read what was written."""
    if not isinstance(row, Row):
        raise InputError(f"{where} is a {type(row).__name__} and no row of a table")
    record: dict[str, Any] = _plain(row.flat(), where)
    parse_row(record, where)
    return record


def _plain(value: Any, where: str) -> Any:
    """Return `value` in the types of JSON, null for numbers that are not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"{where}: the name {wrong[0]!r} must be a string")
        return {key: _plain(item, f"{where}, {key!r}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise InputError(f"{where}: a {type(value).__name__} cannot be written as JSON")
