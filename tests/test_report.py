"""What a report reads, refuses, computes and writes."""

import json
import re
from dataclasses import replace
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import report_files
from foretell.cli import main
from foretell.errors import InputError
from foretell.formatting import text
from foretell.report import write_report
from foretell.report.charts import Chart, charts_of
from foretell.report.charts.drawing import SERIES, _apart
from foretell.report.drafts import continuations
from foretell.report.page import marked, summary
from foretell.report.predicted import comparisons
from foretell.report.sources import Source, collect
from foretell.report.tables import tables_of
from foretell.results import read_result, write_result
from foretell.results.benchmarks import Recipe, TrainingCost
from foretell.tally import Estimate


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_files.write_all(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def charts(results: Path) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts_of(collect([results]))}


def cells(chart: Chart) -> list[tuple[str, ...]]:
    return [tuple(row) for row in chart.cells]


def test_outputs_that_differ_in_half_precision_are_explained(tmp_path: Path) -> None:
    rows = [
        report_files.speed(method, model="a", identical=same, prompts=8)
        for method, same in (("plain", 8), ("parallel", 4))
    ]
    captions = []
    for dtype in ("bfloat16", "float32"):
        origin = {**report_files.ORIGIN, "dtype": dtype}
        write_result(tmp_path / "bench.json", "bench", {}, rows, origin)
        (chart,) = charts_of(collect([tmp_path]))
        assert "4 of 8 outputs are identical to plain decoding." in chart.caption
        captions.append(chart.caption)
    assert "In bfloat16 passes of different widths round differently" in captions[0]
    assert "round differently" not in captions[1]


# -- what it begins with ------------------------------------------------------------------------


def test_a_page_begins_with_what_it_shows_and_whether_heads_pay(tmp_path: Path) -> None:
    row = report_files.speed("parallel", model="a", speedup=0.8, drafter="heads")
    says = "These heads do not pay on this machine (0.80× plain decoding)."
    origin = {**report_files.ORIGIN, "cpu": "Some CPU", "dtype": "float32"}
    write_result(tmp_path / "bench.json", "bench", {"verdicts": {"a": says}}, [row], origin)
    write_report([tmp_path / "bench.json"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    begin = page[page.index("<h1>") : page.index('<ul class="facts">')]
    assert (
        "This page shows how fast decoding is with and without drafts, measured on Some CPU in "
        "float32." in begin
    )
    assert f'<p class="verdict">{says}</p>' in begin


def test_what_can_be_typed_is_set_apart() -> None:
    words = "use `--draft-length 3`, not <b> or `a & b`."
    wanted = "use <code>--draft-length 3</code>, not &lt;b&gt; or <code>a &amp; b</code>."
    assert marked(words) == wanted


def test_verdicts_on_several_models_are_told_apart(tmp_path: Path) -> None:
    paths = [
        report_files.write(tmp_path / f"{model}.json", "bench", [report_files.speed()], model=model,
                           backbone="b", verdicts={model: f"These heads pay ({model})."})
        for model in ("a", "b")
    ]  # fmt: skip
    write_report(paths, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for model in ("a", "b"):
        assert f"<b>{model}</b> These heads pay ({model})." in page


# -- what is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (
            "bench.json",
            {"speed-1", "draft-length", "chosen-lengths-1", "accepted-while-decoding"},
        ),
        (
            "eval.json",
            {"draft-length", "acceptance-by-depth", "agreement-by-depth", "top1-by-depth",
             "calibration-1"},
        ),
        (
            "probe.json",
            {"draft-length", "acceptance-by-depth", "agreement-by-depth", "top1-by-depth",
             "classes-1", "layers-1", "drift-1"},
        ),
        ("recipes.json", {"recipes-1"}),
        ("heads", {"training-1", "tap-weights-1"}),
        ("generate.json", set()),
        ("own.json", set()),
    ],
)  # fmt: skip
def test_a_figure_appears_where_its_data_are(results: Path, file: str, names: set[str]) -> None:
    assert {chart.name for chart in charts_of(collect([results / file]))} == names


def test_a_chart_takes_its_table_and_none_that_looks_alike(tmp_path: Path) -> None:
    """Steps of training have a speed too; shares by depth are the same in batches."""
    costs = [
        TrainingCost(method=name, tokens_per_second=9.0, speedup=speed, seconds=1.0, parameters=8)
        for name, speed in (("n=1", 1.0), ("n=4", 0.8))
    ]
    file = report_files.write(tmp_path / "costs.json", "training-cost", costs, model=None)
    assert charts_of(collect([file])) == []
    assert summary(collect([file])) == []
    in_batches = [replace(row, batch=8) for row in report_files.bench_rows()]
    file = report_files.write(tmp_path / "batches.json", "bench", in_batches)
    names = {chart.name for chart in charts_of(collect([file]))}
    assert names == {"speed-1", "draft-length", "accepted-while-decoding"}


def test_what_drafts_nothing_is_no_way_to_draft(tmp_path: Path) -> None:
    rows = [
        report_files.speed("plain", drafter="none"),
        report_files.speed("plain-compiled", drafter="none", compiled=True, speedup=2.0),
        report_files.speed("parallel", drafter="heads", speedup=1.5),
    ]
    file = report_files.write(tmp_path / "a.json", "bench", rows)
    facts = {fact.what: (fact.value, fact.whose) for fact in summary(collect([file]))}
    assert facts["the speed of plain decoding, fastest of all"] == ("1.50×", "parallel, toy")
    assert facts["outputs identical to plain decoding"][0] == "5 of 5"


def test_acceptance_while_decoding_adds_up_to_tokens_per_forward(charts: dict[str, Chart]) -> None:
    found = cells(charts["draft-length"])
    unit = "tokens per forward"
    assert (unit, "parallel, decoding", "0", "1.00") in found
    assert (unit, "parallel, decoding", "1", "1.50") in found
    assert (unit, "parallel, decoding", "2", f"{1 + 0.5 + 0.5 * 0.4:.2f}") in found
    assert (unit, "parallel, held out", "2", f"{1 + 0.5 + 0.25:.2f}") in found
    assert (unit, "parallel, measured", "2", "1.70") in found
    assert (unit, "parallel, predicted after text", "2", "1.40 to 2.20") in found
    assert (unit, "parallel, predicted after own", "2", "1.70 to 2.50") in found
    speed = "speed-up over plain decoding"
    assert (speed, "parallel, predicted after text", "2", "1.10× to 1.80×") in found


def test_what_was_predicted_stands_beside_what_heads_reach(results: Path) -> None:
    found = [
        (one.who, one.behind, one.length, text(one.quantity, one.reached), one.verdict)
        for one in comparisons(collect([results]).results)
    ]
    assert found == [
        ("parallel", "own", 1, "1.50", "inside"),
        ("parallel", "own", 2, "1.70", "inside"),
        ("parallel", "own", 2, "1.30×", "inside"),
        ("parallel", "text", 1, "1.50", "inside"),
        ("parallel", "text", 2, "1.75", "inside"),
        ("frozen, parallel", "text", 1, "1.50", "inside"),
        ("frozen, parallel", "text", 2, "1.75", "inside"),
        ("joint, parallel", "text", 1, "1.50", "inside"),
        ("joint, parallel", "text", 2, "1.75", "inside"),
    ]


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.1, "below"), (0.2, "inside"), (0.6, "inside"), (0.7, "above")]
)
def test_where_the_prediction_fails_it_says_so(tmp_path: Path, share: float, verdict: str) -> None:
    rows = [report_files.scored(depth=1, acceptance=Estimate(share))]
    report_files.write(tmp_path / "probe.json", "probe", report_files.probe_rows())
    report_files.write(tmp_path / "eval.json", "eval", rows)
    (found,) = comparisons(collect([tmp_path]).results)
    assert found.verdict == verdict


def test_a_prediction_is_about_one_backbone(tmp_path: Path) -> None:
    """Heads of another model, on trees, drawn, or trained from scratch are not compared."""
    rows = [report_files.scored(depth=1, acceptance=Estimate(0.4))]
    probed = report_files.probe_rows()
    report_files.write(tmp_path / "a.json", "probe", probed, backbone="same")
    report_files.write(tmp_path / "b.json", "eval", rows, model="other")
    report_files.write(tmp_path / "c.json", "eval", rows, model="heads", backbone="same")
    speeds, accepted = report_files.bench_rows()[:4], report_files.bench_rows()[4:]
    tree = [replace(row, tree="2,1") for row in speeds]
    report_files.write(tmp_path / "d.json", "bench", [*tree, *accepted])
    drawn = [replace(row, temperature=1.0) for row in speeds]
    report_files.write(tmp_path / "e.json", "bench", [*drawn, *accepted])
    scratch = [Recipe(**{**vars(rows[0]), "recipe": "pretrain"})]
    report_files.write(tmp_path / "f.json", "recipes", scratch, model=None)
    found = comparisons(collect([tmp_path], mixed=True).results)
    assert [Path(one.source.name).name for one in found] == ["c.json"]
    report_files.write(tmp_path / "g.json", "recipes", rows, model=None)
    report_files.write(tmp_path / "h.json", "probe", probed, model="other")
    found = comparisons(collect([tmp_path], mixed=True).results)
    assert {Path(one.source.name).name for one in found} == {"b.json", "c.json"}


def test_numbers_of_figures_are_those_of_the_files(charts: dict[str, Chart]) -> None:
    assert ("parallel", "1", "50.0 %") in cells(charts["acceptance-by-depth"])
    assert ("parallel", "2", "40.0 %") in cells(charts["accepted-while-decoding"])
    assert ("keyword", "70.0 %", "35.0 %", "23.3 %") in cells(charts["classes-5"])
    assert ("6", "70.0 %", "35.0 %", "23.3 %") in cells(charts["layers-1"])
    assert cells(charts["tap-weights-1"])[0] == ("0", "20.0 %", "50.0 %")
    assert ("parallel", "1.30×", "1.70", "390", "5 of 5") in cells(charts["speed-1"])
    assert cells(charts["chosen-lengths-1"])[0] == ("parallel-auto", "0", "50.0 %")
    assert cells(charts["recipes-1"])[0][0] == "marginalization"
    assert ("depth 0", "2.100", "2.010", "2.010") in cells(charts["training-1"])


def test_chosen_lengths_are_means_over_those_still_running(
    charts: dict[str, Chart], tmp_path: Path
) -> None:
    figure = Figure()
    charts["chosen-lengths-1"].paint(figure)
    (line,) = figure.axes[0].get_lines()
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == [0, 0.5, 2, 2]
    row = report_files.generated(draft_length="auto")
    report_files.write(tmp_path / "a.json", "generate", [row], draft_lengths=[0, 2, 2])
    report_files.write(tmp_path / "b.json", "generate", [replace(row, draft_length=2)],
                       draft_lengths=[2, 2])  # fmt: skip
    (chart,) = charts_of(collect([tmp_path]))
    assert cells(chart) == [("parallel", "0", "33.3 %"), ("parallel", "2", "66.7 %")]
    report_files.write(tmp_path / "c.json", "bench", [report_files.speed()], draft_lengths=[3])
    with pytest.raises(InputError, match="'draft_lengths' is not what foretell writes"):
        charts_of(collect([tmp_path]))


def test_every_axis_of_amounts_begins_at_zero(charts: dict[str, Chart]) -> None:
    for chart in charts.values():
        figure = Figure()
        chart.paint(figure)
        heat = chart.name.startswith(("layers", "tap-weights"))
        for axes in figure.axes if not heat else ():
            sideways = chart.name.startswith(("speed", "recipes", "classes"))
            low, _ = axes.get_xlim() if sideways else axes.get_ylim()
            assert low == 0, chart.name


def test_inline_drawings_share_a_page(charts: dict[str, Chart]) -> None:
    page = "".join(chart.inline() for chart in charts.values())
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    for used in re.findall(r'(?:url\(|href=")#([^")]+)', page):
        assert used in names
    assert not re.findall(r'(?:href|src)="(?!#)', page)
    assert not any(colour in page for colour in SERIES)
    assert ">decision settled</text>" in page


def test_files_of_figures_stand_alone(charts: dict[str, Chart]) -> None:
    chart = charts["speed-1"]
    assert chart.svg().startswith("<?xml")
    assert "var(--" not in chart.svg()
    assert chart.svg() == chart.svg()
    assert chart.png().startswith(b"\x89PNG")


def test_heat_maps_can_be_read_in_every_cell(charts: dict[str, Chart]) -> None:
    figure = Figure()
    charts["layers-1"].paint(figure)
    axes = figure.axes[0]
    assert len(axes.patches) == len(axes.texts) == 21
    for patch, label in zip(axes.patches, axes.texts, strict=True):
        ink = 1.0 if label.get_color() == "#ffffff" else 0.0
        below, above = sorted((ink, luminance(patch.get_facecolor()[:3])))
        assert (above + 0.05) / (below + 0.05) >= 4.5


def linear(colour: tuple[float, ...]) -> np.ndarray:
    channels = np.asarray(colour)
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(colour: tuple[float, ...]) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


# Machado et al. 2009, severity 1, on linear RGB.
DEFICIENT = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.01182, 0.04294, 0.968881]],
}  # fmt: skip
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


STYLE = (files("foretell.report") / "templates" / "style.css").read_text(encoding="utf-8")
PALETTE = re.findall(r"--series-\d: light-dark\((#\w+), (#\w+)\)", STYLE)


def test_the_page_has_the_colours_of_the_drawings() -> None:
    assert tuple(light for light, _ in PALETTE) == SERIES


@pytest.mark.parametrize("vision", DEFICIENT)
@pytest.mark.parametrize("dark", [False, True])
def test_colours_differ_for_every_common_colour_vision(vision: str, dark: bool) -> None:
    """All but grey, by more than 14 in CIE Lab."""
    seen = []
    for pair in PALETTE[:5]:
        channels = tuple(int(pair[dark][place : place + 2], 16) / 255 for place in (1, 3, 5))
        xyz = np.asarray(TO_XYZ) @ np.clip(np.asarray(DEFICIENT[vision]) @ linear(channels), 0, 1)
        x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
        seen.append(np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)]))
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 14


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0.01, 0.2),
)
def test_labels_keep_apart_and_in_order(values: list[float], gap: float) -> None:
    moved = _apart(values, gap)
    order = np.argsort(values, kind="stable")
    places = [moved[index] for index in order]
    assert all(after - before >= gap - 1e-9 for before, after in pairwise(places))
    assert sum(moved) == pytest.approx(sum(values))
    if all(b - a >= gap for a, b in pairwise(sorted(values))):
        assert moved == pytest.approx(values)


def test_tables_show_every_row_with_intervals_and_bounds(results: Path) -> None:
    source = Source("probe", read_result(results / "probe.json"))
    tables = {table.title: table for table in tables_of(source, 1)}
    assert sum(len(table.cells) for table in tables.values()) == len(source.rows)
    depths = tables["probe: By depth"]
    first = dict(zip(depths.header, depths.cells[0], strict=True))
    assert first["top-1"] == "60.0 % (57.0 to 63.0 %)"
    assert first["nats per token"] == "2.000 [1.900 to 2.100]"
    predicted = tables["probe: Predicted"]
    first = dict(zip(predicted.header, predicted.cells[0], strict=True))
    assert first["tokens per forward"] == "1.20 to 1.60"
    assert first["chosen"] == "no"


def test_a_row_of_an_unknown_command_is_a_plain_table(results: Path) -> None:
    (table,) = tables_of(Source("own", read_result(results / "own.json")), 1)
    assert (table.header, table.cells) == (["method", "tokens", "seconds"], [["a", "1", "2 ms"]])


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("top1", 0.4567, "45.7 %"),
        ("speedup", 1.234, "1.23×"),
        ("tokens", 12345, "12,345"),
        ("peak_memory_bytes", 3 * 2**20, "3 MiB"),
        ("seconds", 0.0021, "2.1 ms"),
        ("nll", 1e-7, "1e-07"),
        ("chosen", True, "yes"),
        ("nll", None, "–"),
    ],
)
def test_numbers_are_in_the_unit_of_their_field(field: str, value: float, shown: str) -> None:
    assert text(field, value) == shown


def test_drafted_text_tells_what_stands(results: Path) -> None:
    (found,) = continuations(collect([results / "generate.json"]).results)
    assert "7 tokens in 4 forward passes, 1.75 per forward: 3 of 5 drafted" in found.summary
    looks = [piece.look for piece in found.pieces]
    assert looks == ["own", "depth-1", "depth-2", "own", "depth-1", "corrected", "corrected"]


def test_committed_results_can_be_shown(tmp_path: Path) -> None:
    results = Path(__file__).parents[1] / "results"
    charts = write_report([results, results / "demo"], tmp_path / "page.html", mixed=True)
    assert {"speed-1", "draft-length", "top1-by-depth"} <= {chart.name for chart in charts}


# -- what is refused ----------------------------------------------------------------------------


def refused(tmp_path: Path, *paths: Path) -> str:
    """The one line; an earlier report stays as it is, and nothing else is written."""
    out = tmp_path / "page.html"
    out.write_text(before := '<meta name="generator" content="foretell report">')
    with pytest.raises(InputError) as caught:
        write_report(paths, out, figures=tmp_path / "figures")
    assert out.read_text() == before
    assert not (tmp_path / "figures").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_without_results(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no result file in" in refused(tmp_path, tmp_path / "empty")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "no such result file" in refused(tmp_path, tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]", "\udcff", '{"rows": NaN}'])
def test_what_is_no_result_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "x.json is not a result file" in refused(tmp_path, tmp_path / "in")


def test_an_unknown_field(tmp_path: Path) -> None:
    file = report_files.write(tmp_path / "in" / "a.json", "bench", [report_files.speed()])
    file.write_text(file.read_text().replace('"method"', '"metod"'))
    assert "unknown field 'metod'" in refused(tmp_path, file)


def test_models_that_have_nothing_in_common(tmp_path: Path) -> None:
    rows = report_files.bench_rows()
    report_files.write(tmp_path / "in" / "a.json", "bench", rows, model="one")
    report_files.write(tmp_path / "in" / "b.json", "bench", rows, model="two")
    message = refused(tmp_path, tmp_path / "in")
    assert "a.json" in message
    assert "b.json are of different models (one; two)" in message
    assert "--mixed" in message
    write_report([tmp_path / "in"], tmp_path / "both.html", mixed=True)
    assert "<title>foretell: one, two</title>" in (tmp_path / "both.html").read_text()


def test_models_that_one_file_compares(tmp_path: Path) -> None:
    for name in ("one", "two"):
        report_files.write(tmp_path / f"{name}.json", "eval", [report_files.scored()], model=name)
    both = [report_files.speed(model="one"), report_files.speed(model="two")]
    report_files.write(tmp_path / "z.json", "bench", both, model=None)
    assert collect([tmp_path]).models == ("one", "two")


def test_one_backbone_by_two_names(tmp_path: Path) -> None:
    for name, backbone in (("tiny", "same"), ("runs/a/model", "same")):
        file = tmp_path / f"{name.replace('/', '-')}.json"
        report_files.write(file, "eval", [report_files.scored()], model=name, backbone=backbone)
    assert len(collect([tmp_path]).results) == 2


def test_a_run_of_another_backbone(tmp_path: Path) -> None:
    file = report_files.write(
        tmp_path / "in" / "a.json", "eval", [report_files.scored()], backbone=report_files.BACKBONE
    )
    report_files.write_run(tmp_path / "in" / "own")
    assert len(collect([file.parent]).runs) == 1
    report_files.write_run(tmp_path / "in" / "run", backbone="another")
    assert "(toy; another)" in refused(tmp_path, file.parent)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", "{"),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("metrics.jsonl", '{"step": 1, "depth_losses": 3}\n'),
        ("metrics.jsonl", '{"step": 1, "depth_losses": [NaN]}\n'),
        ("tap_weights.json", "[[NaN]]"),
        ("tap_weights.json", "[[]]"),
        ("tap_weights.json", "[[1, 2], [3]]"),
        ("tap_weights.json", '{"a": 1}'),
    ],
)
def test_a_broken_run(tmp_path: Path, file: str, content: str) -> None:
    run = report_files.write_run(tmp_path / "run")
    (run / file).write_text(content)
    assert file in refused(tmp_path, run)


@pytest.mark.parametrize("steps", [3, [3], [{"drafted": 1, "accepted": 1, "pieces": [2]}]])
def test_drafts_that_generate_does_not_write(tmp_path: Path, steps: object) -> None:
    file = report_files.write(
        tmp_path / "a.json", "generate", [report_files.generated()], steps=steps
    )
    assert "'steps'" in refused(tmp_path, file)


# -- what is written ----------------------------------------------------------------------------


def test_command_line(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, figures = tmp_path / "new" / "page.html", tmp_path / "figures"
    command = ["foretell", "report", str(results), "--out", str(out), "--figures", str(figures)]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert "Report with 14 figures" in capsys.readouterr().out
    assert len(list(figures.glob("*.svg"))) == len(list(figures.glob("*.png"))) == 14
    page = out.read_text(encoding="utf-8")
    assert "<script" not in page
    assert json.dumps(report_files.ORIGIN["git_sha"]).strip('"') in page
    monkeypatch.setattr("sys.argv", ["foretell", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("foretell: no result file in")


def test_a_page_that_cannot_be_written(results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it is not a file.* for the report"):
        write_report([results], tmp_path)
    assert list(tmp_path.iterdir()) == []
