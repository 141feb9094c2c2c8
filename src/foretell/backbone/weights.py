"""Weights that are not plain tensors: packed by a quantiser, adapted, or lying elsewhere."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from foretell.errors import BackboneError

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of numbers that are weights without further ado."""


def require_usable(model: PreTrainedModel) -> None:
    """Refuse a model whose parts are not where its class has them.

    Raises:
        BackboneError: it has adapters inside or around it, or see `require_present`.
    """
    name = type(model).__name__
    if (kind := adapters_inside(model)) is not None:
        raise BackboneError(
            f"{name} has adapters inside ({kind}), which heads would not be saved with: merge them "
            "first (merge_and_unload() of a PeftModel), or load their directory with "
            "MTPModel.from_pretrained, which merges them."
        )
    require_present(model)


def adapters_inside(model: nn.Module) -> str | None:
    """The class of an adapter inside or around `model`, whoever put it there; None without any."""
    if "peft" not in sys.modules:  # which makes them all
        return None
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)
    return next((type(part).__name__ for part in model.modules() if isinstance(part, kinds)), None)


def require_present(model: PreTrainedModel) -> None:
    """Refuse a model that does not lie whole on one device.

    Raises:
        BackboneError: it has weights that are not in memory, or on several devices.
    """
    name = type(model).__name__
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if "meta" in devices:
        raise BackboneError(
            f"{name} has weights that are not in memory (meta tensors, or offloaded to a disk or "
            "to the CPU); load it whole onto one device, without offloading."
        )
    if len(devices) > 1:
        raise BackboneError(
            f"{name} is spread over {', '.join(devices)}; load it onto one device, without a "
            "device_map over several."
        )


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of the weights in place, and of nothing else.

    Buffers keep theirs: rotary frequencies must stay exact. Others, which a family computes from
    its config, may not fit afterwards: give `load_causal_lm` the type wherever a model is loaded.
    Modules with packed weights stay as they are, since their numbers mean something only so.
    """
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if all(map(is_plain, own)):
            for parameter in own:
                parameter.data = parameter.data.to(dtype)


def is_plain(parameter: Tensor) -> bool:
    """Whether its values are floating-point numbers as they stand, not packed ones."""
    return type(parameter.data) is Tensor and parameter.dtype in PLAIN


def packed(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors with packed weights, by name: parameters, or buffers of a quantised model."""
    found: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if not is_plain(p)}
    small = {torch.int8}  # of `foretell.backbone.int8`
    if getattr(model.config, "quantization_config", None) is not None:
        small |= {torch.uint8, torch.int16, torch.int32}
    return found | {n: b for n, b in model.named_buffers() if b.dtype in small}


def packed_by(model: PreTrainedModel) -> str | None:
    """What packed the weights, in a word; None where all are plain."""
    tensors = packed(model)
    if not tensors:
        return None
    told = getattr(model.config, "quantization_config", None) or {}
    told = told if isinstance(told, dict) else vars(told)
    if (method := told.get("quant_method")) is not None:
        return str(getattr(method, "value", method))
    first = next(iter(tensors.values())).data
    return str(first.dtype) if type(first) is Tensor else type(first).__name__


def block_by_class(model: PreTrainedModel, path: str) -> nn.Module:
    """The block at `path` as the model's class makes it, with room for plain weights in it.

    Whatever a quantiser put in the place of the block's parts is not in it.
    """
    with torch.device("meta"):
        block = type(model)(model.config).get_submodule(path)
    device = next(model.parameters()).device
    return block.to_empty(device=device).train(model.training)


def stored(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor keeps its values in: itself, or the parts of one that only looks like one."""
    whole: Any = tensor
    if is_traceable_wrapper_subclass(whole):
        for name in whole.__tensor_flatten__()[0]:
            yield from stored(getattr(whole, name))
    else:
        yield tensor
