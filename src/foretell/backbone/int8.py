"""Weights of 8 bits, for decoding on a CPU.

What a pass over a few tokens costs there is reading the weights. Each output's weights share a
scale (LLM.int8's vector-wise quantisation, Dettmers et al. 2022, arXiv 2208.07339, without its
outliers), and products are sums of integers (`torch._int_mm`). Inputs are given in two bytes, each
row by a scale of its own, since with one byte SmolLM2-135M predicts noticeably worse
(docs/log.md, 2026-11-27):

    x ≈ s (a + b/254),   W ≈ t q,   W x ≈ s t (q a + q b/254),   a, b, q integers up to 127

Sums of integers are exact in any order: what is computed for a row is the same, bit by bit,
whatever else a pass holds. So a draft of four tokens is verified with the very products of four
single passes. What a wider pass costs depends on the CPU's instructions (docs/log.md).

Shapes: N rows, D in, E out.
"""

from functools import cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from foretell.backbone.trying import some_logits
from foretell.backbone.weights import is_plain
from foretell.errors import BackboneError

SMALLEST = 1 << 12
"""Numbers in a matrix that is quantised."""

FEWEST = 0.5
"""Share of a model's weights, but for its input embedding, that must be quantised to gain by it."""

CHANGED = 0.5
"""By how much of themselves logits may differ afterwards. Rounding changes them by some hundredths,
but where a model reads a weight past its layer they are something else."""

TINY = torch.finfo(torch.float32).tiny
"""In place of a scale of 0, where all numbers are 0."""


@cache
def largest() -> int:
    """The largest integer that weights are rounded to.

    127, or 63 where the CPU's products are not exact for larger ones: without VNNI they add pairs
    in 16 bits.
    """
    ones = torch.full((4, 64), 127, dtype=torch.int8)
    exact = bool((torch._int_mm(ones, ones[:1].repeat(16, 1).t()) == 64 * 127 * 127).all())
    return 127 if exact else 63


class Absent(NamedTuple):
    """What is left of weights that were quantised.

    Attributes:
        shape: (E, D).
        dtype: theirs.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits.

    Args:
        integers: (E, D) in int8.
        scales: (E,) in float32, what one of each output's integers stands for.
        bias: (E,) or None.
        dtype: of the weights that they stand for.

    Attributes:
        weight: shape and type of the weights that it stands for.
    """

    integers: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, integers: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight = Absent(tuple(integers.shape), dtype)
        self.register_buffer("integers", integers)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Weights (E, D), each rounded to the nearest of its output's values."""
        numbers = weight.detach().float()
        scales = (numbers.abs().amax(1) / largest()).clamp(min=TINY)
        integers = (numbers / scales.unsqueeze(1)).round().to(torch.int8).contiguous()
        return cls(integers, scales, None if bias is None else bias.detach(), weight.dtype)

    def some(self, outputs: Tensor) -> Self:
        """The same with these (E',) of its outputs alone."""
        bias = None if self.bias is None else self.bias[outputs]
        return type(self)(self.integers[outputs], self.scales[outputs], bias, self.weight.dtype)

    def forward(self, rows: Tensor) -> Tensor:
        """(…, D) → (…, E).

        Raises:
            BackboneError: a gradient is to pass through it, or it is no longer on a CPU.
        """
        if rows.requires_grad and torch.is_grad_enabled():
            raise BackboneError("weights of 8 bits are for decoding: no gradient passes.")
        if rows.device.type != "cpu":
            raise BackboneError(
                f"weights of 8 bits are for CPUs, and the model is on {rows.device}."
            )
        product = multiply(rows.reshape(-1, rows.shape[-1]), self.integers, self.scales)
        product = product.to(rows.dtype).view(*rows.shape[:-1], len(self.scales))
        return product if self.bias is None else product + self.bias

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """As in torch, but scales stay as exact as they are."""
        scales = self.scales
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.scales.device)
        return self

    def extra_repr(self) -> str:
        """Its shape."""
        outputs, inputs = self.weight.shape
        return f"in_features={inputs}, out_features={outputs}, bits=8"


def multiply(rows: Tensor, integers: Tensor, scales: Tensor) -> Tensor:
    """Rows (N, D) times what `integers` (E, D) and `scales` (E,) stand for: (N, E) in float32."""
    rows = rows.float()
    own = rows.abs().amax(1, keepdim=True).clamp_(min=TINY).div_(127)  # (N, 1)
    scaled = rows / own
    coarse = scaled.round()
    fine = scaled.sub_(coarse).mul_(254).round_()
    both = torch.cat([coarse, fine]).to(torch.int8)  # (2N, D)
    high, low = torch._int_mm(both, integers.t()).float().chunk(2)  # (N, E) each
    return high.add_(low, alpha=1 / 254).mul_(own).mul_(scales)


def quantize(model: PreTrainedModel) -> None:
    """Give the matrices of a model weights of 8 bits, in place; once more changes nothing.

    Its input embedding keeps its numbers, of which a pass reads few. Nothing in it learns any more.

    Raises:
        BackboneError: the model is not on a CPU, most of its weights are in nothing that can be
            quantised, or it says something else with rounded weights; then it is as it was.
    """
    name = type(model).__name__
    if (device := next(model.parameters()).device).type != "cpu":
        raise BackboneError(
            f"{name} is on {device}, and weights of 8 bits are for CPUs here; load a checkpoint "
            "that is quantised for that device."
        )
    if is_quantized(model):
        return
    embedding = model.get_input_embeddings().weight
    matrices: set[Any] = {part.weight for part in model.modules() if _serves(part)}
    served = sum(weight.numel() for weight in matrices - {embedding})
    whole = sum(p.numel() for p in model.parameters() if p is not embedding)
    if served < FEWEST * whole:
        raise BackboneError(
            f"{name} has {served / whole:.0%} of its weights in linear layers, which alone can be "
            "quantised here, and that is too few to gain by it."
        )
    before = some_logits(model)
    replaced = quantize_within(model)
    try:
        after = some_logits(model)
        same = float((after - before).norm()) <= CHANGED * float(before.norm())
    except Exception:  # whatever comes of reading weights that are not there
        same = False
    if not same:
        for parent, name, part in replaced:
            setattr(parent, name, part)
        raise BackboneError(
            f"{name} says something else with weights of 8 bits, as where a block reads a weight "
            "past its layer; decode it without."
        )
    model.requires_grad_(False)


def is_quantized(module: nn.Module) -> bool:
    """Whether anything in it has weights of 8 bits."""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def quantize_within(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Give the matrices of any module weights of 8 bits, in place.

    Returns:
        what was replaced: in which module, under which name, and what stood there.
    """
    made: dict[Any, Int8Linear] = {}
    replaced: list[tuple[nn.Module, str, Any]] = []
    for parent in list(module.modules()):
        for name, part in list(parent._modules.items()):
            if _serves(part):
                if part not in made:
                    layer: Any = part
                    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
                    made[part] = Int8Linear.of(weight, layer.bias)
                setattr(parent, name, made[part])
                replaced.append((parent, name, part))
    return replaced


def _serves(module: Any) -> bool:
    return (
        type(module) in (nn.Linear, Conv1D)
        and is_plain(module.weight)
        and module.weight.numel() >= SMALLEST
        and min(module.weight.shape) > 1  # `torch._int_mm` is wrong there
        and "forward" not in vars(module)
    )
