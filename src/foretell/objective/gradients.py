"""Losses of all depths with the memory of one: gradients are computed depth by depth, at once.

Gloeckle et al. 2024 (arXiv 2404.19737), section 2 "Memory-efficient implementation": run the trunk
once; then, one depth after another, compute its prediction, its loss and its gradient, free them,
and add up the gradient that reaches the trunk. The logits of a depth are done chunk by chunk in the
same way, so that none is computed twice and none outlives its chunk.

What autograd sees is one function from the trunk's states and the parameters to the loss. It works
under DDP and with accumulated gradients. It needs the parameters whole and knows first derivatives
only; where either does not hold (FSDP2), `all_depths` gives the same numbers.

Shapes: N positions, D hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foretell.objective.loss import CHUNK_ELEMENTS, Readout, Target, chunks, depth_loss

Compute = Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]
"""`compute(states, depths)` → what the output head reads at each of `depths`, (..., D)."""


@dataclass(frozen=True)
class Objective:
    """All depths' targets and weights, and what computes and reads their hidden states.

    Attributes:
        compute: hidden states of some depths from the trunk's states.
        groups: depths that are computed, and differentiated, together.
        targets: by depth.
        weights: by depth; one of weight 0 is not learned.
        readouts: by depth, what turns hidden states into logits.
        chunk_elements: how many logits may exist at once.
        measures_all: whether depths of weight 0 are measured all the same; else their nll is nan.
    """

    compute: Compute
    groups: Sequence[Sequence[int]]
    targets: Sequence[Target]
    weights: Sequence[float]
    readouts: Sequence[Readout]
    chunk_elements: int = CHUNK_ELEMENTS
    measures_all: bool = True

    def counts(self, depth: int) -> bool:
        """Whether a depth is learned, or measured at least."""
        return self.measures_all or self.weights[depth] > 0


def depth_by_depth(
    objective: Objective, states: Sequence[Tensor], parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The weighted loss, and the mean of -log p(label) by depth (K+1,), detached.

    Args:
        objective: what to compute.
        states: (..., D) each, of the trunk: what `objective.compute` starts from.
        parameters: everything that learns in `compute` and `readouts`.
    """
    total, nlls = _DepthByDepth.apply(objective, len(states), *states, *parameters)  # type: ignore[no-untyped-call]
    return total, nlls


def all_depths(objective: Objective, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What `depth_by_depth` returns, by autograd over all depths at once."""
    depths = [depth for group in objective.groups for depth in group if objective.counts(depth)]
    total, nlls = _nothing_yet(objective, states)
    for depth, hidden in zip(depths, objective.compute(states, depths), strict=True):
        weight, target = objective.weights[depth], objective.targets[depth]
        with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
            loss, nlls[depth] = depth_loss(
                hidden.flatten(0, -2),
                target,
                objective.readouts[depth],
                objective.chunk_elements,
            )
        total = total + weight * loss
    return total, torch.stack(nlls)


def _nothing_yet(objective: Objective, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A sum of losses, and the nll of every depth, which is not known."""
    total = states[0].new_zeros((), dtype=torch.float32)
    return total, [torch.full_like(total, torch.nan)] * len(objective.targets)


class _DepthByDepth(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, objective: Objective, num_states: int, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        states = [s.detach().requires_grad_(s.requires_grad) for s in inputs[:num_states]]
        work = _Work(objective, [*states, *inputs[num_states:]])
        total, nlls = work.run(states)
        ctx.gradients = work.gradients(inputs)
        ctx.mark_non_differentiable(nlls)
        return total, nlls

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss of all depths can be differentiated once")
        return (None, None, *(g if g is None else g.mul_(factor.to(g.dtype)) for g in gradients))


class _Work:
    """One evaluation: sums of losses and of gradients."""

    def __init__(self, objective: Objective, leaves: Sequence[Tensor]) -> None:
        self.objective = objective
        self.leaves = [leaf for leaf in leaves if leaf.requires_grad]
        self.sums: dict[int, Tensor] = {}  # by identity of the leaf, in float32 at least

    def run(self, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        objective = self.objective
        total, nlls = _nothing_yet(objective, states)
        for group in objective.groups:
            if not (depths := [depth for depth in group if objective.counts(depth)]):
                continue
            learns = any(objective.weights[depth] > 0 for depth in depths)
            with torch.set_grad_enabled(learns):
                hiddens = objective.compute(states, depths)
            outgoing: list[tuple[Tensor, Tensor]] = []
            for depth, hidden in zip(depths, hiddens, strict=True):
                loss, nlls[depth], gradient = self._loss(depth, hidden)
                total = total + objective.weights[depth] * loss
                if hidden.requires_grad and objective.weights[depth] > 0:
                    outgoing.append((hidden, gradient))
            if outgoing:
                ends, gradients = zip(*outgoing, strict=True)
                self._add(torch.autograd.grad(ends, self.leaves, gradients, allow_unused=True))
        return total, torch.stack(nlls)

    def _loss(self, depth: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One depth's loss and nll, and the loss's weighted gradient at `hidden`."""
        objective, target = self.objective, self.objective.targets[depth]
        weight, readout = objective.weights[depth], objective.readouts[depth]
        flat = hidden.detach().reshape(-1, hidden.shape[-1])  # (N, D)
        gradient = torch.zeros_like(flat)
        flat = flat[target.places]  # (M, D)
        loss = nll = flat.new_zeros((), dtype=torch.float32)
        width, limit = flat.shape[-1], objective.chunk_elements
        for start, stop in chunks(len(flat), readout.size, width, limit):
            part = flat[start:stop].requires_grad_()
            with torch.set_grad_enabled(weight > 0):
                piece, piece_nll = target.losses(readout(part), start)
            loss, nll = loss + piece.detach(), nll + piece_nll
            if weight > 0:
                wanted = [part, *self.leaves]
                factor = torch.full_like(piece, weight)
                first, *others = torch.autograd.grad(piece, wanted, factor, allow_unused=True)
                gradient[target.places[start:stop]] = first
                self._add(others)
        return loss, nll, gradient.reshape(hidden.shape)

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            if gradient is None:
                continue
            if id(leaf) in self.sums:
                self.sums[id(leaf)].add_(gradient)
            else:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                self.sums[id(leaf)] = gradient.to(wide, copy=True)

    def gradients(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """In the order of `inputs`, and of their types."""
        waiting = iter(self.leaves)
        found: list[Tensor | None] = []
        for tensor in inputs:
            total = self.sums.pop(id(next(waiting)), None) if tensor.requires_grad else None
            found.append(None if total is None else total.to(tensor.dtype))
        return found
