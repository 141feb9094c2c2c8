"""Fill marked places of the README and docs/ from committed result files; `--check` only compares.

A place is `<!-- results/FILE -->` … `<!-- end -->`. A `.txt` file is shown as it is; a JSON result
becomes a table, whose columns follow from the command that wrote it. Two files are a probe and what
heads reached: a table of both. `<!-- results/FILE: NAME, NAME -->` keeps the rows of these names.
`<!-- foretell COMMAND -->` is a table of that command's options, `<!-- settings of COMMAND -->` one
of what its config holds. What their help says of the library is found out first, see `known.py`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.main import get_command

from foretell.provenance import Result, read_result
from foretell.report.predicted import comparisons
from foretell.report.sources import Source

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACE = re.compile(
    r"(?P<begin><!-- (?:foretell (?P<command>\w+)|settings of (?P<config>\w+)|"
    r"(?P<files>results/[^\s:]+(?: results/[^\s:]+)?)(?:: (?P<rows>[^\n]+))?) -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def speed(result: Result) -> list[list[str]]:
    rows = [row for row in result.rows if "tokens" in row]
    header = ["method", "tokens per forward", "tokens/s", "speed-up", "identical"]
    return [header] + [
        [
            str(row["method"]),
            f"{row['tokens_per_forward']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['speedup']:.2f}×",
            "–" if row["identical"] is None else f"{row['identical']} of {row['prompts']}",
        ]
        for row in rows
    ]


def depths(result: Result) -> list[list[str]]:
    header = ["depth", "top-1", "top-5", "nats per token", "agrees with backbone"]
    return [header] + [
        [
            str(row["depth"]),
            f"{100 * _number(row['top1']):.1f} %",
            f"{100 * _number(row['top5']):.1f} %",
            f"{row['nll']:.3f}",
            f"{100 * _number(row['agreement']):.1f} %",
        ]
        for row in result.rows
    ]


def families(result: Result) -> list[list[str]]:
    methods = list(dict.fromkeys(str(row["method"]) for row in result.rows))
    names = list(dict.fromkeys(str(row["family"]) for row in result.rows))
    cells = {(row["family"], row["method"]): row for row in result.rows}
    table = [["family", *methods]]
    for name in names:
        found = [cells[name, method] for method in methods]
        table.append([name, *(f"{row['identical']} of {row['prompts']}" for row in found)])
    return table


def recipes(result: Result) -> list[list[str]]:
    header = ["run", "depth 0, nats", "top-1, %", "nats", "accepted, %", "tokens per forward"]
    table = [header]
    for name in dict.fromkeys(str(row["method"]) for row in result.rows):
        own, *deeper = [row for row in result.rows if row["method"] == name]
        table.append(
            [
                name,
                f"{own['nll']:.3f}",
                " · ".join(f"{100 * _number(row['top1']):.0f}" for row in deeper),
                " · ".join(f"{row['nll']:.2f}" for row in deeper),
                " · ".join(f"{100 * _number(row['acceptance']):.0f}" for row in deeper),
                f"{own['tokens_per_forward']:.2f}",
            ]
        )
    return table


def engines(result: Result) -> list[list[str]]:
    table = [["heads", "tokens identical", "accepted here, by place", "in vLLM", "counts equal"]]
    for row in result.rows:
        if "error" in row:
            table.append([str(row["model"]), "does not run there", "–", "–", "–"])
            continue
        same = f"{row['identical']} of {row['prompts']}" if "identical" in row else "–"
        ours, theirs = (
            f"{row[f'{who}accepted_by_place']} of {row[f'{who}drafts']}" for who in ("", "engine_")
        )
        equal = "yes" if row["equal"] else "no"
        table.append([str(row["model"]), same, ours, theirs, equal])
    return table


def engine_speed(result: Result) -> list[list[str]]:
    names = {
        "plain": "foretell, plain",
        "heads": "foretell, heads",
        "vllm-plain": "vLLM, plain",
        "vllm-heads": "vLLM, heads",
    }
    table = [["method", "batch", "tokens per forward", "tokens/s", "identical"]]
    for row in result.rows:
        table.append(
            [
                names[str(row["method"])],
                str(row["batch"]),
                f"{row['tokens_per_forward']:.2f}",
                f"{row['tokens_per_second']:.0f}",
                f"{row['identical']} of {row['prompts']}",
            ]
        )
    return table


def load(result: Result) -> list[list[str]]:
    table = [["requests", "how many", "errors", "identical", "median", "p99", "tokens/s"]]
    for row in (row for row in result.rows if "requests" in row):
        answered = "prompts" in row
        table.append(
            [
                str(row["request"]),
                str(row["requests"]),
                str(row["errors"]),
                f"{row['identical']} of {row['prompts']}" if answered else "–",
                f"{row['median_seconds']:.1f} s" if answered else "–",
                f"{row['p99_seconds']:.1f} s" if answered else "–",
                f"{row['tokens_per_second']:.0f}" if answered else "–",
            ]
        )
    return table


def marginalization(result: Result) -> list[list[str]]:
    table = [["method", "positions", "positions/s", "speed-up", "memory"]]
    for row in result.rows:
        table.append(
            [
                str(row["method"]),
                str(row["positions"]),
                f"{_number(row['positions']) / _number(row['seconds']):.2f}",
                f"{row['speedup']:.1f}×",
                f"{_number(row['peak_memory_bytes']) / 1e6:.0f} MB",
            ]
        )
    return table


def draws(result: Result) -> list[list[str]]:
    """p-values of the largest batches, and on how many draws smaller ones agree with them."""
    sizes = sorted({int(_number(row["batch"])) for row in result.rows}, reverse=True)
    rules = ("speculative", "exact")
    table = [["drafter", *(f"{rule}, p" for rule in rules), *(f"same by {n}" for n in sizes[1:])]]
    cells = {(row["drafter"], row["rule"], row["batch"]): row for row in result.rows}
    for name in dict.fromkeys(str(row["drafter"]) for row in result.rows):
        line = [name, *(f"{cells[name, rule, sizes[0]]['p_value']:.3f}" for rule in rules)]
        for size in sizes[1:]:
            rows = [cells[name, rule, size] for rule in rules if (name, rule, size) in cells]
            same, of = (
                sum(int(_number(row[key])) for row in rows) for key in ("identical", "draws")
            )
            line.append(f"{same:,} of {of:,}" if rows else "–")
        table.append(line)
    return table


TABLES: dict[str, Callable[[Result], list[list[str]]]] = {
    "bench": speed,
    "decode": speed,
    "draws": draws,
    "engine-speed": engine_speed,
    "engines": engines,
    "experiments/tiny": depths,
    "identity": families,
    "marginalization": marginalization,
    "recipes": recipes,
    "serve": load,
}


def predicted(paths: list[Path]) -> list[list[str]]:
    everything = comparisons([Source(str(path), read_result(path)) for path in paths])
    found = [one for one in everything if one.quantity == "tokens_per_forward"]
    cells = {(one.who, one.length): f"{one.reached:.2f}, {one.verdict}" for one in found}
    ranges = {one.length: f"{one.low:.2f} to {one.high:.2f}" for one in found}
    lengths = sorted(ranges)
    table = [["heads", *(f"draft length {g}: predicted {ranges[g]}" for g in lengths)]]
    for who in dict.fromkeys(one.who for one in found):
        table.append([who, *(cells.get((who, length), "–") for length in lengths)])
    return table


def _number(value: Any) -> float:
    return float(value)


def options(command: str) -> list[list[str]]:
    """The options of a command, as its help has them."""
    from foretell.cli import app  # which reads what `main` may write first

    found = get_command(app).commands[command]
    context = found.make_context(command, [], resilient_parsing=True)
    table = [["option", "meaning"]]
    for parameter in found.params:
        if record := parameter.get_help_record(context):
            names, meaning = (text.replace("|", "\\|") for text in record)
            table.append([f"`{names}`", meaning.replace("*", "\\*")])
    return table


def settings(command: str) -> list[list[str]]:
    """What the config of a command holds."""
    from foretell.cli.options import KNOWN

    table = [["setting", "default", "meaning"]]
    for name, field in KNOWN[command].items():
        default = json.dumps(field["default"]).strip('"')
        shown = "" if default == "null" else f"`{default}`"
        table.append([f"`{name}`", shown, field["help"]])
    return table


def render(paths: list[Path], kept: list[str] | None = None) -> str:
    first, *others = paths
    if first.suffix == ".txt":
        return f"```\n{first.read_text(encoding='utf-8').strip()}\n```\n"
    result = read_result(first)
    header, *rows = predicted(paths) if others else TABLES[result.command](result)
    if kept is not None:
        by_name = {row[0]: row for row in rows}
        rows = [by_name[name] for name in kept]
    return written([header, *rows])


def written(table: list[list[str]]) -> str:
    header, *rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(place: re.Match[str]) -> str:
    if place["command"]:
        inside = written(options(place["command"]))
    elif place["config"]:
        inside = written(settings(place["config"]))
    else:
        kept = place["rows"] and place["rows"].split(", ")
        inside = render([ROOT / name for name in place["files"].split()], kept)
    return place["begin"] + inside + place["end"]


def fill(text: str) -> str:
    return PLACE.sub(filled, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.check:
        import known

        known.write()
    stale = []
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        if (new := fill(old)) != old:
            stale.append(str(page.relative_to(ROOT)))
            if not arguments.check:
                page.write_text(new, encoding="utf-8")
    if arguments.check and stale:
        sys.exit(f"{', '.join(stale)}: not what results/ says; run `make figures`")


if __name__ == "__main__":
    main()
