"""Predictions by depth: accuracy, agreement and acceptance on held-out text, and while decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from foretell.formatting import text
from foretell.report.charts.drawing import Chart, Line, percent_axis, plot_lines, whole_steps
from foretell.report.charts.selecting import ByDepth, by_depth, described, groups, names
from foretell.report.sources import Source
from foretell.results.tables import AcceptedByConfidence, AcceptedByDepth
from foretell.tally import Estimate

HELD_OUT = (
    (
        "acceptance",
        "Acceptance by depth",
        "Share of drafts of this depth that would stand under greedy verification, with all depths "
        "before it; teacher-forced on held-out text.",
    ),
    (
        "agreement",
        "Agreement with the backbone by depth",
        "How often the prediction is the token that the backbone itself would choose there after "
        "reading the true tokens in between.",
    ),
    ("top1", "Accuracy by depth", "How often the likeliest token is the one in the text (top-1)."),
)


def depth_charts(sources: Sequence[Source]) -> list[Chart]:
    """By depth, what is known on held-out text, and what was accepted while decoding."""
    charts = []
    for field, title, caption in HELD_OUT:
        first = 0 if field == "top1" else 1
        chart = _chart(sources, by_depth, f"{field}-by-depth", title, caption, field, first)
        charts += [chart] if chart else []
    caption = "Of the decoding steps that reached this depth, the share that accepted it."
    chart = _chart(
        sources, _while_decoding, "accepted-while-decoding", "Accepted while decoding", caption,
        "acceptance", 1,
    )  # fmt: skip
    return charts + ([chart] if chart else []) + _calibration(sources)


def _while_decoding(source: Source) -> list[AcceptedByDepth]:
    return source.table(AcceptedByDepth)


def _chart(
    sources: Sequence[Source],
    select: Callable[[Source], Sequence[ByDepth]],
    name: str,
    title: str,
    caption: str,
    field: str,
    first: int,
) -> Chart | None:
    used = [(source, _known(select(source), field, first)) for source in sources]
    used = [(source, rows) for source, rows in used if len({row.depth for row in rows}) > 1]
    rows = [row for _, rows in used for row in rows]
    if not rows:
        return None
    lines = [_line(label, members, field) for label, members in _series(rows)]
    where = ", ".join(described(source) for source, _ in used)
    return Chart(
        name,
        title,
        f"{caption} {_bands(lines)}From {where}.",
        ("method", "depth", title.split(" by ")[0].lower()),
        _cells(lines, field),
        3.0,
        partial(_paint, lines),
    )


def _known(rows: Sequence[ByDepth], field: str, first: int) -> list[ByDepth]:
    return [r for r in rows if r.depth >= first and _figure(r, field).value is not None]


def _figure(row: ByDepth, field: str) -> Estimate:
    found: Estimate = getattr(row, field)
    return found


def _series(rows: Sequence[ByDepth]) -> list[tuple[str, list[ByDepth]]]:
    """Rows of each model and method; of repeated depths the last counts."""
    found = groups(rows)
    labels = names(found)
    unique = {key: {row.depth: row for row in members} for key, members in found.items()}
    return [(labels[key], list(members.values())) for key, members in unique.items()]


def _line(label: str, rows: Sequence[ByDepth], field: str) -> Line:
    rows = sorted(rows, key=lambda row: row.depth)
    figures = [_figure(row, field) for row in rows]
    return Line(
        label,
        [float(row.depth) for row in rows],
        [figure.value or 0.0 for figure in figures],
        [figure.low for figure in figures],
        [figure.high for figure in figures],
    )


def _bands(lines: Sequence[Line]) -> str:
    intervals = any(low is not None for line in lines for low in line.low)
    return "Bands: 95 % confidence over documents. " if intervals else ""


def _cells(lines: Sequence[Line], field: str) -> list[tuple[str, str, str]]:
    return [
        (line.label, f"{x:.0f}", text(field, y))
        for line in lines
        for x, y in zip(line.x, line.y, strict=True)
    ]


def _paint(lines: Sequence[Line], figure: Figure) -> None:
    axes = figure.subplots()
    percent_axis(axes)
    whole_steps(axes, [x for line in lines for x in line.x])
    plot_lines(axes, lines)
    axes.set_xlabel("depth")


def _calibration(sources: Sequence[Source]) -> list[Chart]:
    charts = []
    for place, source in enumerate(sources):
        rows = source.table(AcceptedByConfidence)
        bins = [r for r in rows if None not in (r.confidence.value, r.acceptance.value)]
        if bins:
            charts.append(_reliability(source, bins, place))
    return charts


def _reliability(source: Source, bins: Sequence[AcceptedByConfidence], place: int) -> Chart:
    lines = [
        Line(
            f"depth {depth}",
            [row.confidence.value or 0.0 for row in rows],
            [row.acceptance.value or 0.0 for row in rows],
        )
        for (depth,), rows in groups(bins, ("depth",)).items()
    ]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        percent_axis(axes)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        axes.set_xlim(0, 1)
        axes.axline((0, 0), slope=1, color="#565f6b", linewidth=0.8, linestyle=":")
        plot_lines(axes, lines)
        axes.set_xlabel("confidence of the head")
        axes.set_title("accepted")

    return Chart(
        f"calibration-{place + 1}",
        "Can the head's confidence be trusted?",
        "Drafted tokens in bins of confidence, and how often those stand. On the dotted line, "
        f"confidence is what it says. From {described(source)}.",
        ("depth", "confidence", "accepted"),
        [
            (line.label, text("confidence", x), text("acceptance", y))
            for line in lines
            for x, y in zip(line.x, line.y, strict=True)
        ],
        3.2,
        paint,
    )
