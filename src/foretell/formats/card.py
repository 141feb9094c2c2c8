"""The model card of an export: what it is, what it was trained on, how it is to be run, and its
measured acceptance.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell.errors import InputError
from foretell.files import local_path
from foretell.model import MTPModel
from foretell.results import Row, read_result

if TYPE_CHECKING:
    from foretell.formats.base import Layout

CARD = "README.md"
RUN = ("provenance.json", "source.json")
"""What a run of `foretell train` writes beside the model: its processes, and its data's size."""


def write_card(
    directory: Path,
    model: MTPModel,
    layout: "Layout",
    serve: str,
    backbone: str,
    source: Path,
    results: Sequence[Path],
) -> None:
    """Write the card; figures come from result files alone, and what the heads were trained on from
    the run that `source`, their directory, is the end of.

    Raises:
        InputError: a result file cannot be read.
    """
    head = model.require_head()
    parameters = sum(p.numel() for p in head.parameters())
    contract = layout.contract_of(head.config).to_dict()
    notes = [note for note in (layout.needs, types(model)) if note]
    own = [*_front(), f"# Multi-token prediction heads for {type(model.lm).__name__}", ""]
    own += [
        f"{head.config.kind.capitalize()} heads of {parameters:,} parameters, depth {head.depth}, "
        f"trained with foretell and written in the layout `{layout.name}`.",
        "",
        f"Backbone: `{backbone}`, fingerprint `{model.fingerprint()}`.",
        "",
        "## Training",
        "",
        *_training(source),
        "",
        "## Serve",
        "",
        "```",
        serve,
        "```",
        "",
        *(line for note in notes for line in (note, "")),
        "## Contract",
        "",
        "What the engine has to do for these heads to be accepted as often as they can be:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in contract.items()),
        "",
        "## Figures",
        "",
        *_figures(results),
    ]
    (directory / CARD).write_text("\n".join(own) + "\n", encoding="utf-8")


def types(model: MTPModel) -> str:
    """What to know where heads are stored in another type than their backbone; else nothing."""
    found = {p.dtype for p in model.require_head().parameters()} - {model.backbone.dtype}
    if not found:
        return ""
    heads = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
    backbone = str(model.backbone.dtype).removeprefix("torch.")
    return (
        f"Heads are stored in {heads}, the backbone in {backbone}: an engine that runs {backbone} "
        "rounds them when it loads them, and may then accept a little less than was measured."
    )


def _front() -> list[str]:
    tags = ["---", "library_name: foretell", "tags:", "- multi-token-prediction"]
    return [*tags, "- speculative-decoding", "---", ""]


def _training(source: Path) -> list[str]:
    source = source.resolve()  # a link, or "."
    files = [source.parent / name for name in RUN]
    if source.name != "model" or not all(file.is_file() for file in files):
        return ["Not on record: the model did not lie in the directory of its run."]
    processes, data = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    commands = dict.fromkeys(process["command"] for process in processes)
    size = ", ".join(f"{name} {value}" for name, value in data.items() if name != "backbone")
    last = processes[-1]
    packages = ("foretell", "foretoken", "torch", "transformers")  # foretoken: an earlier name
    versions = ", ".join(f"{name} {last[name]}" for name in packages if name in last)
    lines = [f"`{command}`" for command in commands]
    return [*lines, "", f"Data: {size}. Versions: {versions}; commit {last['git_sha']}."]


def _figures(results: Sequence[Path]) -> list[str]:
    if not results:
        return ["None were given; measure with `foretell eval` or `foretell bench --json`."]
    lines: list[str] = []
    for path in results:
        if not local_path(path).is_file():
            raise InputError(f"{path}: is not a result file.")
        result = read_result(path)
        origin = result.provenance
        lines += [f"`{origin.get('command', result.command)}`", "", *_measured(origin)]
        lines += [line for rows in result.tables for line in (*_table(rows), "")]
        lines += [f"Settings: `{json.dumps(result.settings, sort_keys=True)}`", ""]
    return lines


def _measured(origin: Mapping[str, Any]) -> list[str]:
    """In which type, and on what: acceptance depends on the one, speed on both."""
    dtype, device = origin.get("dtype"), origin.get("device")
    return [f"Measured in {dtype} on {device}.", ""] if dtype and dtype != "auto" else []


def _table(rows: Sequence[Row]) -> list[str]:
    records = [row.flat() for row in rows]
    names = [name for name in dict.fromkeys(name for r in records for name in r) if name != "table"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for record in records:
        cells = [_cell(record.get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
