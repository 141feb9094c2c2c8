"""Small random backbones, and heads that know part of what they say.

A random backbone's continuations are as good as noise, so heads are trained on those of the test's
own prompts until they say some of them and not others: then a wrong contract shows in the counts.

Shapes: P prompts, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import foretell as ft
from foretell.decoding import NoDrafter
from foretell.formats import layout

VOCAB, HIDDEN, LAYERS, NEW = 256, 128, 4, 40
ENOUGH = 2.2
"""Mean loss of the depths, in nats, at which some drafts stand and others do not."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.12,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "head_dim": 64,
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 64}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 64, "query_pre_attn_scalar": 64,
                                    "layer_types": ["full_attention"] * LAYERS}),
    "glm4_moe": ("Glm4MoeConfig", {**EXPERTS, "head_dim": 64}),
    "deepseek_v3": ("DeepseekV3Config", {**EXPERTS, **MLA}),
    "qwen3_5": ("Qwen3_5TextConfig", LINEAR),
    "qwen3_next": ("Qwen3NextConfig", {**LINEAR, "num_experts": 4, "num_experts_per_tok": 2,
                                       "moe_intermediate_size": 32,
                                       "shared_expert_intermediate_size": 32}),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Heads on a backbone, in a layout, and how many tokens are drafted."""

    layout: str
    backbone: str
    head: str = ""
    """For layouts that hold several kinds."""
    length: int = 3
    method: str = "mtp"
    apart: bool = False
    """Whether the heads are in a directory of their own."""
    plain_rotary: bool = False
    """Rotary embedding by PyTorch, in place of the engine's kernel."""


def backbone(name: str) -> PreTrainedModel:
    kind, fields = BACKBONES[name]
    torch.manual_seed(7)
    config = getattr(transformers, kind)(**{**SIZES, **fields})
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, field, None)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases off their first values
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    lengths = (1, 5, 9, 14, 20, 27)
    return [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in lengths]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(P, T) prompts padded on the left, and their mask."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, mask


def head_config(case: Case) -> Any:
    kinds: dict[str, Callable[[], Any]] = {
        "": lambda: layout(case.layout).head(case.length),
        "sequential": lambda: ft.SequentialHeads.Config(
            depth=case.length, shared=True, zero_first=True, rollout="token"
        ),
        "parallel": lambda: ft.ParallelHeads.Config(depth=case.length, tap="final"),
        "linear": lambda: ft.ParallelHeads.Config(depth=case.length, tap="final", variant="linear"),
        "residual": lambda: ft.ResidualHeads.Config(depth=case.length, layers=2),
    }
    return kinds[case.head]()


def plain(model: ft.MTPModel, prompt: list[int], new: int) -> list[int]:
    row = torch.tensor([prompt])
    result = model.decode(row, max_new_tokens=new, drafter=NoDrafter(), stop_tokens=())
    return result.new_tokens


def trained(case: Case, directory: Path) -> list[list[int]]:
    """Save a model of `case` to `directory`; the continuations that the backbone gives."""
    model = ft.MTPModel(backbone(case.backbone), head_config(case))
    model.freeze_backbone()
    continuations = [plain(model, prompt, NEW + 8) for prompt in prompts()]
    rows = [torch.tensor([p + c]) for p, c in zip(prompts(), continuations, strict=True)]
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=6e-3)
    model.train()
    for step in range(600):
        optimizer.zero_grad()
        output = model(rows[step % len(rows)])
        if output.depth_losses[1:].mean() < ENOUGH:
            break
        output.loss.backward()
        optimizer.step()
    model.eval().save_pretrained(directory)
    return continuations


def counts(model: ft.MTPModel, prompt: list[int], length: int) -> Tensor:
    """(2 + length,): drafts, accepted tokens, and accepted tokens by place, as vLLM counts them.

    vLLM drafts in full to the end and counts a draft whole, so there has to be room behind it.
    """
    row = torch.tensor([prompt])
    result = model.decode(row, max_new_tokens=NEW + length + 1, draft_length=length, stop_tokens=())
    found = torch.zeros(2 + length, dtype=torch.long)
    done = len(result.steps[0][0].tokens)
    for (step,) in result.steps[1:]:
        if done >= NEW:
            break
        done += len(step.tokens)
        found[0] += 1
        found[1] += step.accepted
        found[2 : 2 + step.accepted] += 1
    return found


def other_contracts(config: Any) -> dict[str, Any]:
    """The same tensors, run in other ways."""
    if not isinstance(config, ft.SequentialHeads.Config):
        return {}
    recycle = "stream" if config.recycle == "normed" else "normed"
    ways = {
        "zero_first": config.replace(zero_first=not config.zero_first),
        "rollout": config.replace(rollout="depth"),
    }
    if config.norms != "none":
        ways["recycle"] = config.replace(recycle=recycle)
    if config.tap in ("final", "last"):
        ways["tap"] = config.replace(tap="last" if config.tap == "final" else "final")
    return ways
