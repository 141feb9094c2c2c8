"""What a run needs to go on: the weights that learn and the optimiser's state, tensor by tensor.

Written with `torch.distributed.checkpoint`, every tensor under the name of its parameter: each
process writes the shards that it holds and reads those that it needs, so that a run goes on with
another number of processes, sharded or not.
"""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from foretell.errors import CheckpointError
from foretell.training.optimizers import MasterWeights, members


def save_snapshot(directory: Path, model: nn.Module, optimizer: Optimizer, sharded: bool) -> None:
    """Write everything that learns.

    Args:
        directory: where to.
        model: its parameters that learn, and its persistent buffers.
        optimizer: over those parameters.
        sharded: whether every process holds only a part, and all of them write together; otherwise
            one process writes.
    """
    state = _weights(model)
    for name, parameter, own in _parameters(model, optimizer):
        state.update({f"optimizer.{name}.{key}": tensor for key, tensor in own.items()})
        if isinstance(optimizer, MasterWeights):
            state[f"master.{name}"] = parameter.detach()
    with _one_process_is_enough():
        save(state, checkpoint_id=directory, no_dist=not sharded)


def load_snapshot(directory: Path, model: nn.Module, optimizer: Optimizer, sharded: bool) -> None:
    """The inverse of `save_snapshot`, in place; every process calls it.

    Raises:
        CheckpointError: it cannot be read, or is another model's.
    """
    try:
        stored: dict[str, Any] = FileSystemReader(directory).read_metadata().state_dict_metadata
        state = _weights(model)
        for name, parameter, own in _parameters(model, optimizer):
            prefix = f"optimizer.{name}."
            keys = [key.removeprefix(prefix) for key in stored if key.startswith(prefix)]
            own.update({key: _empty(stored[prefix + key], parameter) for key in keys})
            state.update({prefix + key: tensor for key, tensor in own.items()})
            if isinstance(optimizer, MasterWeights):
                state[f"master.{name}"] = parameter.detach()
        with _one_process_is_enough():
            load(state, checkpoint_id=directory, no_dist=not sharded)
    except (OSError, RuntimeError, ValueError, pickle.PickleError, CheckpointException) as error:
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        reason = " ".join(str(next((first for first, _ in failures), error)).split())
        raise CheckpointError(
            f"{directory.parent}: does not fit the model ({reason}); remove it to go on without it."
        ) from None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn, each once, and every persistent buffer."""
    learning = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    whole = model.state_dict()
    return {**learning, **{name: whole[name] for name in whole if name not in parameters}}


def _parameters(
    model: nn.Module, optimizer: Optimizer
) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
    """Everything that the optimiser steps: its name, itself or its float32 copy, and its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if isinstance(optimizer, MasterWeights):
        pairs = zip(optimizer.weights, optimizer.masters, strict=True)
        names = {id(master): names[id(weight)] for weight, master in pairs}
    for member in members(optimizer):
        for group in member.param_groups:
            for parameter in group["params"]:
                yield names[id(parameter)], parameter, member.state[parameter]


def _empty(stored: Any, parameter: nn.Parameter) -> Tensor:
    """Room for a tensor of the optimiser's state; shaped like its parameter, it is sharded so."""
    dtype = stored.properties.dtype
    if stored.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    return torch.zeros(stored.size, dtype=dtype, device=parameter.device)


@contextmanager
def _one_process_is_enough() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
