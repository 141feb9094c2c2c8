"""Result files: typed tables, and where their numbers come from. Read without torch."""

from foretell.results import benchmarks, tables
from foretell.results.files import Result, is_result, read_result, write_result
from foretell.results.rows import TABLES, Row, of_model, select

__all__ = [
    "TABLES",
    "Result",
    "Row",
    "benchmarks",
    "is_result",
    "of_model",
    "read_result",
    "select",
    "tables",
    "write_result",
]
