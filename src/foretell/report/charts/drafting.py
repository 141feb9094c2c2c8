"""Tokens per forward and speed-up against draft length: what was predicted, what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foretell.formatting import text
from foretell.report.charts.drawing import MUTED, SERIES, WIDTH, Chart, End, Line, plot_lines
from foretell.report.charts.selecting import (
    accepted,
    described,
    groups,
    names,
    reached_by_length,
)
from foretell.report.sources import Source
from foretell.results.tables import AcceptedByDepth, Predicted, Speed
from foretell.tally import Estimate

BEHIND = {"text": " after text", "own": " after own"}
"""What drafts follow, as it stands after the name of a range."""
UNITS = {"tokens_per_forward": "tokens per forward", "speedup": "speed-up over plain decoding"}


@dataclass(frozen=True)
class Band:
    """What was predicted, by draft length; `behind`: a text, or the backbone's `own` one."""

    label: str
    behind: str
    lengths: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Point:
    """What was measured, at the longest draft that was tried; `colour` is its number."""

    label: str
    length: float
    value: float
    colour: int


@dataclass(frozen=True)
class Panel:
    """One quantity against draft length."""

    field: str
    ranges: Sequence[Band]
    lines: Sequence[Line]
    points: Sequence[Point]


def drafting_charts(sources: Sequence[Source]) -> list[Chart]:
    """One figure, with a panel for each quantity of which more than a point is known."""
    found = [
        Panel(field, _ranges(sources, field), _expected(sources, field), _points(sources, field))
        for field in UNITS
    ]
    panels = [panel for panel in found if panel.ranges or panel.lines]
    if not panels:
        return []
    beside = [_labels(panel) for panel in panels]  # the axes, a line each
    longest = max(len(label) for labels in beside for label in labels)
    chart = Chart(
        "draft-length",
        "Tokens per forward against draft length",
        _caption(sources, panels),
        ("quantity", "what", "draft length", "value"),
        [cells for panel in panels for cells in _cells(panel)],
        0.5 + sum(max(2.4, 0.2 * len(labels)) for labels in beside),
        partial(_paint, panels),
        WIDTH + max(0.0, 0.075 * (longest - 26)),
    )
    return [chart]


def _labels(panel: Panel) -> list[str]:
    """The names of all that is drawn."""
    lines, ranges = [one.label for one in panel.lines], [one.label for one in panel.ranges]
    return [*lines, *ranges, *(one.label for one in panel.points)]


def _known(sources: Sequence[Source]) -> dict[tuple[str, ...], str]:
    """Every model and method that something is known of, and its name."""
    return names(groups(row for source in sources for row in accepted(source)))


def _ranges(sources: Sequence[Source], field: str) -> list[Band]:
    rows = (row for source in sources for row in source.table(Predicted))
    found = groups(
        (row for row in rows if _range(row, field).max is not None), ("model", "method", "behind")
    )
    labels = names([*_known(sources), *(key[:2] for key in found)])
    return [
        Band(
            f"{labels[key[:2]]}, predicted{BEHIND.get(key[2], '')}",
            key[2],
            [0.0, *(float(row.depth) for row in members)],
            [1.0, *(_range(row, field).min or 0.0 for row in members)],
            [1.0, *(_range(row, field).max or 0.0 for row in members)],
        )
        for key, members in found.items()
    ]


def _range(row: Predicted, field: str) -> Estimate:
    found: Estimate = getattr(row, field)
    return found


def _expected(sources: Sequence[Source], field: str) -> list[Line]:
    """1 + Σ of acceptance: of held-out text, and of the steps of decoding, where shares chain."""
    if field != "tokens_per_forward":
        return []
    labels = _known(sources)
    rows = [row for source in sources for row in accepted(source) if row.depth]
    lines = []
    for chained, what in ((False, "held out"), (True, "decoding")):
        found = groups(row for row in rows if isinstance(row, AcceptedByDepth) == chained)
        for key, members in found.items():
            values = reached_by_length(members, chained=chained)
            lengths = [float(length) for length in range(len(values))]
            label, colour = f"{labels[key]}, {what}", list(labels).index(key)
            lines.append(Line(label, lengths, values, dashed=not chained, colour=colour))
    return lines


def _points(sources: Sequence[Source], field: str) -> list[Point]:
    """Methods whose drafts have a depth, at the deepest that was drafted."""
    labels = _known(sources)
    points = []
    for source in sources:
        depths = groups(source.table(AcceptedByDepth))
        for key, members in groups(source.table(Speed)).items():
            if key in depths:
                deepest = float(max(row.depth for row in depths[key]))
                value, colour = float(getattr(members[-1], field)), list(labels).index(key)
                points.append(Point(f"{labels[key]}, measured", deepest, value, colour))
    return points


def _caption(sources: Sequence[Source], panels: Sequence[Panel]) -> str:
    parts = ["A draft of no tokens is plain decoding: 1."]
    if any(panel.ranges for panel in panels):
        parts.append(
            "Shaded: the range that the probe predicted, after text or, dotted, after the "
            "model's own. It assumes drafts that do not read each other; sequential heads may "
            "pass it."
        )
    if any(panel.lines for panel in panels):
        parts.append("Lines: 1 + what is accepted at each depth, dashed on held-out text.")
    if any(panel.points for panel in panels):
        parts.append(
            "Large marks: measured while decoding, at the longest draft; the length adapts, so "
            "that the mean draft is shorter."
        )
    used = [source for source in sources if source.table(Predicted) or accepted(source)]
    return " ".join([*parts, f"From {', '.join(described(source) for source in used)}."])


def _cells(panel: Panel) -> list[tuple[str, str, str, str]]:
    unit = UNITS[panel.field]
    cells = [
        (unit, r.label, f"{x:.0f}", f"{text(panel.field, low)} to {text(panel.field, high)}")
        for r in panel.ranges
        for x, low, high in zip(r.lengths, r.low, r.high, strict=True)
    ]
    cells += [
        (unit, line.label, f"{x:.0f}", text(panel.field, y))
        for line in panel.lines
        for x, y in zip(line.x, line.y, strict=True)
    ]
    return cells + [
        (unit, p.label, f"{p.length:.0f}", text(panel.field, p.value)) for p in panel.points
    ]


def _paint(panels: Sequence[Panel], figure: Figure) -> None:
    longest = max(
        [x for panel in panels for r in panel.ranges for x in r.lengths]
        + [x for panel in panels for line in panel.lines for x in line.x]
        + [p.length for panel in panels for p in panel.points]
    )
    for panel, axes in zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True):
        axes.set_xticks(range(math.ceil(longest) + 1))
        axes.set_xlim(-0.05, longest + 0.1)
        axes.set_title(UNITS[panel.field])
        axes.grid(axis="y")
        _paint_panel(panel, axes)
        axes.set_xlabel("draft length")


def _paint_panel(panel: Panel, axes: Axes) -> None:
    tops = [value for r in panel.ranges for value in r.high]
    tops += [value for line in panel.lines for value in line.y] + [p.value for p in panel.points]
    axes.set_ylim(0, 1.12 * max(tops, default=1.0))
    if panel.field == "speedup":
        axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
    ends = []
    for r in panel.ranges:
        own = r.behind == "own"
        shade = 0.1 if own else 0.22
        axes.fill_between(r.lengths, r.low, r.high, color=SERIES[5], alpha=shade, linewidth=0)
        for side in (r.low, r.high) if own else ():
            axes.plot(r.lengths, side, ":", color=SERIES[5], linewidth=1.2)
        middle = (r.low[-1] + r.high[-1]) / 2
        ends.append(End(r.lengths[-1], middle, r.label, SERIES[5], "┅" if own else "■"))
    for p in panel.points:
        colour = SERIES[p.colour % len(SERIES)]
        axes.plot([p.length], [p.value], "o", color=colour, markersize=8, clip_on=False)
        ends.append(End(p.length, p.value, p.label, colour, "●"))
    plot_lines(axes, panel.lines, markers=False, others=ends)
