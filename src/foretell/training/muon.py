"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), as `torch.optim.Muon` and
beyond it: experts, whose matrices lie in one tensor, are orthogonalised one by one, and a CPU that
emulates bfloat16 does it in float32, up to a hundred times as fast.

Shapes: E experts, A rows, B columns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from foretell.hardware import is_slow
from foretell.training.processes import agreed

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration; these and its steps are those of `torch.optim.Muon`."""
ITERATIONS = 5


class Muon(Optimizer):
    """Steps matrices (A, B) and stacks of them (E, A, B).

    All processes compute in one type, and a run that goes on in the one that it began with.
    """

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        device = groups[0]["params"][0].device.type
        slow = agreed(float(is_slow(torch.bfloat16, device)))
        super().__init__(groups, {"weight_decay": weight_decay, "bfloat16": not slow})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("bfloat16", True)  # as torch's own, which wrote older checkpoints

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the orthogonalised momentum. It takes no closure."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            dtype = torch.bfloat16 if group["bfloat16"] else torch.float32
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = _whole_at_once(matrix.grad.lerp(momentum, MOMENTUM), dtype)
                rows, columns = matrix.shape[-2:]
                matrix.mul_(1 - rate * decay)
                matrix.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def _whole_at_once(direction: Tensor, dtype: torch.dtype) -> Tensor:
    """The direction orthogonalised; one that lies in shards is gathered once and divided again."""
    if not isinstance(direction, DTensor):
        return orthogonalised(direction, dtype)
    mesh, kept = direction.device_mesh, direction.placements
    whole = orthogonalised(direction.full_tensor(), dtype)
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim).redistribute(mesh, kept)


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., A, B) → about the nearest matrices whose rows or columns are orthonormal.

    Computed in `dtype`, and answered in it.
    """
    a, b, c = COEFFICIENTS
    add = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = (matrix.mT if tall else matrix).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
