"""What is done to a backbone after heads are attached: looked up where next used, or refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

import families
import foretell as ft
from foretell.training import train
from runs import corpus, settings

TOKENS = torch.arange(24).unsqueeze(0) + 40
PROMPT = TOKENS[:, :8]
DRAFTERS = ("heads", "none")


def untie(model: ft.MTPModel) -> None:
    out = model.lm.get_output_embeddings()
    out.weight = nn.Parameter(0.2 * torch.randn_like(out.weight))


def tie(model: ft.MTPModel) -> None:
    model.lm.config.tie_word_embeddings = True
    model.lm.tie_weights()


def copy_blocks(model: ft.MTPModel) -> None:
    model.lm.model.layers = nn.ModuleList(copy.deepcopy(list(model.lm.model.layers)))
    nn.init.normal_(model.lm.model.layers[-1].mlp.down_proj.weight, std=0.2)


def change_norm(model: ft.MTPModel) -> None:
    model.lm.model.norm = copy.deepcopy(model.lm.model.norm)
    model.lm.model.norm.weight.data.mul_(-2)


def change_decoder(model: ft.MTPModel) -> None:
    model.lm.model = families.build("llama", seed=1).model


def adapt(model: ft.MTPModel, *targets: str) -> None:
    """As a user does, without telling us."""
    config = LoraConfig(
        r=4, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(model.lm, config).eval()


CHANGES: dict[str, Callable[[ft.MTPModel], object]] = {
    "more tokens": lambda m: m.lm.resize_token_embeddings(120, mean_resizing=False),
    "fewer tokens": lambda m: m.lm.resize_token_embeddings(90),
    "input embedding": lambda m: m.lm.set_input_embeddings(nn.Embedding(101, 64)),
    "output head": lambda m: m.lm.set_output_embeddings(nn.Linear(64, 101, bias=False)),
    "untied": untie,
    "tied": tie,
    "blocks": copy_blocks,
    "norm": change_norm,
    "decoder": change_decoder,
    "narrower": lambda m: m.lm.to(torch.bfloat16),
    "all narrower": lambda m: m.to(torch.bfloat16),
    "wider": lambda m: m.to(torch.float64),
}
NARROWER = ("narrower", "all narrower")
ADAPTED = {
    "adapters": lambda m: adapt(m, "q_proj", "down_proj"),
    "adapters on both tables": lambda m: adapt(m, "embed_tokens", "lm_head"),
}


@pytest.mark.parametrize("change", [*CHANGES, *ADAPTED])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers in old words
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_changed_is_what_is_used(change: str) -> None:
    model = ft.attach(families.build("llama"), "sequential", depth=2)
    before = model.decode(PROMPT, max_new_tokens=12).sequences  # everything was used once
    (CHANGES | ADAPTED)[change](model)
    expected = model.lm.generate(PROMPT, max_new_tokens=12, do_sample=False)
    found = [model.decode(PROMPT, max_new_tokens=12, drafter=one).sequences for one in DRAFTERS]
    if change not in NARROWER:  # there near-ties decide, otherwise on another processor
        assert all(torch.equal(one, expected) for one in found)
    if change not in {*NARROWER, "wider", "fewer tokens"}:
        assert not torch.equal(before, expected)
    logits = model.lm(TOKENS).logits
    nll = F.cross_entropy(logits[0, :-1].float(), TOKENS[0, 1:])
    torch.testing.assert_close(model(TOKENS).depth_losses[0].float(), nll, rtol=1e-2, atol=1e-2)
    read = model.backbone(TOKENS, layers=(4,))
    torch.testing.assert_close(model.backbone.unembed(read.final), logits)
    assert torch.equal(model.backbone.final_norm(read.states[4]), read.final)


@pytest.mark.parametrize("change", ["more tokens", "untied", "tied", "decoder"])
def test_what_changed_is_what_is_saved(tmp_path: Path, change: str) -> None:
    model = ft.attach(families.build("llama"), depth=2)
    CHANGES[change](model)
    model.save_pretrained(tmp_path)
    again = ft.MTPModel.from_pretrained(tmp_path)
    assert torch.equal(again.lm(TOKENS).logits, model.lm(TOKENS).logits)


def test_what_changed_is_what_learns(tmp_path: Path) -> None:
    model = ft.attach(families.build("llama"), depth=1)
    CHANGES["more tokens"](model)
    head = {"kind": "parallel", "depth": 1}
    result = train(model, corpus(), settings(recipe="joint", head=head, steps=2), tmp_path)
    assert {m.part: m.change > 0 for m in result.movements}["backbone embed_tokens"]
    assert not any(m.suspicious for m in result.movements)


def test_another_number_of_blocks_is_refused() -> None:
    model = ft.attach(families.build("llama"), depth=1)
    model.lm.model.layers = model.lm.model.layers[:-1]
    for use in (model, lambda t: model.decode(t, max_new_tokens=2)):
        with pytest.raises(ft.BackboneError, match=r"4 decoder blocks .* has 3 now; attach"):
            use(PROMPT)


@pytest.mark.parametrize("to", [torch.bfloat16, "meta"])
def test_heads_that_went_elsewhere_alone_are_refused(to: torch.dtype | str) -> None:
    model = ft.attach(families.build("llama"), depth=1)
    model.head.to(to)
    for use in (model, lambda t: model.decode(t, max_new_tokens=2)):
        with pytest.raises(ft.HeadError, match=r"the heads are .* move or cast the MTPModel"):
            use(PROMPT)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_of_others_are_refused_before_anything_learns_or_is_written(
    tmp_path: Path,
) -> None:
    model = ft.attach(families.build("llama"), depth=1)
    adapt(model, "q_proj")
    for recipe in ("frozen", "joint", "lora"):
        config = settings(recipe=recipe, head={"kind": "parallel", "depth": 1}, steps=1)
        with pytest.raises(ft.CheckpointError, match=r"adapters \(Linear\) that are not saved"):
            train(model, corpus(), config, tmp_path / "run", backbone_path="anywhere")
    for where in (None, "anywhere"):
        with pytest.raises(ft.CheckpointError, match="merge or remove them"):
            model.save_pretrained(tmp_path / "saved", backbone_path=where)
    assert not list(tmp_path.iterdir())
