"""A linear probe: an affine map from a residual state to what the output head reads.

For depth 0 this is the *tuned lens* of Belrose et al. 2023 (arXiv 2303.08112), for deeper ones the
linear predictor of Pal et al. 2023, "Future Lens" (arXiv 2311.04897). It begins with the ridge
regression onto the final hidden state k places ahead, which has a closed form, and goes on by
cross-entropy against the text; the second is kept only where positions set aside say so.

Shapes: N positions, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

STEPS = 100
BATCH = 512
PASSES = 8
"""Over the positions at most: what is learned from few of them takes fewer steps."""
LEARNING_RATE = 3e-3
RIDGE = 1e-4
"""Relative to the variance of the states."""
SET_ASIDE = 8
"""One of this many positions."""


@dataclass(frozen=True)
class LinearProbe:
    """Attributes:
    mean, scale: (D,) and a number, what states are normalised with.
    weight: (D, D).
    bias: (D,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """(N, D) → (N, D), as what the output head reads."""
        return (states.float() - self.mean) / self.scale @ self.weight + self.bias


def fit(
    states: Tensor, finals: Tensor, tokens: Tensor, unembed: Callable[[Tensor], Tensor]
) -> LinearProbe:
    """Train a probe.

    Args:
        states: (N, D), of one layer.
        finals: (N, D), final hidden states k places ahead.
        tokens: (N,), what follows there.
        unembed: (N, D) → (N, V).
    """
    learned = max(1, len(states) - len(states) // SET_ASIDE)
    begin = _ridge(states[:learned].float(), finals[:learned].float())
    inputs = (states.float() - begin.mean) / begin.scale
    trained = _descend(begin, inputs[:learned], tokens[:learned], unembed)
    aside = slice(learned, None)
    if learned < len(states) and _loss(trained, inputs[aside], tokens[aside], unembed) < _loss(
        begin, inputs[aside], tokens[aside], unembed
    ):
        return trained
    return begin


def _ridge(states: Tensor, finals: Tensor) -> LinearProbe:
    mean, target = states.mean(0), finals.mean(0)
    scale = (states - mean).square().mean().sqrt().clamp(min=1e-6)
    inputs = (states - mean) / scale
    size = inputs.shape[1]
    gram = inputs.T @ inputs + RIDGE * len(inputs) * torch.eye(size, device=inputs.device)
    return LinearProbe(mean, scale, torch.linalg.solve(gram, inputs.T @ (finals - target)), target)


def _descend(
    begin: LinearProbe, inputs: Tensor, tokens: Tensor, unembed: Callable[[Tensor], Tensor]
) -> LinearProbe:
    """Adam with a rate that falls to nothing; the output head is left alone."""
    weight, bias = (part.clone().requires_grad_() for part in (begin.weight, begin.bias))
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    random = torch.Generator().manual_seed(0)
    size = min(BATCH, len(inputs))
    steps = min(STEPS, math.ceil(PASSES * len(inputs) / size))
    for step in range(steps):
        rows = torch.randint(len(inputs), (size,), generator=random)
        rows = rows.to(inputs.device)
        loss = cross_entropy(unembed(inputs[rows] @ weight + bias).float(), tokens[rows])
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.step()
    return LinearProbe(begin.mean, begin.scale, weight.detach(), bias.detach())


@torch.no_grad()
def _loss(
    probe: LinearProbe, inputs: Tensor, tokens: Tensor, unembed: Callable[[Tensor], Tensor]
) -> float:
    parts = zip(inputs.split(BATCH), tokens.split(BATCH), strict=True)
    return sum(
        float(cross_entropy(unembed(x @ probe.weight + probe.bias).float(), y, reduction="sum"))
        for x, y in parts
    )
