import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import families
import foretell as ft
import foretell.checkpoints.heads
from foretell.checkpoints import CONFIG_FILE, HEADS_FILE, load_causal_lm, load_tokenizer, resolve
from foretell.errors import BackboneError, CheckpointError, InputError

pytestmark = pytest.mark.usefixtures("_tried_once")

SHAPES = {
    "parallel": ft.ParallelHeads.Config(depth=2),
    "sequential": ft.SequentialHeads.Config(depth=2, tap="final", init="copy"),
    "shared": ft.SequentialHeads.Config(depth=3, shared=True, tap=2),
    "weighted": ft.ParallelHeads.Config(depth=2, tap="weighted", variant="causal"),
    "residual": ft.ResidualHeads.Config(depth=2, layers=2),
}


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def same_model(one: ft.MTPModel, other: ft.MTPModel) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.fixture
def saved(small_llama: PreTrainedModel, tmp_path: Path) -> Path:
    """A whole foretell directory."""
    where = tmp_path / "saved"
    ft.MTPModel(small_llama, SHAPES["parallel"]).save_pretrained(where)
    return where


def one_line(error: type[Exception], call: Callable[[], object], *parts: str) -> str:
    """`call` fails with one line that has all `parts`."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


# -- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_together_it_loads_bit_for_bit(
    small_llama, tmp_path: Path, shape: str, dtype
) -> None:
    for parameter in small_llama.parameters():
        parameter.data = parameter.data.to(dtype)  # and no buffers: transformers computes them anew
    model = ft.MTPModel(small_llama, SHAPES[shape]).eval()
    model.save_pretrained(tmp_path / "m")
    again = ft.MTPModel.from_pretrained(tmp_path / "m")
    assert same_model(model, again)
    assert again.head.config == SHAPES[shape]
    assert again.backbone.dtype == dtype
    assert not again.training
    tokens = torch.arange(12).unsqueeze(0)
    assert torch.equal(again(tokens).depth_losses, model(tokens).depth_losses)
    assert (
        sorted(path.suffix for path in (tmp_path / "m").iterdir())
        == [".json"] * 3 + [".safetensors"] * 2
    )


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "deepseek_v3", "qwen3_next", "mamba"])
@pytest.mark.parametrize("shape", ["parallel", "sequential"])
def test_other_families_make_the_round_trip(tmp_path: Path, family: str, shape: str) -> None:
    model = ft.MTPModel(families.build(family), SHAPES[shape])
    model.save_pretrained(tmp_path / "m")
    assert same_model(model, ft.MTPModel.from_pretrained(tmp_path / "m"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_backbone_part_is_an_ordinary_checkpoint(tmp_path: Path, family: str) -> None:
    lm = families.build(family)
    logits = lm(families.prompt(2, 20)).logits
    model = ft.attach(lm, depth=2)
    model.save_pretrained(tmp_path / "m")
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(plain.eval()(families.prompt(2, 20)).logits, logits)
    lm.save_pretrained(tmp_path / "alone")
    own = listing(tmp_path / "alone")
    both = listing(tmp_path / "m")
    assert both.keys() - own.keys() == {CONFIG_FILE, HEADS_FILE}
    assert all(both[name] == content for name, content in own.items())


def test_heads_alone_refer_to_their_backbone(small_llama, tmp_path: Path) -> None:
    small_llama.save_pretrained(tmp_path / "backbone")
    model = ft.MTPModel(small_llama, SHAPES["sequential"])
    model.save_pretrained(tmp_path / "heads", backbone_path=str(tmp_path / "backbone"))
    assert {file.name for file in (tmp_path / "heads").iterdir()} == {CONFIG_FILE, HEADS_FILE}
    stored = json.loads((tmp_path / "heads" / CONFIG_FILE).read_text())
    assert stored["format_version"] == 1
    assert stored["head"]["kind"] == "sequential"
    assert stored["backbone"]["fingerprint"] == model.backbone.fingerprint()
    assert stored["backbone"]["architecture"] == "LlamaForCausalLM"
    assert same_model(model, ft.MTPModel.from_pretrained(tmp_path / "heads"))
    given = load_causal_lm(tmp_path / "backbone")
    again = ft.MTPModel.from_pretrained(tmp_path / "heads", backbone=given)
    assert again.lm is given
    assert same_model(model, again)


def test_heads_of_bfloat16_weights_load_onto_them_in_float32(small_llama, tmp_path: Path) -> None:
    lm = small_llama.to(torch.bfloat16)
    lm.save_pretrained(tmp_path / "backbone")
    model = ft.MTPModel(lm, SHAPES["parallel"])
    model.save_pretrained(tmp_path / "heads", backbone_path=str(tmp_path / "backbone"))
    again = ft.MTPModel.from_pretrained(tmp_path / "heads", dtype=torch.float32)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.float(), theirs)


def test_a_plain_checkpoint_has_no_heads(small_llama, tmp_path: Path) -> None:
    small_llama.save_pretrained(tmp_path / "plain")
    model = ft.MTPModel.from_pretrained(tmp_path / "plain")
    assert model.head is None
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / CONFIG_FILE).exists()
    assert same_model(model, ft.MTPModel.from_pretrained(tmp_path / "again"))


def test_directories_of_the_earlier_name_still_load(small_llama, tmp_path: Path) -> None:
    """foretell was called foretoken before its first release."""
    model = ft.attach(small_llama, depth=2)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "foretell.json").rename(tmp_path / "m" / "foretoken.json")
    again = ft.MTPModel.from_pretrained(tmp_path / "m")
    assert same_model(model, again)
    again.save_pretrained(tmp_path / "m")  # and what is saved there has one config, under its name
    assert sorted(path.name for path in (tmp_path / "m").glob("foreto*.json")) == []
    assert same_model(model, ft.MTPModel.from_pretrained(tmp_path / "m"))
    other = ft.MTPModel(small_llama, None)
    (tmp_path / "m" / "foretell.json").rename(tmp_path / "m" / "foretoken.json")
    other.save_pretrained(tmp_path / "m")
    assert ft.MTPModel.from_pretrained(tmp_path / "m").head is None


def test_heads_that_are_gone_do_not_stay_on_disk(small_llama, saved: Path) -> None:
    """A model without heads saved over one with heads must not load with the old ones."""
    other = families.build("llama")
    ft.MTPModel(other).save_pretrained(saved)
    assert ft.MTPModel.from_pretrained(saved).head is None


def test_saving_over_a_directory_keeps_its_other_files(small_llama, saved: Path) -> None:
    (saved / "notes.txt").write_text("kept")
    model = ft.MTPModel(small_llama, SHAPES["sequential"])
    model.save_pretrained(saved)
    assert (saved / "notes.txt").read_text() == "kept"
    assert same_model(model, ft.MTPModel.from_pretrained(saved))


# -- the wrong backbone -------------------------------------------------------------------------


def test_heads_are_put_on_another_backbone_only_where_it_is_named(
    small_llama, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heads = tmp_path / "heads"
    model = ft.MTPModel(small_llama, SHAPES["parallel"])
    model.save_pretrained(heads, backbone_path=str(saved))
    expected = model.backbone.fingerprint()
    with torch.no_grad():
        small_llama.model.embed_tokens.weight.add_(0.5)
    found = model.backbone.fingerprint()
    assert found != expected
    another = ft.MTPModel.from_pretrained(heads, backbone=small_llama)
    assert [expected in said and found in said for said in caplog.messages] == [True]
    prompt = torch.tensor([[5, 6, 7, 8]])
    own = small_llama.generate(prompt, max_new_tokens=12, do_sample=False)
    assert torch.equal(another.generate(prompt, max_new_tokens=12), own)
    small_llama.save_pretrained(tmp_path / "another")
    config = json.loads((heads / "foretell.json").read_text())
    config["backbone"]["path"] = str(tmp_path / "another")
    (heads / "foretell.json").write_text(json.dumps(config))
    call = lambda: ft.MTPModel.from_pretrained(heads)  # noqa: E731
    one_line(CheckpointError, call, str(heads), expected, found, "LlamaForCausalLM", "--backbone")
    config["backbone"]["adapted"] = True
    (heads / "foretell.json").write_text(json.dumps(config))
    call = lambda: ft.MTPModel.from_pretrained(heads, backbone=small_llama)  # noqa: E731
    one_line(CheckpointError, call, str(heads), expected, found, "adapters")
    other = families.build("gpt2")
    call = lambda: ft.MTPModel.from_pretrained(heads, backbone=other)  # noqa: E731
    one_line(
        CheckpointError,
        call,
        expected,
        "GPT2LMHeadModel",
        ft.attach(other, depth=1).backbone.fingerprint(),
    )


def test_a_backbone_that_has_changed_beside_its_heads_is_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    one_line(CheckpointError, lambda: ft.MTPModel.from_pretrained(saved), "fingerprint", str(saved))


def test_a_backbone_that_has_moved_is_named(small_llama, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "away")
    ft.MTPModel(small_llama, SHAPES["parallel"]).save_pretrained(tmp_path / "h", backbone_path=gone)
    one_line(
        CheckpointError, lambda: ft.MTPModel.from_pretrained(tmp_path / "h"), gone, "--backbone"
    )


# -- damaged files ------------------------------------------------------------------------------


def damage_config(saved: Path, **changes) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    for name, value in changes.items():
        place = config
        *parents, leaf = name.split("__")
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    (saved / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"format_version": 2}, ["format version 2 is not 1"]),
        ({"format_version": "1"}, ["format version 1 is not 1"]),
        ({"format_version": None}, ["format_version"]),
        ({"head": None}, ["head"]),
        ({"head": 7}, ["not a foretell config"]),
        ({"backbone": None}, ["backbone"]),
        ({"backbone__colour": "red"}, ["colour"]),
        ({"backbone__fingerprint": None}, ["fingerprint"]),
        ({"head__kind": "medusa"}, ["'medusa'", "parallel, residual, sequential"]),
        ({"head__kind": None}, ["unknown"]),
        ({"head__kind": []}, ["unknown"]),
        ({"head__depth": 0}, ["depth is 0"]),
        ({"head__width": 3}, ["width"]),
        ({"head__tap": 9}, ["tap 9", "2 blocks"]),
        ({"head__depth": 3}, ["do not fit their own config", "blocks.2"]),
        ({"head__depth": 1}, ["do not fit their own config", "blocks.1"]),
        ({"head__kind": "sequential"}, ["head config of kind 'sequential'", "variant"]),
    ],
)
def test_a_foreign_config_is_refused(saved: Path, changes: dict, parts: list[str]) -> None:
    damage_config(saved, **changes)
    before = listing(saved)
    message = one_line(ft.ForetellError, lambda: ft.MTPModel.from_pretrained(saved), *parts)
    assert str(saved) in message
    assert listing(saved) == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'"text"', b"\xff\xfe", b"null", b"[" * 100_000]
)
def test_a_config_that_is_no_json_object_is_refused(saved: Path, content: bytes) -> None:
    (saved / CONFIG_FILE).write_bytes(content)
    one_line(
        CheckpointError,
        lambda: ft.MTPModel.from_pretrained(saved),
        CONFIG_FILE,
        "not a foretell config",
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-8],
        lambda b: b[:40],
        lambda b: b"",
        lambda b: b"\x80\x04K\x01.",
        lambda b: b"text" * 99,
    ],
)
def test_a_truncated_or_foreign_heads_file_is_refused(saved: Path, damage) -> None:
    file = saved / HEADS_FILE
    file.write_bytes(damage(file.read_bytes()))
    one_line(
        CheckpointError,
        lambda: ft.MTPModel.from_pretrained(saved),
        str(file),
        "not a whole",
    )


def test_a_missing_heads_file_is_named(saved: Path) -> None:
    (saved / HEADS_FILE).unlink()
    one_line(
        CheckpointError,
        lambda: ft.MTPModel.from_pretrained(saved),
        str(saved / HEADS_FILE),
        "is missing",
    )


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda t: t.pop("norms.1.weight"), ["norms.1.weight", "(32,) expected, none found"]),
        (lambda t: t.update(extra=torch.zeros(3)), ["extra", "none expected, (3,) found"]),
        (lambda t: t.update({"norms.0.weight": torch.zeros(5)}), ["(32,) expected, (5,) found"]),
        (lambda t: t.clear() or t.update(x=torch.zeros(1), y=torch.zeros(1)), ["and", "more"]),
    ],
)
def test_foreign_head_tensors_are_named(saved: Path, edit, parts: list[str]) -> None:
    tensors = load_file(saved / HEADS_FILE)
    edit(tensors)
    save_file(tensors, saved / HEADS_FILE)
    one_line(CheckpointError, lambda: ft.MTPModel.from_pretrained(saved), str(saved), *parts)


@pytest.mark.parametrize("damage", [lambda b: b[:-8], lambda b: b[:40], lambda b: b""])
def test_a_truncated_backbone_is_refused(saved: Path, damage) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    one_line(CheckpointError, lambda: ft.MTPModel.from_pretrained(saved), str(saved))


def test_missing_and_misshapen_backbone_tensors_are_named(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    one_line(CheckpointError, lambda: load_causal_lm(saved), str(saved), "lacks model.norm.weight")
    tensors["model.norm.weight"] = norm[:5].clone()
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    one_line(CheckpointError, lambda: load_causal_lm(saved), str(saved), "model.norm.weight")


def test_a_directory_without_a_model_is_refused(tmp_path: Path, small_llama) -> None:
    one_line(CheckpointError, lambda: load_causal_lm(tmp_path), str(tmp_path))
    small_llama.config.save_pretrained(tmp_path)
    one_line(CheckpointError, lambda: load_causal_lm(tmp_path), str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    one_line(CheckpointError, lambda: load_causal_lm(tmp_path), str(tmp_path))
    one_line(CheckpointError, lambda: load_tokenizer(tmp_path), str(tmp_path))


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    one_line(BackboneError, lambda: load_causal_lm(tmp_path), "not a causal language model")


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "./nowhere", ""])
def test_an_unknown_model_is_refused(name: str) -> None:
    one_line(InputError, lambda: ft.MTPModel.from_pretrained(name), repr(name))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    one_line(InputError, lambda: resolve(file), "is a file")
    assert resolve(tmp_path) == str(tmp_path)


# -- nothing half-written -----------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True])
def test_saving_that_fails_leaves_the_target_untouched(
    small_llama, saved: Path, monkeypatch, exists: bool
) -> None:
    target = saved if exists else saved.parent / "new"
    before = listing(saved.parent)

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(foretell.checkpoints.heads, "save_file", fail)
    with torch.no_grad():
        small_llama.model.norm.weight.add_(1)
    with pytest.raises((OSError, CheckpointError), match="no space"):
        ft.MTPModel(small_llama, SHAPES["sequential"]).save_pretrained(target)
    assert listing(saved.parent) == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("file", ["notes.txt", "model.safetensors", "config.json", "data/a.txt"])
def test_a_directory_that_is_not_ours_is_left_alone(small_llama, tmp_path: Path, file: str) -> None:
    (tmp_path / "mine" / file).parent.mkdir(parents=True)
    (tmp_path / "mine" / file).write_text("text")
    model = ft.MTPModel(small_llama, SHAPES["parallel"])
    one_line(
        CheckpointError,
        lambda: model.save_pretrained(tmp_path / "mine"),
        "may be somebody else's",
        file.split("/")[0],
    )
    assert listing(tmp_path) == {f"mine/{file}": b"text"}


def test_an_empty_directory_and_one_with_hidden_files_are_saved_to(
    small_llama, tmp_path: Path
) -> None:
    (tmp_path / ".git").mkdir()
    for _ in range(2):  # and what was saved before
        ft.MTPModel(small_llama, SHAPES["parallel"]).save_pretrained(tmp_path)
    assert ft.MTPModel.from_pretrained(tmp_path).depth == 2
    assert (tmp_path / ".git").is_dir()


@pytest.mark.parametrize("place", ["link", ".", "~/model", "relative", "dangling", "deep/../model"])
@pytest.mark.parametrize("again", [False, True])
def test_every_way_to_name_a_directory(
    small_llama, tmp_path: Path, monkeypatch, place: str, again: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "not-yet")
    monkeypatch.chdir(tmp_path / "real" if place == "." else tmp_path)
    model = ft.MTPModel(small_llama, SHAPES["parallel"])
    for _ in range(1 + again):
        model.save_pretrained(place)
    assert same_model(model, ft.MTPModel.from_pretrained(place))
    assert Path("foretell.json" if place == "." else ".").exists()  # the shell's place is there
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert not (tmp_path / "~").exists()


def test_saving_onto_a_file_is_refused(small_llama, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("text")
    model = ft.MTPModel(small_llama, SHAPES["parallel"])
    one_line(CheckpointError, lambda: model.save_pretrained(tmp_path / "taken"), "is a file")
    assert (tmp_path / "taken").read_text() == "text"


@pytest.mark.data
def test_heads_on_real_weights_make_the_round_trip(data_dir: Path, tmp_path: Path) -> None:
    where = data_dir / "models" / "stories260K"
    model = ft.attach(load_causal_lm(where), depth=2)
    model.save_pretrained(tmp_path / "heads", backbone_path=str(where))
    assert same_model(model, ft.MTPModel.from_pretrained(tmp_path / "heads"))


@pytest.mark.parametrize("family", ["llava", "qwen3_5"])
def test_a_model_of_another_list_is_given_to_its_heads(tmp_path: Path, family: str) -> None:
    """AutoModelForCausalLM does not load it, or its text part alone."""
    text: dict[str, Any] = {
        "vocab_size": 31, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    sees = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    if family == "llava":
        config: Any = transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**text),
            vision_config=transformers.CLIPVisionConfig(**sees, num_hidden_layers=1, image_size=28),
            image_token_index=30,
        )
    else:
        vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32}
        text["layer_types"] = ["full_attention"] * 2
        config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    lm = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model = ft.attach(lm, depth=1).eval()
    model.save_pretrained(tmp_path / "m")
    one_line(
        ft.ForetellError, lambda: ft.MTPModel.from_pretrained(tmp_path / "m"),
        str(tmp_path / "m"), "load it", "backbone=",
    )  # fmt: skip
    own = type(lm).from_pretrained(tmp_path / "m")
    again = ft.MTPModel.from_pretrained(tmp_path / "m", backbone=own)
    ids = torch.tensor([[1, 2, 3]])
    found = [one.decode(ids, max_new_tokens=4).new_tokens for one in (model, again)]
    assert found[0] == found[1]


# -- what cannot be saved -------------------------------------------------------------------------


def _more_tokens(model: ft.MTPModel) -> None:
    model.lm.set_output_embeddings(torch.nn.Linear(32, 50, bias=False))


def _one_mlp_for_two(model: ft.MTPModel) -> None:
    model.lm.model.layers[1].mlp = model.lm.model.layers[0].mlp


UNSAVABLE: dict[str, tuple[Callable[[ft.MTPModel], object], str]] = {
    "what draws, greedily": (
        lambda model: model.generation_config.update(temperature=0.5),
        "`temperature`: `do_sample` is not set",
    ),
    "no padding token": (
        lambda model: model.generation_config.update(pad_token_id=-1),
        "`pad_token_id` should be positive",
    ),
    "no JSON": (lambda model: model.config.update({"odd": object()}), "not JSON serializable"),
    "how to draw, in the model's config": (
        lambda model: model.config.update({"top_p": 0.5}),
        "generation parameters are set in the model config",
    ),
    "a bias that the class has not": (
        lambda model: model.lm.set_output_embeddings(torch.nn.Linear(32, 48)),
        "not loaded again: it is more than its config describes (lm_head.bias)",
    ),
    "another shape": (_more_tokens, "lm_head.weight has the shape (50, 32), by its config (48, 32"),
    "a part too few": (
        lambda model: delattr(model.lm.model.layers[1].mlp, "up_proj"),
        "it is without a part of what its config describes (model.layers.1.mlp.up_proj.weight)",
    ),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_could_not_be_saved_or_loaded_again_is_refused(
    small_llama, tmp_path: Path, case: str
) -> None:
    """Before training: otherwise a run would end with nothing."""
    change, problem = UNSAVABLE[case]
    model = ft.MTPModel(small_llama, SHAPES["residual"])
    change(model)
    for ask in (model.require_savable, lambda: model.save_pretrained(tmp_path / "saved")):
        one_line(CheckpointError, ask, problem)
    assert not (tmp_path / "saved").exists()


def test_weights_that_transformers_does_not_write_are_refused_in_one_line(
    small_llama, tmp_path: Path
) -> None:
    model = ft.MTPModel(small_llama, SHAPES["residual"])
    _one_mlp_for_two(model)
    one_line(
        CheckpointError,
        lambda: model.save_pretrained(tmp_path / "saved"),
        "LlamaForCausalLM cannot be saved: The weights trying to be saved contained shared tensors",
    )
    assert not (tmp_path / "saved").exists()
