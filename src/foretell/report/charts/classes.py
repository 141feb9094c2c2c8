"""Accuracy by what is predicted: class of token, kind of document."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from foretell.formatting import text
from foretell.report.charts.drawing import INK, MARKERS, MUTED, SERIES, Chart
from foretell.report.charts.selecting import described
from foretell.report.sources import Source
from foretell.results.tables import ScoredByClass, ScoredByDepth, ScoredByKind

AXES: dict[type[ScoredByClass | ScoredByKind], tuple[str, str, str, str]] = {
    ScoredByClass: (
        "token_class", "classes", "Accuracy by class of token", "class of the predicted token",
    ),
    ScoredByKind: (
        "document_kind", "kinds", "Accuracy by kind of document", "kind of document",
    ),
}  # fmt: skip


def class_charts(sources: Sequence[Source]) -> list[Chart]:
    """Dots by depth, one figure for each method that is not a baseline of another."""
    charts = []
    for place, source in enumerate(sources, start=1):
        for table, words in AXES.items():
            rows = [row for row in source.table(table) if row.top1.value is not None]
            if rows:
                charts.append(_chart(source, words, rows, place))
    return charts


def _chart(
    source: Source, words: tuple[str, str, str, str], rows: Sequence[ScoredByDepth], place: int
) -> Chart:
    """Of the method that comes first; the others are in the tables."""
    axis, name, title, what = words
    method = rows[0].method
    shares = {
        (getattr(row, axis), row.depth): row.top1.value or 0.0
        for row in rows
        if row.method == method
    }
    depths = sorted({depth for _, depth in shares})
    parts = _by_accuracy({part for part, _ in shares}, shares, depths[0])
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


def _by_accuracy(parts: set[str], shares: dict[tuple[str, int], float], depth: int) -> list[str]:
    return sorted(parts, key=lambda part: (-shares.get((part, depth), 0.0), part))


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
