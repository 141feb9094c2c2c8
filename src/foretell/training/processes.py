"""Several processes as one run: DDP gives each a copy of the model, FSDP2 a shard of it.

accelerate's `PartialState` knows the processes and joins them, as `torchrun` or `accelerate launch`
started them; the rest is PyTorch's own.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

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


def shards(config: TrainConfig, processes: int) -> bool:
    """Whether each process is to hold only a part of the model, as asked here or by accelerate.

    Raises:
        InputError: a setting needs whole parameters, or this torch cannot do it; or what
            `accelerate launch` asks for is not done here.
    """
    if _launched_with("DEEPSPEED"):
        raise InputError("DeepSpeed is not supported; launch with FSDP, or set fsdp=true.")
    if processes == 1 or not (config.fsdp or _launched_with("FSDP")):
        return False
    if torch.__version__ < FSDP_NEEDS:
        raise InputError(
            f"fsdp needs torch {FSDP_NEEDS}; torch {torch.__version__} crashes where a part of the "
            "model rests. Without fsdp every process holds a copy."
        )
    whole = {
        "precision 'bf16' keeps copies of whole weights; use 'bf16-mixed'": config.precision
        == "bf16",
        "distill 'marginal' runs the backbone by itself": config.objective.distill == "marginal",
        "cache_gb runs the backbone by itself": config.cache_gb > 0,
        "compile was made for whole ones": config.compile,
    }
    for reason, asked in whole.items():
        if asked:
            raise InputError(f"fsdp holds only shards of the weights, but {reason}.")
    return True


def _launched_with(what: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("true", "1")


def spread(model: MTPModel, config: TrainConfig) -> nn.Module:
    """Give every process its copy or its shard of `model`; return what computes the loss.

    One process has all of it, and `model` is returned as it is.
    """
    processes = PartialState()
    if processes.num_processes == 1:
        return model
    model.to(processes.device)
    if shards(config, processes.num_processes):
        _shard(model, config.precision)
        return model
    return DistributedDataParallel(
        model,
        device_ids=None if processes.device.type == "cpu" else [processes.device],
        find_unused_parameters=config.head_warmup > 0 or config.objective.skips_depths,
    )


def _shard(model: MTPModel, precision: str) -> None:
    """FSDP2, in place.

    Each block of the backbone and of the heads is gathered when it runs; everything else stays
    whole during a pass, because heads read the embeddings and the output head in between.
    """
    processes = PartialState()
    mesh = init_device_mesh(processes.device.type, (processes.num_processes,))
    mixed = precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32 if mixed else None
    )
    packed = {parameter for parameter in model.parameters() if not parameter.is_floating_point()}
    kinds = tuple({type(block) for block in model.backbone.blocks})
    blocks = [module for module in model.modules() if isinstance(module, kinds)]
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=packed)
    model.depth_by_depth = False  # it needs whole parameters


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of the model."""
    return isinstance(model, FSDPModule)


@contextmanager
def synchronized(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Add up the gradients of all processes in the backward passes inside, if that is wanted."""
    match model:
        case DistributedDataParallel():
            with nullcontext() if wanted else model.no_sync():
                yield
        case FSDPModule():
            model.set_requires_gradient_sync(wanted)
            yield
        case _:
            yield


def reshard(model: nn.Module) -> None:
    """Let go of what a pass gathered that no backward pass follows."""
    if isinstance(model, FSDPModule):
        model.reshard()


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


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of every process's `values`, in every process."""
    return cast(Tensor, reduce(values, reduction="mean"))


def agreed(value: float) -> float:
    """The main process's `value`, in every process."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    return float(broadcast(torch.tensor([value], dtype=torch.float64, device=state.device)))
