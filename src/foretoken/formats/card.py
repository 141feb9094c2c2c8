"""The model card of an export: what it is, how it is to be run, its measured acceptance."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretoken.errors import InputError
from foretoken.model import MTPModel
from foretoken.provenance import read_result

if TYPE_CHECKING:
    from foretoken.formats.base import Layout

CARD = "README.md"


def write_card(
    directory: Path,
    model: MTPModel,
    layout: "Layout",
    serve: str,
    backbone: str,
    results: Sequence[Path],
) -> None:
    """Write the card; figures come from result files alone.

    Raises:
        InputError: a result file cannot be read.
    """
    head = model.require_head()
    parameters = sum(p.numel() for p in head.parameters())
    own = [*_front(model), f"# Multi-token prediction heads for {type(model.lm).__name__}", ""]
    own += [
        f"{head.config.kind.capitalize()} heads of {parameters:,} parameters, depth {head.depth}, "
        f"trained with foretoken and written in the layout `{layout.name}`.",
        "",
        f"Backbone: `{backbone}`, fingerprint `{model.fingerprint()}`.",
        "",
        "## Serve",
        "",
        "```",
        serve,
        "```",
        "",
        "## Contract",
        "",
        "What the engine has to do for these heads to be accepted as often as they can be:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in layout.contract.to_dict().items()),
        "",
        "## Figures",
        "",
        *_figures(results),
    ]
    (directory / CARD).write_text("\n".join(own) + "\n", encoding="utf-8")


def _front(model: MTPModel) -> list[str]:
    tags = ["---", "library_name: foretoken", "tags:", "- multi-token-prediction"]
    return [*tags, "- speculative-decoding", "---", ""]


def _figures(results: Sequence[Path]) -> list[str]:
    if not results:
        return ["None were given; measure with `foretoken eval` or `foretoken bench --json`."]
    lines: list[str] = []
    for path in results:
        if not path.is_file():
            raise InputError(f"{path}: is no result file.")
        result = read_result(path)
        origin = result.provenance
        lines += [f"`{origin.get('command_line', result.command)}`", ""]
        lines += _table(result.rows)
        lines += ["", f"Settings: `{json.dumps(result.settings, sort_keys=True)}`", ""]
    return lines


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = [_cell(row.get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
