"""Draft lengths that were chosen while decoding (`--draft-length auto`), from pass to pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from statistics import mean

from matplotlib.figure import Figure

from foretell.errors import InputError
from foretell.formatting import text
from foretell.report.charts.drawing import Chart, Line, plot_lines
from foretell.report.charts.selecting import described
from foretell.report.sources import Source
from foretell.results.tables import Generated


def length_charts(sources: Sequence[Source]) -> list[Chart]:
    """One figure for each file in which lengths were chosen."""
    found = ((source, _chosen(source)) for source in sources)
    known = [(source, chosen) for source, chosen in found if chosen]
    return [_chart(source, chosen, place) for place, (source, chosen) in enumerate(known, 1)]


def _chosen(source: Source) -> dict[str, list[list[int]]]:
    """By method: for each prompt or batch how deep every pass but the first drafted."""
    lengths = source.result.settings.get("draft_lengths")
    if generated := source.table(Generated):
        found = {row.method: [lengths] for row in generated if row.draft_length == "auto"}
    else:
        found = lengths or {}
    if not isinstance(found, dict) or not all(map(_are_lengths, found.values())):
        raise InputError(f"{source.name}: 'draft_lengths' is not what foretell writes.")
    kept = {method: [one for one in prompts if one] for method, prompts in found.items()}
    return {method: prompts for method, prompts in kept.items() if prompts}


def _are_lengths(prompts: object) -> bool:
    return isinstance(prompts, list) and all(
        isinstance(lengths, list) and all(isinstance(length, int) for length in lengths)
        for lengths in prompts
    )


def _chart(source: Source, chosen: dict[str, list[list[int]]], place: int) -> Chart:
    lines = [_line(method, prompts) for method, prompts in chosen.items()]
    return Chart(
        f"chosen-lengths-{place}",
        "Draft lengths chosen while decoding",
        "How many tokens each pass drafted: the mean over the prompts or batches that had not "
        f"ended. It begins with trials of none and of all. From {described(source)}.",
        ("method", "draft length", "share of passes"),
        [cells for method, prompts in chosen.items() for cells in _cells(method, prompts)],
        2.4,
        partial(_paint, lines),
    )


def _line(method: str, prompts: Sequence[Sequence[int]]) -> Line:
    by_pass = [[n for n in lengths if n is not None] for lengths in zip_longest(*prompts)]
    places = [float(number) for number in range(1, len(by_pass) + 1)]
    return Line(method, places, [mean(lengths) for lengths in by_pass])


def _cells(method: str, prompts: Sequence[Sequence[int]]) -> list[tuple[str, str, str]]:
    counts = Counter(length for lengths in prompts for length in lengths)
    return [
        (method, str(length), text("share", counts[length] / counts.total()))
        for length in sorted(counts)
    ]


def _paint(lines: Sequence[Line], figure: Figure) -> None:
    axes = figure.subplots()
    axes.set_ylim(0, 1.12 * max(1.0, *(y for line in lines for y in line.y)))
    axes.set_xlim(0, max(line.x[-1] for line in lines))
    axes.grid(axis="y")
    plot_lines(axes, lines, markers=False)
    axes.set_xlabel("pass")
    axes.set_title("tokens drafted")
