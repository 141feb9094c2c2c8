"""Loading a backbone: in the type asked for, as transformers does, or one line that helps."""

import copy
import json
import logging
import shutil
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
from foretell.checkpoints import load_causal_lm, load_tokenizer, new_causal_lm
from foretell.errors import BackboneError, CheckpointError, InputError
from foretell.ready import load_model
from foretell.training import TrainConfig, build, reference
from foretell.training.preparation import set_precision

CPU = torch.device("cpu")
WIDTH = 48
"""Its root is no number of bfloat16: Gemma's embeddings are scaled by it."""

NARROW: dict[str, Any] = {**families.DENSE, "hidden_size": WIDTH, "head_dim": 16}
MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "ssm_multipliers": [0.7, 0.3, 1.0, 1.0, 0.77],
}
COMPUTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", NARROW),
    "gemma4": (
        "Gemma4TextConfig",
        {**NARROW, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    ),
    "falcon_h1": ("FalconH1Config", {**NARROW, **MAMBA}),
    "minimax": ("MiniMaxConfig", {**NARROW, "num_local_experts": 2}),
    "xglm": (
        "XGLMConfig",
        {"vocab_size": 101, "d_model": 48, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
    ),
}
"""Families with buffers that are computed from the config, or that keep some weights in float32."""


def computed(name: str, dtype: torch.dtype, directory: Path) -> Path:
    """A checkpoint of such a family, stored in `dtype`."""
    kind, settings = COMPUTED[name]
    config = getattr(transformers, kind)(**settings)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
    return directory


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model.eval()(families.prompt(2, 20)).logits


# -- the type -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stored", "dtype"),
    [
        ("gemma2", torch.bfloat16, torch.float32),
        ("gemma4", torch.bfloat16, torch.float32),
        ("gemma4", torch.bfloat16, torch.float16),
        ("falcon_h1", torch.bfloat16, torch.float32),
        ("falcon_h1", torch.float32, torch.bfloat16),
        ("minimax", torch.float32, torch.bfloat16),
        ("xglm", torch.bfloat16, torch.float32),
        ("xglm", torch.float32, torch.float16),
    ],
)
def test_a_model_computes_what_it_does_in_transformers(
    tmp_path: Path, name: str, stored: torch.dtype, dtype: torch.dtype
) -> None:
    where = computed(name, stored, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(where, dtype=dtype)
    assert torch.equal(logits(load_causal_lm(where, dtype)), logits(plain))


def test_loading_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what transformers warns of where its logger has a level, as of plans to shard layers."""
    heard: list[str] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", lambda record: heard.append(record.getMessage()))
    logger = logging.getLogger("transformers")
    logger.addHandler(listener)
    try:
        load_causal_lm("tiny")
    finally:
        logger.removeHandler(listener)
    assert not heard


def test_heads_are_loaded_onto_a_backbone_of_the_type_asked_for(tmp_path: Path) -> None:
    where = computed("gemma2", torch.bfloat16, tmp_path / "backbone")
    ft.attach(load_causal_lm(where), depth=1).save_pretrained(
        tmp_path / "heads", backbone_path=str(where)
    )
    for dtype in (torch.float32, "float32"):
        model = ft.MTPModel.from_pretrained(tmp_path / "heads", dtype=dtype)
        assert model.lm.get_input_embeddings().embed_scale.item() == pytest.approx(48**0.5, 1e-7)
    half = ft.MTPModel.from_pretrained(tmp_path / "heads", dtype=torch.float16)
    assert half.backbone.dtype == torch.float16


def test_float16_which_rounds_small_weights_is_no_other_backbone(tmp_path: Path) -> None:
    lm = families.build("llama")
    with torch.no_grad():
        lm.model.embed_tokens.weight.mul_(1e-4)
    ft.attach(lm, depth=1).save_pretrained(tmp_path)
    assert ft.MTPModel.from_pretrained(tmp_path, dtype=torch.float16).depth == 1


@pytest.mark.parametrize("dtype", ["bf16", "int8", torch.long, "tensor"])
def test_a_type_that_is_none_for_weights_is_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match=r'give "auto" or a type such as torch\.bfloat16'):
        ft.MTPModel.from_pretrained("tiny", dtype=dtype)


def test_a_backbone_that_is_given_keeps_its_type(small_llama: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r"has torch\.float32; load it in the type wanted"):
        ft.MTPModel.from_pretrained("tiny-mtp", backbone=small_llama, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({"recipe": "frozen"}, "cpu", torch.float32),
        ({"recipe": "frozen"}, "meta", torch.bfloat16),
        ({"recipe": "joint"}, "meta", torch.float32),
        ({"recipe": "joint", "precision": "bf16"}, "cpu", torch.bfloat16),
        ({"recipe": "pretrain", "precision": "bf16"}, "cpu", torch.bfloat16),
    ],
)
def test_a_backbone_is_loaded_in_the_type_that_it_trains_in(
    tmp_path: Path, monkeypatch, settings: dict[str, Any], device: str, expected: torch.dtype
) -> None:
    where = computed("gemma2", torch.bfloat16, tmp_path)
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, *_: self)  # "meta" is an accelerator
    config = TrainConfig.parse({**settings, "steps": 1, "head": {"kind": "parallel", "depth": 1}})
    model = build(str(where), config, torch.device(device))
    scale = model.lm.get_input_embeddings().embed_scale
    assert model.backbone.dtype == scale.dtype == expected
    assert scale.item() == torch.tensor(WIDTH**0.5).to(expected).item()


def test_a_model_that_a_cast_breaks_is_refused_before_it_trains(tmp_path: Path) -> None:
    model = ft.attach(load_causal_lm(computed("minimax", torch.float32, tmp_path)), depth=1)
    with pytest.raises(BackboneError, match=r"does not run after a cast .* load it in that type"):
        set_precision(model, "bf16")


# -- what cannot be loaded ----------------------------------------------------------------------

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD = "model-00001-of-00002.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in two shards, with a tokenizer."""
    where = tmp_path_factory.mktemp("sound")
    families.build("llama").save_pretrained(where, max_shard_size="300KB")
    load_tokenizer("tiny").save_pretrained(where)
    assert (where / SHARD).exists()
    return where


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Give every tensor another name, as where the state of a wrapped model was saved."""

    def edit(where: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for shard in where.glob("model-*.safetensors"):
            tensors |= load_file(shard)
            shard.unlink()
        (where / INDEX).unlink()
        save_file({change(n): t for n, t in tensors.items()}, where / WEIGHTS, {"format": "pt"})

    return edit


def with_more(**shapes: tuple[int, ...]) -> Callable[[Path], None]:
    """Add tensors; `__` stands for the dots of their names."""

    def edit(where: Path) -> None:
        renamed(lambda name: name)(where)
        more = {name.replace("__", "."): torch.ones(shape) for name, shape in shapes.items()}
        save_file({**load_file(where / WEIGHTS), **more}, where / WEIGHTS, {"format": "pt"})

    return edit


def configured(**changes: Any) -> Callable[[Path], None]:
    def edit(where: Path) -> None:
        config = json.loads((where / "config.json").read_text())
        (where / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def only(name: str, content: bytes) -> Callable[[Path], None]:
    """A file in place of the weights."""

    def edit(where: Path) -> None:
        for path in where.glob("model*"):
            path.unlink()
        (where / name).write_bytes(content)

    return edit


def without(pattern: str) -> Callable[[Path], None]:
    return lambda where: [path.unlink() for path in where.glob(pattern)]


def holding(name: str, text: str) -> Callable[[Path], None]:
    return lambda where: (where / name).write_text(text)


def halved(where: Path) -> None:
    content = (where / SHARD).read_bytes()
    (where / SHARD).write_bytes(content[: len(content) // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "git-lfs": (holding(SHARD, POINTER), [SHARD, "git-lfs", "`git lfs pull`"]),
    "git-lfs config": (holding("config.json", POINTER), ["config.json", "`git lfs pull`"]),
    "git-lfs index": (holding(INDEX, POINTER), [INDEX, "`git lfs pull`"]),
    "half a shard": (halved, [SHARD, "not a whole safetensors file", "fetch it again"]),
    "empty shard": (holding(SHARD, ""), [SHARD, "empty", "fetch it again"]),
    "text for a shard": (holding(SHARD, "text" * 99), [SHARD, "fetch it again"]),
    "no shard": (without(SHARD), [SHARD, "missing", "fetch the file"]),
    "broken index": (holding(INDEX, "{"), [INDEX, "not JSON"]),
    "index without a map": (holding(INDEX, "{}"), [INDEX, "weight_map"]),
    "list of an index": (holding(INDEX, "[]"), [INDEX, "not a JSON object"]),
    "pickle": (only("pytorch_model.bin", b"\x80\x04K\x01."), ["pytorch_model.bin", "pickle file"]),
    "GGUF beside": (only("model.Q4_1.gguf", b"GGUF"), ["model.Q4_1.gguf", "llama.cpp", "safetens"]),
    "GGUF in disguise": (only(WEIGHTS, b"GGUF" * 9), [WEIGHTS, "GGUF", "llama.cpp"]),
    "other name": (only("weights.safetensors", b"{}"), ["weights.safetensors", "rename it"]),
    "no weights": (without("model*"), ["no model.safetensors", "fetch the weights"]),
    "no config": (without("config.json"), ["config.json", "missing"]),
    "broken config": (holding("config.json", "{"), ["config.json", "not JSON"]),
    "empty config": (holding("config.json", ""), ["config.json", "empty"]),
    "list of a config": (holding("config.json", "[1]"), ["config.json", "not a JSON object"]),
    "broken generation config": (
        holding("generation_config.json", "{"),  # transformers goes on without its end tokens
        ["generation_config.json", "not JSON"],
    ),
    "flash attention": (
        configured(_attn_implementation="flash_attention_2"),
        ["config.json", "FlashAttention2", "install it, or change attn_implementation"],
    ),
    "compiled": (renamed(lambda n: f"_orig_mod.{n}"), ["_orig_mod.lm_head.weight", "wrapper"]),
    "DDP": (renamed(lambda n: f"module.{n}"), ["module.lm_head.weight", "wrapper"]),
    "compiled DDP": (renamed(lambda n: f"_orig_mod.module.{n}"), ["_orig_mod.module.", "wrapper"]),
    "peft": (renamed(lambda n: f"base_model.model.{n}"), ["base_model.model.lm_head", "wrapper"]),
    "own wrapper": (renamed(lambda n: f"our.lm.{n}"), ["our.lm.lm_head.weight", "wrapper"]),
    "compiled parts": (
        renamed(lambda n: n.replace(".mlp.", "._orig_mod.mlp.")),
        ["model.layers.0._orig_mod.mlp.down_proj.weight", "wrapper"],
    ),
    "checkpointed parts": (
        renamed(lambda n: n.replace(".mlp.", ".mlp._checkpoint_wrapped_module.")),
        ["model.layers.0.mlp._checkpoint_wrapped_module.down_proj.weight", "wrapper"],
    ),
    "config without biases": (
        with_more(
            model__layers__0__self_attn__q_proj__bias=(64,),
            model__layers__1__self_attn__q_proj__bias=(64,),
        ),
        ["model.layers.0.self_attn.q_proj.bias and 1 more", "config.json", "no place for it"],
    ),
    "config without norms": (
        with_more(model__layers__3__self_attn__q_norm__weight=(16,)),
        ["model.layers.3.self_attn.q_norm.weight, and", "config.json", "no place for it"],
    ),
    "config without a bias of the output head": (
        with_more(lm_head__bias=(101,)),
        ["lm_head.bias, and", "config.json", "no place for it"],
    ),
}


def one_line(error: type[Exception], call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_loaded_is_named_with_a_remedy(
    sound: Path, tmp_path: Path, kind: str
) -> None:
    where = tmp_path / "model"
    shutil.copytree(sound, where)
    damage, parts = BROKEN[kind]
    damage(where)
    one_line(CheckpointError, lambda: load_causal_lm(where), str(where), *parts)


def test_parts_that_are_left_out_and_old_constants_do_no_harm(sound: Path, tmp_path: Path) -> None:
    where = tmp_path / "model"
    shutil.copytree(sound, where)
    with_more(
        model__layers__4__eh_proj__weight=(64, 128),
        model__mtp_layers__0__input_proj__weight=(64, 128),
        mtp__layers__0__mlp__up_proj__weight=(96, 64),
        model__visual__blocks__0__mlp__weight=(8, 8),
        model__layers__0__self_attn__rotary_emb__inv_freq=(8,),
        model__layers__0__self_attn__bias=(1, 1, 32, 32),
        model__layers__0__self_attn__masked_bias=(),
    )(where)
    file = where / "model.safetensors"
    mask = {"model.layers.0.self_attn.mask": torch.ones(32, 32, dtype=torch.bool)}
    save_file({**load_file(file), **mask}, file, metadata={"format": "pt"})
    assert torch.equal(logits(load_causal_lm(where)), logits(load_causal_lm(sound)))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (without("tokenizer*"), ["no tokenizer beside the weights", "copy"]),
        (without("tokenizer.json"), ["no tokenizer beside the weights", "copy"]),
        (holding("tokenizer.json", POINTER), ["tokenizer.json", "`git lfs pull`"]),
        (holding("tokenizer.json", "{"), ["tokenizer.json", "not JSON"]),
        (holding("tokenizer_config.json", ""), ["tokenizer_config.json", "empty"]),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_named(sound, tmp_path: Path, damage, parts) -> None:
    where = tmp_path / "model"
    shutil.copytree(sound, where)
    damage(where)
    one_line(CheckpointError, lambda: load_tokenizer(where), str(where), *parts)


def test_a_gguf_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    one_line(
        InputError, lambda: load_causal_lm(tmp_path / "model.gguf"), "llama.cpp", "safetensors"
    )


def test_a_backbone_that_moved_is_named_with_the_option_that_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = families.build("llama")
    lm.save_pretrained(tmp_path / "before")
    ft.attach(lm, depth=1).save_pretrained(tmp_path / "heads", backbone_path=tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "now")
    parts = [str(tmp_path / "heads" / "foretell.json"), str(tmp_path / "before"), "--backbone"]
    one_line(CheckpointError, lambda: ft.MTPModel.from_pretrained(tmp_path / "heads"), *parts)
    model = ft.MTPModel.from_pretrained(tmp_path / "heads", backbone=tmp_path / "now")
    assert model.depth == 1
    assert model.tokenizer_path == str(tmp_path / "now")
    one_line(CheckpointError, lambda: load_tokenizer(tmp_path / "heads"), *parts)
    families.build("llama", seed=1).save_pretrained(tmp_path / "other")
    ft.MTPModel.from_pretrained(tmp_path / "heads", backbone=tmp_path / "other")
    assert "fewer drafts may be accepted" in caplog.text
    with pytest.raises(InputError, match="no heads to put on"):
        ft.MTPModel.from_pretrained(tmp_path / "now", backbone=tmp_path / "other")


def test_heads_name_their_backbone_wherever_they_are_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lm = families.build("llama")
    lm.save_pretrained(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(["backbone", "./backbone", "~/backbone", Path("backbone")]):
        ft.attach(lm, depth=1).save_pretrained(f"heads-{number}", backbone_path=path)
        stored = json.loads((tmp_path / f"heads-{number}" / "foretell.json").read_text())
        assert stored["backbone"]["path"] == str(tmp_path / "backbone")


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("backbone", {"path": 7}, "backbone.path is 7"),
        ("backbone", {"path": ["a"]}, r"backbone.path is \['a'\]"),
        ("backbone", {"path": ""}, "backbone.path is ''"),
        ("backbone", {"fingerprint": 3}, "backbone.fingerprint is 3"),
        ("backbone", {"architecture": None}, "backbone.architecture is None"),
        ("backbone", {"adapted": "yes"}, "backbone.adapted is 'yes'"),
        ("head", {"depth": 10**9}, "depth is 1000000000; it must be at most 256"),
        ("head", {"depth": 200}, "heads of depth 200 have more modules than heads.safetensors has"),
        ("head", {"depth": "2"}, "depth is '2'"),
        ("head", {"layers": 10**9}, "layers is 1000000000"),
        ("head", {"layers": 255}, "more modules than heads.safetensors has"),
        ("head", {"tap": 10**9}, "1000000000"),
    ],
)
def test_absurd_heads_are_refused_before_anything_grows(
    tmp_path: Path, small_llama: PreTrainedModel, part, changes, reason
) -> None:
    ft.attach(small_llama, "residual", depth=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "foretell.json").read_text())
    config[part].update(changes)
    (tmp_path / "foretell.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"foretell\.json: .*{reason}"):
        ft.MTPModel.from_pretrained(tmp_path)


def test_the_tokenizer_of_heads_alone_is_that_of_the_backbone_they_name(
    sound: Path, tmp_path: Path
) -> None:
    heads = tmp_path / "heads"
    ft.attach(sound, depth=1).save_pretrained(heads, backbone_path=sound)
    assert load_tokenizer(heads).get_vocab() == load_tokenizer(sound).get_vocab()
    # One that was saved beside the heads goes before, in Python and in the commands.
    own = load_tokenizer(sound)
    own.add_tokens(["<mine>"])
    ft.attach(sound, depth=1).save_pretrained(heads, backbone_path=sound, tokenizer=own)
    model = load_model(str(heads), device="cpu")
    assert "<mine>" in load_tokenizer(heads).get_vocab()
    assert load_tokenizer(str(model.tokenizer_path)).get_vocab() == own.get_vocab()
    assert reference(str(heads), model) == str(sound.resolve())  # what heads trained on will name


@pytest.mark.parametrize(
    "load",
    [
        load_causal_lm,
        lambda heads: new_causal_lm(heads, seed=0),
        lambda heads: ft.attach(heads, depth=1),
        lambda heads: ft.MTPModel.from_pretrained(heads, backbone=heads),
        lambda heads: build(str(heads), TrainConfig(recipe="pretrain", steps=1), CPU),
    ],
    ids=["load_causal_lm", "new_causal_lm", "attach", "--backbone", "pretrain"],
)
def test_heads_alone_are_no_backbone_and_name_theirs(
    sound: Path, tmp_path: Path, load: Callable[[Path], object]
) -> None:
    heads = tmp_path / "heads"
    ft.attach(sound, depth=1).save_pretrained(heads, backbone_path=sound)
    one_line(CheckpointError, lambda: load(heads), f"{heads}: holds heads alone", str(sound))


def test_heads_and_adapters_that_name_themselves_have_no_tokenizer(tmp_path: Path) -> None:
    heads, adapters = tmp_path / "heads", tmp_path / "adapters"
    ft.attach(families.build("llama"), depth=1).save_pretrained(heads, backbone_path=heads)
    adapters.mkdir()
    named = {"peft_type": "LORA", "base_model_name_or_path": str(adapters)}
    (adapters / "adapter_config.json").write_text(json.dumps(named))
    for where in (heads, adapters):
        one_line(CheckpointError, lambda: load_tokenizer(where), str(where))  # noqa: B023


def test_another_backbone_brings_its_own_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer("tiny")
    for name, seed in (("base", 0), ("tuned", 1)):
        families.build("llama", seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    heads = tmp_path / "heads"
    ft.attach(lm, depth=1).save_pretrained(
        heads, backbone_path=tmp_path / "base", tokenizer=tokenizer
    )
    assert ft.MTPModel.from_pretrained(heads).tokenizer_path == str(heads)
    tuned = ft.MTPModel.from_pretrained(heads, backbone=tmp_path / "tuned")
    assert tuned.tokenizer_path == str(tmp_path / "tuned")
    assert len(caplog.messages) == 1


def test_heads_for_another_size_do_not_fit_the_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm = families.build("llama")
    ft.attach(lm, "sequential", depth=1).save_pretrained(tmp_path / "h", backbone_path=tmp_path)
    config = copy.deepcopy(lm.config)
    config.hidden_size, config.num_attention_heads = 128, 8
    wider = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(CheckpointError, match="do not fit this backbone"):
        ft.MTPModel.from_pretrained(tmp_path / "h", backbone=wider)
    assert not caplog.messages
