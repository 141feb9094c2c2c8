"""Everything that a command does can be had from Python, and gives the same; nothing is printed."""

import ast
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import foretell as ft
from foretell import demo, ready
from foretell.cli import main
from foretell.data import Document, read_prompt, read_prompts
from foretell.decoding import TreeShape
from foretell.errors import ForetellError, HeadError, InputError
from foretell.evaluation import compare, measure_heads, methods_of, probed_baselines
from foretell.facts import facts_of
from foretell.formats import head_for, require_layout
from foretell.probe import ProbeOptions, journal_of, probe_model, read_texts
from foretell.results import Result, Row, read_result
from foretell.results.tables import LossByDepth, PassCost, Predicted
from foretell.training import TrainConfig, build, read_training_text, reference, train

pytestmark = pytest.mark.usefixtures("_tried_once", "_short_sight")

PACKAGE = Path(ft.__file__).parent
TIMED = (PassCost, Predicted)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("texts")
    for number in range(4):
        lines = [f"def f{i}(x):\n    return x + {i * number}\n\n" for i in range(20)]
        (place / f"{number}.py").write_text("".join(lines), encoding="utf-8")
    return place


def command(monkeypatch: pytest.MonkeyPatch, path: Path, *words: object) -> Result:
    """What `foretell …` writes."""
    monkeypatch.setattr(sys, "argv", ["foretell", *map(str, words), "--json", str(path)])
    main()
    return read_result(path)


def test_no_test_module_imports_another() -> None:
    """What tests share stands in a module of its own: else one cannot be changed alone."""
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("test_", "tests."))], path


def test_the_architecture_page_shows_every_room() -> None:
    page = Path(__file__).parents[1] / "docs" / "architecture.md"
    shown = page.read_text(encoding="utf-8").partition("```\n")[2].partition("```")[0].split()
    rooms = {
        path.name + "/" * path.is_dir() for path in PACKAGE.iterdir() if path.name[0] not in "_."
    }
    assert rooms - {"py.typed"} <= set(shown)


class Noted(demo.Watcher):
    """What a watcher is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if hasattr(demo.Watcher, name) and not name.startswith("_"):
            self.told.append(name)
        return super().__getattribute__(name)


@pytest.mark.slow
def test_the_demo_is_one_call(
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a few functions in place of most of the standard library."""
    blocks, methods = ready.read_blocks, demo.methods_of
    monkeypatch.setattr(demo, "methods_of", lambda model: methods(model)[:2])
    monkeypatch.setattr(ready, "read_blocks", lambda data, *rest: blocks(texts, *rest))
    for name, small in (("WIDTH", 4), ("POSITIONS", 32), ("BLOCKS", 2), ("NEW_TOKENS", 16)):
        monkeypatch.setattr(demo, name, small)
    noted = Noted()
    done = demo.run_demo(tmp_path, minutes=0.001, count=1, watcher=noted)
    assert capsys.readouterr().out == ""
    assert noted.told == [
        "begins", "reading", "stage", "probed", "wrote",
        "begins", "reading", "training", "trained", "reading", "measured", "wrote",
        "begins", "stage", "stage", "decoded", "wrote", "wrote",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {
        "probe.json", "eval.json", "bench.json", "generate.json", "heads", "report.html",
    }  # fmt: skip
    assert read_result(tmp_path / "bench.json").rows == done.rows
    assert done.identical == done.outputs == 2
    done.require_identical()
    rows = done.speeds[1][1].rows
    place = next(place for place, row in enumerate(rows) if row.method == "parallel")
    rows[place] = replace(rows[place], identical=0)
    with pytest.raises(ForetellError, match="1 outputs differ"):
        done.require_identical()


def without_model(rows: Iterable[Row]) -> list[Row]:
    return [replace(row, model=None) for row in rows]


def test_nothing_but_the_commands_prints() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli") or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "print"), path
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"rich", "typer"}, path
            assert not any(f"{name}.".startswith("foretell.cli.") for name in names), path


def test_a_probe_is_one_call(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Callable[[float], None]]:
        yield stages.setdefault(name, []).append

    model = ready.load_model("tiny", "cpu")
    tokenizer = ready.tokenizer_of("tiny", model)
    found = read_texts(texts, model, tokenizer, 32)
    options = ProbeOptions(
        depth=1, width=4, positions=16, layer_positions=16, draft_model="tiny-mtp"
    )
    capsys.readouterr()
    journal = journal_of(tmp_path / "journal", model, found, options)
    result = probe_model(model, tokenizer, found, options, journal=journal, stage=stage)
    assert capsys.readouterr().out == ""
    assert list(stages) == ["Marginalizing", "Training linear probes", "Reading layers"]
    assert all(shares[-1] == 1 for shares in stages.values())
    again = journal_of(tmp_path / "journal", model, found, options)
    assert again.done == journal.done
    other = ProbeOptions(depth=1, width=5, positions=16, layer_positions=16)
    assert journal_of(tmp_path / "journal", model, found, other).done == {}
    asked = ("--depth", 1, "--width", 4, "--positions", 16, "--layer-positions", 16)
    data = ("--data", texts, "--block-size", 32, "--draft-model", "tiny-mtp", "--device", "cpu")
    written = command(monkeypatch, tmp_path / "probe.json", "probe", "tiny", *data, *asked)
    mine = [row for row in result.rows() if not isinstance(row, TIMED)]
    assert mine == without_model(row for row in written.rows if not isinstance(row, TIMED))
    assert {type(row) for row in written.rows} == {type(row) for row in result.rows()}


@pytest.mark.parametrize(("name", "value"), [("depth", 0), ("width", 0), ("layer_positions", -1)])
def test_a_probe_of_too_little_is_refused_before_anything_is_loaded(name: str, value: int) -> None:
    with pytest.raises(InputError):
        ProbeOptions(**{name: value})


def test_an_evaluation_gives_the_rows_of_eval(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ready.load_model("tiny-mtp", "cpu")
    tokenizer = ready.tokenizer_of("tiny-mtp", model)
    found = measure_heads(model, ready.read_blocks(texts, model, tokenizer, 32), limit=3)
    data = ("--data", texts, "--block-size", 32, "--blocks", 3, "--device", "cpu")
    written = command(monkeypatch, tmp_path / "eval.json", "eval", "tiny-mtp", *data)
    assert found.all_rows() == without_model(written.rows)
    assert written.settings["backbone"] == model.fingerprint()
    nothing = found.more_bits_than(found)
    assert nothing is not None
    assert nothing.value == 0
    with pytest.raises(InputError, match="give one of `foretell probe`"):
        probed_baselines(tmp_path / "eval.json", str(texts))


def test_a_run_is_built_and_trained_as_train_does(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 2, "batch_size": 2, "block_size": 32, "precision": "float32"}
    config = TrainConfig.parse({**settings, "held_out": 0.3, "head": {"depth": 1}})
    model = build("tiny", config, torch.device("cpu"))
    tokenizer = ready.tokenizer_of("tiny", model)
    blocks, held_out = read_training_text(texts, model, tokenizer, config)
    assert held_out is not None
    result = train(
        model, blocks, config, tmp_path / "mine", held_out=held_out, tokenizer=tokenizer,
        backbone_path=reference("tiny", model),
    )  # fmt: skip
    size = ("--steps", 2, "--batch-size", 2, "--block-size", 32, "--precision", "float32")
    asked = ("--depth", 1, "--set", "held_out=0.3", "--out", tmp_path / "theirs", "--device", "cpu")
    path = tmp_path / "train.json"
    written = command(monkeypatch, path, "train", "tiny", "--data", texts, *size, *asked)
    assert [row.nll for row in written.table(LossByDepth)] == list(result.depth_losses)


def test_all_that_decodes_is_compared_in_one_call(texts: Path) -> None:
    model = ready.load_model("tiny-mtp", "cpu")
    tokenizer = ready.tokenizer_of("tiny-mtp", model)
    prompts = ready.prompts_with_room(texts, model, tokenizer, 8, 2, 0, max_new_tokens=4)
    assert all(
        torch.equal(one, other)
        for one, other in zip(prompts, read_prompts(texts, tokenizer, 8, 2, 0), strict=True)
    )
    methods = methods_of(model, tree=TreeShape.parse("2,1"), draft_length=1)
    found = compare(methods, prompts, max_new_tokens=4, repeats=1, exclude_loops=False)
    names = [row.method for row in found.speeds]
    assert names == [
        "plain", "parallel", "parallel-tree", "parallel-1", "prompt-lookup", "transformers",
        "transformers-prompt-lookup",
    ]  # fmt: skip
    assert [method.facts["tree"] for method in methods if method.facts["tree"]] == ["2,1"]
    plain = ready.load_model("tiny", "cpu")
    for options in ({"tree": TreeShape(nodes=2)}, {"draft_length": 1}):
        with pytest.raises(InputError, match="the model has none"):
            methods_of(plain, **options)


@pytest.mark.parametrize("text", ["4,2,1", "12", "1"])
def test_a_tree_is_written_as_it_is_read(text: str) -> None:
    assert str(TreeShape.parse(text)) == text


def test_no_prompt_comes_twice_from_one_document(tmp_path: Path) -> None:
    """It would count twice in every figure of `bench`; stretches from other places do not."""
    model = ready.load_model("tiny", "cpu")
    tokenizer, path = ready.tokenizer_of("tiny", model), tmp_path / "a.jsonl"
    records = [{"prompt": "def main("}, {"text": "x = 1"}, {"text": "y = 2"}]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    assert len(read_prompts(path, tokenizer, 8, 20, 0)) == 3
    path.write_text(json.dumps({"text": "one two three four five six " * 9}), encoding="utf-8")
    found = [tuple(prompt[0].tolist()) for prompt in read_prompts(path, tokenizer, 8, 20, 0)]
    assert 1 < len(found) == len(set(found))


def test_a_prompt_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo", encoding="utf-8")
    assert read_prompt(tmp_path / "a.txt") == Document("one\ntwo", str(tmp_path / "a.txt"))
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    assert read_prompt(tmp_path / "b.jsonl").text == "one"
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="more than one prompt"):
        read_prompt(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_prompt(tmp_path / "none.txt")


def test_heads_for_a_layout() -> None:
    wanted = head_for("medusa", {"depth": 2})
    assert (wanted["kind"], wanted["depth"]) == ("residual", 2)
    assert head_for("medusa", "residual")["depth"] == 3
    with pytest.raises(InputError, match="--for medusa"):
        head_for("medusa", {"kind": "residual", "tap": "trunk"})
    model = ready.load_model("tiny", "cpu")
    require_layout("medusa", model)
    with pytest.raises(HeadError, match="qwen3_next cannot hold this model"):
        require_layout("qwen3_next", model)


def test_facts() -> None:
    facts = facts_of(ready.load_model("tiny-mtp", "cpu"))
    assert facts["family"] == "llama"
    assert facts["head"] == "kind parallel, depth 3, normalize False"  # not the rest
    assert "train" in facts_of(ready.load_model("tiny", "cpu"))["head"]
