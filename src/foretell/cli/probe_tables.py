"""The tables of `foretell probe`, from the records of its result file."""

from collections.abc import Iterable, Sequence
from typing import Any

from foretell.cli import common
from foretell.evaluation import DepthTable
from foretell.probe.prediction import Prediction

Rows = Sequence[dict[str, Any]]
BEHIND = {"text": "text", "own": "own continuation"}
"""What drafts follow, in words."""


def show_probe(title: str, rows: Rows, prediction: Prediction) -> None:
    """Print everything, most important last."""
    tables = {row["table"]: [r for r in rows if r["table"] == row["table"]] for row in rows}
    _show_methods(title, tables["depths"])
    for name, axis in (("token-classes", "token_class"), ("document-kinds", "document_kind")):
        if name in tables:
            _show_parts(tables[name], axis)
    if "layers" in tables:
        _show_layers(tables["layers"], tables["drift"])
    _show_expected(tables["expected"])
    _show_prediction(tables["prediction"], prediction)


def _show_methods(title: str, rows: Rows) -> None:
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
            row["method"],
            str(row["depth"]),
            _share(row, "top1"),
            _share(row, "top5"),
            shown(row, "nll"),
            shown(row, "entropy"),
            _share(row, "agreement"),
            _share(row, "covered_mass"),
        )
        for row in rows
    ]
    common.table(f"{title} ({rows[0]['positions']} positions)", columns, lines)
    common.console.print(
        "± : 95 % over documents; […]: what the strings left out could change; agrees: with what "
        "the backbone would choose there.\n"
    )


def _show_parts(rows: Rows, axis: str) -> None:
    """Marginalization by part, depths side by side."""
    mine = [row for row in rows if row["method"] == "marginalization"]
    depths = sorted({row["depth"] for row in mine})
    columns = (axis.replace("_", " "), "positions", *(f"top-1, depth {k}" for k in depths))
    lines = []
    for part in dict.fromkeys(row[axis] for row in mine):
        by_depth = {row["depth"]: row for row in mine if row[axis] == part}
        cells = [_share(by_depth[k], "top1") if k in by_depth else "–" for k in depths]
        lines.append((part, str(next(iter(by_depth.values()))["positions"]), *cells))
    common.table("Marginalization by what is predicted", columns, lines)
    common.console.print()


def _show_layers(rows: Rows, drift: Rows) -> None:
    depths = sorted({row["depth"] for row in rows})
    methods = [m for m in ("logit-lens", "linear-probe") if any(r["method"] == m for r in rows)]
    columns = (
        "layer",
        *(f"{method.split('-')[-1]} {k}" for method in methods for k in depths),
        "settled",
        "CKA",
        "to last",
        "cosine",
    )
    found = {(row["method"], row["layer"], row["depth"]): row for row in rows}
    lines = []
    for row in drift:
        layer = row["layer"]
        cells = [found.get((method, layer, k)) for method in methods for k in depths]
        lines.append(
            (
                str(layer),
                *("–" if cell is None else common.percent(cell["agreement"]) for cell in cells),
                common.percent(found["logit-lens", layer, 0]["settled"]),
                *(f"{row[name]:.3f}" for name in ("cka", "cka_final", "cosine")),
            )
        )
    common.table("Agreement with the backbone by layer, through lens and probe", columns, lines)
    common.console.print(
        "settled: the lens's next token stays the same from here on; CKA, cosine: with the layer "
        "before.\n"
    )


def _show_expected(rows: Rows) -> None:
    columns = ("method", "rule", "after", "draft length", "tokens/forward")
    lines = [
        (
            row["method"],
            row["rule"],
            BEHIND[row["behind"]],
            str(row["depth"]),
            shown(row, "tokens_per_forward", 2),
        )
        for row in _longest(rows)
    ]
    common.table("Tokens per forward that a perfect reader would reach", columns, lines)
    common.console.print()


def _longest(rows: Rows) -> Iterable[dict[str, Any]]:
    deepest = max(row["depth"] for row in rows)
    return (row for row in rows if row["depth"] == deepest)


def _show_prediction(rows: Rows, prediction: Prediction) -> None:
    columns = ("after", "draft length", "accepted", "tokens/forward", "speed-up")
    lines = [
        (
            BEHIND[row["behind"]],
            str(row["depth"]),
            *(
                f"{low} to {high}"
                for low, high in (
                    tuple(common.percent(row[f"acceptance_{end}"]) for end in ("min", "max")),
                    tuple(f"{row[f'tokens_per_forward_{end}']:.2f}" for end in ("min", "max")),
                    tuple(f"{row[f'speedup_{end}']:.2f}×" for end in ("min", "max")),
                )
            ),
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
    row: dict[str, Any],
    name: str,
    digits: int = 3,
    scale: float = 1.0,
    unit: str = "",
    *,
    signed: bool = False,
) -> str:
    """`45.7 % ± 1.2 [44.1–47.0]`: a value, its interval and its bounds, where the row has them."""
    value, low, high, least, most = (
        row.get(name + end) for end in ("", "_low", "_high", "_min", "_max")
    )
    text = "" if value is None else f"{scale * value:{'+' if signed else ''}.{digits}f}{unit}"
    if low is not None and high is not None:
        text += f" ± {scale * (high - low) / 2:.{digits}f}"
    if least is not None and most is not None and least != most:
        text += f" [{scale * least:.{digits}f}–{scale * most:.{digits}f}]"
    return text.strip() or "–"


def _share(row: dict[str, Any], name: str) -> str:
    return shown(row, name, 1, 100, " %")


def show_depths(found: DepthTable, title: str) -> None:
    """Print a table of depths."""
    columns = ("depth", "top-1", "top-5", "nats/token", "agrees", "accepted", "covered mass")
    rows = [
        (
            str(row["depth"]),
            _share(row, "top1"),
            _share(row, "top5"),
            shown(row, "nll"),
            _share(row, "agreement"),
            _share(row, "acceptance"),
            common.percent(row["covered_mass"]),
        )
        for row in found.rows()
    ]
    common.table(f"{title} ({found.positions} positions)", columns, rows)
    if len(rows) > 1:
        common.console.print(
            "agrees: with what the backbone would choose there; accepted: at every depth so far.\n"
            f"Tokens per forward to expect of greedy decoding: {found.tokens_per_forward:.2f}"
        )
