"""foretell's own draft models for vLLM, run by the plugin that an installed foretell brings.

vLLM's `mtp` method hands a draft model the *final* hidden states of any backbone it serves, so
heads read those. Blocks have to be Llama-shaped (with or without biases and norms of queries and
keys); norms are RMSNorms, and Gemma's, which count from 1, are written as such.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foretell.errors import CheckpointError
from foretell.formats.base import LLAMA_BLOCK, OUTPUT, QKV_BIAS, Layout, Loaded, require_block
from foretell.formats.contract import Chain, Contract, SideBySide
from foretell.formats.eagle import SHAPE
from foretell.formats.files import CONFIG, SINGLE, Checkpoint, save_tensors
from foretell.heads import SequentialHeads
from foretell.heads.base import HeadConfig
from foretell.model import MTPModel

QK_NORMS = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
BLOCKS = tuple(LLAMA_BLOCK | a | b for a in (set(), QKV_BIAS) for b in (set(), QK_NORMS))

WITH_BLOCKS, STATELESS = "ForetellHeads", "ForetellStatelessHeads"
"""What the plugin registers (`foretell.engines.vllm`)."""
ENGINE = "vLLM 0.32 with foretell's plugin"
SIDE_BY_SIDE: dict[str, Contract] = {
    kind: SideBySide(engine=ENGINE, heads=kind) for kind in ("parallel", "residual")
}


class Vllm(Layout):
    """Parallel, residual or shared sequential heads on any backbone that vLLM serves."""

    name = "vllm"
    apart = True
    contract = Chain(engine=ENGINE, concat="hidden, embedding", norms="own")
    serve = (
        "vllm serve {model} --speculative-config "
        """'{{"method": "mtp", "model": "{out}", "num_speculative_tokens": {depth}}}'"""
    )

    needs = (
        "vLLM knows these heads by foretell's plugin, without which it does not start: run "
        "`pip install --no-deps .` in a clone of foretell, in the environment that vLLM lies in."
    )

    def _head(self, depth: int, kind: str | None) -> HeadConfig:
        return SIDE_BY_SIDE.get(kind or "", self.contract).head(depth)

    def contract_of(self, config: HeadConfig) -> Contract:
        """With what the plugin is told by the heads' own config."""
        if not isinstance(config, SequentialHeads.Config):
            return SIDE_BY_SIDE.get(config.kind, self.contract)
        chain = replace(self.contract, recycle=config.recycle, zero_first=config.zero_first)
        return replace(chain, norms="backbone") if config.norms == "backbone" else chain

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        return _block_reasons(model) or _norm_reasons(model)

    def command(self, model: MTPModel) -> str:
        return self.serve.replace('"mtp"', f'"{_method(model)}"')

    def save(self, model: MTPModel, base: Checkpoint, out: Path) -> None:
        config: Any = model.require_head().config
        linear = getattr(config, "variant", "") == "linear"
        tensors = {_engine_name(name, linear): t for name, t in _state(model).items()}
        names = set(tensors)
        source = base.text_config
        blocks = 1 if isinstance(config, SequentialHeads.Config) else config.depth
        if _method(model) == "medusa":
            _save_stateless(model, tensors, out)
            return
        fields = {name: source[name] for name in SHAPE if source.get(name) is not None}
        fields |= {
            "architectures": [WITH_BLOCKS],
            "model_type": "mtp",
            "n_predict": 1,
            "num_hidden_layers": blocks,
            "target_layers": model.backbone.num_layers,
            "hidden_size": model.backbone.hidden_size,
            "vocab_size": model.backbone.vocab_size,
            "tie_word_embeddings": False,
            "kind": config.kind,
            "depth": config.depth,
            "recycle": getattr(config, "recycle", "normed"),
            "zero_first": getattr(config, "zero_first", False),
            "rms_norm_eps": _epsilon(model.backbone.final_norm),
            "input_norm_eps": _input_epsilon(model),
            "embed_scale": model.backbone.embed_scale.factor,
            "embed_divides": model.backbone.embed_scale.divides,
            "qkv_bias": any(name.endswith("q_proj.bias") for name in names),
            "qk_norms": any(name.endswith("q_norm.weight") for name in names),
            "attention_bias": False,
            "mlp_bias": False,
        }
        (out / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, out / SINGLE)

    def recognises(self, base: Checkpoint) -> bool:
        return base.config.get("architectures") in ([WITH_BLOCKS], [STATELESS])

    def load(self, base: Checkpoint) -> Loaded:
        raise CheckpointError(
            f"{base.directory}: was written for vLLM's plugin, and is not read back; go on with "
            "the foretell directory that it was exported from."
        )


def _method(model: MTPModel) -> str:
    """vLLM's: heads without blocks have no past, and `mtp` wants one."""
    config: Any = model.require_head().config
    stateless = config.kind == "residual" or getattr(config, "variant", "") == "linear"
    return "medusa" if stateless else "mtp"


def _save_stateless(model: MTPModel, tensors: dict[str, Tensor], out: Path) -> None:
    """Heads on one hidden state, with the output head that the method does not share."""
    config: Any = model.require_head().config
    backbone = model.backbone
    fields = {
        "architectures": [STATELESS],
        "model_type": "medusa",
        "hidden_size": backbone.hidden_size,
        "vocab_size": backbone.vocab_size,
        "num_heads": config.depth,
        "num_hidden_layers": getattr(config, "layers", 1),
        "linear": config.kind == "parallel",
        "rms_norm_eps": _epsilon(backbone.final_norm),
    }
    (out / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    plain = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_tensors({**plain, OUTPUT: backbone.output.weight}, out / SINGLE)


def _block_reasons(model: MTPModel) -> list[str]:
    state = model.require_head().state_dict()
    prefixes = ("chain.0.block.", "blocks.0.")
    own = [n.removeprefix(p) for n in state for p in prefixes if n.startswith(p)]
    if not own or own == ["weight"]:  # residual heads, or linear ones
        return []
    config = model.backbone.config
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return ["its blocks attend to everything, and the backbone's have kinds of attention"]
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return ["its blocks attend to everything, and the backbone's have sliding windows"]
    if getattr(config, "hidden_act", "silu") != "silu":
        return [f"its blocks have SiLU, and the backbone's {config.hidden_act}"]
    return require_block(own, BLOCKS, "Llama-shaped")


def _norm_reasons(model: MTPModel) -> list[str]:
    norms = [m for m in model.require_head().modules() if type(m).__name__.endswith("Norm")]
    if all(_offset(norm) is not None for norm in norms):
        return []
    return ["its norms are RMSNorms, and the backbone's are none"]


def _state(model: MTPModel) -> dict[str, Tensor]:
    """The heads' tensors, with norms that count from 1 written as those that count from 0."""
    head = model.require_head()
    state: dict[str, Tensor] = dict(head.state_dict())
    for name, module in head.named_modules():
        if type(module).__name__.endswith("Norm") and (offset := _offset(module)):
            state[f"{name}.weight"] = state[f"{name}.weight"] + offset
    return state


def _offset(norm: nn.Module) -> float | None:
    """What is added to a norm's weight before it multiplies; None where it is no RMSNorm."""
    weights = dict(norm.named_parameters())
    if set(weights) != {"weight"}:
        return None
    weight = weights["weight"].detach()
    x = torch.linspace(-1, 1, len(weight), device=weight.device, dtype=weight.dtype) + 0.1
    normed = x.float() * torch.rsqrt(x.float().square().mean() + _epsilon(norm))
    with torch.no_grad():
        found = norm(x.unsqueeze(0))[0].float()
    for offset in (0.0, 1.0):
        if torch.allclose(found, normed * (weight.float() + offset), rtol=2e-2, atol=2e-2):
            return offset
    return None


def _epsilon(norm: nn.Module) -> float:
    for name in ("variance_epsilon", "eps"):
        if (value := getattr(norm, name, None)) is not None:
            return float(value)
    return 1e-6


def _input_epsilon(model: MTPModel) -> float:
    chain: Any = getattr(model.require_head(), "chain", None)
    return _epsilon(chain[0].hidden_norm) if chain else 1e-6


def _engine_name(name: str, linear: bool) -> str:
    """Our name of a tensor as the plugin's module has it."""
    parts = name.split(".")
    if parts[0] == "chain":  # of a sequential module
        rest = parts[2:]
        moved = {"block": "chain.blocks.0", "norm": "chain.norms.0"}
        return ".".join(["model.heads", moved.get(rest[0], rest[0]), *rest[1:]])
    if linear and parts[0] == "blocks":  # one matrix
        return f"model.heads.heads.{parts[1]}.0.weight"
    inside = "chain." if parts[0] in ("blocks", "norms") and not linear else ""
    return f"model.heads.{inside}{name}"
