"""What transformers' users write is done as there, or refused by its name with the reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import families
import foretell as ft
from command_line import TOKENIZER, backbone, fine, refused
from foretell.checkpoints import wording
from foretell.data import read_documents
from foretell.heads import DEPTH, HEADS
from foretell.training import TrainConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads beside their backbone, which is stored in bfloat16."""
    path = tmp_path_factory.mktemp("wording") / "model"
    ft.attach(families.build("llama").bfloat16(), depth=1).save_pretrained(path)
    return path


LOADED: list[dict[str, Any]] = [
    {"torch_dtype": torch.float32},
    {"torch_dtype": "float32", "dtype": "float32"},
    {"torch_dtype": "float32", "dtype": None},
    {"dtype": torch.float32, "low_cpu_mem_usage": True},
    {"dtype": "float32", "attn_implementation": "eager"},
    {
        "dtype": "float32", "trust_remote_code": False, "use_safetensors": True, "revision": None,
        "token": None, "cache_dir": None, "subfolder": "", "config": None, "device_map": "cpu",
        "quantization_config": None, "ignore_mismatched_sizes": False,
    },
]  # fmt: skip


@pytest.mark.parametrize("options", LOADED)
@pytest.mark.parametrize("load", [ft.MTPModel.from_pretrained, ft.attach])
def test_what_says_how_to_load_is_done(load: Any, saved: Path, options: dict[str, Any]) -> None:
    model = load(saved, **options)
    assert model.dtype == torch.float32
    if "attn_implementation" in options:
        assert model.lm.config._attn_implementation == "eager"
    assert model.depth == (DEPTH if load is ft.attach else 1)


@pytest.mark.parametrize("load", [ft.MTPModel.from_pretrained, ft.attach])
def test_what_belongs_to_the_backbone_reaches_transformers(
    load: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    real = AutoModelForCausalLM.from_pretrained

    def load_and_note(where: str, **options: Any) -> Any:
        told.update(options)
        options.pop("quantization_config")
        return real(where, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_and_note)
    load(saved, quantization_config="packed", attn_implementation="sdpa")
    assert (told["quantization_config"], told["attn_implementation"]) == ("packed", "sdpa")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"trust_remote_code": True}, "trust_remote_code=True: code that comes with a checkpoint"),
    ({"use_safetensors": False}, "safetensors"),
    ({"config": object()}, "config"),
    ({"max_memory": {0: "1GB"}}, "one device"),
    ({"variant": "fp16"}, "variant"),  # `attach` takes it for the head's
    ({"torch_dtype": "float32", "dtype": "bfloat16"}, "dtype is bfloat16 and torch_dtype float32"),
    ({"attn_implementation": "nonsense"}, "attn_implementation"),
    ({"subfolder": "nowhere"}, "nowhere"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
@pytest.mark.parametrize("load", [ft.MTPModel.from_pretrained, ft.attach])
def test_what_cannot_be_done_is_refused_by_name(
    load: Any, saved: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((ft.InputError, ft.CheckpointError)) as caught:
        load(saved, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_words_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    model = ft.MTPModel.from_pretrained(saved)
    for call in (
        lambda **words: ft.MTPModel.from_pretrained(saved, **words),
        lambda **words: ft.attach(saved, **words),
        lambda **words: model.save_pretrained(tmp_path / "model", **words),
        lambda **words: model.push_to_hub("owner/name", **words),
        lambda **words: model.decode(families.prompt(), max_new_tokens=1, **words),
    ):
        with pytest.raises(ft.InputError, match="'nonsense'"):
            call(nonsense=1)


def test_a_backbone_that_is_given_is_loaded_already(saved: Path) -> None:
    lm = families.build("llama")
    for load in (
        lambda: ft.MTPModel.from_pretrained(saved, backbone=lm, attn_implementation="eager"),
        lambda: ft.attach(lm, attn_implementation="eager"),
    ):
        with pytest.raises(ft.InputError, match=r"attn_implementation.*is given"):
            load()


def test_a_revision_is_fetched_and_is_a_directory_then(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        assert "*.safetensors" in asked.pop("allow_patterns")
        return str(saved.parent)

    monkeypatch.setattr(wording, "snapshot_download", snapshot_download)
    where = {
        "force_download": False,
        "revision": "v2",
        "token": "t",
        "cache_dir": tmp_path,
        "subfolder": saved.name,
    }
    for load in (ft.MTPModel.from_pretrained, ft.attach):
        model = load("owner/name", **where)
        assert model.backbone_path == str(saved)
        assert asked == {
            "name": "owner/name",
            "revision": "v2",
            "token": "t",
            "cache_dir": tmp_path,
        }

    def unreachable(name: str, **options: Any) -> str:
        raise OSError("offline")

    monkeypatch.setattr(wording, "snapshot_download", unreachable)
    with pytest.raises(ft.InputError, match=r"owner/name.*offline"):
        ft.attach("owner/name", revision="v2")


def test_saving_knows_transformers_words(tmp_path: Path) -> None:
    model = ft.attach(families.build("llama"), depth=1)
    harmless = {"safe_serialization": True, "push_to_hub": False, "max_shard_size": "20KB"}
    model.save_pretrained(tmp_path / "model", **harmless)
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert ft.MTPModel.from_pretrained(tmp_path / "model").depth == 1
    for words, said in (
        ({"safe_serialization": False}, "safetensors alone"),
        ({"push_to_hub": True}, "MTPModel.push_to_hub"),
    ):
        with pytest.raises(ft.InputError, match=said):
            model.save_pretrained(tmp_path / "other", **words)
    assert not (tmp_path / "other").exists()


def test_uploading_refuses_before_it_makes_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ft.checkpoints.saving, "HfApi", None)  # calling it would fail
    model = ft.attach(families.build("llama"), depth=1)
    with pytest.raises(ft.InputError, match="safe_serialization=False"):
        model.push_to_hub("owner/name", safe_serialization=False)


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "parallel"])
def test_heads_have_one_depth_where_none_is_asked_for(kind: str) -> None:
    lm = families.build("llama")
    assert ft.attach(lm).head.config == TrainConfig(steps=1).head
    told = {"head": kind, "steps": 1}
    assert ft.attach(lm, kind).head.config == TrainConfig.parse(told).head
    assert ft.attach(lm, kind).depth == DEPTH


def test_the_number_of_tokens_is_asked_for_by_name() -> None:
    model = ft.attach(families.build("llama"))
    for call in (model.decode, model.stream):
        with pytest.raises(ft.InputError, match=rf"{call.__name__} needs max_new_tokens"):
            call(families.prompt())


def test_heads_saved_without_a_tokenizer_name_the_ways_out(tmp_path: Path) -> None:
    """And the ways that are named work."""
    backbone().save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    model = ft.attach(tmp_path / "plain", depth=1)
    model.save_pretrained(tmp_path / "model")
    asked = ("generate", tmp_path / "model", "--prompt", "x", "--max-new-tokens", 2)
    message = refused(*asked)
    for way in ("tokenizer=", "tokenizer.save_pretrained", "--backbone"):
        assert way in message
    fine(*asked, "--backbone", tmp_path / "plain")
    AutoTokenizer.from_pretrained(tmp_path / "plain").save_pretrained(tmp_path / "model")
    fine(*asked)
    model.save_pretrained(tmp_path / "other", tokenizer=ft.load_tokenizer(tmp_path / "plain"))
    fine("generate", tmp_path / "other", *asked[2:])


def test_an_mtp_model_needs_no_heads_and_no_patch() -> None:
    model = ft.attach(families.build("llama"), depth=1)
    with pytest.raises(ft.InputError, match="its lm"):
        ft.attach(model)
    with pytest.raises(ft.InputError, match=r"call its generate, or patch its lm"):
        ft.patch(model)


def test_what_json_says_of_an_error_is_not_cut_into(tmp_path: Path) -> None:
    """It ends in "at" itself: "Invalid control character at"."""
    (tmp_path / "lines.jsonl").write_text('{"text": "a\tb"}\n')
    with pytest.raises(ft.InputError, match=r"not JSON \(column 12: Invalid control char"):
        list(read_documents(tmp_path / "lines.jsonl"))


def test_messages_are_plain_english() -> None:
    """Of what is raised, printed or shown as help: "is not a number", never "is no number"."""
    odd = re.compile(r"(?<!there) (is|are) no (?!longer)[a-z]|\bat at\b|of so many|is none\b")
    source = Path(ft.__file__).parent
    files = [path for path in source.rglob("*.py") if source / "decoding" not in path.parents]
    found = [
        text for path in files for text in _texts(ast.parse(path.read_text())) if odd.search(text)
    ]
    assert len(files) > 150
    assert not found


def _texts(tree: ast.AST) -> Iterator[str]:
    """Strings in it that are no docstrings."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_two_spellings_of_one_type_agree(tmp_path: Path) -> None:
    ft.attach(families.build("llama"), depth=1).save_pretrained(tmp_path / "model")
    model = ft.MTPModel.from_pretrained(
        tmp_path / "model", torch_dtype=torch.float32, dtype="float32"
    )
    assert model.dtype is torch.float32
    with pytest.raises(ft.InputError, match="mean the same"):
        ft.MTPModel.from_pretrained(tmp_path / "model", torch_dtype=torch.float16, dtype="float32")
