"""Models whose rotary embeddings depend on how far a pass reaches."""

import json
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import families

SWITCH = 24
"""Passes of up to this many tokens are alike."""
HALF = families.HEAD_DIM // 2
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * HALF,
    "long_factor": [4.0 + n for n in range(HALF)],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
SWITCHING: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": (
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH},
    ),
    "llama longrope": (
        "LlamaConfig",
        {
            "rope_parameters": {
                **LONGROPE, "factor": 8.0, "original_max_position_embeddings": SWITCH,
            }
        },
    ),
    "llama dynamic": (
        "LlamaConfig",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": SWITCH},
    ),
    "gemma3 dynamic": (
        "Gemma3TextConfig",
        {
            "head_dim": families.HEAD_DIM,
            "max_position_embeddings": SWITCH,
            "layer_types": families.ALTERNATING[:2],
            "sliding_window": families.WINDOW,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": DYNAMIC,
            },
        },
    ),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    """A model that has read nothing yet; the same weights every time."""
    cls, options = SWITCHING[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = families._config(
            cls, families.DENSE, {"num_hidden_layers": 2}, json.loads(json.dumps(options))
        )
        return families.moved(AutoModelForCausalLM.from_config(config).eval(), 0.02)
