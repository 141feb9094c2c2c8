"""Parameter groups, optimisers and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from foretoken.model import MTPModel
from foretoken.training.config import TrainConfig


class Chained(Optimizer):
    """Several optimisers as one, each with its own parameters; schedulers see all their groups."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {})
        self._link()

    def _link(self) -> None:
        """Let `param_groups` be the members' own, so that a rate set here is set there."""
        self.param_groups = [group for member in self.optimizers for group in member.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every member. A closure has no single meaning here."""
        if closure is not None:
            raise ValueError("a chained optimizer takes no closure")
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear every gradient."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The members' states, in order."""
        return {"members": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for optimizer, state in zip(self.optimizers, state_dict["members"], strict=True):
            optimizer.load_state_dict(state)
        self._link()


def make_optimizer(model: MTPModel, config: TrainConfig) -> Optimizer:
    """The optimiser of a run over the parameters that learn.

    Matrices decay, vectors (norms, biases) do not. Under `muon` the matrices of decoder blocks and
    projections are orthogonalised (Jordan et al. 2024); embeddings, which Muon does not suit, and
    vectors are AdamW's.
    """
    embeddings = {id(model.backbone.embedding.weight), id(model.backbone.output.weight)}
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learning if p.ndim >= 2 and id(p) not in embeddings]
    tables = [p for p in learning if p.ndim >= 2 and id(p) in embeddings]
    vectors = [p for p in learning if p.ndim < 2]
    if config.optimizer == "muon":
        flat = [p for p in matrices if p.ndim == 2]
        rest = [p for p in matrices if p.ndim != 2]
        muon = Muon(flat, lr=config.matrix_learning_rate, weight_decay=config.weight_decay)
        return Chained(muon, _adamw(config, rest + tables, vectors))
    return _adamw(config, matrices + tables, vectors)


def _adamw(config: TrainConfig, decaying: Iterable[Tensor], constant: Iterable[Tensor]) -> AdamW:
    groups = [
        {"params": list(decaying), "weight_decay": config.weight_decay},
        {"params": list(constant), "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def rate_factor(config: TrainConfig, done: float) -> float:
    """Share of the peak learning rate when `done` (0…1) of the run is behind."""
    if done < config.warmup:
        return max(done / config.warmup, 1e-3)
    left = max(0.0, 1.0 - (done - config.warmup) / (1.0 - config.warmup))
    match config.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 * (1.0 - math.cos(math.pi * left))
        case _:
            return left


def make_schedule(
    optimizer: Optimizer, config: TrainConfig, done: Callable[[int], float]
) -> LambdaLR:
    """The schedule; `done(step)` is the share of the run behind at that step."""
    return LambdaLR(optimizer, lambda step: rate_factor(config, done(step)))
