"""Tiny checkpoints with multi-token modules, in the names and shapes that released ones have.

Written with safetensors alone: nothing of `foretell.formats` is used, so that tests of it compare
with the published names and not with themselves.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import families

HIDDEN, LAYERS = families.HIDDEN, families.LAYERS
BACKBONES = {
    "mimo": "qwen2",
    "qwen3_next": "qwen3_next",
    "qwen3_5": "qwen3_5_text",
    "deepseek_v3": "deepseek_v3",
    "glm4_moe": "glm4_moe",
}
COUNTS = {"qwen3_5": "mtp_num_hidden_layers"}
MODULES: dict[str, dict[str, tuple[int, ...]]] = {
    "mimo": {
        "model.mtp_layers.0.token_layernorm.weight": (HIDDEN,),
        "model.mtp_layers.0.hidden_layernorm.weight": (HIDDEN,),
        "model.mtp_layers.0.input_proj.weight": (HIDDEN, 2 * HIDDEN),
        "model.mtp_layers.0.final_layernorm.weight": (HIDDEN,),
    },
    "qwen3_next": {
        "mtp.fc.weight": (HIDDEN, 2 * HIDDEN),
        "mtp.pre_fc_norm_embedding.weight": (HIDDEN,),
        "mtp.pre_fc_norm_hidden.weight": (HIDDEN,),
        "mtp.norm.weight": (HIDDEN,),
    },
    "deepseek_v3": {
        f"model.layers.{LAYERS}.enorm.weight": (HIDDEN,),
        f"model.layers.{LAYERS}.hnorm.weight": (HIDDEN,),
        f"model.layers.{LAYERS}.eh_proj.weight": (HIDDEN, 2 * HIDDEN),
        f"model.layers.{LAYERS}.shared_head.norm.weight": (HIDDEN,),
        f"model.layers.{LAYERS}.shared_head.head.weight": (families.VOCAB, HIDDEN),
        f"model.layers.{LAYERS}.embed_tokens.weight": (families.VOCAB, HIDDEN),
    },
}
MODULES["qwen3_5"] = MODULES["qwen3_next"]
MODULES["glm4_moe"] = MODULES["deepseek_v3"]
BLOCKS = {
    "mimo": "model.mtp_layers.0.",
    "qwen3_next": "mtp.layers.0.",
    "qwen3_5": "mtp.layers.0.",
    "deepseek_v3": f"model.layers.{LAYERS}.",
    "glm4_moe": f"model.layers.{LAYERS}.",
}
DROPPED = "model.visual.patch_embed.weight"
"""A tensor that no causal LM has, as a checkpoint of a vision model holds."""


def write(layout: str, directory: Path, *, sharded: bool = False, dtype=torch.float32) -> None:
    """A released checkpoint of `layout`."""
    lm = families.build(BACKBONES[layout])
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)
    lm.save_pretrained(directory)
    single = directory / "model.safetensors"
    tensors = read(directory)
    generator = torch.Generator().manual_seed(4)
    last = f"model.layers.{LAYERS - 1}."
    block = {BLOCKS[layout] + name.removeprefix(last): tuple(tensor.shape)
             for name, tensor in tensors.items() if name.startswith(last)}  # fmt: skip
    for name, shape in (MODULES[layout] | block).items():
        tensors[name] = (0.1 * torch.randn(shape, generator=generator)).to(dtype)
    for name in tensors:
        if name.endswith("embed_tokens.weight"):
            tensors[name] = tensors["model.embed_tokens.weight"].clone()
        if name.endswith("shared_head.head.weight"):
            tensors[name] = tensors["lm_head.weight"].clone()
    tensors[DROPPED] = torch.randn(8, 3, generator=generator).to(torch.bfloat16)
    config = json.loads((directory / "config.json").read_text())
    config[COUNTS.get(layout, "num_nextn_predict_layers")] = 1
    if layout == "deepseek_v3":
        config |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    if layout == "mimo":
        config |= {"model_type": "mimo", "architectures": ["MiMoForCausalLM"],
                   "auto_map": {"AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
                                "AutoConfig": "configuration_mimo.MiMoConfig"}}  # fmt: skip
        (directory / "modeling_mimo.py").write_text("raise SystemExit('was run')\n")
        (directory / "configuration_mimo.py").write_text("raise SystemExit('was run')\n")
    (directory / "config.json").write_text(json.dumps(config))
    single.unlink()
    if not sharded:
        save_file(tensors, single, metadata={"format": "pt"})
        return
    names, files = sorted(tensors), {}
    parts = [names[i::3] for i in range(3)]
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-00003.safetensors"
        save_file({n: tensors[n] for n in part}, directory / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def read(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        if file.name == "heads.safetensors":
            continue
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                assert name not in tensors, f"{name} is in two files"
                tensors[name] = handle.get_tensor(name)
    return tensors


def is_module(layout: str, name: str) -> bool:
    return name in MODULES[layout] or name.startswith(BLOCKS[layout])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    )
