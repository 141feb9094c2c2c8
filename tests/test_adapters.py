"""Adapters that come with the model given: merged where they are loaded, refused elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedModel

import families
import foretell as ft
from command_line import run
from foretell.checkpoints import Adapters, load_causal_lm
from foretell.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # peft asks transformers in old words
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Model .* `tie_word_embeddings"),
]

TOKENS = torch.arange(20).unsqueeze(0)
TARGETS = ["q_proj", "down_proj"]


def lora(**options: object) -> LoraConfig:
    options = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False, **options}
    return LoraConfig(task_type="CAUSAL_LM", **options)


KINDS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "tokens": lambda: lora(trainable_token_indices=[1, 2]),
    "whole modules": lambda: lora(modules_to_save=["lm_head", "norm"]),
    "ia3": lambda: IA3Config(
        target_modules=TARGETS, feedforward_modules=["down_proj"], task_type="CAUSAL_LM",
        init_ia3_weights=False,
    ),
}  # fmt: skip


def saved(
    where: Path, config: PeftConfig, model: PreTrainedModel | None = None
) -> tuple[Path, Tensor]:
    """A base, and adapters that name it, which changed it; with what the two say together."""
    base = model or families.build("llama")
    base.save_pretrained(where / "base")
    adapted = peft.get_peft_model(load_causal_lm(where / "base"), config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        logits = adapted.eval()(input_ids=TOKENS).logits
    assert not torch.allclose(logits, base(TOKENS).logits, atol=0.1)
    adapted.save_pretrained(where / "adapters")
    return where / "adapters", logits


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_are_merged_when_loaded(tmp_path: Path, kind: str) -> None:
    path, logits = saved(tmp_path, KINDS[kind]())
    model = ft.attach(ft.MTPModel.from_pretrained(path).lm, depth=1)
    torch.testing.assert_close(model.lm(TOKENS).logits, logits, rtol=1e-3, atol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "alone", backbone_path=str(path))
    for where in ("whole", "alone"):
        again = ft.MTPModel.from_pretrained(tmp_path / where)
        assert torch.equal(again.lm(TOKENS).logits, model.lm(TOKENS).logits)
    # Whatever the type that is asked for, heads know it again.
    ft.MTPModel.from_pretrained(tmp_path / "alone", dtype=torch.bfloat16)


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["norm"]])
@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16])
def test_a_matrix_that_adapters_bring_whole_is_tied_no_more(
    tmp_path: Path, modules: list[str], dtype: torch.dtype | str
) -> None:
    """The base has one matrix for embedding and output head; the adapters, another for one."""
    tied = families.build("llama")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    path, logits = saved(tmp_path, lora(modules_to_save=modules), tied)
    model = ft.MTPModel.from_pretrained(path, dtype=dtype)
    error = (model.lm(TOKENS).logits.float() - logits).norm() / logits.norm()
    assert error < (0.05 if dtype == torch.bfloat16 else 1e-4)
    shared = modules == ["norm"]
    assert (model.backbone.embedding.weight is model.backbone.output.weight) == shared
    ft.attach(model.lm, depth=1).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] == shared
    again = ft.MTPModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.lm(TOKENS).logits, model.lm(TOKENS).logits)


def edit(path: Path, **values: object) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | values))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no base named": (lambda p: edit(p, base_model_name_or_path=None), "base_model_name_or_path"),
    "base gone": (lambda p: edit(p, base_model_name_or_path="/no/where"), "of their base: model"),
    "own base": (lambda p: edit(p, base_model_name_or_path=str(p)), "themselves as their base"),
    "no weights": (lambda p: (p / "adapter_model.safetensors").unlink(), "cannot be loaded"),
    "other layers": (lambda p: edit(p, target_modules=["k_proj"]), "missing adapter keys"),
    "revision of its base": (
        lambda p: edit(p, base_model_name_or_path="owner/name", revision="v1"),
        "revision v1",
    ),
    "more layers": (
        lambda p: families.build("llama", num_hidden_layers=2).save_pretrained(p.parent / "base"),
        "no place for .*layers.2.* and 7 more",
    ),
    "other rank": (lambda p: edit(p, r=3), "size mismatch"),
    "unknown kind": (lambda p: edit(p, peft_type="MAGIC"), "cannot be loaded"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, what: str) -> None:
    path, _ = saved(tmp_path, lora())
    damage, message = BROKEN[what]
    damage(path)
    with pytest.raises(ft.CheckpointError, match=message) as caught:
        ft.MTPModel.from_pretrained(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


RESIZED: dict[str, Callable[[], PeftConfig]] = {
    "lora": lora,
    "tokens": lambda: lora(trainable_token_indices=[1, 102]),
    "embedding": lambda: lora(modules_to_save=["embed_tokens"]),
    "both tables": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "low-rank tables": lambda: lora(target_modules=[*TARGETS, "embed_tokens", "lm_head"]),
}


def resized(
    where: Path, config: PeftConfig, tokens: int, model: PreTrainedModel
) -> tuple[Path, Tensor]:
    """Adapters on a base that was given `tokens` tokens after it was saved, and their logits."""
    model.save_pretrained(where / "base")
    base = load_causal_lm(where / "base")
    base.resize_token_embeddings(tokens, mean_resizing=False)
    for table in (base.get_input_embeddings(), base.get_output_embeddings()):
        for parameter in table.parameters():
            torch.nn.init.normal_(parameter.data[families.VOCAB :])
    adapted = peft.get_peft_model(base, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        logits = adapted.eval()(input_ids=torch.arange(tokens - 20, tokens)[None]).logits
    adapted.save_pretrained(where / "adapters")
    return where / "adapters", logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", RESIZED)
def test_adapters_on_a_base_of_other_tokens_are_merged(
    tmp_path: Path, kind: str, tied: bool
) -> None:
    tokens = families.VOCAB + (-4 if kind == "both tables" else 4)
    base = families.build("llama", tie_word_embeddings=tied)
    path, logits = resized(tmp_path, RESIZED[kind](), tokens, base)
    if tied and kind == "low-rank tables":
        with pytest.raises(ft.CheckpointError, match="changes what the model says"):
            ft.MTPModel.from_pretrained(path)
        return
    model = ft.attach(path, depth=1)
    ids = torch.arange(tokens - 20, tokens)[None]
    torch.testing.assert_close(model.lm(ids).logits, logits, rtol=1e-3, atol=1e-3)
    assert model.lm.config.vocab_size == model.backbone.vocab_size == tokens
    model.save_pretrained(tmp_path / "alone", backbone_path=path)
    again = ft.MTPModel.from_pretrained(tmp_path / "alone", dtype=torch.bfloat16)
    assert again.backbone.vocab_size == tokens


def test_a_bias_of_the_output_head_comes_with_its_rows(tmp_path: Path) -> None:
    tokens = families.VOCAB + 4
    phi = AutoModelForCausalLM.from_config(PhiConfig(**families.DENSE))
    path, logits = resized(tmp_path, lora(target_modules=["q_proj"]), tokens, phi)
    model = ft.MTPModel.from_pretrained(path)
    assert len(model.lm.lm_head.bias) == tokens
    found = model.lm(torch.arange(tokens - 20, tokens)[None]).logits
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "kept", "message"),
    [
        ("lora", "embed_tokens", r"105 tokens and their base has 101, .* its lm_head.weight; save"),
        ("lora", "lm_head", "are without its model.embed_tokens.weight"),
        ("tokens", "delta", "save them with save_embedding_layers=True"),
        ("low-rank tables", "lora_", "save them with save_embedding_layers=True"),
    ],
)
def test_adapters_without_the_rows_of_added_tokens_are_refused(
    tmp_path: Path, kind: str, kept: str, message: str
) -> None:
    path, _ = resized(tmp_path, RESIZED[kind](), families.VOCAB + 4, families.build("llama"))
    file = path / "adapter_model.safetensors"
    tables = ("embed_tokens", "lm_head")
    held = load_file(file)
    save_file({n: t for n, t in held.items() if kept in n or not any(x in n for x in tables)}, file)
    with pytest.raises(ft.CheckpointError, match=message) as caught:
        ft.MTPModel.from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_adapters_that_no_weights_can_hold_are_refused(tmp_path: Path) -> None:
    families.build("llama").save_pretrained(tmp_path / "base")
    config = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(load_causal_lm(tmp_path / "base"), config)
    adapted.save_pretrained(tmp_path / "prefix")
    with pytest.raises(ft.CheckpointError, match="PREFIX_TUNING cannot become part of weights"):
        ft.MTPModel.from_pretrained(tmp_path / "prefix")
    with pytest.raises(ft.BackboneError, match="adapters inside"):
        ft.attach(adapted, depth=1)


def test_a_merge_that_says_something_else_is_refused(tmp_path: Path) -> None:
    """peft adds what it learned for one of two tied tables to both."""
    model = families.build("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    path, _ = saved(tmp_path, lora(target_modules=["embed_tokens"]), model)
    with pytest.raises(ft.CheckpointError, match="changes what the model says"):
        ft.MTPModel.from_pretrained(path)


def wrapped(model: PreTrainedModel) -> PeftModel:
    return peft.get_peft_model(model, lora())


def injected(model: PreTrainedModel) -> PreTrainedModel:
    """As transformers' `add_adapter` and `load_adapter` do it."""
    peft.inject_adapter_in_model(lora(), model)
    return model


def inside(model: PreTrainedModel) -> PreTrainedModel:
    """What is left in the hands of one who forgets the wrapper."""
    wrapped(model)
    return model


@pytest.mark.parametrize("adapt", [wrapped, injected, inside])
def test_a_model_with_adapters_inside_is_refused(tmp_path: Path, adapt: Callable) -> None:
    model = families.build("llama")
    ft.attach(model, depth=1).save_pretrained(tmp_path)
    given = adapt(model)
    with pytest.raises(ft.BackboneError, match=r"adapters inside .* merge them first"):
        ft.attach(given, depth=1)
    with pytest.raises(ft.BackboneError, match="adapters inside"):
        ft.MTPModel.from_pretrained(tmp_path, backbone=given)


def add(model: PreTrainedModel) -> Adapters:
    return Adapters.add(model, rank=2, alpha=4.0, dropout=0.0, targets=TARGETS)


def test_adapters_are_not_put_over_others() -> None:
    model = ft.attach(families.build("llama"), depth=1)
    model.adapt(add)
    first = {name: p.clone() for name, p in model.lm.named_parameters()}
    with pytest.raises(InputError, match="has adapters inside already; merge them first"):
        model.adapt(add)
    assert all(torch.equal(p, first[name]) for name, p in model.lm.named_parameters())


def test_a_backbone_learns_again_when_its_adapters_are_merged() -> None:
    model = ft.attach(families.build("llama"), depth=1)
    model.adapt(add)
    assert not model.lm.lm_head.weight.requires_grad
    model.merge_adapters()
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.adapt(add)  # there are none any more


def test_routers_that_are_a_matrix_by_their_class_are_left_out(tmp_path: Path) -> None:
    """Llama 4's and Phi-3.5-MoE's choose experts: more than a product, to which peft would add."""
    model = ft.attach(families.build("llama4_text"), depth=1)
    model.adapt(lambda lm: Adapters.add(lm, rank=2, alpha=4.0, dropout=0.0, targets="all-linear"))
    adapted = {name for name, p in model.lm.named_parameters() if p.requires_grad}
    assert not any("router" in name for name in adapted)
    assert any("shared_expert" in name for name in adapted)
    assert any("q_proj" in name for name in adapted)
    model(TOKENS).loss.backward()
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
        said = model.lm(TOKENS).logits
    base = families.build("llama4_text")
    base.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "heads", backbone_path=tmp_path / "base")
    again = ft.MTPModel.from_pretrained(tmp_path / "heads")
    again.merge_adapters()
    torch.testing.assert_close(again.lm(TOKENS).logits, said, atol=1e-3, rtol=1e-3)


def test_a_router_that_is_named_is_refused() -> None:
    model = ft.attach(families.build("llama4_text"), depth=1)
    with pytest.raises(InputError, match=r"router, which does more than multiply"):
        model.adapt(
            lambda lm: Adapters.add(
                lm, rank=2, alpha=4.0, dropout=0.0, targets=["router", "q_proj"]
            )
        )


def test_commands_say_that_they_merged(tmp_path: Path) -> None:
    adapted = peft.get_peft_model(load_causal_lm("tiny"), lora())
    adapted.save_pretrained(tmp_path / "adapters")
    edit(tmp_path / "adapters", base_model_name_or_path="tiny")
    said = f"{tmp_path / 'adapters'} holds adapters: merged into the weights of tiny.\n"
    ran = run("generate", tmp_path / "adapters", "--prompt", "def", "--max-new-tokens", 3)
    assert ran.status == 0, ran.err
    assert ran.err.startswith(said)
    assert ran.out.startswith("def")  # with the tokenizer of the base
    (tmp_path / "text.txt").write_text("def mean(values):\n    return sum(values)\n" * 40)
    ran = run(
        "train", tmp_path / "adapters", "--data", tmp_path / "text.txt", "--out", tmp_path / "run",
        "--recipe", "joint", "--depth", 1, "--steps", 2, "--block-size", 32, "--batch-size", 2,
        "--set", "held_out=0",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, said)
    assert "did not move" not in ran.out
    assert ft.MTPModel.from_pretrained(tmp_path / "run" / "model").depth == 1


@pytest.mark.parametrize("kind", [PrefixTuningConfig, peft.PromptTuningConfig])
def test_adapters_beside_the_tokens_are_not_put_in(kind: type) -> None:
    """They would be saved, but neither be heard nor loaded again."""
    model = ft.attach(families.build("llama"), "residual", depth=1)
    learned = [parameter.requires_grad for parameter in model.lm.parameters()]

    def make(lm: PreTrainedModel) -> Adapters:
        own = tuple(p for p in lm.parameters() if p.requires_grad)
        config = kind(num_virtual_tokens=2, task_type="CAUSAL_LM")
        return Adapters(peft.get_peft_model(lm, config), "base", own)

    with pytest.raises(InputError, match="cannot become part of weights, and the model says"):
        model.adapt(make)
    assert model.adapters is None
    assert [parameter.requires_grad for parameter in model.lm.parameters()] == learned


def test_adapters_that_cannot_be_merged_are_named(tmp_path: Path, monkeypatch) -> None:
    def merge(self: PeftModel) -> None:
        raise ValueError("the base layer has no bias.")

    where, _ = saved(tmp_path, lora())
    monkeypatch.setattr(peft.tuners.tuners_utils.BaseTuner, "merge_and_unload", merge)
    with pytest.raises(ft.CheckpointError) as caught:
        ft.MTPModel.from_pretrained(where)
    found = f"{where}: adapters cannot be merged (the base layer has no bias)."
    assert str(caught.value) == found
