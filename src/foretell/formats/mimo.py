"""MiMo's layout (XiaomiMiMo/MiMo-7B): Qwen2-shaped, one sequential module.

vLLM 0.32, `mimo_mtp.py` and `mimo.py`: [hidden, embedding]; the state *before* the final norm; the
module's own final norm before it is handed on; zeros for the embedding at position 0; one module,
run for every step. SGLang 0.5 reads the state *after* the final norm: heads trained for one are
drafted from wrongly by the other.

A Llama without biases is a Qwen2 whose biases are zero, and is written as one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foretell.formats.base import (
    EMBEDDING,
    LLAMA_BLOCK,
    OUTPUT,
    QKV_BIAS,
    InPlace,
    block_names,
    original,
    require_block,
)
from foretell.formats.contract import Chain
from foretell.formats.files import Checkpoint
from foretell.formats.names import ModuleNames
from foretell.model import MTPModel

_MODULE = "model.mtp_layers.{i}."


class MiMo(InPlace):
    """One module below `model.mtp_layers.0.`.

    The published config has `model_type: mimo`, which brings code of its own. Engines go by
    `architectures`, so what is written here says `qwen2`, which needs none, and which transformers
    reads as the backbone that it is.
    """

    name = "mimo"
    contract = Chain(engine="vLLM 0.32", concat="hidden, embedding", tap="last", zero_first=True)
    serve = (
        "vllm serve {out} --speculative-config "
        """'{{"method": "mtp", "num_speculative_tokens": {depth}}}'"""
    )
    names = ModuleNames(
        hidden_norm=_MODULE + "hidden_layernorm",
        embedding_norm=_MODULE + "token_layernorm",
        projection=_MODULE + "input_proj",
        norm=_MODULE + "final_layernorm",
        block=_MODULE,
        embedding_first=False,
    )
    families = ("mimo", "qwen2")
    counts = "num_nextn_predict_layers"

    def refusals(self, model: MTPModel, base: Mapping[str, Any]) -> list[str]:
        if (family := base.get("model_type")) not in ("qwen2", "llama", "mimo"):
            return [f"it is for Qwen2-shaped backbones, and this one is {family}"]
        if base.get("use_sliding_window"):
            return ["it has no sliding windows"]
        heads, size = base.get("num_attention_heads", 0), base.get("hidden_size", 0)
        if heads * base.get("head_dim", size // max(1, heads)) != size:
            return ["its attention heads together are as wide as the hidden state"]
        if model.head is None:
            return []
        shapes = (LLAMA_BLOCK, LLAMA_BLOCK | QKV_BIAS)
        return require_block(block_names(model), shapes, "Qwen2-shaped")

    def more(self, base: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An output head, which its engine has apart from the embedding, and biases."""
        output = {} if OUTPUT in base.files else {OUTPUT: base.tensor(EMBEDDING)}
        biased = any(name.endswith("q_proj.bias") for name in base.files)
        return output if biased else output | _zero_biases(base, tensors)

    def config(self, base: Checkpoint, modules: int) -> dict[str, Any]:
        """That of a Qwen2 with biases, under the name of the engine's class."""
        return {
            **super().config(base, modules),
            "architectures": ["MiMoForCausalLM"],
            "model_type": "mimo" if base.model_type == "mimo" else "qwen2",
            "attention_bias": True,
            "tie_word_embeddings": False,
        }

    def backbone_config(self, base: Checkpoint) -> dict[str, Any]:
        """As the Qwen2 it is: transformers has no `mimo`, and the published code is not run."""
        if base.model_type == "qwen2":
            return base.config
        dropped = ("auto_map", "attention_bias", self.counts)
        config = {name: value for name, value in base.config.items() if name not in dropped}
        return {**config, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _zero_biases(base: Checkpoint, module: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of queries, keys and values, in the backbone and in the module."""
    inputs = tuple(f"self_attn.{x}_proj.weight" for x in "qkv")
    found = base.tensors(lambda name: name.endswith(inputs))
    found |= {name: tensor for name, tensor in module.items() if name.endswith(inputs)}
    dtype = original(base, OUTPUT).dtype
    return {
        name.removesuffix("weight") + "bias": torch.zeros(tensor.shape[0], dtype=dtype)
        for name, tensor in found.items()
    }
