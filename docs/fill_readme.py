"""Fill the README's marked places from committed result files; `--check` only compares.

A place is `<!-- results/FILE -->` … `<!-- end -->`. A `.txt` file is shown as it is; a JSON result
becomes a table, whose columns follow from the command that wrote it.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretoken.provenance import Result, read_result

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- (results/\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


TABLES: dict[str, Callable[[Result], list[list[str]]]] = {
    "decode": speed,
    "experiments/tiny": depths,
    "identity": families,
}


def _number(value: Any) -> float:
    return float(value)


def render(path: Path) -> str:
    if path.suffix == ".txt":
        return f"```\n{path.read_text(encoding='utf-8').strip()}\n```\n"
    result = read_result(path)
    header, *rows = TABLES[result.command](result)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(text: str) -> str:
    return PLACE.sub(lambda m: m[1] + render(ROOT / m[2]) + m[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = fill(old)
    if arguments.check:
        sys.exit(old != new and "README.md does not match results/: run docs/fill_readme.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
