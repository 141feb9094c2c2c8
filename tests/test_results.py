"""Result files: what is written is read, typed, and what is no result file is refused."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import foretell as ft
import report_files
from foretell.errors import InputError
from foretell.report.sources import Source
from foretell.report.tables import tables_of
from foretell.results import TABLES, Result, Row, of_model, read_result, write_result
from foretell.results.tables import (
    AcceptedByDepth,
    LossByDepth,
    ScoredByDepth,
    ScoredByLayer,
    Speed,
    near_ties,
)
from foretell.tally import Estimate

RESULTS = Path(__file__).parents[1] / "results"

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
settings = st.dictionaries(st.text(), st.recursive(scalars, st.lists, max_leaves=5))
numbers = st.floats(allow_nan=False, allow_infinity=False)


def of_type(hint: Any) -> st.SearchStrategy:
    if kinds := get_args(hint):
        return st.one_of(map(of_type, kinds))
    if hint is Estimate:
        return st.builds(Estimate, *[st.none() | numbers] * 5)
    return numbers if hint is float else st.from_type(hint)


def rows_of(kind: type[Row]) -> st.SearchStrategy:
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: of_type(hints[field.name]) for field in fields(kind)})


@pytest.fixture
def _only_here() -> Iterator[None]:
    """Tables that a test adds are gone after it."""
    before = dict(TABLES)
    yield
    TABLES.clear()
    TABLES.update(before)


def finite(value: Any) -> Any:
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy cores
@given(st.lists(st.sampled_from(list(TABLES.values())).flatmap(rows_of), max_size=4), settings)
def test_a_result_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], settings: dict
) -> None:
    path = tmp_path_factory.mktemp("result") / "new" / "result.json"
    write_result(path, "bench", settings, rows, {"seed": 0})
    assert read_result(path) == Result(
        "bench",
        {"seed": 0},
        {name: finite(value) for name, value in settings.items()},
        rows,
    )
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_the_file_is_sorted_json_for_people(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    top1 = Estimate(np.float32(0.5), low=np.float64(0.25), high=None)  # type: ignore[arg-type]
    row = ScoredByDepth(
        method="a", depth=np.int64(2), positions=3, top1=top1, nll=Estimate(float("nan"))
    )
    write_result(path, "eval", {"data": Path("a") / "ä"}, [row], {"dtype": "float32"})
    assert path.read_text(encoding="utf-8").splitlines() == [
        "{",
        '  "command": "eval",',
        '  "provenance": {',
        '    "dtype": "float32"',
        "  },",
        '  "rows": [',
        "    {",
        '      "depth": 2,',
        '      "method": "a",',
        '      "nll": null,',
        '      "positions": 3,',
        '      "table": "depths",',
        '      "top1": 0.5,',
        '      "top1_low": 0.25',
        "    }",
        "  ],",
        '  "settings": {',
        '    "data": "a/ä"',
        "  }",
        "}",
    ]
    (found,) = read_result(path).table(ScoredByDepth)
    assert (found.top1, found.nll) == (Estimate(0.5, 0.25), Estimate())


def test_what_is_not_finite_is_read_back_as_no_number(tmp_path: Path) -> None:
    """After hours a result is not lost because of one figure."""
    rows = [
        report_files.speed(speedup=math.inf),
        LossByDepth(method="a", depth=1, tokens=2, seconds=1.0, recipe="joint", nll=math.nan),
    ]
    write_result(tmp_path / "a.json", "bench", {}, rows, {})
    fast, loss = read_result(tmp_path / "a.json").rows
    assert math.isnan(fast.speedup)
    assert loss.nll is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"depth": "1"}, "row 2 of the table 'depths', field 'depth', is '1' in place of int"),
        ({"depth": True}, "field 'depth', is True in place of int"),
        ({"depth": [1, 2]}, r"field 'depth', is \[1, 2\] in place of int"),
        ({"depth": None}, "row 2 of the table 'depths' lacks the field 'depth'"),
        ({"depth": torch.tensor(1)}, "row 2, 'depth': a Tensor cannot be written"),
        ({"top1": Estimate("a")}, "field 'top1', is 'a' in place of float"),
    ],
)
def test_a_wrong_row_is_refused_and_the_old_file_stays(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    row = report_files.scored()
    with pytest.raises(InputError, match=reason):
        write_result(path, "bench", {}, [row, replace(row, **change)], {})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_is_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 1 is a dict and no row of a table"):
        write_result(tmp_path / "a.json", "bench", {}, [{"depth": 1}], {})  # type: ignore[list-item]
    with pytest.raises(TypeError, match="top_1"):
        report_files.scored(top_1=Estimate(0.5))


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
COST = {"table": "costs", "method": "a", "tokens": 1, "seconds": 0.5}


def with_row(**changes: Any) -> str:
    row = {name: value for name, value in (COST | changes).items() if value != "left out"}
    return json.dumps(GOOD | {"rows": [COST, row]})


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
        (json.dumps(GOOD | {"rows": [COST, 1]}), "row 2 is not a record"),
        (with_row(table="left out"), "row 2 names no table: another version of foretell wrote it;"),
        (with_row(table="speeds"), "row 2 is of the unknown table 'speeds': .* with --json"),
        (with_row(table=["costs"]), r"row 2 is of the unknown table \['costs'\]"),
        (with_row(speed=1), "row 2 of the table 'costs' has the unknown field 'speed': .* --json"),
        (with_row(seconds_low=1), "has the unknown field 'seconds_low'"),
        (with_row(tokens="left out"), "row 2 of the table 'costs' lacks the field 'tokens': .*"),
        (with_row(tokens=1.5), "field 'tokens', is 1.5 in place of int"),
        (with_row(seconds="fast"), "field 'seconds', is 'fast' in place of float"),
        (with_row(model=3), "field 'model', is 3 in place of str"),
        (with_row(seconds=math.inf), "Infinity is not JSON"),
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


# -- tables ---------------------------------------------------------------------------------------


def test_committed_results_are_read_and_written_as_they_stand(tmp_path: Path) -> None:
    for path in sorted(RESULTS.rglob("*.json")):
        found = read_result(path)
        write_result(
            tmp_path / "a.json", found.command, found.settings, found.rows, found.provenance
        )
        before, after = (json.loads(file.read_text()) for file in (path, tmp_path / "a.json"))
        for row in before["rows"]:
            for name in [name for name, value in row.items() if value is None]:
                del row[name]
        assert after == before, path


@pytest.mark.usefixtures("_only_here")
def test_a_table_is_one_class(tmp_path: Path) -> None:
    """Written, read and shown, by nothing else than its fields."""

    @dataclass(frozen=True, kw_only=True)
    class Heat(Row, table="heat", title="by watt"):
        watts: float
        top1: Estimate
        fan: bool | None = None

    rows = [Heat(watts=3.5, top1=Estimate(0.5, 0.25, 0.75)), Heat(watts=4, top1=Estimate())]
    write_result(tmp_path / "a.json", "heat", {}, of_model("m", rows), {})
    result = read_result(tmp_path / "a.json")
    assert result.table(Heat) == [replace(row, model="m") for row in rows]
    assert result.table(Speed) == []
    (table,) = tables_of(Source("a.json", result), 1)
    assert (table.title, table.header) == ("heat: by watt", ["model", "watts", "top-1"])
    assert table.cells == [["m", "3.500", "50.0 % (25.0 to 75.0 %)"], ["m", "4", "–"]]


def test_a_table_is_not_those_that_extend_it(tmp_path: Path) -> None:
    """By depth is of all positions and the whole model; a chart of it must not mix in layers."""
    rows = [report_files.scored(), *report_files.probe_rows(), *report_files.bench_rows()]
    result = Result("a", {}, {}, rows)
    assert {type(row) for row in result.table(ScoredByDepth)} == {ScoredByDepth}
    assert len(result.table(ScoredByLayer)) == 21
    assert len(result.table(AcceptedByDepth)) == 2
    assert [type(rows[0]).__name__ for rows in result.tables] == [
        "ScoredByDepth", "ScoredByClass", "ScoredByLayer", "Drift", "Predicted", "Speed",
        "AcceptedByDepth",
    ]  # fmt: skip
    assert sum(map(len, result.tables)) == len(rows)


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
    plain = report_files.speed(identical=8, prompts=8, pass_width=width)
    rows = [plain, replace(plain, identical=identical)]
    found = near_ties(rows, dtype)
    assert re.search(said, found) if said else not found


def test_result_files_are_read_without_torch() -> None:
    # The module alone: what the package's __init__ imports is tested with it.
    code = (
        "import sys, types\n"
        "package = types.ModuleType('foretell'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['foretell'] = package\n"
        "import foretell.results\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    folder = str(Path(ft.__file__).parent)
    subprocess.run([sys.executable, "-c", code, folder], check=True)


def test_a_table_has_one_type_of_rows() -> None:
    with pytest.raises(TypeError, match="Speed"):

        class Other(Row, table=Speed.table):
            """Would be read in place of `Speed`."""
