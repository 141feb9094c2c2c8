"""Benchmarks that only special machines run in full are run here in miniature."""

import ast
import importlib
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from transformers.utils import logging

from foretell.results import Result, read_result
from foretell.results.benchmarks import Identity, StepPart
from foretell.results.tables import Speed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMPORTS = (ast.Import, ast.ImportFrom)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What `gpu.py --miniature` writes, by stage."""
    out, said = tmp_path_factory.mktemp("gpu"), StringIO()
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.syspath_prepend(BENCHMARKS)
        patch.setattr("foretell.evaluation.speed.LOOK_AHEAD", 8)
        gpu = importlib.import_module("gpu")
        with pytest.raises(SystemExit) as ended:
            gpu.main(["--miniature", "--out", str(out), "--minutes", "60"])
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    assert ended.value.code == 0
    assert "Failed: none. Left out for want of time: none." in said.getvalue()
    return {path.stem.removeprefix("gpu-"): read_result(path) for path in out.iterdir()}


def test_every_stage_writes_its_result_with_provenance(results: dict[str, Result]) -> None:
    assert sorted(results) == [
        "compiled", "decode", "heads", "identity", "loss-memory", "near-ties", "step-time",
        "training-cost",
    ]  # fmt: skip
    for result in results.values():
        assert result.provenance["device"] == "cpu"
        assert result.provenance["torch"]


def test_greedy_outputs_are_those_of_transformers(results: dict[str, Result]) -> None:
    rows = [row for name in ("decode", "compiled") for row in results[name].table(Speed)]
    for row in (*results["identity"].table(Identity), *rows):
        assert row.identical == row.prompts, row


def test_the_parts_of_a_step_add_up(results: dict[str, Result]) -> None:
    rows = results["step-time"].table(StepPart)
    for method in ("plain", "prompt-lookup", "sequential"):
        shares = {r.part: r.share for r in rows if r.method == method and r.share is not None}
        assert sum(shares.values()) == pytest.approx(1)
        assert all(share >= 0 for share in shares.values())
        assert shares["verify"] > 0


def test_scripts_use_the_library_and_no_command() -> None:
    scripts = [*BENCHMARKS.rglob("*.py"), *(BENCHMARKS.parent / "experiments").rglob("*.py")]
    assert len(scripts) > 12
    for script in scripts:
        tree = ast.parse(script.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, IMPORTS) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            used = [name for name in names if f"{name}.".startswith("foretell.cli.")]
            assert not used, f"{script}: {used}"
