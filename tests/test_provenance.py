import json
import math
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from foretell import provenance as module
from foretell.errors import InputError
from foretell.provenance import FIELDS, Result, near_ties, provenance, read_result, write_result

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
rows = st.lists(st.dictionaries(st.sampled_from(FIELDS), scalars))
settings = st.dictionaries(st.text(), st.recursive(scalars, st.lists, max_leaves=5))


def finite(value: Any) -> Any:
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy cores
@given(rows, settings)
def test_a_result_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], settings: dict
) -> None:
    path = tmp_path_factory.mktemp("result") / "new" / "result.json"
    write_result(path, "bench", settings, rows, {"seed": 0})
    assert read_result(path) == Result(
        "bench",
        {"seed": 0},
        {name: finite(value) for name, value in settings.items()},
        [{name: finite(value) for name, value in row.items()} for row in rows],
    )
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_the_file_is_sorted_json_for_people(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    values = {"nll": np.float32("nan"), "depth": np.int64(2), "top1": np.float32(0.5)}
    write_result(path, "eval", {"data": Path("a") / "ä"}, [values], {"dtype": "float32"})
    assert path.read_text(encoding="utf-8").splitlines() == [
        "{",
        '  "command": "eval",',
        '  "provenance": {',
        '    "dtype": "float32"',
        "  },",
        '  "rows": [',
        "    {",
        '      "depth": 2,',
        '      "nll": null,',
        '      "top1": 0.5',
        "    }",
        "  ],",
        '  "settings": {',
        '    "data": "a/ä"',
        "  }",
        "}",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"depth": 1, "top_1": 0.5}, "row 2 has the unknown field 'top_1'"),
        ({"depth": [1, 2]}, "row 2, field 'depth' holds more than a single value"),
        ({"depth": {"a": 1}}, "row 2, field 'depth' holds more than a single value"),
        ({"depth": torch.tensor(1)}, "row 2, field 'depth': a Tensor cannot be written"),
        (["depth"], "row 2 is not a record"),
    ],
)
def test_a_wrong_row_is_refused_and_the_old_file_stays(
    tmp_path: Path, row: Any, reason: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(InputError, match=reason):
        write_result(path, "bench", {}, [{"depth": 1}, row], {})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_settings_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="settings, 'head': a object cannot be written"):
        write_result(tmp_path / "a.json", "bench", {"head": object()}, [], {})
    with pytest.raises(InputError, match="settings: the name 1 must be a string"):
        write_result(tmp_path / "a.json", "bench", {1: 2}, [], {})  # type: ignore[dict-item]
    assert not os.listdir(tmp_path)


def test_an_interrupted_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_result(path, "before", {}, [], {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"result\.json: .*No space left on device"):
        write_result(path, "bench", {}, [], {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("content", ["text", "{}", "[]", '{"rows": []}', '{"a": 1}\n{"a": 2}\n'])
def test_another_file_is_never_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"mine\.jsonl: .*another file is there"):
        write_result(path, "bench", {}, [], {})
    assert path.read_text() == content


def test_a_home_directory_is_written_to_and_read_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_result("~/runs/result.json", "bench", {}, [], {})
    assert (tmp_path / "runs" / "result.json").is_file()
    assert read_result(Path("~/runs/result.json")).command == "bench"
    assert not (tmp_path / "~").exists()


def test_a_place_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is not a file"):
        write_result(tmp_path, "bench", {}, [], {})
    with pytest.raises(InputError, match="for the result file"):
        write_result(tmp_path / "file" / "result.json", "bench", {}, [], {})


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.json").write_text("")
    (tmp_path / "link.json").symlink_to("target.json")
    write_result(tmp_path / "link.json", "bench", {}, [], {})
    assert (tmp_path / "link.json").is_symlink()
    assert read_result(tmp_path / "target.json").command == "bench"


GOOD: dict[str, Any] = {"command": "a", "provenance": {}, "settings": {}, "rows": []}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a result file"),
        ("[" * 100_000, "not a result file"),
        ("[]", "expected an object of command, provenance, settings, rows"),
        ('{"rows": []}', "expected an object of"),
        (json.dumps(GOOD | {"more": 1}), "expected an object of"),
        (json.dumps(GOOD | {"rows": {}}), "'rows' is not a list"),
        (json.dumps(GOOD | {"command": None}), "'command' is not a str"),
        (json.dumps(GOOD | {"rows": [{}, 1]}), "row 2 is not a record"),
        (json.dumps(GOOD | {"rows": [{"speed": 1}]}), "row 1 has the unknown field 'speed'"),
        (json.dumps(GOOD | {"rows": [{"nll": math.inf}]}), "Infinity is not JSON"),
        ("ä".encode("latin-1"), "not a result file"),
    ],
)
def test_a_file_that_is_no_result_is_refused(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=reason) as caught:
        read_result(path)
    assert "result.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lost\.json: no such result file"):
        read_result(tmp_path / "lost.json")
    with pytest.raises(InputError, match="cannot read"):
        read_result(tmp_path)


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
    for folder in (Path.home(), Path.cwd(), Path(module.__file__).parent):
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
    assert asked == [Path(module.__file__).resolve()]


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


@pytest.mark.parametrize(
    ("identical", "dtype", "width", "said"),
    [
        (8, "bfloat16", None, None),
        (4, "float32", None, None),
        (None, "bfloat16", None, None),
        (4, "bfloat16", None, r"^In bfloat16 .* near-ties .*; --pass-width N, one more .* that\.$"),
        (4, "float16", None, r"^In float16 .* --pass-width"),
        (4, "bfloat16", 4, r"near-ties can fall the other way: [^;]*not identical\.$"),
    ],
)
def test_half_precision_is_named_where_outputs_differ(
    identical: int | None, dtype: str, width: int | None, said: str | None
) -> None:
    plain = {"method": "plain", "identical": 8, "prompts": 8, "pass_width": width}
    rows = [plain, {**plain, "identical": identical}, {"method": "plain", "depth": 1}]
    found = near_ties(rows, dtype)
    assert re.search(said, found) if said else not found


def test_result_files_are_read_without_torch() -> None:
    # The module alone: what the package's __init__ imports is tested with it.
    code = (
        "import sys, types\n"
        "package = types.ModuleType('foretell'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['foretell'] = package\n"
        "import foretell.provenance\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    folder = str(Path(module.__file__).parent)
    subprocess.run([sys.executable, "-c", code, folder], check=True)
