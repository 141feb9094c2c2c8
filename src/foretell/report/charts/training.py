"""Losses of training runs, by depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from foretell.report.charts.drawing import Chart, Line, plot_lines
from foretell.report.sources import LOSSES, Run

SHOWN = 400
"""Points of a curve, at most."""


def training_charts(runs: Sequence[Run]) -> list[Chart]:
    """One figure for each run."""
    found = ((run, _lines(run)) for run in runs)
    return [_chart(run, lines, place) for place, (run, lines) in enumerate(found, 1) if lines]


def _lines(run: Run) -> list[Line]:
    lines = []
    for field, suffix in zip(LOSSES, ("", ", held out"), strict=True):
        known = [line for line in run.metrics if line.get(field)]
        known = known[:: -(-len(known) // SHOWN) or 1]
        for depth in range(min((len(line[field]) for line in known), default=0)):
            lines.append(
                Line(
                    f"depth {depth}{suffix}",
                    [float(line["step"]) for line in known],
                    [float(line[field][depth]) for line in known],
                    dashed=bool(suffix),
                    colour=depth,
                )
            )
    return lines


def _chart(run: Run, lines: Sequence[Line], place: int) -> Chart:
    last = run.metrics[-1]
    seconds = last.get("seconds")
    spent = f" in {float(seconds) / 60:.1f} minutes" if isinstance(seconds, int | float) else ""
    return Chart(
        f"training-{place}",
        "Training",
        f"Loss in nats per token by depth, {last['step']:,} steps{spent}. From {run.name}.",
        ("curve", "first", "last", "lowest"),
        [
            (line.label, f"{line.y[0]:.3f}", f"{line.y[-1]:.3f}", f"{min(line.y):.3f}")
            for line in lines
        ],
        3.0,
        partial(_paint, lines),
    )


def _paint(lines: Sequence[Line], figure: Figure) -> None:
    axes = figure.subplots()
    axes.set_ylim(0, 1.05 * max(y for line in lines for y in line.y))
    axes.set_xlim(0, max(line.x[-1] for line in lines))
    axes.grid(axis="y")
    plot_lines(axes, lines, markers=False)
    axes.set_xlabel("step")
    axes.set_title("nats per token")
