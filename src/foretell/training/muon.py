"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for experts, whose matrices
lie in one tensor: each is orthogonalised by itself, as `torch.optim.Muon` does with one.

Shapes: E experts, A rows, B columns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration; these and its steps are those of `torch.optim.Muon`."""
ITERATIONS = 5


class StackedMuon(Optimizer):
    """Steps parameters (E, A, B)."""

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the orthogonalised momentum. It takes no closure."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for stack in group["params"]:
                if stack.grad is None:
                    continue
                state = self.state[stack]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(stack.grad)
                momentum = state["momentum_buffer"].lerp_(stack.grad, 1 - MOMENTUM)
                update = orthogonalised(stack.grad.lerp(momentum, MOMENTUM))
                rows, columns = stack.shape[1:]
                stack.mul_(1 - rate * decay)
                stack.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonalised(stack: Tensor) -> Tensor:
    """(E, A, B) → about the nearest matrices whose rows or columns are orthonormal, in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[-2] > stack.shape[-1]
    x: Tensor = stack.mT.bfloat16() if tall else stack.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
