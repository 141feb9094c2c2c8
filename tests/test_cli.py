import contextlib
import gzip
import importlib.util
import inspect
import io
import json
import operator
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal, get_args, get_origin, get_type_hints

import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from typer.models import OptionInfo

import foretell as ft
import foretell.checkpoints.loading
import foretell.cli
import foretell.cli.train
import foretell.probe.run
import foretell.probe.whole
import report_files
from command_line import CONTEXT, TEXT, TOKENIZER, backbone, byte_tokenizer, fine, refused, run
from foretell.backbone import fingerprint
from foretell.checkpoints import CONFIG_FILE, HEADS_FILE
from foretell.cli import bench, common, drafting, options
from foretell.cli.generate import _Printer
from foretell.data import read_prompts
from foretell.data.distill import DistillOptions
from foretell.decoding import (
    AcceptanceRule,
    Distance,
    Exact,
    MinimumBlock,
    Sampling,
    SpeculativeSampling,
    Step,
    TopK,
    TreeShape,
    Typical,
)
from foretell.evaluation import SpeedTable, compare, methods_of
from foretell.heads import HEADS, HeadConfig
from foretell.heads.taps import TAPS
from foretell.objective import ObjectiveConfig
from foretell.probe import ProbeOptions
from foretell.results import Result, read_result
from foretell.results.tables import (
    AcceptedByRule,
    Baseline,
    CalibrationError,
    Difference,
    DraftLength,
    Drift,
    ModelFacts,
    PassCost,
    Predicted,
    Quality,
    ScoredByClass,
    ScoredByDepth,
    ScoredByKind,
    ScoredByLayer,
    Speed,
)
from foretell.serve import Limits
from foretell.training import TrainConfig

pytestmark = pytest.mark.usefixtures("_tried_once", "_short_sight")

COMMANDS = (
    "demo", "info", "probe", "train", "distill", "eval", "generate", "bench", "report", "export",
    "import", "serve",
)  # fmt: skip


def checked(path: Path, command: str, seed: int | None) -> Result:
    """The result file at `path`, with everything that provenance must have."""
    result = read_result(path)
    assert result.command == command
    assert result.provenance["command"].startswith(f"foretell {command} ")
    assert result.provenance["seed"] == seed
    assert result.provenance["dtype"] == "float32"
    assert result.provenance["device"] == "cpu"
    assert result.provenance["foretell"] == ft.__version__
    assert result.provenance["torch"] == torch.__version__
    assert result.provenance["transformers"]
    assert "git_sha" in result.provenance
    assert result.rows
    return result


def learned_positions() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.2,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and texts, which no test changes."""
    place = tmp_path_factory.mktemp("cli")
    for name, seed in (("plain", 0), ("other", 1)):
        backbone(seed).save_pretrained(place / name)
        TOKENIZER.save_pretrained(place / name)
    torch.manual_seed(0)
    letters = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate("abc")}, merges=[]))
    small = backbone(vocab_size=50)
    small.save_pretrained(place / "bare")
    small.save_pretrained(place / "small")
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(place / "small")
    backbone().save_pretrained(place / "foreign")
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(place / "foreign")
    learned = ft.attach(learned_positions(), "parallel", depth=2, init="copy")
    learned.save_pretrained(place / "learned", tokenizer=TOKENIZER)
    model = ft.attach(backbone(), "parallel", depth=2, init="copy")
    model.save_pretrained(place / "whole", tokenizer=TOKENIZER)
    model.save_pretrained(place / "heads", backbone_path=str(place / "plain"))
    (place / "text.py").write_text(TEXT * 12, encoding="utf-8")
    (place / "long.txt").write_text(TEXT * 2, encoding="utf-8")
    (place / "short.txt").write_text("hello", encoding="utf-8")
    (place / "empty.txt").write_bytes(b"")
    (place / "blank.txt").write_text(" \n\t\n", encoding="utf-8")
    (place / "latin.txt").write_bytes("é".encode("latin-1"))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (place / f"{encoding}.txt").write_bytes("hello".encode(encoding))
        (place / f"{encoding}.jsonl").write_bytes('{"text": "hello"}\n'.encode(encoding))
    (place / "empty.jsonl").write_bytes(b"")
    (place / "binary.jsonl").write_bytes(bytes(range(1, 256)))
    (place / "packed.jsonl").write_bytes(gzip.compress(b'{"text": "hello"}'))
    bodies = pyarrow.Table.from_pylist([{"body": "hello"}])
    parquet.write_table(bodies, place / "bodies.parquet")
    parquet.write_table(bodies.slice(0, 0), place / "none.parquet")
    (place / "settings.yaml").write_text(
        "head: {depth: 1}\nsteps: 6\nbatch_size: 2\nblock_size: 16\nlog_every: 1\nsave_every: 2\n",
        encoding="utf-8",
    )
    (place / "wrong.yaml").write_text("depht: 2\nsteps: 1\n", encoding="utf-8")
    (place / "no.yaml").write_text("{[", encoding="utf-8")
    return place


def copied(place: Path, name: str, target: Path) -> Path:
    return Path(shutil.copytree(place / name, target / name))


# -- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(arguments: tuple[str, ...]) -> None:
    out = fine(*arguments)
    for command in COMMANDS:
        assert f"\n  {command} " in out
    assert "..." not in out.partition("Commands:")[2]  # no summary is cut off


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    out = fine(command, "--help")
    named = {"demo": "", "report": r" PATHS(\.\.\.)?"}.get(command, " MODEL")  # by release of Typer
    assert re.search(rf"Usage: foretell {command} \[OPTIONS\]{named}\n", out)
    assert f"\n  Example: foretell {command} " in out  # on a line of its own, to be copied
    assert "--json" in out or command == "report"
    assert not re.search(
        r"[<>{}]|Path|TEXT\b(?!S)(?<!--stop TEXT)(?<!--prompt TEXT)|INTEGER|FLOAT", out
    )


KNOWN = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "known.py"))


def test_what_help_says_of_the_library_is_what_it_says_of_itself() -> None:
    assert json.loads(json.dumps(KNOWN["found"]())) == options.KNOWN, "run `make figures`"


def test_every_option_that_sets_a_field_has_its_default() -> None:
    configs = {"train": TrainConfig(steps=1), "serve": Limits()}
    unlike = {"tap": "as the kind of head has it", "steps": "None"}
    for command, (kind, _) in foretell.cli.COMMANDS.items():
        paths = kind.sets()
        assert bool(paths) == (command in configs), command
        hints = get_type_hints(kind, include_extras=True)
        for name, path in paths.items():
            value = operator.attrgetter(path)(configs[command])
            (option,) = hints[name].__metadata__
            told = re.search(r" \[default: (.+)\]$", option.help)
            assert (told[1] if told else "None") == unlike.get(name, str(value)), name
            assert getattr(kind, name) is None  # left to the config
    assert set(foretell.cli.COMMANDS["serve"][0].sets()) == set(Limits.model_fields)
    assert len(foretell.cli.COMMANDS["train"][0].sets()) == 15


def test_options_of_what_has_no_config_have_its_defaults() -> None:
    """Sampling and the like: a default in a signature is typed a second time for help."""
    for command, callee, names in (
        ("generate", Sampling, "temperature top_k top_p min_p repetition_penalty"),
        ("distill", DistillOptions, "max_new_tokens temperature top_p"),
        ("bench", compare, "repeats batch_size"),
        ("probe", ProbeOptions, "depth width positions layer_positions draft_model seed"),
    ):
        parameters = inspect.signature(callee).parameters
        for name in names.split():
            shown = getattr(foretell.cli.COMMANDS[command][0], name)
            assert str(shown) == str(parameters[name].default), (command, name)


def test_help_names_every_choice() -> None:
    """What a field can be, its explanation says; the table of all settings shows these."""
    kinds = [TrainConfig, ObjectiveConfig, *(head.Config for head in HEADS.values())]
    for kind in kinds:
        for name, field in kind.model_fields.items():
            assert field.description, (kind, name)
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            for choice in choices:
                assert f"`{choice}`" in field.description, (kind, name, choice)
    assert all(f"`{tap}`" in HeadConfig.model_fields["tap"].description for tap in TAPS)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_was_told_goes_to_what_does_it(command: str) -> None:
    told, work = foretell.cli.COMMANDS[command]
    assert get_type_hints(resolve_name(work))["asked"] is told


HEAVY = """
import sys
import foretell.cli
sys.argv = ["foretell", *{arguments}]
try:
    foretell.cli.main()
except SystemExit:
    pass
for name in ("torch", "transformers", "numpy", "datasets", "yaml", "rich"):
    assert name not in sys.modules, name
"""


def test_an_option_is_named_where_its_placeholder_is_its_name() -> None:
    """typer 0.27 otherwise takes the placeholder for the name: `--DEVICE`."""
    alike = []
    for command, _ in foretell.cli.COMMANDS.values():
        for name, annotation in get_type_hints(command, include_extras=True).items():
            for option in getattr(annotation, "__metadata__", ()):
                if isinstance(option, OptionInfo) and option.metavar == name.upper():
                    alike.append(name)
                    # in an annotation typer keeps the first name where a default would be
                    names = (option.default, *(option.param_decls or ()))
                    assert f"--{name}" in names, (command.__name__, name)
    assert {"device", "host"} <= set(alike)


def test_to_parse_takes_nothing_heavy() -> None:
    """Every help page, the version and typing errors, in one process: they come at once."""
    calls = [[command, "--help"] for command in COMMANDS]
    calls += [["--help"], ["--version"], ["nonsense"], ["info"], ["bench", "x", "--count", "y"]]
    script = "".join(HEAVY.format(arguments=arguments) for arguments in calls)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(COMMANDS) + 1


def test_the_package_gives_its_names_when_asked() -> None:
    script = """
import sys, foretell
assert set(foretell.__all__) <= set(dir(foretell))
assert "torch" not in sys.modules
try:
    foretell.attached
except AttributeError as error:
    assert "attached" in str(error)
for name in foretell.__all__:
    assert getattr(foretell, name).__name__ == name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_in_a_shell() -> None:
    asked = {"_FORETELL_COMPLETE": "complete_bash", "COMP_WORDS": "foretell tr", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "foretell"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.split() == ["train"]


def test_as_a_module_of_its_own(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "foretell", "info", str(place / "whole")]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "info.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "LlamaForCausalLM" in done.stdout
    assert read_result(tmp_path / "info.json").rows[0].depth == 2


def test_the_version() -> None:
    assert fine("--version") == f"foretell {ft.__version__}\n"


def test_what_libraries_warn_of_does_not_reach_the_terminal() -> None:
    script = """
import logging, warnings, foretell.cli
def main():
    warnings.warn("renamed", FutureWarning)
    warnings.warn("renamed", DeprecationWarning)
    logging.getLogger("datasets").warning("slow")
    logging.getLogger("transformers.modeling_utils").warning("renamed")
    print("done")
foretell.cli.main = main
foretell.cli.run()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    asked = [sys.executable, "-W", "default", "-c", script]
    assert "FutureWarning: renamed" in subprocess.run(asked, capture_output=True, text=True).stderr


# -- what the commands do -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head"), [("plain", None), ("whole", "parallel")])
def test_info(place: Path, tmp_path: Path, name: str, head: str | None) -> None:
    path = tmp_path / "info.json"
    out = fine("info", place / name, "--json", path)
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines()[:-1])
    assert facts["family"] == "llama"
    assert facts["layers"] == "2"
    assert facts["vocabulary"] == "257"
    assert facts["context"] == str(CONTEXT)
    assert facts["drafts"] == "supported"
    assert facts["packed documents"] == "kept apart"
    assert facts["head"].startswith("kind parallel" if head else "none; train one")
    result = checked(path, "info", None)
    loaded = LlamaForCausalLM.from_pretrained(place / "plain")
    assert result.settings.pop("backbone") == fingerprint(loaded)
    assert {name: value.strip() for name, value in result.settings.items()} == facts
    row = ModelFacts(model=str(place / name), family="llama", head=head, depth=2 if head else 0)
    assert result.rows == [row]
    assert out.splitlines()[-1] == f"Result file: {path}"


@pytest.mark.parametrize("command", [("info",), ("generate", "--prompt", "def ")])
def test_a_result_on_standard_output(place: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    ran = run(command[0], place / "whole", *command[1:], "--json", "-")
    (tmp_path / "result.json").write_text(ran.out, encoding="utf-8")
    assert read_result(tmp_path / "result.json").command == command[0]
    assert ("LlamaForCausalLM" if command[0] == "info" else "per forward") in ran.err
    assert fine("info", place / "whole").startswith("architecture")  # as before


def test_info_says_what_takes_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(model: ft.MTPModel) -> dict[str, str]:
        time.sleep(0.2)
        return {}

    monkeypatch.setattr("foretell.cli.info.facts_of", slow)
    assert run("info", place / "plain").err == ""
    monkeypatch.setattr(common, "PATIENCE", 0.0)
    said = "Trying out packed documents, drafts, batches and trees …\n"
    assert run("info", place / "plain").err == said


def test_info_in_another_type(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    fine("info", place / "heads", "--dtype", "bfloat16", "--json", path)
    assert read_result(path).provenance["dtype"] == "bfloat16"


PROBE = ("--depth", 2, "--width", 4, "--positions", 32, "--block-size", 24, "--seed", 3)


def test_probe(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "probe.json"
    data = ("--data", place / "text.py", "--layer-positions", 64)
    out = fine("probe", place / "plain", *data, *PROBE, "--json", path)
    result = checked(path, "probe", 3)
    marginals = [r for r in result.table(ScoredByDepth) if r.method == "marginalization"]
    assert [row.depth for row in marginals] == [0, 1, 2]
    assert {row.positions for row in marginals} == {32}
    assert marginals[0].covered_mass.value == pytest.approx(1)
    assert marginals[1].nll.min < marginals[1].nll.value < marginals[1].nll.max
    for row in marginals:  # what was printed is what was written
        assert f"{row.nll.value:.3f}" in out
    # One document leaves nothing to learn from.
    methods = {row.method for row in result.table(ScoredByDepth)}
    assert methods == {"marginalization", "prompt-lookup", "repeat-last"}
    assert {row.method for row in result.table(ScoredByLayer)} == {"logit-lens"}
    assert {row.layer for row in result.table(Drift)} == {0, 1, 2}
    assert {row.token_class for row in result.table(ScoredByClass)} >= {"identifier"}
    assert [row.tokens for row in result.table(PassCost)] == [1, 2, 3, 1]
    for row in result.table(Predicted):
        assert 1 <= row.tokens_per_forward.min <= row.tokens_per_forward.max <= 3
        assert row.recipe == "joint"
    assert result.settings["width"] == "4"
    assert contents(path.parent) == {str(path)}


def test_probe_of_everything(place: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "probe.json", tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        name = f"{number}.{'py' if number % 2 else 'md'}"
        (folder / name).write_text(f"# {number}\n{TEXT * 4}", encoding="utf-8")
    more = ("--train-data", place / "text.py", "--draft-model", place / "other")
    options = (*PROBE, "--width", "257,4", "--layer-positions", 64, "--json", path)
    out = fine("probe", place / "plain", "--data", folder, *more, *options)
    result = checked(path, "probe", 3)
    rows = result.table(ScoredByDepth)
    assert {row.method for row in rows} == {
        "marginalization", "n-gram", "prompt-lookup", "repeat-last", "draft-model",
    }  # fmt: skip
    exact = next(r for r in rows if (r.method, r.depth) == ("marginalization", 1))
    assert exact.covered_mass.value == pytest.approx(1)
    assert exact.nll.min == pytest.approx(exact.nll.max, abs=1e-4)
    kinds = {row.document_kind for row in result.table(ScoredByKind)}
    assert kinds == {"python", "markdown"}
    probed = [row for row in result.table(ScoredByLayer) if row.method == "linear-probe"]
    assert {row.layer for row in probed} == {0, 1, 2}
    assert exact.top1.low <= exact.top1.value <= exact.top1.high
    assert "Recommended: " in out or "would not pay" in out


def test_probe_learns_from_half_of_the_documents(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    lines = [json.dumps({"text": f"{TEXT}# {number}\n"}) for number in range(8)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = (*PROBE, "--layer-positions", 0, "--json", path)
    fine("probe", place / "plain", "--data", tmp_path / "texts.jsonl", *options)
    result = checked(path, "probe", 3)
    assert "n-gram" in {row.method for row in result.table(ScoredByDepth)}
    assert not result.table(ScoredByLayer)


@pytest.mark.parametrize(
    ("command", "option", "options"),
    [
        ("train", "--data", ("--depth", 1, "--steps", 1, "--block-size", 16, "--out", "run")),
        ("train", "--data", ("--depth", 1, "--steps", 1, "--block-size", 16, "--out", "run",
                             "--set", "streaming=true")),
        ("probe", "--data", ("--positions", 8, "--width", 4, "--depth", 1, "--block-size", 16,
                             "--layer-positions", 0)),
        ("eval", "--data", ("--block-size", 16)),
        ("distill", "--prompts", ("--max-new-tokens", 4, "--out", "own.jsonl")),
        ("bench", "--prompts", ("--count", 5, "--max-new-tokens", 4, "--repeats", 1)),
    ],
)  # fmt: skip
def test_bad_records_are_passed_over_and_counted_by_every_command(
    place: Path, tmp_path: Path, monkeypatch, command: str, option: str, options: tuple
) -> None:
    monkeypatch.chdir(tmp_path)
    unanswered = {"messages": [{"role": "user", "content": "x"}]}  # and there is no chat template
    lines = ["{", *(json.dumps({"text": TEXT * n}) for n in (1, 2, 3)), json.dumps(unanswered)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = place / ("plain" if command in ("train", "probe", "distill") else "whole")
    arguments = (command, model, option, "data.jsonl", *options)
    assert "data.jsonl, line 1: not JSON" in refused(*arguments)
    out = fine(*arguments, "--skip-bad", "--json", "result.json")
    assert "data.jsonl: bad records left out: 2; the first: data.jsonl, line 1: not JSON" in out
    settings = read_result(tmp_path / "result.json").settings
    assert (settings["skip_bad"], settings["bad_records"]) == (True, 2)


@pytest.mark.parametrize("texts", [["x", TEXT * 2], [TEXT * 2] * 4])
def test_probe_of_too_little_to_split_learns_nothing(
    place: Path, tmp_path: Path, texts: list[str]
) -> None:
    path, data = tmp_path / "probe.json", tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = (*PROBE, "--layer-positions", 0, "--json", path)
    fine("probe", place / "plain", "--data", data, *options)
    methods = {row.method for row in checked(path, "probe", 3).table(ScoredByDepth)}
    assert methods == {"marginalization", "prompt-lookup", "repeat-last"}


def test_probe_learns_from_nothing_that_it_measures_on(place: Path, tmp_path: Path) -> None:
    path, both = tmp_path / "probe.json", tmp_path / "both.jsonl"
    lines = [{"text": f"{TEXT * 2}# {number}\n"} for number in range(3)]
    both.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "one.jsonl").write_text(json.dumps(lines[1]), encoding="utf-8")
    data = ("--data", tmp_path / "one.jsonl", "--layer-positions", 0)
    out = fine("probe", place / "plain", *data, "--train-data", both, *PROBE, "--json", path)
    assert "measured on too: 1 documents" in out
    assert "n-gram" in {row.method for row in checked(path, "probe", 3).table(ScoredByDepth)}
    same = ("--train-data", tmp_path / "one.jsonl")
    assert "learn from others" in refused("probe", place / "plain", *data, *same, *PROBE)


def test_probe_that_was_interrupted_goes_on(place: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    text = Path(shutil.copy(place / "text.py", tmp_path / "text.py"))
    path = tmp_path / "new" / "probe.json"
    data = ("--data", text, "--layer-positions", 0, *PROBE, "--json", path)
    with monkeypatch.context() as patch:
        patch.setattr(foretell.probe.whole, "measure_costs", stop)
        assert run("probe", place / "plain", *data).status == 130
    assert contents(path.parent) == {f"{path}.partial"}
    original = text.read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(foretell.probe.run, "_measure_row", stop)
        text.write_text(original.replace("r", "s"), encoding="utf-8")  # as long as before
        assert run("probe", place / "plain", *data).status == 130
        text.write_text(original, encoding="utf-8")
        fine("probe", place / "plain", *data)  # all rows are there
    assert contents(path.parent) == {str(path)}


@pytest.mark.parametrize(("name", "method"), [("heads", "parallel"), ("plain", "plain")])
def test_eval(place: Path, tmp_path: Path, name: str, method: str) -> None:
    path = tmp_path / "eval.json"
    options = ("--block-size", 32, "--blocks", 3, "--json", path)
    out = fine("eval", place / name, "--data", place / "text.py", *options)
    result = checked(path, "eval", None)
    depths = result.table(ScoredByDepth)
    assert [row.depth for row in depths] == ([0, 1, 2] if method == "parallel" else [0])
    assert {row.method for row in depths} == {method}
    assert depths[0].positions == 3 * 31
    assert f"{depths[0].bits_per_byte:.3f} bits per byte" in out
    rules = {row.rule for row in result.table(AcceptedByRule)}
    assert ("exact" in rules and "typical:0.09" in rules) == (method == "parallel")
    for row in result.table(AcceptedByRule):
        if row.rule == "exact":
            assert row.acceptance == depths[row.depth].acceptance
    errors = result.table(CalibrationError)
    assert [row.depth for row in errors] == ([1, 2] if method == "parallel" else [])


def test_eval_against_another_model_and_beside_a_probe(place: Path, tmp_path: Path) -> None:
    probed, path = tmp_path / "probe.json", tmp_path / "eval.json"
    data = ("--data", place / "text.py")
    fine("probe", place / "plain", *data, *PROBE, "--layer-positions", 0, "--json", probed)
    options = ("--block-size", 32, "--against", place / "plain", "--baselines", probed)
    out = fine("eval", place / "heads", *data, *options, "--json", path)
    result = checked(path, "eval", None)
    (difference,) = result.table(Difference)
    assert difference.bits_per_byte.value == 0  # the backbone was frozen
    assert difference.source == str(place / "plain")
    assert len(result.table(Quality)) == 2
    beside = result.table(Baseline)
    assert {row.method for row in beside} >= {"marginalization"}
    assert {row.model for row in beside} == {str(place / "plain")}  # not the one with heads
    assert f"Beside it, from the probe of {place / 'plain'}" in out
    other = ("eval", place / "heads", "--data", place / "long.txt", "--baselines")
    assert "probe the same data" in refused(*other, probed)
    assert "give one of `foretell probe`" in refused(*other, path)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is there")
def test_eval_says_what_lm_eval_needs(place: Path) -> None:
    options = ("--data", place / "text.py", "--block-size", 32, "--lm-eval", "piqa")
    assert "pip install '.[lm-eval]'" in refused("eval", place / "plain", *options)


def test_weights_that_are_no_numbers(place: Path, tmp_path: Path) -> None:
    model, broken = backbone(), tmp_path / "broken"
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(broken)
    TOKENIZER.save_pretrained(broken)
    for command in ("probe", "eval"):
        message = refused(command, broken, "--data", place / "text.py", "--block-size", 24)
        assert "logits of LlamaForCausalLM are not finite" in message


def test_bench(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    options = ("--count", 2, "--prompt-tokens", 12, "--max-new-tokens", 10, "--repeats", 1)
    prompts = ("--prompts", place / "text.py", "--include-loops", "--seed", 5, "--json", path)
    out = fine("bench", place / "whole", *prompts, *options)
    result = checked(path, "bench", 5)
    rows = result.table(Speed)
    names = [
        "plain",
        "parallel",
        "prompt-lookup",
        "transformers",
        "transformers-prompt-lookup",
    ]
    assert [row.method for row in rows] == names
    assert all(row.identical == row.prompts == 2 for row in rows)
    assert all(row.tokens == 20 for row in rows)
    assert rows[0].speedup == rows[0].tokens_per_forward == 1
    assert result.settings["loops"] == "included"
    for name in names:
        assert f" {name} " in out  # whole: a table is not cut to the width of no terminal
    assert "…" not in out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_table_explains_outputs_that_differ_in_half_precision(
    dtype: torch.dtype, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "console", Console(width=1000, file=sys.stdout))
    same = {"plain": 8, "parallel": 4}
    rows = [report_files.speed(name, prompts=8, identical=n) for name, n in same.items()]
    bench.show_speed([("a", SpeedTable(rows, 8, 0, 0))], "greedy", dtype, {})
    out = capsys.readouterr().out
    assert "4 of 8" in out
    assert ("In bfloat16 passes of different widths" in out) == (dtype == torch.bfloat16)


@pytest.mark.parametrize(("batch", "temperature"), [(1, 0.0), (2, 0.7)])
def test_bench_of_everything(place: Path, tmp_path: Path, batch: int, temperature: float) -> None:
    path = tmp_path / "bench.json"
    size = ("--count", 3, "--prompt-tokens", 12, "--max-new-tokens", 10, "--repeats", 1)
    options = ("--tree", "3,2", "--draft-model", place / "other", "--include-loops")
    how = ("--batch-size", batch, "--temperature", temperature, "--json", path)
    out = fine("bench", place / "whole", "--prompts", place / "text.py", *size, *options, *how)
    rows = {row.method: row for row in checked(path, "bench", 0).table(Speed)}
    ours = ["plain", "parallel", "parallel-tree", "prompt-lookup", "draft-model"]
    theirs = ["transformers", "transformers-prompt-lookup", "transformers-draft-model"]
    assert list(rows) == ours + (theirs if batch == 1 else theirs[:1])
    other = str(place / "other")
    drafters = ["none", "heads", "heads", "lookup", other, "none", "lookup", other]
    assert [row.drafter for row in rows.values()] == drafters[: len(rows)]
    assert {row.tree for row in rows.values()} == {None, "3,2"}
    assert {row.batch for row in rows.values()} == {batch}
    assert {row.temperature for row in rows.values()} == {temperature}
    assert {row.identical for row in rows.values()} == {None if temperature else 3}
    assert {row.tokens for row in rows.values()} == {30}
    assert ("temperature 0.7, batch 2" if temperature else "greedy, batch 1") in out


def test_bench_reports_the_lengths_it_chose(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    size = ("--count", 2, "--prompt-tokens", 12, "--max-new-tokens", 30, "--repeats", 1)
    options = ("--include-loops", "--draft-length", "auto", "--json", path)
    out = fine("bench", place / "whole", "--prompts", place / "text.py", *size, *options)
    result = checked(path, "bench", 0)
    (row,) = (row for row in result.table(Speed) if row.method == "parallel-auto")
    assert (row.draft_length, row.identical) == ("auto", 2)
    assert list(result.settings["draft_lengths"]) == ["parallel-auto"]
    chosen = result.settings["draft_lengths"]["parallel-auto"]
    assert sum(map(len, chosen)) == row.forwards - 2
    lengths = [length for prompt in chosen for length in prompt]
    shares = {row.draft_length: row.share for row in result.table(DraftLength)}
    assert shares == {n: lengths.count(n) / len(lengths) for n in set(lengths)}
    assert f"parallel-auto: drafted 0: {100 * shares[0]:.1f} %" in out


def test_bench_in_passes_of_one_width_and_of_one_draft_length(place: Path) -> None:
    model = ft.MTPModel.from_pretrained(place / "whole")
    methods = methods_of(model, draft_length=1, pass_width=4)
    names = ["plain", "parallel", "parallel-1", "prompt-lookup"]
    assert [method.name for method in methods if "pass_width" in method.facts] == names
    assert {method.facts["pass_width"] for method in methods[:4]} == {4}
    prompt = torch.tensor([TOKENIZER("def f(x): def f(x): def f(x")["input_ids"]])
    outputs = [method(prompt, 12) for method in methods[:4]]
    assert all(output.rows == outputs[0].rows for output in outputs)
    assert max(step.drafted for step in outputs[2].steps) == 1
    assert 0 < max(step.drafted for step in outputs[3].steps) <= 3  # of 10


def test_bench_compiles_all_of_ours(place: Path) -> None:
    model = ft.MTPModel.from_pretrained(place / "whole")
    methods = methods_of(model, compiled=True, tree=TreeShape(nodes=4), draft_length="auto")
    compiled = [method for method in methods if method.facts["compiled"]]
    names = ["plain", "parallel", "parallel-tree", "parallel-auto", "prompt-lookup"]
    assert [method.name for method in compiled] == [f"{name}-compiled" for name in names]
    assert all(method.compiled for method in compiled)
    assert not any(method.facts["compiled"] for method in methods if method not in compiled)


def expected_steps(place: Path, ids: torch.Tensor, plain: bool) -> list[Step]:
    model = ft.MTPModel.from_pretrained(place / ("plain" if plain else "whole"))
    return model.decode(ids, max_new_tokens=16, stop_tokens=(0,)).row_steps


@pytest.mark.parametrize("options", [("--plain",), ()])
def test_generate(place: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    path, prompt = tmp_path / "generate.json", "def é(x):\t  \r\n" + 70 * "-" + 20 * " y"
    options = (*options, "--max-new-tokens", "16", "--json", str(path))
    ran = run("generate", place / "whole", "--prompt", prompt, *options)
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    expected = ft.MTPModel.from_pretrained(place / "plain", dtype=torch.float32).decode(
        ids, max_new_tokens=16, stop_tokens=(0,)
    )
    text = TOKENIZER.decode(expected.new_tokens)
    assert ran.out == f"{prompt}{text}\n"
    assert ran.err.endswith(f"\nResult file: {path}\n")
    result = checked(path, "generate", None)
    (row,) = result.rows
    assert row.method == ("plain" if "--plain" in options else "parallel")
    assert row.tokens == len(expected.new_tokens)
    assert row.tokens_per_forward == row.tokens / row.forwards
    assert ran.err.startswith(f"{row.tokens} tokens in {row.forwards} forward passes")
    steps = result.settings["steps"]
    assert "".join(piece for step in steps for piece in step["pieces"]) == text
    assert [len(step["pieces"]) for step in steps] == [
        len(step.tokens) for step in expected_steps(place, ids, row.method == "plain")
    ]


def test_generate_reads_files_and_standard_input(place: Path, monkeypatch) -> None:
    text, options = (place / "short.txt").read_text(), ("--max-new-tokens", 4)
    given = fine("generate", place / "plain", "--prompt", text, *options)
    file = fine("generate", place / "plain", "--prompt-file", place / "short.txt", *options)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    piped = fine("generate", place / "plain", "--prompt", "-", *options)
    assert given == file == piped
    assert given.startswith("hello")


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = [
    {"role": "user", "content": "Say."},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "y"},
]
ASKED = "<user>Say.\n<assistant>x\n<user>Again.\n<assistant>"


@pytest.fixture
def chat(place: Path, tmp_path: Path) -> Path:
    """A model with a chat template, and prompts for it."""
    model = copied(place, "plain", tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    ids = TOKENIZER("def f(x):")["input_ids"]
    long = [{"role": "user", "content": 200 * "x"}]
    for name, records in {
        "chat": [{"messages": TURNS}],
        "open": [{"messages": TURNS[:3]}],
        "tokens": [{"tokens": ids, "prompt_tokens": 5}],
        "unmarked": [{"tokens": ids * 20}],
        "foreign": [{"tokens": [999], "prompt_tokens": 1}],
        "text": [{"text": "hello"}],
        "prompt": [{"prompt": "def longer(than, nine): ", "test": "x"}],
        "mixed": [{"messages": long}, {"messages": TURNS}],
        "long": [{"messages": long}],
        "reply": [{"messages": TURNS[1:2]}],
    }.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("chat", ASKED),
        ("open", ASKED),
        ("mixed", ASKED),
        ("tokens", "def f"),
        ("unmarked", "def f(x):"),
        ("text", "hello"),
        ("prompt", "def longer(than, nine): "),
    ],
)
def test_prompts_are_asked_as_the_chat_template_does(chat: Path, name: str, prompt: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat / "plain")
    path, room = chat / f"{name}.jsonl", CONTEXT - 8
    expected = TOKENIZER(prompt)["input_ids"]
    found = read_prompts(str(path), tokenizer, 9, 1, seed=0, room=room)
    assert [ids.tolist() for ids in found] == [[expected]]
    asked = ("--prompts", path, "--count", 1, "--max-new-tokens", 8, "--include-loops")
    fine("bench", chat / "plain", *asked, "--repeats", 1)
    out = chat / "own.jsonl"
    cut = ("--max-new-tokens", 8, "--prompt-tokens", 9, "--out", out)
    fine("distill", chat / "plain", "--prompts", path, *cut)
    (record,) = map(json.loads, out.read_text().splitlines())
    assert record["tokens"][: record["prompt_tokens"]] == expected
    if name not in ("mixed", "unmarked"):
        options = ("--prompt-file", path, "--max-new-tokens", 4)
        assert fine("generate", chat / "plain", *options).startswith(prompt)


def test_a_model_with_a_chat_template_is_spoken_to(chat: Path, place: Path) -> None:
    length = ("--max-new-tokens", 8)
    record = chat / "said.jsonl"
    record.write_text(json.dumps({"messages": [{"role": "user", "content": "Say."}]}))
    asked = fine("generate", chat / "plain", "--prompt-file", record, *length)
    (chat / "said.txt").write_text("Say.")
    template = "<user>Say.\n<assistant>"
    assert asked.startswith(template)
    for prompt in (("--prompt", "Say."), ("--prompt-file", chat / "said.txt")):
        answer = fine("generate", chat / "plain", *prompt, *length)
        assert template + answer == asked
        raw = fine("generate", chat / "plain", *prompt, *length, "--raw")
        assert raw == fine("generate", place / "plain", *prompt, *length)
        assert raw.startswith("Say.")
    assert "the prompt is empty" in refused("generate", chat / "plain", "--prompt", "")


def test_prompts_that_cannot_be_asked_are_one_line(chat: Path) -> None:
    model, options = chat / "plain", ("--max-new-tokens", 8)
    for name, message in (
        ("long", "leaves room to answer (at most 120 tokens)"),
        ("foreign", "foreign.jsonl:1: the tokens are another tokenizer's"),
        ("reply", "reply.jsonl:1: the conversation has no turn to answer"),
    ):
        path = chat / f"{name}.jsonl"
        assert message in refused("bench", model, "--prompts", path, *options)
        refused("distill", model, "--prompts", path, *options, "--out", chat / "own.jsonl")
        if name != "long":  # transformers goes on too
            refused("generate", model, "--prompt-file", path, *options)
    unlearnable = refused(
        "train",
        model,
        "--data",
        chat / "prompt.jsonl",
        "--steps",
        1,
        "--block-size",
        64,
        "--out",
        chat / "run",
    )
    assert "prompt.jsonl:1: a 'prompt' and no answer to learn from" in unlearnable
    mixed = refused("generate", model, "--prompt-file", chat / "mixed.jsonl", *options)
    assert "more than one prompt" in mixed


@pytest.mark.parametrize(
    ("options", "method", "kind"),
    [
        (("--tree", "3,2"), "parallel", "greedy, lossless"),
        (("--tree", 5, "--draft-length", 1), "parallel", "greedy, lossless"),
        (("--drafter", "none"), "plain", "greedy, lossless"),
        (("--drafter", "lookup", "--rule", "exact"), "prompt-lookup", "greedy, lossless"),
        (("--drafter", "{place}/other", "--tree", "2,1"), "draft-model", "greedy, lossless"),
        (("--rule", "minimum-block:2"), "parallel", "greedy, LOSSY"),
    ],
)
def test_generate_by_any_drafter(place: Path, tmp_path: Path, options, method, kind) -> None:
    path = tmp_path / "generate.json"
    options = [str(option).format(place=place) for option in options]
    given = ("--prompt", "def f(x):", "--max-new-tokens", 12)
    ran = run("generate", place / "whole", *given, *options, "--json", path)
    assert f"({kind})" in ran.err
    (row,) = checked(path, "generate", None).rows
    assert row.method == method
    assert row.tree == (options[options.index("--tree") + 1] if "--tree" in options else None)
    assert (row.batch, row.temperature, row.compiled) == (1, 0, False)
    same = ran.out.splitlines() == fine("generate", place / "plain", *given).splitlines()
    assert same == kind.endswith("lossless")


def test_vocabularies_that_are_padded_otherwise_are_one(place: Path, tmp_path: Path) -> None:
    """As in Qwen2.5, where larger models have more rows of padding than smaller ones."""
    padded = backbone()
    with torch.random.fork_rng():
        padded.resize_token_embeddings(320)
    padded.save_pretrained(tmp_path / "padded")
    TOKENIZER.save_pretrained(tmp_path / "padded")
    for name, draft in (
        (place / "plain", tmp_path / "padded"),
        (tmp_path / "padded", place / "plain"),
    ):
        given = (name, "--prompt", "def f(x):", "--max-new-tokens", 12)
        ran = run("generate", *given, "--drafter", draft, "--draft-length", 3)
        assert ran.out == fine("generate", *given, "--plain")
        assert "in 4 forward passes" in ran.err
    path = tmp_path / "bench.json"
    size = ("--count", 1, "--prompt-tokens", 12, "--max-new-tokens", 8, "--include-loops")
    options = (*size, "--draft-model", tmp_path / "padded", "--json", path)
    fine("bench", place / "plain", "--prompts", place / "text.py", *options)
    rows = {row.method: row for row in checked(path, "bench", 0).table(Speed)}
    assert rows["draft-model"].identical == rows["transformers-draft-model"].identical == 1


@pytest.mark.parametrize(
    "options", [("--draft-length", "auto"), ("--pass-width", 3), ("--draft-length", 1)]
)
def test_generate_with_drafts_of_any_length(place: Path, tmp_path: Path, options) -> None:
    path = tmp_path / "generate.json"
    given = ("--prompt", "def f(x):", "--max-new-tokens", 40)
    ran = run("generate", place / "whole", *given, *options, "--json", path)
    assert ran.out.splitlines() == fine("generate", place / "plain", *given).splitlines()
    result = checked(path, "generate", None)
    (row,), lengths = result.rows, result.settings["draft_lengths"]
    assert {"draft_length": row.draft_length, "pass_width": row.pass_width} == {
        "draft_length": None,
        "pass_width": None,
        options[0].removeprefix("--").replace("-", "_"): options[1],
    }
    assert len(lengths) == row.forwards - 1
    assert max(lengths) == (1 if 1 in options else 2)
    if "auto" in options:
        assert lengths[:3] == [0, 0, 0]  # what a step without drafts takes
        share = f"drafted 0: {100 * lengths.count(0) / len(lengths):.1f} %, "
        assert share in ran.err
    else:
        assert "of passes" not in ran.err


def test_generate_says_where_positions_end(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "generate.json"
    given = ("--prompt", "x" * (CONTEXT - 7), "--max-new-tokens", 40, "--json", path)
    ran = run("generate", place / "learned", *given, "--draft-length", 2)
    assert checked(path, "generate", None).rows[0].tokens == 7
    assert f"the text ends with the model's last position, {CONTEXT}" in ran.err
    assert ran.out == fine("generate", place / "learned", *given, "--plain")


def test_generate_goes_on_behind_what_a_model_was_built_for(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "generate.json"
    given = ("--prompt", "x" * (CONTEXT - 7), "--max-new-tokens", 40, "--json", path)
    out = fine("generate", place / "whole", *given, "--draft-length", 2)
    assert checked(path, "generate", None).rows[0].tokens == 40
    assert out == fine("generate", place / "plain", *given)


def test_generate_draws_by_its_seed(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "generate.json"
    options = ("--prompt", "def", "--max-new-tokens", 12, "--temperature", 0.9, "--top-p", 0.8)
    texts = [
        fine("generate", place / "whole", *options, "--seed", seed, "--top-k", 40, "--min-p", 0.01)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    ran = run("generate", place / "whole", *options, "--seed", 2, "--json", path)
    assert "(sampled at temperature 0.9, lossless)" in ran.err
    result = checked(path, "generate", 2)
    assert result.rows[0].temperature == 0.9
    assert result.settings["top_p"] == 0.8


def test_generate_stops_at_a_text(place: Path) -> None:
    options = ("--prompt", "def f(x):", "--max-new-tokens", 12)
    whole = fine("generate", place / "whole", *options).removesuffix("\n")
    stop = next(c for c in whole[len("def f(x):") + 3 :] if c.isascii())
    stopped = fine("generate", place / "whole", *options, "--stop", "@@@", "--stop", stop)
    end = whole.index(stop, len("def f(x):")) + 1
    assert stopped == whole[:end] + "\n"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, SpeculativeSampling()),
        ("exact", Exact()),
        ("top-k", TopK(2)),
        ("top-k:5", TopK(5)),
        ("distance:0", Distance(0)),
        ("typical:0.5", Typical(epsilon=0.5)),
        ("minimum-block:3", MinimumBlock(3)),
    ],
)
def test_rules_by_name(text: str | None, rule: AcceptanceRule) -> None:
    found = drafting.parse_rule(text)
    assert type(found) is type(rule)
    assert vars(found) == vars(rule)


# -- streaming ----------------------------------------------------------------------------------


class Recorder(io.StringIO):
    """Standard output that remembers every single write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


def streamed(tokenizer, prompt: list[int], steps: list[Step], colour: bool = False) -> list[str]:
    recorder = Recorder()
    with contextlib.redirect_stdout(recorder):
        printer = _Printer(tokenizer, prompt, colour)
        for step in steps:
            printer.add(step)
        printer.finish()
    return recorder.writes


TEXTS = st.text(st.sampled_from("ab \t\r\né日本🎉\u0301\x0b"), max_size=12)


@given(prompt=TEXTS, text=TEXTS, sizes=st.lists(st.integers(1, 7), min_size=1))
def test_never_half_a_character(prompt: str, text: str, sizes: list[int]) -> None:
    before, ids = TOKENIZER(prompt)["input_ids"], TOKENIZER(text)["input_ids"]
    steps, rest = [], list(ids)
    while rest:
        size = sizes[len(steps) % len(sizes)]
        steps.append(Step(size - 1, len(rest[:size]) - 1, tuple(rest[:size])))
        rest = rest[size:]
    writes = streamed(TOKENIZER, before, steps)
    assert "".join(writes) == text + "\n"
    assert not any("\ufffd" in write for write in writes)
    assert len([write for write in writes if write]) == len(text) + 1  # as soon as it is whole


@given(st.lists(st.integers(1, 256), max_size=30))
def test_bytes_that_are_no_text_come_out_as_decoded(ids: list[int]) -> None:
    writes = streamed(TOKENIZER, [], [Step(0, 0, (token,)) for token in ids])
    assert "".join(writes) == TOKENIZER.decode(ids) + "\n"


@pytest.mark.data
def test_spaces_between_words_survive(data_dir: Path) -> None:
    """A sentencepiece tokenizer drops the space in front of what it decodes alone."""
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")
    prompt, text = "Once upon a time", "Once upon a time, there was a little girl named Lily. “é”"
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[: len(before)] == before
    writes = streamed(tokenizer, before, [Step(0, 0, (i,)) for i in ids[len(before) :]])
    assert "".join(writes) == text[len(prompt) :] + "\n"


def test_accepted_tokens_are_coloured_by_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = TOKENIZER("abcdé")["input_ids"]
    # Accepted at depths 1 and 2, then one of the backbone's own; é in two parts.
    steps = [Step(2, 2, tuple(ids[:3])), Step(2, 0, (ids[3],)), Step(2, 2, tuple(ids[4:]))]
    console = Console(force_terminal=True, color_system="standard", no_color=False)
    monkeypatch.setattr(common, "console", console)
    green, cyan, plain = "\x1b[30;42m", "\x1b[30;46m", "\x1b[0m"
    assert [write for write in streamed(TOKENIZER, [], steps, colour=True) if write] == [
        f"{green}a{plain}",
        f"{cyan}b{plain}",
        "c",
        "d",
        f"{cyan}é{plain}",
        "\n",
    ]
    assert "".join(streamed(TOKENIZER, [], steps)) == "abcdé\n"
    monkeypatch.setattr(common, "console", Console(force_terminal=False))
    assert "".join(streamed(TOKENIZER, [], steps, colour=True)) == "abcdé\n"


def test_show_drafts_changes_no_text(place: Path) -> None:
    options = ("--prompt", "def f", "--max-new-tokens", 16)
    shown = fine("generate", place / "whole", *options, "--show-drafts")
    assert shown == fine("generate", place / "whole", *options)


# -- training -----------------------------------------------------------------------------------


def train_options(place: Path, out: Path) -> tuple[object, ...]:
    data = ("--data", place / "text.py", "--out", out)
    return ("train", place / "plain", *data, "--config", place / "settings.yaml")


def finished(out: Path) -> bool:
    """A run directory that holds what a run leaves behind, and nothing to go on from."""
    names = {path.name for path in out.iterdir()}
    needed = {"config.yaml", "metrics.jsonl", "model"}
    return needed <= names and not any(name.startswith((".", "checkpoint")) for name in names)


def test_train_then_use_the_heads(place: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "run", tmp_path / "train.json"
    settings = ("--data", place / "text.py", "--head", "sequential", "--depth", 2, "--steps", 3)
    sizes = ("--batch-size", 2, "--block-size", 16, "--seed", 4)
    fine("train", place / "plain", *settings, *sizes, "--out", out, "--json", path)
    result = checked(path, "train", 4)
    assert [row.depth for row in result.rows] == [0, 1, 2]
    assert all(row.method == "sequential" for row in result.rows)
    assert all(row.tokens == 3 * 2 * 16 for row in result.rows)
    assert all(row.nll > 0 for row in result.rows)
    assert result.settings["head"]["depth"] == 2
    assert finished(out)
    assert sorted(p.name for p in (out / "model").iterdir()) == [CONFIG_FILE, HEADS_FILE]
    loaded = ft.MTPModel.from_pretrained(out / "model")
    assert loaded.head.config.kind == "sequential"
    assert "kind sequential" in fine("info", out / "model")
    fine("eval", out / "model", "--data", place / "text.py", "--block-size", 16, "--blocks", 1)
    # The same command again finds the run finished.
    before = (out / "model" / HEADS_FILE).read_bytes()
    message = refused("train", place / "plain", *settings, *sizes, "--out", out)
    assert "finished run" in message
    assert (out / "model" / HEADS_FILE).read_bytes() == before


def test_heads_kept_apart_go_on_and_stay_apart(place: Path, tmp_path: Path) -> None:
    data = ("--data", place / "text.py", "--steps", 2, "--batch-size", 2, "--block-size", 16)
    fine("train", place / "plain", *data, "--out", tmp_path / "first")
    native = ("--recipe", "native", "--set", "backbone_rate=0")
    fine("train", tmp_path / "first" / "model", *native, *data, "--out", tmp_path / "second")
    trained = tmp_path / "second" / "model"
    assert sorted(path.name for path in trained.iterdir()) == [CONFIG_FILE, HEADS_FILE]
    assert ft.MTPModel.from_pretrained(trained).fingerprint() == fingerprint(backbone())


def test_pretrain_from_a_config_alone(place: Path, tmp_path: Path) -> None:
    options = ("--recipe", "pretrain", "--head", "none", "--steps", 2, "--block-size", 16)
    data = ("--data", place / "text.py", "--out", tmp_path / "run")
    fine("train", place / "plain", *options, *data)
    trained = tmp_path / "run" / "model"
    assert AutoTokenizer.from_pretrained(trained)("a")["input_ids"] == TOKENIZER("a")["input_ids"]
    model = ft.MTPModel.from_pretrained(trained)
    assert model.head is None
    assert fingerprint(model.lm) != fingerprint(backbone())
    assert fine("generate", trained, "--prompt", "x", "--max-new-tokens", 2).startswith("x")


def test_train_says_what_it_does(place: Path, tmp_path: Path) -> None:
    size = ("--block-size", 16, "--batch-size", 2, "--steps", 3, "--minutes", 60)
    data = ("--data", place / "text.py", "--out", tmp_path / "run", "--for", "vllm")
    begin, reads, engines, *lines = fine("train", place / "plain", *data, *size).splitlines()
    assert re.fullmatch(r"Trains heads \([\d,]+ parameters\); [\d,]+ parameters stay .*", begin)
    counted = r"Reads 1 documents, [\d,]+ tokens, 2 × 16 tokens per step, for 3 steps or 60 minutes"
    assert re.fullmatch(f"{counted}, on cpu in float32.", reads)
    assert engines == "`foretell export` can write these heads for: vllm."
    for step, line in enumerate(lines[:3], start=1):  # there is no terminal, and so no bar
        assert re.match(rf"step {step} of 3, loss( \d+\.\d\d){{4}}, .* tokens/s, \d+ %, 0:", line)
    assert "Warning" not in "".join(lines)


def test_too_little_time_is_said_with_what_would_help(place: Path, tmp_path: Path) -> None:
    size = ("--block-size", 16, "--batch-size", 2, "--minutes", 0.0001)
    data = ("--data", place / "text.py", "--out", tmp_path / "run")
    out = fine("train", place / "plain", *data, *size)
    assert (
        "so that about 1 fit into 0.0001 minutes, too few to learn much; try --batch-size 1" in out
    )
    assert out.count("\nstep ") == 1


def test_an_interrupted_run_goes_on(place: Path, tmp_path: Path, monkeypatch) -> None:
    fine(*train_options(place, tmp_path / "straight"))
    out = tmp_path / "interrupted"

    @contextlib.contextmanager
    def interrupting(minutes: float | None) -> Iterator[Callable]:
        def report(progress) -> None:
            if progress.step == 5:
                raise KeyboardInterrupt

        yield report

    with monkeypatch.context() as patch:
        patch.setattr(foretell.cli.train, "training_bar", interrupting)
        ran = run(*train_options(place, out))
    assert ran.status == 130
    again, last = ran.err.splitlines()
    assert again.startswith("The same command continues after step 4: foretell train ")
    assert str(out) in again
    assert last == "foretell: interrupted"
    assert not (out / "model").exists()
    other = refused(*train_options(place, out), "--learning-rate", 0.5)
    assert "other settings" in other
    fine(*train_options(place, out))
    straight = tmp_path / "straight" / "model" / HEADS_FILE
    assert (out / "model" / HEADS_FILE).read_bytes() == straight.read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert finished(out)


# -- bad input ----------------------------------------------------------------------------------

MODEL, LEARNED, DATA = "{place}/plain", "{place}/learned", "--data {place}/text.py"
TRAIN = f"train {MODEL} {DATA} --block-size 16 --out {{tmp}}/out"
BENCH = f"bench {MODEL} --prompts {{place}}/text.py --include-loops"
DISTILL = f"distill {MODEL} --prompts {{place}}/text.py --out {{tmp}}/own.jsonl"
UNREADABLE = [
    ("utf-16.txt", "UTF-16"),
    ("utf-16-le.txt", "UTF-16"),
    ("utf-16-be.txt", "UTF-16"),
    ("utf-16.jsonl", "utf-16.jsonl, line 1: UTF-16"),
    ("utf-16-le.jsonl", "utf-16-le.jsonl, line 1: UTF-16"),
    ("utf-16-be.jsonl", "utf-16-be.jsonl, line 1: UTF-16"),
    ("latin.txt", "latin.txt: not UTF-8 (byte 0 is 0xe9)"),
    ("empty.txt", "every document is empty"),
    ("empty.jsonl", "every document is empty"),
    ("binary.jsonl", "binary.jsonl, line 1: not JSON"),
    ("packed.jsonl", "packed.jsonl, line 1: not UTF-8"),
    ("bodies.parquet", "row 1: the field 'text' is missing (fields: 'body')"),
    ("none.parquet", "every document is empty"),
]


GENERATE = f"generate {MODEL} --prompt x"
BAD = [
    # What is read.
    *(
        (command.format(f"{{place}}/{name}"), message)
        for name, message in UNREADABLE
        for command in (
            "bench {{place}}/plain --prompts {}",
            "distill {{place}}/plain --prompts {} --out {{tmp}}/own.jsonl",
            "generate {{place}}/plain --prompt-file {}",
        )
        if (name, command[:8]) != ("empty.txt", "generate")
    ),
    (f"probe {MODEL} --data {{place}}/nowhere.txt", "no such file or folder"),
    (f"eval {MODEL} --data {{place}}/empty.txt --block-size 16", "every document is empty"),
    (f"eval {MODEL} --data {{place}}/blank.txt --block-size 16", "every document is empty"),
    (f"eval {MODEL} --data {{place}}/latin.txt --block-size 16", "not UTF-8"),
    (
        f"eval {MODEL} --data {{place}}/plain/model.safetensors --block-size 16",
        "must end in one of",
    ),
    (f"eval {MODEL} --data {{place}}/short.txt --block-size 64", "one block takes 64"),
    (f"probe {MODEL} --data {{place}}/short.txt", "one block takes 128"),
    (f"probe {MODEL} --data stdlib:tests", "use stdlib:train or stdlib:held-out"),
    (f"probe {MODEL} --data {{place}}/[/b]x.txt", "[/b]x.txt"),
    (f"bench {MODEL} --prompts {{place}}/nowhere", "no such file or folder"),
    (f"bench {MODEL} --prompts {{place}}/empty.txt", "every document is empty"),
    (f"generate {MODEL} --prompt-file {{place}}/nowhere", "cannot be read"),
    (f"generate {MODEL} --prompt-file {{place}}/latin.txt", "UTF-8"),
    # Which model.
    ("info no-such-model", "give a directory, a Hub id"),
    ("info {place}/text.py", "is a file, not a model directory"),
    ("info {place}", "config.json: is missing"),
    (f"train {{place}}/heads {DATA} --steps 1 --out {{tmp}}/out", "has heads already"),
    # How deep, how wide, how many.
    (f"probe {MODEL} {DATA} --depth 0", "depth is 0"),
    (f"probe {MODEL} {DATA} --depth -1", "depth is -1"),
    (f"probe {MODEL} {DATA} --width 0", "width 0"),
    (f"probe {MODEL} {DATA} --width 8,0", "width 8, 0"),
    (f"probe {MODEL} {DATA} --width 8,x", "such as 32"),
    (f"probe {MODEL} {DATA} --layer-positions -1", "layer-positions is -1"),
    (f"probe {MODEL} {DATA} --draft-model nonsense", "does not exist"),
    (f"probe {MODEL} {DATA} --train-data {{place}}/empty.txt", "every document is empty"),
    (f"probe {LEARNED} {DATA} --block-size {CONTEXT + 1}", f"context of {CONTEXT}"),
    (f"eval {MODEL} {DATA} --baselines {{place}}/nowhere.json", "no such result file"),
    (f"eval {MODEL} {DATA} --block-size 16 --against nonsense", "does not exist"),
    (f"probe {MODEL} {DATA} --positions 0", "positions is 0"),
    (f"probe {MODEL} {DATA} --block-size 24 --json {{place}}/text.py/x.json", "cannot be written"),
    (f"probe {MODEL} {DATA} --block-size 2", "longer blocks"),
    (f"probe {MODEL} {DATA} --block-size 0", "at least 1 token"),
    (f"eval {LEARNED} {DATA} --block-size {CONTEXT + 1}", f"context of {CONTEXT}"),
    (f"eval {MODEL} {DATA} --block-size 1 --blocks 2", "longer blocks"),
    (f"eval {MODEL} {DATA} --block-size 16 --blocks 0", "0 blocks"),
    (f"eval {MODEL} {DATA} --block-size 16 --blocks -1", "-1 blocks"),
    (f"{BENCH} --count 0", "at least 1"),
    (f"{BENCH} --count -1", "at least 1"),
    (f"{BENCH} --prompt-tokens 0", "at least 1"),
    (f"{BENCH} --max-new-tokens 0", "max_new_tokens is 0"),
    (f"{BENCH} --max-new-tokens 8 --repeats 0", "repeats is 0"),
    (f"{BENCH} --max-new-tokens 8 --batch-size 0", "batch_size is 0"),
    (f"{BENCH} --max-new-tokens 8 --tree 2,1", "the model has none"),
    (f"{BENCH} --max-new-tokens 8 --temperature -1", "temperature is -1"),
    (f"{BENCH} --max-new-tokens 8 --draft-model nonsense", "does not exist"),
    (
        f"bench {LEARNED} --prompts {{place}}/text.py --prompt-tokens 100 --max-new-tokens 29",
        f"context of {CONTEXT}",
    ),
    (f"{BENCH} --seed -1", "seed is -1"),
    (f"{BENCH} --seed {2**70}", "seed is"),
    (f"{DISTILL} --count 0", "count is 0"),
    (f"{DISTILL} --count -1", "count is -1"),
    (f"{DISTILL} --prompt-tokens 0", "prompt_tokens is 0"),
    (f"{DISTILL} --max-new-tokens 0", "max_new_tokens"),
    (f"{DISTILL} --max-new-tokens 5000", "no prompt leaves room for 5000 tokens"),
    (f"{DISTILL} --batch-size 0", "batch_size"),
    (f"{DISTILL} --temperature -1", "temperature must be"),
    (f"{DISTILL} --temperature nan", "temperature must be"),
    (f"{DISTILL} --temperature inf", "temperature must be"),
    (f"{DISTILL} --top-p 0", "top_p"),
    (f"{DISTILL} --top-p 1.5", "top_p"),
    (f"{DISTILL} --seed -1", "seed is -1"),
    (f"generate {MODEL} --prompt x --max-new-tokens 0", "max_new_tokens is 0"),
    (f"generate {MODEL} --prompt x --max-new-tokens -2", "max_new_tokens is -2"),
    (f"generate {LEARNED} --prompt-file {{place}}/long.txt", "shorten the prompt"),
    (f"generate {MODEL} --prompt-file {{place}}/empty.txt", "the prompt is empty"),
    (f"generate {MODEL}", "--prompt or --prompt-file"),
    (f"generate {MODEL} --prompt x --prompt-file y", "--prompt or --prompt-file"),
    # How it is drafted, judged and drawn.
    (f"{GENERATE} --temperature -1", "temperature is -1"),
    (f"{GENERATE} --top-p 0.9", "add --temperature"),
    (f"{GENERATE} --temperature 1 --top-p 0", "top_p is 0"),
    (f"{GENERATE} --temperature 1 --top-k -1", "top_k 0"),
    (f"{GENERATE} --repetition-penalty 0", "repetition_penalty is 0"),
    (f"{GENERATE} --drafter heads", "no heads"),
    (f"{GENERATE} --drafter nonsense", "model 'nonsense' does not exist"),
    (f"{GENERATE} --drafter lookup --tree 2,1", "drafter lookup makes no trees"),
    (f"{GENERATE} --drafter lookup --draft-length 0", "at least 1 token"),
    (f"{GENERATE} --plain --draft-length 2", "there is no draft"),
    (f"{GENERATE} --plain --drafter lookup", "leave out --drafter lookup"),
    ("generate {place}/whole --prompt x --draft-length 3", "draft 1 to 2 tokens"),
    ("generate {place}/whole --prompt x --tree 2,x", "--tree 2,x"),
    ("generate {place}/whole --prompt x --tree 0", "at least 1"),
    ("generate {place}/whole --prompt x --tree 300,1", "make it narrower"),
    ("generate {place}/whole --prompt x --tree 2,2,1", "make it shallower"),
    (f"{GENERATE} --rule nonsense", "'nonsense' is unknown"),
    (f"{GENERATE} --rule exact:1", "takes no number"),
    (f"{GENERATE} --rule top-k:1.5", "such as top-k:2"),
    (f"{GENERATE} --rule top-k:0", "k is 0"),
    (f"{GENERATE} --rule distance:inf", "such as distance:1"),
    (f"{GENERATE} --rule distance:1e99", "such as distance:1"),
    (f"{GENERATE} --rule typical:2", "epsilon"),
    (f"{GENERATE} --stop=", "can never appear"),
    (f"{GENERATE} --stop caf\udce9", "is not UTF-8"),
    (f"{GENERATE} --json caf\udce9.json", "is not UTF-8"),
    (f"generate {MODEL} --prompt caf\udce9", "is not UTF-8; write it in that"),
    (f"{GENERATE} --draft-length two", "--draft-length two: give a number of tokens, or auto"),
    (f"{GENERATE} --plain --draft-length auto", "there is no draft"),
    (f"{GENERATE} --pass-width 0", "pass_width is 0"),
    ("generate {place}/whole --prompt x --tree 2,1 --pass-width 4", "leave out --tree"),
    (f"{GENERATE} --drafter {{place}}/bare", "vocabulary of 50 tokens, the model one of 257"),
    (f"{BENCH} --max-new-tokens 8 --draft-model {{place}}/bare", "vocabulary of 50 tokens"),
    (f"{GENERATE} --drafter {{place}}/foreign", "the same vocabulary"),
    (f"{BENCH} --max-new-tokens 8 --draft-length 2", "the model has none"),
    ("generate {place}/small --prompt abc --stop abcx", "'abcx' can never appear"),
    (f"{GENERATE[:-1]}", "the prompt is empty"),
    # Where, and in which type.
    (f"info {MODEL} --device nonsense", "device 'nonsense'"),
    (f"info {MODEL} --device meta", "device 'meta'"),
    (f"info {MODEL} --dtype nonsense", "dtype 'nonsense'"),
    (f"{TRAIN} --steps 1 --device nonsense", "device 'nonsense'"),
    # Training.
    (TRAIN, "say how long to train"),
    (f"{TRAIN} --steps 0", "steps"),
    (f"{TRAIN} --steps 1 --depth 0", "depth is 0"),
    (f"{TRAIN} --steps 1 --depth -2", "depth is -2"),
    (f"{TRAIN} --steps 1 --head oracle", "head 'oracle' is unknown"),
    (f"{TRAIN} --steps 1 --head none", "goes with recipe 'pretrain'"),
    (f"{TRAIN} --steps 1 --recipe magic", "recipe"),
    (f"{TRAIN} --steps 1 --tap 9", "has 2 blocks"),
    (f"{TRAIN} --steps 1 --tap -1", "tap '-1'"),
    (f"{TRAIN} --steps 1 --set head.shared=true", "shared"),
    (f"{TRAIN} --steps 1 --set head", "give NAME=VALUE"),
    (f"{TRAIN} --steps 1 --set head.depth={{{{", "not YAML"),
    (f"{TRAIN} --steps 1 --set objective.scale=-1", "scale is -1"),
    (f"{TRAIN} --steps 1 --recipe native", "no heads to train on"),
    (f"{TRAIN} --steps 1 --seed -1", "seed"),
    (f"{TRAIN} --steps 1 --learning-rate nan", "learning_rate"),
    (f"{TRAIN} --config {{place}}/nowhere.yaml", "cannot be read"),
    (f"{TRAIN} --config {{place}}/wrong.yaml", "depht"),
    (f"{TRAIN} --config {{place}}/no.yaml", "is not YAML"),
    (
        f"train {MODEL} --data {{place}}/nowhere --steps 1 --block-size 16 --out {{tmp}}/out",
        "no such file or folder",
    ),
    (
        f"train {MODEL} --data {{place}}/blank.txt --steps 1 --block-size 16 --out {{tmp}}/out",
        "is empty",
    ),
    (
        f"train {MODEL} --data {{place}}/short.txt --steps 1 --block-size 64 --out {{tmp}}/out",
        "one block takes 64",
    ),
    (
        f"train {MODEL} {DATA} --steps 1 --block-size 16 --out {{place}}/text.py",
        "cannot be written",
    ),
    (f"train {MODEL} {DATA} --steps 1 --block-size 16 --out {{place}}/text.py/x", "cannot be wri"),
    # The demo, before it begins.
    ("demo --minutes 0 --out {tmp}/out", "minutes"),
    ("demo --seed -1 --out {tmp}/out", "seed"),
    ("demo --count 0 --out {tmp}/out", "count is 0"),
    ("demo --out {place}/text.py", "cannot be written to"),
    # How it is called.
    ("nonsense", "No such command 'nonsense'"),
    ("info", "Missing argument 'MODEL'; see `foretell info --help`"),
    (f"info {MODEL} --nonsense", "No such option: --nonsense"),
    (f"info {MODEL} one-more", "unexpected extra argument"),
    (f"info {MODEL} --json", "requires an argument; see `foretell info --help`"),
    ("report --mixed=1", "does not take a value; see `foretell report --help`"),
    (f"probe {MODEL}", "Missing option '--data'"),
    (f"probe {MODEL} {DATA} --depth two", "Invalid value for '--depth'"),
    (f"train {MODEL} {DATA}", "Missing option '--out'"),
    (f"info {MODEL} --json {{place}}/text.py/x.json", "for the result file"),
    (f"info {MODEL} --json {{place}}", "for the result file"),
]


def contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.parametrize(("command", "part"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line(place: Path, tmp_path: Path, command: str, part: str) -> None:
    before = contents(place)
    words = [word.format(place=place, tmp=tmp_path) for word in command.split(" ")]
    assert part in refused(*words)
    assert contents(tmp_path) == set()  # nothing half-written
    assert contents(place) == before


def test_a_hub_that_cannot_be_asked_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no\n  network")

    monkeypatch.setattr(foretell.checkpoints.loading, "model_info", fail)
    assert "(no network); check the name" in refused("info", "nobody/nothing")


def test_heads_of_another_backbone(place: Path, tmp_path: Path) -> None:
    heads = copied(place, "heads", tmp_path)
    config = json.loads((heads / CONFIG_FILE).read_text())
    config["backbone"]["path"] = str(place / "other")
    (heads / CONFIG_FILE).write_text(json.dumps(config))
    for command in (["info"], ["generate", "--prompt", "x"]):
        message = refused(command[0], heads, *command[1:])
        assert config["backbone"]["fingerprint"] in message
        assert "load the heads onto the backbone they were trained on" in message


@pytest.mark.parametrize("name", ["model.safetensors", HEADS_FILE])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-8], lambda b: b[:20], lambda _: b"PK\x03\x04" * 9]
)
def test_truncated_and_foreign_tensor_files(place: Path, tmp_path: Path, name, damage) -> None:
    model = copied(place, "whole", tmp_path)
    file = model / name
    file.write_bytes(damage(file.read_bytes()))
    refused("info", model)


def test_tensors_of_another_model(place: Path, tmp_path: Path) -> None:
    model = copied(place, "whole", tmp_path)
    shutil.copy(place / "whole" / HEADS_FILE, model / "model.safetensors")
    assert "lacks" in refused("info", model)
    shutil.copy(place / "plain" / "model.safetensors", model / HEADS_FILE)
    shutil.copy(place / "plain" / "model.safetensors", model / "model.safetensors")
    assert "do not fit their own config" in refused("info", model)


def test_a_tokenizer_of_another_model(place: Path, tmp_path: Path) -> None:
    model = copied(place, "plain", tmp_path)
    larger = byte_tokenizer()
    larger.add_tokens(["<one>", "<more>"])
    larger.save_pretrained(model)
    data = ("--data", place / "text.py")
    for command in (("generate", "--prompt", "x"), ("eval", *data), ("probe", *data)):
        assert "do not belong together" in refused(command[0], model, *command[1:])
    out = ("--steps", 1, "--block-size", 16, "--out", tmp_path / "out")
    assert "do not belong together" in refused("train", model, *data, *out)
    assert not (tmp_path / "out").exists()


def test_special_tokens_that_the_model_does_not_know(place: Path, tmp_path: Path) -> None:
    """As Gemma 3 1B has one for images."""
    model = copied(place, "plain", tmp_path)
    larger = byte_tokenizer()
    larger.add_special_tokens({"additional_special_tokens": ["<image>"]})
    larger.save_pretrained(model)
    fine("generate", model, "--prompt", "x", "--max-new-tokens", 2)
    asked = refused("generate", model, "--prompt", "x<image>", "--max-new-tokens", 2)
    assert "outside the model's vocabulary" in asked


def test_an_earlier_result_file_survives_a_failure(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    fine("info", place / "plain", "--json", path)
    before = path.read_bytes()
    refused("info", "no-such-model", "--json", path)
    assert path.read_bytes() == before
    assert contents(tmp_path) == {str(path)}


def test_a_bug_is_not_dressed_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(common, "load_model", bug)
    with pytest.raises(ZeroDivisionError):
        run("info", place / "plain")


def test_without_a_terminal_lines_say_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))
    with common.progress_bar("Probing") as progress:
        for share in (0.1, 0.25, 0.5, 0.8):
            progress(share)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "Probing: 25%, about 0:02:00 to go\nProbing: 80%, about 0:00:20 to go\n"
