"""Parameter groups, optimisers and the learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from foretell.model import MTPModel
from foretell.training.config import TrainConfig
from foretell.training.muon import Muon
from foretell.training.roles import Role, roles


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


class MasterWeights(Optimizer):
    """Steps an optimiser on float32 copies of half-precision weights.

    Updates smaller than the weights' rounding add up in the copies instead of being lost
    (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1).
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], make: Callable[[list[nn.Parameter]], Optimizer]
    ) -> None:
        self.weights = list(parameters)
        self.masters = [nn.Parameter(weight.detach().float()) for weight in self.weights]
        self.inner = make(self.masters)
        super().__init__(self.weights, {})
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step the copies and round them into the weights."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        self.inner.step(closure)
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the weights' gradients."""
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The copies, and the state of the optimiser that steps them."""
        return {"masters": [m.detach() for m in self.masters], "inner": self.inner.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for weight, master, stored in zip(
            self.weights, self.masters, state_dict["masters"], strict=True
        ):
            master.copy_(stored)
            weight.copy_(stored)
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups


def members(optimizer: Optimizer) -> list[Optimizer]:
    """The optimisers that hold state, however they are wrapped."""
    match optimizer:
        case Chained():
            return [leaf for member in optimizer.optimizers for leaf in members(member)]
        case MasterWeights():
            return members(optimizer.inner)
        case _:
            return [optimizer]


def make_optimizer(
    model: MTPModel, config: TrainConfig, known: Mapping[str, Role] | None = None
) -> Optimizer:
    """The optimiser of a run over the parameters that learn.

    Heads learn at the rate of the config, the backbone at `backbone_rate` times that. Matrices and
    tables decay, everything else (norms, biases, convolutions, what a state-space layer is made of,
    the weights of a weighted tap) does not. Under `muon` matrices are orthogonalised (Jordan et al.
    2024), stacked ones one by one; the rest, which Muon does not suit, is AdamW's.

    Args:
        model: what learns.
        config: the run's settings.
        known: what `roles` says of the parameters; needed where they are sharded by now.
    """
    of_backbone = {id(parameter) for parameter in model.lm.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    learning = [parameter for _, parameter in named]
    known = roles(model) if known is None else known
    kinds = [known[name] for name, _ in named]
    shares = [config.backbone_rate if id(p) in of_backbone else 1.0 for p in learning]

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for share in sorted(set(shares), reverse=True):  # the heads' rate is reported: it is first
            members_of: dict[str, list[nn.Parameter]] = defaultdict(list)
            for parameter, kind, own in zip(parameters, kinds, shares, strict=True):
                if own == share:
                    muon = config.optimizer == "muon" and kind == "matrix" and parameter.ndim <= 3
                    members_of["muon" if muon else kind].append(parameter)
            decay, rate = config.weight_decay, share * config.learning_rate
            matrix_rate = share * config.matrix_learning_rate
            matrices.append({"params": members_of["muon"], "lr": matrix_rate})
            decaying = members_of["matrix"] + members_of["table"]
            others.append({"params": decaying, "lr": rate, "weight_decay": decay})
            others.append({"params": members_of["vector"], "lr": rate, "weight_decay": 0.0})
        members: list[Optimizer] = []
        if groups := [group for group in matrices if group["params"]]:
            members.append(Muon(groups, weight_decay=config.weight_decay))
        if groups := [group for group in others if group["params"]]:
            members.append(AdamW(groups, betas=(0.9, 0.95), fused=True))
        return members[0] if len(members) == 1 else Chained(*members)

    if config.precision == "bf16":
        return MasterWeights(learning, make)
    return make(learning)


def rate_factor(config: TrainConfig, done: float) -> float:
    """Share of the peak learning rate when `done` (0…1) of the run is over."""
    if done < config.warmup:
        return max(done / config.warmup, 1e-3)
    left = max(0.0, 1.0 - (done - config.warmup) / (1.0 - config.warmup))
    match config.schedule:
        case "constant":
            return 1.0
        case "wsd":
            return min(1.0, max(0.0, 1.0 - done) / config.cooldown)
        case "cosine":
            return 0.5 * (1.0 - math.cos(math.pi * left))
        case _:
            return left


def set_rates(optimizer: Optimizer, config: TrainConfig, done: float) -> float:
    """Set every rate for when `done` (0…1) of the run is over, and return the heads'."""
    factor = rate_factor(config, done)
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("peak_lr", group["lr"])
    return float(optimizer.param_groups[0]["lr"])
