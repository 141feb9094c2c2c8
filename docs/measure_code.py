"""Sizes of a package's code, beside those of others: the table of docs/architecture.md.

    python docs/measure_code.py foretell=src/foretell httpx=PATH/httpx …

Prints one column per package, in Markdown. Lines are those of the files, comments and docstrings
included; a function's lines go from `def` to its end. Public definitions are classes and functions
without a leading underscore, at any level but inside functions.
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions under `node`, those inside functions left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            if not child.name.startswith("_"):
                yield child
            if isinstance(child, Function):
                continue
        yield from public(child)


def measured(package: Path) -> list[str]:
    """The cells of a column."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    files = [len(text.splitlines()) for text in texts]
    trees = [ast.parse(text) for text in texts]
    functions = sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, Function)
    )
    shown = [node for tree in trees for node in public(tree)]
    told = sum(ast.get_docstring(node) is not None for node in shown)
    return [
        f"{sum(files):,}",
        f"{len(files)} / {statistics.median(files):.0f} / {max(files)}",
        f"{statistics.median(functions):.0f} / {functions[len(functions) * 9 // 10]} / "
        f"{functions[-1]}",
        f"{100 * told / len(shown):.0f}",
    ]


def main() -> None:
    names, places = zip(*(word.split("=", 1) for word in sys.argv[1:]), strict=True)
    labels = [
        "lines",
        "files / median / longest, lines",
        "functions: median / 90 % / longest, lines",
        "public definitions with a docstring, %",
    ]
    columns = [measured(Path(place)) for place in places]
    print("| |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for label, *cells in zip(labels, *columns, strict=True):
        print("|", " | ".join([label, *cells]), "|")


if __name__ == "__main__":
    main()
