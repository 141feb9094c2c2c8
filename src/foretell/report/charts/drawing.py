"""How charts look: drawn once by matplotlib, shown in the page, and written as SVG and PNG.

Text stays text. In the page every colour is a CSS variable, so that dark mode and print have their
own. Series are told apart by marker and label too, not by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTH = 4.1
"""Inches; narrow, so that text is still legible at phone width."""

INK, MUTED, RULE, PAPER = "#1b1f25", "#565f6b", "#d8dce2", "#fefefe"
SERIES = ("#0062b1", "#d05a00", "#009272", "#7d2a66", "#54450f", "#7b8591")
"""Blue, vermilion, green, purple, brown, grey: the first five apart for every colour vision."""
MARKERS = ("o", "s", "^", "D", "v", "P")
HEAT = "cividis"

_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, start=1)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "foretell",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
}
_METADATA = {
    "svg": {"Date": None, "Creator": "foretell", "Format": None, "Type": None},
    "png": {"Software": "foretell"},
}


def is_figure(content: bytes) -> bool:
    """Whether a file with this content was drawn here."""
    marks = b"<dc:title>foretell</dc:title>", b"Software\x00foretell"
    return any(mark in content[:4096] for mark in marks)


@dataclass(frozen=True)
class Chart:
    """One figure of a report.

    Attributes:
        name: of its files and its place in the page.
        title: what it shows.
        caption: how to read it, and what it was measured on.
        header: of `cells`.
        cells: the numbers that are drawn, as text, for who cannot see the drawing.
        height: in inches.
        paint: draws it.
        width: in inches.
    """

    name: str
    title: str
    caption: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    height: float
    paint: Callable[[Figure], None]
    width: float = WIDTH

    def svg(self) -> str:
        """A whole SVG file, on white."""
        return self._render("svg").decode("utf-8")

    def png(self) -> bytes:
        """A PNG file, on white."""
        return self._render("png")

    def inline(self) -> str:
        """The SVG element for a page, in the colours and the font of the page."""
        text = self._render("svg", transparent=True).decode("utf-8")
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(url\(|href=")#', rf"\1#{self.name}-", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        return text.replace(
            "<svg ", f'<svg role="img" aria-labelledby="{self.name}-title" focusable="false" ', 1
        )

    def _render(self, kind: str, *, transparent: bool = False) -> bytes:
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(self.width, self.height), layout="constrained")
            self.paint(figure)
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, transparent=transparent, metadata=_METADATA[kind])
        return stream.getvalue()


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        label: written at its end.
        x: ascending.
        y: as many.
        low: lower ends of intervals, None where there is none; empty: no intervals.
        high: upper ends.
        dashed: for what belongs to another line of the same colour.
        colour: number of its colour; None: its place among the lines.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class End:
    """What is named beside a drawing: where it ends, its colour, and a sign of how it looks."""

    x: float
    y: float
    label: str
    colour: str
    sign: str


def plot_lines(
    axes: Axes, lines: Sequence[Line], *, markers: bool = True, others: Sequence[End] = ()
) -> None:
    """Draw lines with their intervals, each named at its end, and name what else is there."""
    ends = list(others)
    for place, line in enumerate(lines):
        number = place if line.colour is None else line.colour
        colour = SERIES[number % len(SERIES)]
        dashed = line.dashed or (line.colour is None and number >= len(SERIES))
        marker = MARKERS[number % len(MARKERS)] if markers else None
        style = "--" if dashed else "-"
        axes.plot(line.x, line.y, style, color=colour, marker=marker, clip_on=False)
        pairs = list(zip(line.x, line.low, line.high, strict=True)) if line.low else []
        known = [(x, low, high) for x, low, high in pairs if low is not None and high is not None]
        if known:
            x, low, high = zip(*known, strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        sign = "╍" if dashed else "━"
        ends.append(End(line.x[-1], line.y[-1], line.label, colour, sign))
    name_ends(axes, ends)


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write labels after the ends of lines, moved apart where they would overlap."""
    if not ends:
        return
    bottom, top = axes.get_ylim()
    height = axes.bbox.height / axes.figure.dpi * 72
    places = _apart([(y - bottom) / (top - bottom) for y in (end.y for end in ends)], 12 / height)
    edge = max(end.x for end in ends)
    for end, place in zip(ends, places, strict=True):
        at = (edge, bottom + place * (top - bottom))
        for text, shift, colour in ((end.sign, 6, end.colour), (end.label, 17, INK)):
            axes.annotate(
                text, at, (shift, 0), textcoords="offset points", va="center", color=colour,
                annotation_clip=False,
            )  # fmt: skip
    axes.set_ylim(bottom, top)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """The values, in the same order, moved so that neighbours are at least `gap` apart.

    Those that touch form a block around their mean, and blocks that touch are merged.
    """
    order = np.argsort(np.asarray(values), kind="stable")
    blocks: list[tuple[float, int]] = []  # mean and size, from below
    for index in order.tolist():
        blocks.append((values[index], 1))
        while len(blocks) > 1 and _touch(blocks[-2], blocks[-1], gap):
            (upper, m), (lower, n) = blocks.pop(), blocks.pop()
            blocks.append(((upper * m + lower * n) / (m + n), m + n))
    places = [mean + (k - (n - 1) / 2) * gap for mean, n in blocks for k in range(n)]
    moved = [0.0] * len(values)
    for index, place in zip(order.tolist(), places, strict=True):
        moved[index] = place
    return moved


def _touch(lower: tuple[float, int], upper: tuple[float, int], gap: float) -> bool:
    return upper[0] - lower[0] < gap * (lower[1] + upper[1]) / 2


def plot_bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    notes: Sequence[str],
    colours: Sequence[int],
) -> None:
    """Horizontal bars from zero, the first on top, names above and values at the ends."""
    places = np.arange(len(values))[::-1]
    axes.barh(places - 0.22, values, height=0.38, color=[SERIES[n % len(SERIES)] for n in colours])
    widest = max([*values, 1e-9])
    blank = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
    for place, label, value, note in zip(places, labels, values, notes, strict=True):
        axes.text(0, place + 0.07, label, va="bottom", ha="left", bbox=blank, zorder=3)
        axes.annotate(
            note, (value, place - 0.22), (4, 0), textcoords="offset points", va="center",
            color=MUTED, bbox=blank, zorder=3,
        )  # fmt: skip
    axes.set_xlim(0, 1.35 * widest)
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def plot_heat(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    form: Callable[[float], str],
) -> None:
    """A table of numbers with coloured cells, the first row at the bottom; colours from zero."""
    highest = max((v for row in values for v in row if v is not None), default=1.0) or 1.0
    colours = mpl.colormaps[HEAT]
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is None:
                continue
            red, green, blue, _ = colours(value / highest)
            place = (x - 0.5, y - 0.5)
            axes.add_patch(
                Rectangle(place, 1, 1, facecolor=(red, green, blue), edgecolor=PAPER, linewidth=1)
            )
            dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
            ink = "#ffffff" if dark else "#000000"
            axes.text(x, y, form(value), ha="center", va="center", color=ink, fontsize=7.5)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for spine in axes.spines.values():
        spine.set_visible(False)


def percent_axis(axes: Axes) -> None:
    """Shares from 0 to 100 %."""
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="y")


def whole_steps(axes: Axes, values: Sequence[float]) -> None:
    """A tick at every whole number, and room for names after the last."""
    numbers = sorted({round(value) for value in values})
    axes.set_xticks(range(numbers[0], numbers[-1] + 1))
    axes.set_xlim(numbers[0] - 0.15, numbers[-1] + 0.05)
