"""Several processes as one run: DDP gives each a copy of the model, FSDP2 a shard of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.training.config import TrainConfig

FSDP_NEEDS = "2.13"
"""The oldest torch that it was seen to work with; 2.11 was seen to crash."""


def rows_per_pass(config: TrainConfig, processes: int) -> int:
    """Rows that one process reads at once, so that a step has `config.batch_size` of them."""
    passes = processes * config.accumulate
    if config.batch_size % passes:
        raise InputError(
            f"batch_size {config.batch_size} cannot be divided by {processes} processes × "
            f"{config.accumulate} passes; give a multiple of {passes}."
        )
    return config.batch_size // passes


@contextmanager
def own_environment() -> Iterator[None]:
    """Undo what accelerate tells itself through environment variables.

    It sets ACCELERATE_USE_FSDP, for example, by which `accelerate launch` asks for shards too.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in list(os.environ):
            if name.startswith(("ACCELERATE_", "FSDP_")) and name not in before:
                del os.environ[name]


def sharding(model: MTPModel, config: TrainConfig, processes: int) -> dict[str, Any]:
    """`TrainingArguments` for FSDP2, where it is asked for, here or by `accelerate launch`.

    Each block of the backbone and of the heads is gathered when it runs; everything else stays
    whole during a pass, because heads read the embeddings and the output head in between.

    Raises:
        InputError: a setting needs whole parameters, or this torch cannot do it.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1")
    if processes == 1 or not (config.fsdp or launched):
        return {}
    whole = {
        "precision 'bf16' keeps copies of whole weights; use 'bf16-mixed'": config.precision
        == "bf16",
        "distill 'marginal' runs the backbone by itself": config.objective.distill == "marginal",
        "cache_gb runs the backbone by itself": config.cache_gb > 0,
        "compile was made for whole ones": config.compile,
    }
    if torch.__version__ < FSDP_NEEDS:
        raise InputError(
            f"fsdp needs torch {FSDP_NEEDS}; torch {torch.__version__} crashes where a part of the "
            "model rests. Without fsdp every process holds a copy."
        )
    for reason, asked in whole.items():
        if asked:
            raise InputError(f"fsdp holds only shards of the weights, but {reason}.")
    blocks = {type(block).__name__ for block in model.backbone.blocks}
    return {
        "fsdp": True,
        "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": sorted(blocks)},
    }


def shard_on_cpus(state: AcceleratorState, plugin: dict[str, Any]) -> None:
    """Have accelerate shard over CPU processes as it does over accelerators.

    Args:
        state: of the accelerator, for processes on CPUs.
        plugin: arguments of the FSDP plugin.
    """
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin)
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    for known in (state, PartialState()):  # the second gives its type to the first, again and again
        known.distributed_type = DistributedType.FSDP


def gather_whole(model: nn.Module) -> None:
    """Give the main process the whole parameters of a sharded model, on the CPU.

    It can be saved then, and no longer run. The other processes keep their shards.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    if not PartialState().is_main_process:
        return
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for name, shard in list(model.named_parameters(remove_duplicate=False)):
        if shard not in replaced:
            replaced[shard] = nn.Parameter(whole[name], shard.requires_grad)
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, replaced[shard])


def agreed(value: float) -> float:
    """The main process's `value`, in every process."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    return float(broadcast(torch.tensor([value], dtype=torch.float64, device=state.device)))
