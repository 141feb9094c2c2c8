"""What trials on a model are made of: a model at rest, and what counts as equal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients for a moment."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def generating(model: Any, config: GenerationConfig) -> Iterator[None]:
    """With `config` in place of the model's own, from which `generate` would take what is unset."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def some_logits(model: PreTrainedModel) -> Tensor:
    """(1, 8, V) in float32, of a few tokens that any model has; the model is on a CPU."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.arange(8).remainder(vocabulary).unsqueeze(0)
    with evaluating(model):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.float()


def same(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a differently ordered sum in the tensors' type."""
    if a.shape != b.shape:
        return False
    tolerance = min(32 * torch.finfo(b.dtype).eps, 2 * torch.finfo(torch.bfloat16).eps)
    scale = float(b.abs().max())
    return bool(torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance * scale))


def near(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of another way to compute the same, which adds up over layers.

    In float32 what is wrong is far from it; in half precision small differences pass. In double
    precision too models compute some things in float32.
    """
    eps = max(torch.finfo(dtype).eps for dtype in (b.dtype, torch.float32))
    return bool((a - b).norm() <= eps**0.5 * b.norm())


def told(error: Exception) -> str:
    """What somebody else's code raised, in one line."""
    return f"{type(error).__name__} ({' '.join(str(error).split()) or 'no message'})"
