"""Pairs of options, where one mechanism reads both and every pair would prove it again."""

from collections.abc import Iterable
from typing import Any

import pytest


def pairs(rows: Iterable[Any], columns: Iterable[Any], every: int = 2, start: int = 0) -> list[Any]:
    """All rows with all columns; only every second one (or `every`) in turn is tested always.

    Each row then stands with some columns and each column with some rows; the others are long. A
    row may be a tuple of several arguments.
    """
    columns = list(columns)
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)),
            column,
            marks=[] if (number + place) % every == start else pytest.mark.long,
        )
        for number, row in enumerate(rows)
        for place, column in enumerate(columns)
    ]
