"""The README and the pages of docs/: their code runs, their links lead somewhere.

Every block marked as `python` or `bash` is run, page by page and from top to bottom, in a directory
with a few files of text in it. Commands are given less to do (LESS). A comment before a block,
which no reader sees, can say

    <!-- not run: WHY -->          and it stands in NOT_RUN below
    <!-- tested with: steps=2 -->  what arguments in a block of Python are given instead
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging

from foretell.cli import main
from foretell.cli.common import console
from foretell.data import read_documents

pytestmark = pytest.mark.usefixtures("_tried_once", "_short_sight")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "tutorial.ipynb"
TRAIN, MEASURE = "train.jsonl", "held-out.jsonl"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("**/*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|tested with): (?P<said>[^\n]*) -->\n)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\]\((?!\w+:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")

LESS = {
    "bench": "--count 1 --max-new-tokens 4 --repeats 1 --include-loops",
    "distill": "--count 2 --max-new-tokens 4",
    "eval": "--blocks 2 --block-size 32",
    "generate": "--max-new-tokens 12",
    "probe": "--positions 4 --layer-positions 0 --width 2 --block-size 32",
    "train": "--steps 2 --batch-size 2 --block-size 32",
}
"""What each command is given as well, after all else and so before all else, to be quick."""

STAND_INS = {
    "stdlib:train": TRAIN,
    "stdlib:held-out": MEASURE,
    "models/SmolLM2-135M-Instruct": "tiny",
    "smollm2-mtp": "tiny-mtp",
    "experiments/smollm2/questions.jsonl": MEASURE,
    "runs/own.jsonl": TRAIN,
    "head.vocabulary=8192": "head.vocabulary=512",
}
"""What is small, for what is not here or takes long."""

NOT_RUN = {
    ("README.md", "pip"),
    ("README.md", "foretell"),
    ("CONTRIBUTING.md", "make"),
    ("installation.md", "python3"),
    ("installation.md", "pip"),
    ("installation.md", "make"),
    ("report.md", "foretell"),
    ("serve.md", "from"),
    ("smollm2.md", "foretell"),
    ("smollm2.md", "make"),
    ("smollm2.md", "python"),
    ("serve.md", "pip"),
    ("serving.md", ".venv-vllm/bin/pip"),
    ("serving.md", "curl"),
    ("serving.md", "foretell"),
    ("serving.md", "python3"),
}
"""Page, and first word of the block: it installs, needs a server or a model that is not here."""


@dataclass(frozen=True)
class Block:
    """One block of code; `said` is what stands in the mark before it."""

    language: str
    code: str
    mark: str | None = None
    said: str = ""

    @property
    def first_word(self) -> str:
        return self.code.split()[0]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["code"], found["mark"], found["said"] or "")
        for found in BLOCK.finditer(text)
        if found["language"] in ("python", "bash", "console")
    ]


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a block of bash, without comments, lines that go on joined."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of ours, in this process, on less text."""
    assert words[0] == "foretell", f"mark it as not run: {shlex.join(words)}"
    here = [STAND_INS.get(word, word) for word in words]
    monkeypatch.setattr(sys, "argv", [*here, *LESS.get(words[1], "").split()])
    status = None
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    assert not status, shlex.join(words)


def run_block(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if block.language == "python":
        code = block.code.replace("max_new_tokens=40", "max_new_tokens=12")
        for argument in block.said.split():
            name, _, value = argument.partition("=")
            code, count = re.subn(rf"\b{name}=[^,)\s]+", f"{name}={value}", code)
            assert count, f"there is no {name} in this block: {block.code}"
        exec(compile(code, "a block of a page", "exec"), names)
    else:
        for words in commands(block.code):
            run_command(words, monkeypatch)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """A few files of the standard library, as JSON lines: to learn from, and others to measure."""
    found = {}
    for name, corpus in ((TRAIN, "stdlib:train"), (MEASURE, "stdlib:held-out")):
        documents = islice(read_documents(corpus), 8)
        found[name] = "".join(json.dumps({"text": one.text[:3000]}) + "\n" for one in documents)
    return found


@pytest.fixture
def _reader(
    tmp_path: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Where a reader of the pages is: in a directory with texts."""
    monkeypatch.chdir(tmp_path)
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(verbosity)
    console.quiet = console.stderr = False


RUN = [
    page
    for page in PAGES
    if page.stem != NOTEBOOK.stem  # run as the notebook, which is the same
    and any(block.mark != "not run" for block in blocks(page))
]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
@pytest.mark.usefixtures("_reader")
def test_the_code_of_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.mark != "not run":
            run_block(block, names, monkeypatch)


def test_what_is_not_run_is_known() -> None:
    marked = {
        (page.name, block.first_word)
        for page in PAGES
        for block in blocks(page)
        if block.mark == "not run"
    }
    assert marked == NOT_RUN


def test_every_mark_is_understood_and_belongs_to_a_block() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marks = len(re.findall(r"^<!-- (?:not run|tested with): ", text, re.MULTILINE))
        assert marks == sum(block.mark is not None for block in blocks(page)), page.name


def test_commands_stand_in_blocks_of_bash() -> None:
    """A block without a language would be run by nobody."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if not found["language"]:
                assert not re.match(r"(foretell|make|pip|python3?) ", found["code"]), found["code"]


def anchors(page: Path) -> set[str]:
    """Of the headings, as code hosts and MkDocs derive them."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.finditer(prose):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.is_file(), link[0]
        assert target.is_relative_to(ROOT), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target), link[0]


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.glob("**/*.md")} <= listed


def test_the_reference_names_what_can_be_imported() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    assert "foretell.MTPModel" in names
    for name in names:
        module, _, member = name.rpartition(".")
        assert getattr(import_module(module), member).__doc__, name


def test_the_reference_has_all_public_names() -> None:
    import foretell

    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in foretell.__all__:
        assert f"::: foretell.{name}\n" in reference


def test_the_notebook_is_the_tutorial() -> None:
    command = [sys.executable, "docs/notebook.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("_reader")
def test_the_notebook_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, without Jupyter: `!` begins a command of the shell there."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    tested = [block for block in blocks(DOCS / "tutorial.md") if block.mark != "not run"]
    assert len(code) == len(tested)
    names: dict[str, Any] = {"__name__": "__main__"}
    for source, block in zip(code, tested, strict=True):
        own = source.replace("!", "") if block.language == "bash" else source
        run_block(Block(block.language, own, block.mark, block.said), names, monkeypatch)
