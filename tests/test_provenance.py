import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import foretell as ft
from foretell.results import provenance as module
from foretell.results.provenance import provenance


def test_provenance_tells_what_ran() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    record = provenance(3, "cpu", torch.bfloat16, "foretell bench tiny --json out/a.json")
    assert record["command"] == "foretell bench tiny --json out/a.json"
    assert (record["seed"], record["device"], record["dtype"]) == (3, "cpu", "bfloat16")
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["device_name"] == record["cpu"]
    assert before <= datetime.fromisoformat(record["time"]) <= datetime.now(UTC)
    assert json.loads(json.dumps(record)) == record


def test_provenance_holds_no_path_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/.venv/bin/foretell", "probe", "my models/a"])
    text = json.dumps(provenance(None, "cpu", "float32"))
    for folder in (Path.home(), Path.cwd(), Path(ft.__file__).parent):
        assert str(folder) == "/" or str(folder) not in text
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/bin/foretell", "probe", "my models/a"], "foretell probe 'my models/a'"),
        (["/opt/lib/foretell/__main__.py", "info"], "python -m foretell info"),
        (["benchmarks/a.py", "--fast"], "python benchmarks/a.py --fast"),
        (["/elsewhere/a.py"], "python a.py"),
        (["{cwd}/benchmarks/a.py"], "python benchmarks/a.py"),
    ],
)
def test_the_command_is_the_one_typed(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", [word.format(cwd=Path.cwd()) for word in argv])
    assert module.typed_command() == expected


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath="]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name in ("src/code.py", "results/a.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_git_state_of_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = checkout / "src" / "code.py"
    clean = {"git_sha": git(checkout, "rev-parse", "HEAD"), "git_dirty": False}
    (checkout / "results" / "a.json").write_text("2")
    (checkout / "notes.txt").write_text("not code")
    assert module._git_state(code) == clean
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert module._git_state(code) == clean


def test_git_is_asked_once_for_all_results_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs was read by then, whatever is committed later."""
    asked = []

    def looked_up(file: Path) -> dict[str, object]:
        asked.append(file)
        return {"git_sha": f"sha {len(asked)}", "git_dirty": False}

    module._own_git_state.cache_clear()
    monkeypatch.setattr(module, "_git_state", looked_up)
    found = [provenance(None, "cpu", "float32")["git_sha"] for _ in range(2)]
    module._own_git_state.cache_clear()
    assert found == ["sha 1", "sha 1"]
    assert asked == [Path(ft.__file__).resolve()]  # beside which all of the package lies


@pytest.mark.parametrize("name", ["src/code.py", "src/new.py", "README.md"])
def test_a_changed_checkout_is_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("2")
    assert module._git_state(checkout / "src" / "code.py")["git_dirty"] is True


def test_code_that_git_does_not_track_has_no_sha(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = {"git_sha": None, "git_dirty": None}
    installed = checkout / "src" / "installed.py"
    installed.write_text("")
    assert module._git_state(installed) == unknown
    monkeypatch.setenv("PATH", "")
    assert module._git_state(checkout / "src" / "code.py") == unknown
