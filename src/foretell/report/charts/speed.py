"""Bars: decoding methods side by side, and recipes of training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foretell.formatting import NONE, text
from foretell.report.charts.drawing import MUTED, Chart, plot_bars
from foretell.report.charts.selecting import described
from foretell.report.sources import Source
from foretell.results.benchmarks import Recipe
from foretell.results.tables import Speed, near_ties

SPEED_FIELDS = ("speedup", "tokens_per_forward", "tokens_per_second")


def speed_charts(sources: Sequence[Source]) -> list[Chart]:
    """One figure for each model of each comparison."""
    charts: list[Chart] = []
    for source in sources:
        rows = source.table(Speed)
        for model in dict.fromkeys(row.model for row in rows):
            mine = [row for row in rows if row.model == model]
            if len(mine) > 1:
                charts.append(_speed(source, model, mine, len(charts) + 1))
    return charts


def _speed(source: Source, model: str | None, rows: Sequence[Speed], place: int) -> Chart:
    same = [row for row in rows if row.identical is not None and row.method != "plain"]
    outputs = sum(row.identical or 0 for row in same)
    asked = sum(row.prompts for row in same)
    checked = f" {outputs} of {asked} outputs are identical to plain decoding." if same else ""
    if explained := near_ties(same, str(source.result.provenance.get("dtype"))):
        checked += f" {explained}"
    return Chart(
        f"speed-{place}",
        f"Decoding speed{f', {model}' if model else ''}",
        "Tokens per second, as a multiple of plain decoding in the same run, and tokens per "
        f"forward pass.{checked} From {described(source)}.",
        ("method", "speed-up", "tokens per forward", "tokens/s", "identical outputs"),
        [
            (row.method, *(text(f, getattr(row, f)) for f in SPEED_FIELDS), _identical(row))
            for row in rows
        ],
        0.45 + 0.42 * len(rows),
        partial(_paint_speed, rows),
    )


def _identical(row: Speed) -> str:
    return NONE if row.identical is None else f"{row.identical} of {row.prompts}"


def _paint_speed(rows: Sequence[Speed], figure: Figure) -> None:
    axes = figure.subplots()
    plot_bars(
        axes,
        [row.method for row in rows],
        [row.speedup for row in rows],
        [_note(row) for row in rows],
        [0 if row.drafter == "heads" else 5 for row in rows],  # heads stand out
    )
    _mark_one(axes)


def _note(row: Speed) -> str:
    passes = text("tokens_per_forward", row.tokens_per_forward)
    return f"{text('speedup', row.speedup)}, {passes}/forward"


def _mark_one(axes: Axes) -> None:
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=":", zorder=1.5)
    axes.set_xticks([0, 1], ["0", "1"])


def recipe_charts(sources: Sequence[Source]) -> list[Chart]:
    """Tokens per forward of every recipe of `benchmarks/recipes.py`."""
    found = [source for source in sources if source.table(Recipe)]
    return [_recipes(source, place) for place, source in enumerate(found, start=1)]


def _recipes(source: Source, place: int) -> Chart:
    values = ((row, row.tokens_per_forward) for row in source.table(Recipe))
    known = [(row, value) for row, value in values if value is not None]
    known.sort(key=lambda pair: -pair[1])
    return Chart(
        f"recipes-{place}",
        "Recipes compared",
        "Tokens per forward to expect from held-out text; "
        f"1 is plain decoding. Colours tell recipes apart. From {described(source)}.",
        ("run", "recipe", "tokens per forward", "nats per token, depth 0"),
        [
            (row.method, row.recipe, text("tokens_per_forward", value), text("nll", row.nll.value))
            for row, value in known
        ],
        0.45 + 0.36 * len(known),
        partial(_paint_recipes, known),
    )


def _paint_recipes(known: Sequence[tuple[Recipe, float]], figure: Figure) -> None:
    axes = figure.subplots()
    kinds = list(dict.fromkeys(row.recipe for row, _ in known))
    plot_bars(
        axes,
        [row.method for row, _ in known],
        [value for _, value in known],
        [text("tokens_per_forward", value) for _, value in known],
        [kinds.index(row.recipe) for row, _ in known],
    )
    _mark_one(axes)
