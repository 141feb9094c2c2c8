"""The tables of `foretell probe`, from the rows of its result file."""

from collections.abc import Iterable, Sequence

from foretell.cli import common
from foretell.evaluation import DepthTable
from foretell.probe.prediction import Prediction
from foretell.results import Row, select
from foretell.results.tables import (
    Coverage,
    Drift,
    Expected,
    Predicted,
    ScoredByClass,
    ScoredByDepth,
    ScoredByKind,
    ScoredByLayer,
)
from foretell.tally import Estimate

BEHIND = {"text": "text", "own": "own continuation"}
"""What drafts follow, in words."""


def show_probe(title: str, rows: Sequence[Row], prediction: Prediction) -> None:
    """Print everything, most important last."""
    _show_methods(title, select(rows, ScoredByDepth))
    _show_parts("token class", [(row.token_class, row) for row in select(rows, ScoredByClass)])
    _show_parts("document kind", [(row.document_kind, row) for row in select(rows, ScoredByKind)])
    if layers := select(rows, ScoredByLayer):
        _show_layers(layers, select(rows, Drift))
    _show_coverage(select(rows, Coverage))
    _show_expected(select(rows, Expected))
    _show_prediction(select(rows, Predicted), prediction)


def _show_methods(title: str, rows: Sequence[ScoredByDepth]) -> None:
    columns = (
        "method",
        "depth",
        "top-1",
        "top-5",
        "nats/token",
        "entropy",
        "agrees",
        "covered mass",
    )
    lines = [
        (
            row.method,
            str(row.depth),
            shown_share(row.top1),
            shown_share(row.top5),
            shown(row.nll),
            shown(row.entropy),
            shown_share(row.agreement),
            shown_share(row.covered_mass),
        )
        for row in rows
    ]
    common.table(f"{title} ({rows[0].positions} positions)", columns, lines)
    common.console.print(
        "± : 95 % over documents; […]: what the strings left out could change; agrees: with what "
        "the backbone would choose there.\n"
    )


def _show_parts(what: str, rows: Sequence[tuple[str, ScoredByDepth]]) -> None:
    """Marginalization by part, depths side by side; nothing where there are no parts."""
    if not rows:
        return
    mine = [(part, row) for part, row in rows if row.method == "marginalization"]
    depths = sorted({row.depth for _, row in mine})
    columns = (what, "positions", *(f"top-1, depth {k}" for k in depths))
    lines = []
    for part in dict.fromkeys(part for part, _ in mine):
        by_depth = {row.depth: row for other, row in mine if other == part}
        cells = [shown_share(by_depth[k].top1) if k in by_depth else "–" for k in depths]
        lines.append((part, str(next(iter(by_depth.values())).positions), *cells))
    common.table("Marginalization by what is predicted", columns, lines)
    common.console.print()


def _show_layers(rows: Sequence[ScoredByLayer], drift: Sequence[Drift]) -> None:
    depths = sorted({row.depth for row in rows})
    methods = [m for m in ("logit-lens", "linear-probe") if any(r.method == m for r in rows)]
    columns = (
        "layer",
        *(f"{method.split('-')[-1]} {k}" for method in methods for k in depths),
        "settled",
        "CKA",
        "to last",
        "cosine",
    )
    found = {(row.method, row.layer, row.depth): row for row in rows}

    def cell(method: str, layer: int, depth: int) -> str:
        row = found.get((method, layer, depth))
        return "–" if row is None else _percent(row.agreement.value)

    lines = [
        (
            str(row.layer),
            *(cell(method, row.layer, k) for method in methods for k in depths),
            _percent(found["logit-lens", row.layer, 0].settled.value),
            *(f"{value:.3f}" for value in (row.cka, row.cka_final, row.cosine)),
        )
        for row in drift
    ]
    common.table("Agreement with the backbone by layer, through lens and probe", columns, lines)
    common.console.print(
        "settled: the lens's next token stays the same from here on; CKA, cosine: with the layer "
        "before.\n"
    )


def _show_expected(rows: Sequence[Expected]) -> None:
    columns = ("method", "rule", "after", "draft length", "tokens/forward")
    lines = [
        (
            row.method,
            row.rule,
            BEHIND[row.behind],
            str(row.depth),
            shown(row.tokens_per_forward, 2),
        )
        for row in _longest(rows)
    ]
    common.table("Tokens per forward that a perfect reader would reach", columns, lines)
    common.console.print()


def _longest(rows: Sequence[Expected]) -> Iterable[Expected]:
    deepest = max(row.depth for row in rows)
    return (row for row in rows if row.depth == deepest)


def _show_prediction(rows: Sequence[Predicted], prediction: Prediction) -> None:
    columns = ("after", "draft length", "accepted", "tokens/forward", "speed-up")
    lines = [
        (
            BEHIND[row.behind],
            str(row.depth),
            f"{_percent(row.acceptance.min)} to {_percent(row.acceptance.max)}",
            f"{row.tokens_per_forward.min:.2f} to {row.tokens_per_forward.max:.2f}",
            f"{row.speedup.min:.2f}× to {row.speedup.max:.2f}×",
        )
        for row in rows
    ]
    common.table("Parallel heads on this machine, batch 1", columns, lines)
    common.console.print(_advice(prediction))


def _advice(prediction: Prediction) -> str:
    if not prediction.depth:
        return "Drafting would not pay here: a pass over more tokens costs more than it brings."
    low, high = prediction.speedups(prediction.depth)
    begin = "Recommended"
    if low <= 1.0:
        begin = (
            f"Whether drafting pays here is open: {low:.2f}× to {high:.2f}× plain decoding, which "
            "more --positions may narrow down. To try it"
        )
    why = (
        "no text to train linear probes on"
        if prediction.share is None
        else f"a linear probe agrees {common.percent(prediction.share)} as often as the marginals"
    )
    return (
        f"{begin}: {prediction.recipe} heads on tap {prediction.tap}, depth {prediction.depth} "
        f"({why})."
    )


def shown(
    found: Estimate,
    digits: int = 3,
    scale: float = 1.0,
    unit: str = "",
    *,
    signed: bool = False,
) -> str:
    """`45.7 % ± 1.2 [44.1–47.0]`: a value, its interval and its bounds, as far as known."""
    text = ""
    if found.value is not None:
        text = f"{scale * found.value:{'+' if signed else ''}.{digits}f}{unit}"
    if found.low is not None and found.high is not None:
        text += f" ± {scale * (found.high - found.low) / 2:.{digits}f}"
    if found.min is not None and found.max is not None and found.min != found.max:
        text += f" [{scale * found.min:.{digits}f}–{scale * found.max:.{digits}f}]"
    return text.strip() or "–"


def shown_share(found: Estimate) -> str:
    """The same of a share, in per cent."""
    return shown(found, 1, 100, " %")


def _show_coverage(rows: Sequence[Coverage]) -> None:
    """How much fewer tokens would cover; nothing where that was not counted."""
    if rows:
        lines = [(f"{row.vocabulary:,}", common.percent(row.coverage)) for row in rows]
        common.table("Draft vocabulary", ("most frequent tokens", "are of unseen text"), lines)
        common.console.print()


def _percent(share: float | None) -> str:
    return "–" if share is None else common.percent(share)


def show_depths(found: DepthTable, title: str) -> None:
    """Print a table of depths."""
    columns = ["depth", "top-1", "top-5", "nats/token", "agrees", "accepted", "covered mass"]
    depths = found.rows()
    limited = any(row.coverage.value is not None for row in depths)
    columns += ["can be drafted"] * limited
    rows = [
        (
            str(row.depth),
            shown_share(row.top1),
            shown_share(row.top5),
            shown(row.nll),
            shown_share(row.agreement),
            shown_share(row.acceptance),
            _percent(row.covered_mass.value),
            *[shown_share(row.coverage)] * limited,
        )
        for row in depths
    ]
    common.table(f"{title} ({found.positions} positions)", columns, rows)
    if len(rows) > 1:
        common.console.print(
            "agrees: with what the backbone would choose there; accepted: at every depth so far.\n"
            f"Tokens per forward to expect of greedy decoding: {found.tokens_per_forward:.2f}"
        )
