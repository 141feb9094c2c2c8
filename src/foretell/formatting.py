"""Numbers as text, by the field that they stand in, and plain tables of it."""

from __future__ import annotations

from collections.abc import Sequence

from foretell.results.rows import Scalar

SHARES = frozenset(
    {
        "top1", "top5", "covered_mass", "acceptance", "agreement", "speculative", "own_agreement",
        "own_acceptance", "own_speculative", "confidence", "ece", "settled", "share",
    }
)  # fmt: skip
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "nll": "nats per token",
    "identical": "identical outputs",
    "tokens_per_second": "tokens/s",
    "speedup": "speed-up",
    "n": "tokens predicted",
    "behind": "after",
    "ece": "calibration error",
    "cka": "CKA with the layer before",
    "cka_final": "CKA with the last",
    "peak_memory_bytes": "peak memory",
}
NONE = "–"


def title(field: str) -> str:
    """How a column is headed."""
    return TITLES.get(field, field.replace("_", " "))


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a plain table, its header first: numbers to the right, nothing cut."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    ]


def text(field: str, value: Scalar) -> str:
    """A value in the unit of its field."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if field in SHARES:
        return f"{100 * value:.1f} %"
    if field == "speedup":
        return f"{value:.2f}×"
    if field == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    if isinstance(value, int):
        return f"{value:,}"
    if field == "tokens_per_second":
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    if field == "tokens_per_forward":
        return f"{value:.2f}"
    if field == "seconds" and 0 < value < 0.1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
