"""`train --for`, `export` and `import` as they are typed."""

import json
from pathlib import Path

import pytest

import foretell as ft
from command_line import TEXT, TOKENIZER, backbone, fine, refused
from foretell import formats
from foretell.errors import InputError
from foretell.formats import LAYOUTS
from foretell.results import read_result

pytestmark = pytest.mark.usefixtures("_tried_once")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("layouts")
    backbone().save_pretrained(place / "plain")
    TOKENIZER.save_pretrained(place / "plain")
    (place / "text.py").write_text(TEXT * 12, encoding="utf-8")
    return place


def trained(place: Path, out: Path, *options: object) -> str:
    given = ("--data", place / "text.py", "--steps", 2, "--block-size", 32, "--batch-size", 2)
    return fine("train", place / "plain", *given, "--out", out, *options)


@pytest.mark.parametrize("layout", ["mimo", "medusa", "eagle", "eagle3", "vllm"])
def test_heads_trained_for_a_layout_are_exported_to_it(place: Path, tmp_path, layout) -> None:
    trained(place, tmp_path / "run", "--for", layout, "--depth", 2)
    model = tmp_path / "run" / "model"
    given = ("--to", layout, "--out", tmp_path / "out", "--json", tmp_path / "export.json")
    out = fine("export", model, *given)
    result = read_result(tmp_path / "export.json")
    assert (result.settings["layout"], result.rows[0].depth) == (layout, 2)
    assert "num_speculative_tokens" in out
    assert LAYOUTS[layout].contract.tap in out
    if layout != "vllm":
        given = ("--backbone", place / "plain") if LAYOUTS[layout].apart else ()
        fine("import", tmp_path / "out", "--out", tmp_path / "again", *given)
        again = ft.MTPModel.from_pretrained(tmp_path / "again")
        assert again.head.config.kind == LAYOUTS[layout].head(1).kind


def test_a_served_directory_has_the_tokenizer(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "run", "--for", "mimo", "--depth", 1)
    fine("export", tmp_path / "run" / "model", "--to", "mimo", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_card_says_what_heads_were_trained_on(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "run", "--for", "medusa", "--depth", 1)
    fine("export", tmp_path / "run" / "model", "--to", "medusa", "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (process,) = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert f"## Training\n\n`{process['command']}`" in card
    assert "Data: blocks " in card


def test_what_a_layout_lays_down_cannot_be_given_otherwise(place: Path, tmp_path: Path) -> None:
    given = ("train", place / "plain", "--data", place / "text.py", "--steps", 1)
    given += ("--out", tmp_path / "run")
    assert "tap is 'trunk'" in refused(*given, "--for", "mimo", "--tap", "trunk")
    assert "holds sequential heads" in refused(*given, "--for", "mimo", "--head", "parallel")
    assert "qwen3_next" in refused(*given, "--for", "qwen3_next")
    assert "layout 'x' is unknown" in refused(*given, "--for", "x")
    assert not (tmp_path / "run").exists()


def test_parallel_heads_for_the_plugin_read_the_final_state(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "run", "--for", "vllm", "--head", "parallel", "--depth", 2)
    model = ft.MTPModel.from_pretrained(tmp_path / "run" / "model")
    assert (model.head.config.kind, model.head.config.tap) == ("parallel", "final")
    fine("export", tmp_path / "run" / "model", "--to", "vllm", "--out", tmp_path / "out")


def test_what_cannot_be_exported_is_one_line(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "run", "--depth", 2)
    given = ("export", tmp_path / "run" / "model", "--out", tmp_path / "out")
    assert "train --for mimo" in refused(*given, "--to", "mimo")
    assert "no heads" in refused("export", place / "plain", "--to", "mimo", "--out", tmp_path / "o")
    assert "no multi-token module" in refused("import", place / "plain", "--out", tmp_path / "o")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_one_line(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "run", "--for", "medusa", "--depth", 1)
    (tmp_path / "file").write_text("")
    given = ("export", tmp_path / "run" / "model", "--to", "medusa", "--out")
    assert "cannot be written to" in refused(*given, tmp_path / "file" / "out")
    assert "is a file" in refused(*given, tmp_path / "file")


def test_names_from_elsewhere_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a.weight": "\x1b[2J\n../x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused("import", tmp_path, "--out", tmp_path / "out")
    assert "names \\x1b[2J\\n../x.safetensors, outside" in message


def test_an_upload_takes_the_directory_that_was_written(tmp_path: Path, monkeypatch) -> None:
    seen = []

    class Hub:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            seen.append((name, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
            seen.append((repo_id, folder_path))
            return "where it is"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert formats.upload(tmp_path, "me/heads") == "where it is"
    assert seen == [("me/heads", True), ("me/heads", tmp_path)]
    monkeypatch.setattr(Hub, "create_repo", lambda *a, **k: 1 / 0)
    with pytest.raises(InputError, match="cannot be uploaded to"):
        formats.upload(tmp_path, "me/heads")
