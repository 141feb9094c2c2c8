"""Bars: decoding methods side by side, and recipes of training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foretell.formatting import NONE, text
from foretell.provenance import Row, near_ties
from foretell.report.charts.drawing import MUTED, Chart, plot_bars
from foretell.report.charts.selecting import described, number, of_heads, speeds
from foretell.report.sources import Source

SPEED_FIELDS = ("speedup", "tokens_per_forward", "tokens_per_second")


def speed_charts(sources: Sequence[Source]) -> list[Chart]:
    """One figure for each model of each comparison."""
    charts: list[Chart] = []
    for source in sources:
        rows = speeds(source)
        for model in dict.fromkeys(row.get("model") for row in rows):
            mine = [row for row in rows if row.get("model") == model]
            if len(mine) > 1:
                charts.append(_speed(source, model, mine, len(charts) + 1))
    return charts


def _speed(source: Source, model: object, rows: Sequence[Row], place: int) -> Chart:
    same = [r for r in rows if r.get("identical") is not None and r["method"] != "plain"]
    outputs = sum(int(number(row, "identical") or 0) for row in same)
    asked = sum(int(number(row, "prompts") or 0) for row in same)
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
            (str(row["method"]), *(text(f, row.get(f)) for f in SPEED_FIELDS), _identical(row))
            for row in rows
        ],
        0.45 + 0.42 * len(rows),
        partial(_paint_speed, source, rows),
    )


def _identical(row: Row) -> str:
    found, prompts = row.get("identical"), row.get("prompts")
    return NONE if found is None else f"{found} of {prompts}" if prompts is not None else str(found)


def _paint_speed(source: Source, rows: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    plot_bars(
        axes,
        [str(row["method"]) for row in rows],
        [number(row, "speedup") or 0.0 for row in rows],
        [_note(row) for row in rows],
        [0 if of_heads(row, source) else 5 for row in rows],  # heads stand out
    )
    _mark_one(axes)


def _note(row: Row) -> str:
    speed = text("speedup", row["speedup"])
    passes = row.get("tokens_per_forward")
    return speed if passes is None else f"{speed}, {text('tokens_per_forward', passes)}/forward"


def _mark_one(axes: Axes) -> None:
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=":", zorder=1.5)
    axes.set_xticks([0, 1], ["0", "1"])


def recipe_charts(sources: Sequence[Source]) -> list[Chart]:
    """Tokens per forward of every recipe of `benchmarks/recipes.py`."""
    found = [source for source in sources if source.result.command == "recipes"]
    return [_recipes(source, place) for place, source in enumerate(found, start=1)]


def _recipes(source: Source, place: int) -> Chart:
    rows = [row for row in source.rows if number(row, "tokens_per_forward") is not None]
    rows.sort(key=lambda row: -(number(row, "tokens_per_forward") or 0.0))
    return Chart(
        f"recipes-{place}",
        "Recipes compared",
        "Tokens per forward to expect from held-out text; "
        f"1 is plain decoding. Colours tell recipes apart. From {described(source)}.",
        ("run", "recipe", "tokens per forward", "nats per token, depth 0"),
        [
            (
                str(row.get("method")),
                text("recipe", row.get("recipe")),
                text("tokens_per_forward", row["tokens_per_forward"]),
                text("nll", row.get("nll")),
            )
            for row in rows
        ],
        0.45 + 0.36 * len(rows),
        partial(_paint_recipes, rows),
    )


def _paint_recipes(rows: Sequence[Row], figure: Figure) -> None:
    axes = figure.subplots()
    kinds = list(dict.fromkeys(str(row.get("recipe")) for row in rows))
    plot_bars(
        axes,
        [str(row.get("method")) for row in rows],
        [number(row, "tokens_per_forward") or 0.0 for row in rows],
        [text("tokens_per_forward", row["tokens_per_forward"]) for row in rows],
        [kinds.index(str(row.get("recipe"))) for row in rows],
    )
    _mark_one(axes)
