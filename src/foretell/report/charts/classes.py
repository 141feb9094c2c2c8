"""Accuracy by what is predicted: class of token, kind of document."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from foretell.formatting import text
from foretell.provenance import Row
from foretell.report.charts.drawing import INK, MARKERS, MUTED, SERIES, Chart
from foretell.report.charts.selecting import described, number
from foretell.report.sources import Source

AXES = {
    "token_class": ("classes", "Accuracy by class of token", "class of the predicted token"),
    "document_kind": ("kinds", "Accuracy by kind of document", "kind of document"),
}


def class_charts(sources: Sequence[Source]) -> list[Chart]:
    """Dots by depth, one figure for each method that is not a baseline of another."""
    charts = []
    for place, source in enumerate(sources, start=1):
        for axis in AXES:
            rows = [r for r in source.rows if r.get(axis) and number(r, "top1") is not None]
            if rows:
                charts.append(_chart(source, axis, rows, place))
    return charts


def _chart(source: Source, axis: str, rows: Sequence[Row], place: int) -> Chart:
    """Of the method that comes first; the others are in the tables."""
    name, title, what = AXES[axis]
    method = rows[0].get("method")
    mine = [row for row in rows if row.get("method") == method]
    depths = sorted({int(number(row, "depth") or 0) for row in mine})
    found = {(str(row[axis]), int(number(row, "depth") or 0)): row for row in mine}
    parts = _by_accuracy({part for part, _ in found}, found, depths[0])
    shares = {key: number(row, "top1") or 0.0 for key, row in found.items()}
    return Chart(
        f"{name}-{place}",
        title,
        f"Top-1 by {what} and depth, {method}. From {described(source)}.",
        (axis.replace("_", " "), *(f"depth {depth}" for depth in depths)),
        [
            (part, *(text("top1", shares.get((part, depth))) for depth in depths))
            for part in parts
        ],
        0.8 + 0.27 * len(parts),
        partial(_paint, parts, depths, shares),
    )  # fmt: skip


def _by_accuracy(parts: set[str], found: dict[tuple[str, int], Row], depth: int) -> list[str]:
    def accuracy(part: str) -> float:
        return number(found.get((part, depth), {}), "top1") or 0.0

    return sorted(parts, key=lambda part: (-accuracy(part), part))


def _paint(
    parts: Sequence[str],
    depths: Sequence[int],
    shares: dict[tuple[str, int], float],
    figure: Figure,
) -> None:
    axes = figure.subplots()
    for place, part in enumerate(reversed(parts)):
        known = [shares[part, depth] for depth in depths if (part, depth) in shares]
        axes.plot([min(known), max(known)], [place, place], color=MUTED, linewidth=0.8, alpha=0.5)
    for order, depth in enumerate(depths):
        points = [
            (shares[part, depth], place)
            for place, part in enumerate(reversed(parts))
            if (part, depth) in shares
        ]
        colour, marker = SERIES[order % len(SERIES)], MARKERS[order % len(MARKERS)]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker, color=colour, markersize=6, label=f"depth {depth}")
    axes.set_yticks(range(len(parts)), reversed(parts))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.6, len(parts) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="x")
    figure.legend(loc="outside upper left", ncols=len(depths), frameon=False)
