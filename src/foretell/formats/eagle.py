"""EAGLE's layout (Li et al. 2024, arXiv 2401.15077): a chain without norms, in its own directory.

vLLM 0.32, `llama_eagle.py`: [embedding, hidden] through `fc` without a bias; the state after the
final norm; a Llama block without its input norm; no norm after it, neither for the output head,
which is the backbone's, nor for what is handed on; nothing zeroed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretell.errors import CheckpointError, HeadError
from foretell.formats.base import (
    EMBEDDING,
    LLAMA_BLOCK,
    OUTPUT,
    QKV_BIAS,
    Layout,
    Loaded,
    block_names,
    chain,
    require_block,
)
from foretell.formats.contract import Chain
from foretell.formats.files import CONFIG, SINGLE, Checkpoint, save_tensors
from foretell.formats.names import swap_halves
from foretell.model import MTPModel

SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim",
    "num_key_value_heads", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_theta",
    "rope_scaling", "rope_parameters", "dtype", "torch_dtype", "initializer_range",
)  # fmt: skip
"""What a draft block shares with the backbone's, field by field of the config."""

BLOCK = LLAMA_BLOCK - {"input_layernorm.weight"}
FAMILIES = ("llama", "qwen2", "qwen3")


class Eagle(Layout):
    """One Llama-shaped module in a directory of its own."""

    name = "eagle"
    apart = True
    contract = Chain(engine="vLLM 0.32", concat="embedding, hidden", recycle="stream", norms="none")
    serve = (
        "vllm serve {model} --speculative-config "
        """'{{"method": "eagle", "model": "{out}", "num_speculative_tokens": {depth}}}'"""
    )

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        if (family := base.get("model_type")) not in FAMILIES:
            return [f"it is for {', '.join(FAMILIES)}, and the backbone is {family}"]
        if base.get("use_sliding_window"):
            return ["it has no sliding windows"]
        if base.get("attention_bias"):
            return ["its o_proj has no bias"]
        return []

    def check(self, model: MTPModel, base: Checkpoint) -> None:
        super().check(model, base)
        require = require_block(block_names(model), (BLOCK, BLOCK | QKV_BIAS), "Llama-shaped")
        if require:
            raise HeadError(f"{self.name} cannot hold this model: {require[0]}.")

    def save(self, model: MTPModel, base: Checkpoint, out: Path) -> None:
        module = chain(model)[0]
        tensors = {"fc.weight": swap_halves(module["projection.weight"])}
        for name, tensor in module.items():
            if name.startswith("block."):
                tensors["layers.0." + name.removeprefix("block.")] = tensor
        biased = any(name.endswith("bias") for name in tensors)
        write_config(base, out, architectures=["LlamaForCausalLM"], qkv_bias=biased)
        save_tensors(tensors, out / SINGLE)

    def recognises(self, base: Checkpoint) -> bool:
        return "fc.weight" in base.files and any(n.startswith("layers.0.") for n in base.files)

    def load(self, base: Checkpoint) -> Loaded:
        if "fc.bias" in base.files:
            raise CheckpointError(f"{base.directory}: fc has a bias, which foretell's has not.")
        tensors = {"chain.0.projection.weight": swap_halves(base.tensor("fc.weight"))}
        for name, tensor in base.tensors(lambda name: name.startswith("layers.0.")).items():
            tensors["chain.0.block." + name.removeprefix("layers.0.")] = tensor
        again = {"embed_tokens.weight": EMBEDDING, OUTPUT: OUTPUT}
        shared = {ours: base.tensor(name) for name, ours in again.items() if name in base.files}
        return Loaded(self.contract.head(1), tensors, shared)

    def owns(self, name: str, base: Checkpoint) -> bool:
        return True


def write_config(base: Checkpoint, out: Path, **fields: Any) -> None:
    """The config of a draft model of one Llama block, cut to the backbone's measure."""
    source = base.text_config
    config = {name: source[name] for name in SHAPE if source.get(name) is not None}
    config |= {"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": False}
    config |= {"attention_bias": False, "mlp_bias": False, **fields}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
