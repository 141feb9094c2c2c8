"""Write docs/tutorial.ipynb, the tutorial as a notebook, from docs/tutorial.md; `--check` compares.

Blocks of Python and of commands become cells of code, what stands between them cells of text.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"^<!-- .*? -->\n", re.MULTILINE)


def cells(page: str) -> list[dict[str, Any]]:
    # Text, language, code, text, …
    text, *others = BLOCK.split(COMMENT.sub("", page))
    found = [_text(text)]
    for language, code, after in zip(*[iter(others)] * 3, strict=True):
        found += [_code(language, code), _text(after)]
    return [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(found) if cell["source"]]


def _text(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(text)}


def _code(language: str, code: str) -> dict[str, Any]:
    if language == "bash":
        code = re.sub(r"^(?=foretell )", "!", code, flags=re.MULTILINE)
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": _lines(code),
    }


def _lines(text: str) -> list[str]:
    return text.strip().splitlines(keepends=True)


def notebook(page: str) -> str:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells(page),
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    new = notebook(PAGE.read_text(encoding="utf-8"))
    if "--check" not in sys.argv:
        NOTEBOOK.write_text(new, encoding="utf-8")
    elif not NOTEBOOK.is_file() or NOTEBOOK.read_text(encoding="utf-8") != new:
        sys.exit(f"{NOTEBOOK.name}: not what {PAGE.name} says; run `make figures`")


if __name__ == "__main__":
    main()
