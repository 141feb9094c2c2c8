"""Loading a backbone: in the type asked for, as transformers does, or one line that helps."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

import families
import foretell as ft
from foretell.cli.train import build
from foretell.errors import BackboneError, InputError
from foretell.loading import load_causal_lm
from foretell.training import TrainConfig
from foretell.training.preparation import set_precision

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
}
COMPUTED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", NARROW),
    "gemma4": (
        "Gemma4TextConfig",
        {**NARROW, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    ),
    "falcon_h1": ("FalconH1Config", {**NARROW, **MAMBA, "ssm_multipliers": [0.7, 0.3, 1.0, 1.0, 0.77]}),
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


@pytest.mark.parametrize("dtype", ["bf16", "int8", torch.long, "tensor", None])
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
