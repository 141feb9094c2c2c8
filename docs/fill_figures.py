"""Fill marked places of the README and docs/ from committed result files; `--check` only compares.

A place is `<!-- results/FILE -->` … `<!-- end -->`. A `.txt` file is shown as it is; a JSON result
becomes a table, whose columns follow from the type of its rows. Two files are a probe and what
heads reached: a table of both. `<!-- results/FILE: NAME, NAME -->` keeps the rows of these names.
`<!-- foretell COMMAND -->` is a table of that command's options, `<!-- settings of COMMAND -->` one
of what its config holds, `<!-- result tables -->` one of the tables of result files. What their
help says of the library is found out first, see `known.py`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.main import get_command

from foretell.report.predicted import comparisons
from foretell.report.sources import Source
from foretell.results import TABLES, Result, Row, benchmarks, read_result, tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACE = re.compile(
    r"(?P<begin><!-- (?:foretell (?P<command>\w+)|settings of (?P<config>\w+)|"
    r"(?P<tables>result tables)|"
    r"(?P<files>results/[^\s:]+(?: results/[^\s:]+)?)(?:: (?P<rows>[^\n]+))?) -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def speed(rows: list[tables.Speed]) -> list[list[str]]:
    header = ["method", "tokens per forward", "tokens/s", "speed-up", "identical"]
    return [header] + [
        [
            row.method,
            f"{row.tokens_per_forward:.2f}",
            f"{row.tokens_per_second:.0f}",
            f"{row.speedup:.2f}×",
            "–" if row.identical is None else f"{row.identical} of {row.prompts}",
        ]
        for row in rows
    ]


def depths(rows: list[tables.ScoredByDepth]) -> list[list[str]]:
    header = ["depth", "top-1", "top-5", "nats per token", "agrees with backbone"]
    return [header] + [
        [
            str(row.depth),
            f"{100 * row.top1.value:.1f} %",
            f"{100 * row.top5.value:.1f} %",
            f"{row.nll.value:.3f}",
            f"{100 * row.agreement.value:.1f} %",
        ]
        for row in rows
    ]


def families(rows: list[benchmarks.Identity]) -> list[list[str]]:
    methods = list(dict.fromkeys(row.method for row in rows))
    cells = {(row.family, row.method): f"{row.identical} of {row.prompts}" for row in rows}
    table = [["family", *methods]]
    for name in dict.fromkeys(row.family for row in rows):
        table.append([name, *(cells[name, method] for method in methods)])
    return table


def recipes(rows: list[benchmarks.Recipe]) -> list[list[str]]:
    header = ["run", "depth 0, nats", "top-1, %", "nats", "accepted, %", "tokens per forward"]
    table = [header]
    for name in dict.fromkeys(row.method for row in rows):
        own, *deeper = [row for row in rows if row.method == name]
        table.append(
            [
                name,
                f"{own.nll.value:.3f}",
                " · ".join(f"{100 * row.top1.value:.0f}" for row in deeper),
                " · ".join(f"{row.nll.value:.2f}" for row in deeper),
                " · ".join(f"{100 * row.acceptance.value:.0f}" for row in deeper),
                f"{own.tokens_per_forward:.2f}",
            ]
        )
    return table


def engines(rows: list[benchmarks.Engine]) -> list[list[str]]:
    table = [["heads", "tokens identical", "accepted here, by place", "in vLLM", "counts equal"]]
    for row in rows:
        if row.error is not None:
            table.append([str(row.model), "does not run there", "–", "–", "–"])
            continue
        same = "–" if row.identical is None else f"{row.identical} of {row.prompts}"
        ours = f"{row.accepted_by_place} of {row.drafts}"
        theirs = f"{row.engine_accepted_by_place} of {row.engine_drafts}"
        table.append([str(row.model), same, ours, theirs, "yes" if row.equal else "no"])
    return table


def engine_speed(rows: list[benchmarks.EngineSpeed]) -> list[list[str]]:
    names = {
        "plain": "foretell, plain",
        "heads": "foretell, heads",
        "vllm-plain": "vLLM, plain",
        "vllm-heads": "vLLM, heads",
    }
    table = [["method", "batch", "tokens per forward", "tokens/s", "identical"]]
    for row in rows:
        table.append(
            [
                names[row.method],
                str(row.batch),
                f"{row.tokens_per_forward:.2f}",
                f"{row.tokens_per_second:.0f}",
                f"{row.identical} of {row.prompts}",
            ]
        )
    return table


def load(rows: list[benchmarks.ClientLoad]) -> list[list[str]]:
    table = [["requests", "how many", "errors", "identical", "median", "p99", "tokens/s"]]
    for row in rows:
        answered = row.prompts is not None
        table.append(
            [
                row.request,
                str(row.requests),
                str(row.errors),
                f"{row.identical} of {row.prompts}" if answered else "–",
                f"{row.median_seconds:.1f} s" if answered else "–",
                f"{row.p99_seconds:.1f} s" if answered else "–",
                f"{row.tokens_per_second:.0f}" if answered else "–",
            ]
        )
    return table


def marginalization(rows: list[benchmarks.Marginalized]) -> list[list[str]]:
    table = [["method", "positions", "positions/s", "speed-up", "memory"]]
    for row in rows:
        table.append(
            [
                row.method,
                str(row.positions),
                f"{row.positions / row.seconds:.2f}",
                f"{row.speedup:.1f}×",
                f"{row.peak_memory_bytes / 1e6:.0f} MB",
            ]
        )
    return table


def draft_vocabularies(rows: list[benchmarks.DraftVocabularySize]) -> list[list[str]]:
    header = ["tokens that can be drafted", "cover", "tokens per forward", "tokens/s", "speed-up"]
    return [header] + [
        [
            f"{row.size:,}" if row.size else "none: plain decoding",
            f"{100 * row.coverage:.1f} %",
            f"{row.tokens_per_forward:.2f}",
            f"{row.tokens_per_second:.1f}",
            f"{row.speedup:.2f}×",
        ]
        for row in rows
    ]


def draws(found: list[benchmarks.Draws]) -> list[list[str]]:
    """p-values of the largest batches, and on how many draws smaller ones agree with them."""
    sizes = sorted({row.batch for row in found}, reverse=True)
    rules = ("speculative", "exact")
    table = [["drafter", *(f"{rule}, p" for rule in rules), *(f"same by {n}" for n in sizes[1:])]]
    cells = {(row.drafter, row.rule, row.batch): row for row in found}
    for name in dict.fromkeys(row.drafter for row in found):
        line = [name, *(f"{cells[name, rule, sizes[0]].p_value:.3f}" for rule in rules)]
        for size in sizes[1:]:
            rows = [cells[name, rule, size] for rule in rules if (name, rule, size) in cells]
            same, of = sum(row.identical for row in rows), sum(row.draws for row in rows)
            line.append(f"{same:,} of {of:,}" if rows else "–")
        table.append(line)
    return table


SHOWN: dict[type[Row], Callable[[Any], list[list[str]]]] = {
    benchmarks.ClientLoad: load,
    benchmarks.DraftVocabularySize: draft_vocabularies,
    benchmarks.Draws: draws,
    benchmarks.Engine: engines,
    benchmarks.EngineSpeed: engine_speed,
    benchmarks.Identity: families,
    benchmarks.Marginalized: marginalization,
    benchmarks.Recipe: recipes,
    tables.ScoredByDepth: depths,
    tables.Speed: speed,
}
"""How a table is shown."""


def shown(result: Result) -> list[list[str]]:
    """The first of its tables that can be."""
    rows = next(rows for rows in result.tables if type(rows[0]) in SHOWN)
    return SHOWN[type(rows[0])](rows)


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


def result_tables() -> list[list[str]]:
    """What the tables of commands and benchmarks are."""
    table = [["`table`", "in `foretell.results`", "a row is"]]
    for module in (tables, benchmarks):
        for kind in TABLES.values():
            if kind.__module__ == module.__name__:
                name = f"{module.__name__.removeprefix('foretell.results.')}.{kind.__name__}"
                meaning = str(kind.__doc__).partition("\n")[0]
                table.append([f"`{kind.table}`", f"`{name}`", meaning])
    return table


def render(paths: list[Path], kept: list[str] | None = None) -> str:
    first, *others = paths
    if first.suffix == ".txt":
        return f"```\n{first.read_text(encoding='utf-8').strip()}\n```\n"
    header, *rows = predicted(paths) if others else shown(read_result(first))
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
    elif place["tables"]:
        inside = written(result_tables())
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
