"""Medusa's layout, in a directory of its own (Cai et al. 2024, arXiv 2401.10774; FasterDecoding).

vLLM 0.32, `medusa.py`: every head is a stack of h + SiLU(W h + b) on the state after the final
norm; biases only where the config says `medusa_fc_bias`; one output matrix for all heads under
`original_lm_head`, else one each. What has another name is skipped silently, so names are tested.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.errors import CheckpointError
from foretell.formats.base import OUTPUT, Layout, Loaded
from foretell.formats.contract import SideBySide
from foretell.formats.files import CONFIG, SINGLE, Checkpoint, save_tensors, tensors_equal
from foretell.heads import ResidualHeads
from foretell.model import MTPModel

_LAYER = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_OUTPUTS = re.compile(r"lm_heads?(\.\d+)?\.weight")


class Medusa(Layout):
    """Residual heads on any backbone."""

    name = "medusa"
    apart = True
    contract = SideBySide(engine="vLLM 0.32", heads="residual")
    serve = (
        "vllm serve {model} --speculative-config "
        """'{{"method": "medusa", "model": "{out}", "num_speculative_tokens": {depth}}}'"""
    )

    def save(self, model: MTPModel, base: Checkpoint, out: Path) -> None:
        tensors = {}
        for name, tensor in model.require_head().state_dict().items():
            _, head, layer, part = name.split(".")
            tensors[f"blocks.{head}.layers.{layer}.{part}"] = tensor
        tensors[OUTPUT] = model.backbone.output.weight
        vocab, size = tensors[OUTPUT].shape
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": size,
            "vocab_size": vocab,
            "num_heads": model.depth,
            "num_hidden_layers": _layers(model),
            "medusa_fc_bias": True,
            "original_lm_head": True,
        }
        (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_tensors(tensors, out / SINGLE)

    def recognises(self, base: Checkpoint) -> bool:
        mine = base.config.get("architectures") in (None, ["MedusaModel"])
        return mine and base.config.get("model_type") == "medusa"

    def load(self, base: Checkpoint) -> Loaded:
        found = base.tensors(lambda name: True)
        tensors: dict[str, Tensor] = {}
        for name, tensor in found.items():
            if match := _LAYER.fullmatch(name):
                tensors["heads.{}.{}.{}".format(*match.groups())] = tensor
            elif not _OUTPUTS.fullmatch(name):
                raise CheckpointError(f"{base.directory}: {name} is not part of Medusa heads.")
        heads = _count(tensors, 1, base)
        layers = _count(tensors, 2, base)
        for name in [name for name in tensors if name.endswith("weight")]:
            bias = name.removesuffix("weight") + "bias"
            if bias not in tensors:  # of a layout without biases
                tensors[bias] = torch.zeros(len(tensors[name]), dtype=tensors[name].dtype)
        shared: dict[str, Tensor] = {}
        outputs = [tensor for name, tensor in found.items() if _OUTPUTS.fullmatch(name)]
        if any(not tensors_equal(one, outputs[0]) for one in outputs):
            raise CheckpointError(
                f"{base.directory}: its heads have output matrices of their own, which foretell's "
                "have not; they share the backbone's."
            )
        if outputs:
            shared[OUTPUT] = outputs[0]
        return Loaded(ResidualHeads.Config(depth=heads, layers=layers), tensors, shared)

    def owns(self, name: str, base: Checkpoint) -> bool:
        return True


def _layers(model: MTPModel) -> int:
    config: Any = model.require_head().config
    return int(config.layers)


def _count(tensors: dict[str, Tensor], place: int, base: Checkpoint) -> int:
    numbers = {int(name.split(".")[place]) for name in tensors}
    if not numbers or numbers != set(range(len(numbers))):
        raise CheckpointError(f"{base.directory}: its Medusa heads are not numbered from 0.")
    return len(numbers)
