"""Every command that writes: other people's files stay, and every way to name a path works."""

import json
from pathlib import Path

import pytest

import foretell as ft
import released
from command_line import TEXT, TOKENIZER, backbone, fine, refused
from foretell.formats import export, layout
from foretell.results import read_result
from report_files import bench_rows, write

TRAIN = ("--steps", 1, "--block-size", 32, "--batch-size", 2, "--depth", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one with heads for a layout, a released checkpoint, text and results."""
    place = tmp_path_factory.mktemp("place")
    lm = backbone()
    lm.save_pretrained(place / "plain")
    TOKENIZER.save_pretrained(place / "plain")
    ft.MTPModel(lm, layout("mimo").head(1)).save_pretrained(place / "heads", tokenizer=TOKENIZER)
    released.write("mimo", place / "released")
    (place / "text.py").write_text(TEXT * 12, encoding="utf-8")
    write(place / "results" / "bench.json", "bench", bench_rows()[:2])
    return place


def content(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


WRITING = {
    "export": ("export", "{place}/heads", "--to", "mimo", "--out", "{out}"),
    "import": ("import", "{place}/released", "--out", "{out}"),
    "train": ("train", "{place}/plain", "--data", "{place}/text.py", "--out", "{out}", *TRAIN),
    "demo": ("demo", "--out", "{out}"),
    "figures": ("report", "{place}/results", "--out", "{out}/new.html", "--figures", "{out}"),
    "report": ("report", "{place}/results", "--out", "{out}/report.html"),
    "distill": (
        "distill", "{place}/plain", "--prompts", "{place}/text.py", "--count", 1, "--out",
        "{out}/probe.json", "--max-new-tokens", 2,
    ),
    "journal": (
        "probe", "{place}/plain", "--data", "{place}/text.py", "--positions", 1, "--json",
        "{out}/new.json",
    ),
    **{
        command: (command, "{place}/plain", *more, "--json", "{out}/probe.json")
        for command, more in {
            "info": (),
            "probe": ("--data", "{place}/text.py"),
            "eval": ("--data", "{place}/text.py"),
            "generate": ("--prompt", "def"),
            "bench": ("--prompts", "{place}/text.py"),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRITING)
def test_files_that_are_not_ours_stay(place: Path, tmp_path: Path, name: str) -> None:
    mine = (
        "model.safetensors", "config.json", "heads/config.yaml", "report.html", "probe.json",
        "new.json.partial", "notes.txt", "speed.svg", "depth-accuracy.png",
    )  # fmt: skip
    for file in mine:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("mine")
    if name == "figures":
        fine("report", place / "results", "--out", tmp_path.with_name("page.html"), "--figures",
             tmp_path.with_name("drawn"))  # fmt: skip
        for figure in tmp_path.with_name("drawn").iterdir():
            (tmp_path / figure.name).write_text("mine")
    before = content(tmp_path)
    message = refused(*(str(a).format(place=place, out=tmp_path) for a in WRITING[name]))
    assert str(tmp_path) in message
    assert content(tmp_path) == before


def test_what_a_command_wrote_it_writes_again(place: Path, tmp_path: Path) -> None:
    for _ in range(2):
        for name in ("export", "import", "figures", "info"):
            out = tmp_path / name
            arguments = [str(a).format(place=place, out=out) for a in WRITING[name]]
            fine(*arguments)
        (tmp_path / "export" / "notes.txt").write_text("mine")
    assert (tmp_path / "export" / "notes.txt").read_text() == "mine"


def test_an_export_is_no_place_for_heads_nor_heads_for_an_export(
    place: Path, tmp_path: Path
) -> None:
    export(place / "heads", "mimo", tmp_path / "served")
    fine("import", place / "released", "--out", tmp_path / "imported")
    before = content(tmp_path)
    for name, out in (("import", "served"), ("export", "imported")):
        refused(*(str(a).format(place=place, out=tmp_path / out) for a in WRITING[name]))
    assert content(tmp_path) == before


def test_home_directories_links_and_the_directory_itself(
    place: Path, tmp_path: Path, monkeypatch
) -> None:
    """As `--out=~/x` comes, which a shell leaves as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").symlink_to(place)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = ("--data", "~/models/text.py")
    fine("info", "~/models/heads", "--json", "~/info.json")
    fine("train", "~/models/plain", *data, "--out", "~/run", *TRAIN, "--json", "~/train.json")
    fine("train", "../models/plain", *data, "--out", ".", *TRAIN)
    fine("info", "model")
    fine("eval", "~/run/model", *data, "--json", "~/eval.json", "--block-size", 32)
    for out in ("~/link", "~/link"):
        fine("export", "~/models/heads", "--to", "mimo", "--out", out, "--results", "~/eval.json")
    fine("import", "~/link", "--out", "~/imported")
    fine("report", "~/eval.json", "~/run", "--out", "~/page.html", "--figures", "~/figures")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").is_file()
    for run in ("run", "here"):
        reference = json.loads((tmp_path / run / "model" / "foretell.json").read_text())
        assert reference["backbone"]["path"] == str(place / "plain")
    for file in ("train.json", "eval.json", "info.json"):
        assert read_result(tmp_path / file).rows
    assert (tmp_path / "page.html").is_file()
    assert not (tmp_path / "here" / "~").exists()


def test_a_backbone_that_moved_is_found_by_an_option(place: Path, tmp_path: Path) -> None:
    lm = backbone()
    lm.save_pretrained(tmp_path / "before")
    TOKENIZER.save_pretrained(tmp_path / "before")
    ft.attach(lm, depth=1).save_pretrained(tmp_path / "heads", backbone_path=tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "now")
    given = ("generate", tmp_path / "heads", "--prompt", "def", "--max-new-tokens", 2)
    assert "--backbone" in refused(*given)
    fine(*given, "--backbone", tmp_path / "now")
    train = ("train", tmp_path / "heads", "--data", place / "text.py", "--recipe", "native",
             "--backbone", tmp_path / "now", *TRAIN[:-2])  # fmt: skip
    fine(*train, "--out", tmp_path / "run", "--set", "backbone_rate=0")
    reference = json.loads((tmp_path / "run" / "model" / "foretell.json").read_text())
    assert reference["backbone"]["path"] == str(tmp_path / "now")
    assert "recipe native" in refused(*train, "--out", tmp_path / "other", "--recipe", "joint")
