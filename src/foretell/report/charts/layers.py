"""What lies where in the model: heat maps by layer and depth, drift, and learned tap weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure

from foretell.formatting import text
from foretell.report.charts.drawing import Chart, Line, percent_axis, plot_heat, plot_lines
from foretell.report.charts.selecting import described, groups, names
from foretell.report.sources import Run, Source
from foretell.results.tables import Drift, ScoredByLayer

READERS = {
    "logit-lens": "the output head on the layer's state, after the final norm",
    "linear-probe": "a linear probe trained on the layer's state",
}
INPUT = "Layer l is the state that enters block l; the last one leaves the last block."


def layer_charts(sources: Sequence[Source], runs: Sequence[Run]) -> list[Chart]:
    """Heat maps, what changes from layer to layer, and the weights of weighted taps."""
    charts: list[Chart] = []
    for source in sources:
        charts += _heat_maps(source, len(charts)) + _drift(source, len(charts))
    return charts + [_weights(run, place) for place, run in enumerate(runs) if run.tap_weights]


def _heat_maps(source: Source, before: int) -> list[Chart]:
    found = groups(row for row in source.table(ScoredByLayer) if row.top1.value is not None)
    labels = names(found)
    return [
        _heat_map(source, key[1], labels[key], members, before + place + 1)
        for place, (key, members) in enumerate(found.items())
    ]


def _heat_map(
    source: Source, method: str, label: str, rows: Sequence[ScoredByLayer], place: int
) -> Chart:
    layers, depths = sorted({row.layer for row in rows}), sorted({row.depth for row in rows})
    found = {(row.layer, row.depth): row.top1.value for row in rows}
    values = [[found.get((layer, depth)) for depth in depths] for layer in layers]
    return _heat_chart(
        f"layers-{place}",
        f"Layer × depth, {label}",
        f"Top-1 in per cent, as read by {READERS.get(method, method)}. {INPUT} "
        f"From {described(source)}.",
        values,
        [str(layer) for layer in layers],
        [f"depth {depth}" for depth in depths],
    )


def _weights(run: Run, place: int) -> Chart:
    values = [list(row) for row in zip(*run.tap_weights, strict=True)]
    depths = [f"depth {depth}" for depth in range(1, len(run.tap_weights) + 1)]
    return _heat_chart(
        f"tap-weights-{place + 1}",
        "Learned weights of hidden states",
        f"What the weighted tap of each depth gives the layers, in per cent. {INPUT} "
        f"From {run.name}.",
        values,
        list(map(str, range(len(values)))),
        depths,
    )


def _heat_chart(
    name: str,
    title: str,
    caption: str,
    values: Sequence[Sequence[float | None]],
    layers: Sequence[str],
    depths: Sequence[str],
) -> Chart:
    cells = [
        (layer, *("–" if value is None else f"{100 * value:.1f} %" for value in row))
        for layer, row in zip(layers, values, strict=True)
    ]
    height = 0.7 + 0.17 * len(layers)
    return Chart(
        name, title, caption, ("layer", *depths), cells, height,
        partial(_paint_heat, values, layers, depths),
    )  # fmt: skip


def _paint_heat(
    values: Sequence[Sequence[float | None]],
    layers: Sequence[str],
    depths: Sequence[str],
    figure: Figure,
) -> None:
    axes = figure.subplots()
    plot_heat(axes, values, layers, depths, lambda value: f"{100 * value:.0f}")
    axes.set_ylabel("layer")


def _drift(source: Source, before: int) -> list[Chart]:
    drift = source.table(Drift)
    settled = ((row.layer, row.settled.value) for row in source.table(ScoredByLayer))
    quantities = {
        "decision settled": {layer: share for layer, share in settled if share is not None},
        "CKA with the last": {row.layer: row.cka_final for row in drift},
        "cosine": {row.layer: row.cosine for row in drift},
    }
    lines = [
        Line(label, [float(layer) for layer in sorted(values)], [values[x] for x in sorted(values)])
        for label, values in quantities.items()
        if len(values) > 1
    ]
    if not lines:
        return []
    chart = Chart(
        f"drift-{before + 1}",
        "From layer to layer",
        "Decision settled: share of positions whose next-token decision no later layer changes. "
        "CKA: similarity of the states to those of the last layer. Cosine: of a state with that of "
        f"the layer before. {INPUT} From {described(source)}.",
        ("quantity", "layer", "value"),
        [
            (line.label, f"{x:.0f}", text("settled", y))
            for line in lines
            for x, y in zip(line.x, line.y, strict=True)
        ],
        3.0,
        partial(_paint_drift, lines),
    )
    return [chart]


def _paint_drift(lines: Sequence[Line], figure: Figure) -> None:
    axes = figure.subplots()
    percent_axis(axes)
    plot_lines(axes, lines, markers=False)
    axes.set_xlim(0, max(line.x[-1] for line in lines))
    axes.set_xlabel("layer")
