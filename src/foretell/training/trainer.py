"""One training run on transformers' `Trainer`, which brings mixed precision and resuming."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from foretell.checkpoints import Adapters
from foretell.data import PackedBlocks, StreamedBlocks
from foretell.errors import InputError
from foretell.files import local_path
from foretell.model import MTPModel
from foretell.objective import ObjectiveConfig
from foretell.probe import require_branches
from foretell.provenance import provenance
from foretell.targets import count_targets
from foretell.training.config import TrainConfig
from foretell.training.marginals import marginal_targets
from foretell.training.optimizers import make_optimizer, make_schedule
from foretell.training.order import EndlessOrder
from foretell.training.plan import Plan
from foretell.training.preparation import (
    check_blocks,
    check_loss,
    checkpoint_activations,
    compiled_blocks,
    set_attention,
    set_precision,
)
from foretell.training.processes import (
    gather_whole,
    own_environment,
    rows_per_pass,
    shard_on_cpus,
    sharding,
)
from foretell.training.progress import Clock, Follow, Progress, tensorboard
from foretell.training.report import Departure, Movement, write_report
from foretell.training.roles import roles
from foretell.training.rundir import RunDirectory
from foretell.training.snapshots import load_snapshot, save_snapshot
from foretell.training.states import StateCache

UNLIMITED = 10**9
SCHEDULER_FILE = "scheduler.pt"


@dataclass
class TrainResult:
    """What a run leaves behind.

    Attributes:
        directory: of the trained model.
        steps: optimiser steps done.
        tokens: tokens read, over all steps, the filling of blocks included.
        seconds: training time spent, over all processes of the run.
        depth_losses: of the last report.
        movements: how far each part of the model went.
    """

    directory: Path
    steps: int
    tokens: int
    seconds: float
    depth_losses: tuple[float, ...] = ()
    movements: tuple[Movement, ...] = ()


@own_environment()
def train(
    model: MTPModel,
    blocks: PackedBlocks | StreamedBlocks,
    config: TrainConfig,
    out: Path,
    *,
    held_out: PackedBlocks | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backbone_path: str | None = None,
    begin: Callable[[Plan], None] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train `model` on `blocks` and save it to `out/model`; resume where `out` holds a checkpoint.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments.

    Args:
        model: with heads attached; changed in place.
        blocks: the corpus, one document per block where the backbone does not isolate documents.
        config: the settings.
        out: the run directory.
        held_out: blocks to measure the loss on, every `config.evaluate_every` steps.
        tokenizer: saved with the model.
        backbone_path: where the backbone can be loaded from; then `frozen` stores heads alone.
            Adapters that are not merged need it.
        begin: called with what is about to be done, before the first step, by the main process.
        report: called with the progress, by the main process: after each of the first steps, and
            then every `config.log_every` steps.

    Raises:
        BackboneError: the backbone lets documents that are packed in `blocks` attend to each other,
            or has no marginals that could be distilled.
        CheckpointError: the model could not be saved, see `MTPModel.require_savable`.
        InputError: `out` belongs to a run with other settings or is being trained in, or the
            blocks or adapters do not fit the model.
    """
    if config.attention is not None:
        set_attention(model, config.attention)
    for given in (blocks, held_out):
        if given is not None:
            check_blocks(model, given)
    if config.objective.distill == "marginal":
        strings = model.depth * config.objective.marginal_width
        require_branches(model.backbone, blocks.block_size + strings)
    _check_base(model, config, backbone_path)
    processes = PartialState(cpu=model.backbone.device.type == "cpu")
    run = RunDirectory(local_path(out))
    with run.held() if processes.is_main_process else nullcontext():
        return _train(model, blocks, config, run, held_out, tokenizer, backbone_path, begin, report)


def _train(
    model: MTPModel,
    blocks: PackedBlocks | StreamedBlocks,
    config: TrainConfig,
    run: RunDirectory,
    held_out: PackedBlocks | None,
    tokenizer: PreTrainedTokenizerBase | None,
    backbone_path: str | None,
    begin: Callable[[Plan], None] | None,
    report: Callable[[Progress], None] | None,
) -> TrainResult:
    """`train`, once what it was given is known to fit."""
    processes = PartialState()
    source = {"backbone": model.backbone.fingerprint(), **blocks.describe()}
    process = provenance(config.seed, model.backbone.device, model.backbone.dtype)
    with processes.main_process_first():
        run.claim(config, source, process if processes.is_main_process else None)
        if processes.is_main_process:
            run.clear_after_resume_point()
    resume = run.resume_point()
    if config.recipe == "lora":
        lora = config.lora.model_dump(exclude={"merge"})
        model.adapt(lambda lm: Adapters.add(lm, **lora))
    if config.backbone_learns:
        check_loss(model)
    else:
        model.freeze_backbone()
    set_precision(model, config.precision)
    with processes.main_process_first():
        departure = Departure(run.departure, model)
    before = resume.seconds if resume else 0.0
    clock = Clock(config.minutes, before, compiles=config.compile)
    trainer = MTPTrainer(
        model, blocks, config, run, clock, held_out, tokenizer, backbone_path, report
    )
    if begin is not None and processes.is_main_process:
        begun = resume.step if resume else 0
        steps, number = trainer.total_steps, processes.num_processes
        begin(Plan.of(model, blocks, config, steps=steps, begun=begun, processes=number))
    with compiled_blocks(model) if config.compile else nullcontext():
        outcome = trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume else None)
    seconds = clock.seconds()
    model.eval()
    trainer.gather()
    movements: list[Movement] = []
    if processes.is_main_process:
        movements = write_report(run.path, model, departure, run.metrics())
    trainer.merge_adapters()
    if processes.is_main_process:
        trainer.store(run.model)
        run.finish()
    processes.wait_for_everyone()
    tokens = outcome.global_step * trainer.tokens_per_step
    return TrainResult(
        run.model, outcome.global_step, tokens, seconds, trainer.latest, tuple(movements)
    )


def _check_base(model: MTPModel, config: TrainConfig, backbone_path: str | None) -> None:
    """Refuse what could be trained and then not be saved.

    Adapters that stay apart from their base are saved with its name; packed weights cannot change.
    """
    adds, packer = config.recipe == "lora", model.backbone.packed_by
    apart = model.adapters is not None or (adds and not config.lora.merge)
    if backbone_path is None and apart:
        raise InputError(
            "adapters are saved apart from their base, whose place is not known: "
            "give backbone_path, or merge them."
        )
    if packer and config.backbone_learns and not apart:
        raise InputError(
            f"recipe {config.recipe} changes the backbone's weights, which are packed ({packer}); "
            "use recipe frozen, or lora with lora.merge=false."
        )
    keeps = apart or not config.backbone_learns
    model.require_savable(backbone_path if keeps else None)


class MTPTrainer(Trainer):
    """transformers' trainer with our loss, optimiser, schedule and checkpoints."""

    def __init__(
        self,
        model: MTPModel,
        blocks: PackedBlocks | StreamedBlocks,
        config: TrainConfig,
        run: RunDirectory,
        clock: Clock,
        held_out: PackedBlocks | None,
        tokenizer: PreTrainedTokenizerBase | None,
        backbone_path: str | None,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.settings = config
        self.mtp = model
        self.objective: ObjectiveConfig = (
            config.objective if config.backbone_learns else config.objective.replace(backbone=0.0)
        )
        self.run = run
        self.held_out = held_out
        self.tokenizer_beside = tokenizer
        self.backbone_path = backbone_path
        self.clock = clock
        self.latest: tuple[float, ...] = ()
        self._sums: list[Tensor] = []
        self.roles = roles(model)
        processes = PartialState()
        rows = len(blocks) if isinstance(blocks, PackedBlocks) else None
        self.total_steps = _total_steps(config, rows)
        arguments = TrainingArguments(
            output_dir=str(run.path),
            max_steps=self.total_steps or UNLIMITED,
            per_device_train_batch_size=rows_per_pass(config, processes.num_processes),
            gradient_accumulation_steps=config.accumulate,
            max_grad_norm=config.max_grad_norm,
            bf16=config.precision == "bf16-mixed",
            seed=config.seed,
            logging_steps=config.log_every,
            save_strategy="steps" if config.save_every else "no",
            save_steps=config.save_every or 1,
            save_total_limit=2,
            remove_unused_columns=False,
            ddp_find_unused_parameters=config.head_warmup > 0 or config.objective.skips_depths,
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.backbone.device.type == "cpu",
            **sharding(model, config, processes.num_processes),
        )
        arguments._n_gpu = 1  # else Trainer would wrap the model in DataParallel; use torchrun
        self.tokens_per_step = config.batch_size * config.block_size
        if config.checkpoint_activations:
            checkpoint_activations(model)
        callbacks: list[TrainerCallback] = [Follow(self, report)]
        if config.tensorboard:
            callbacks.append(tensorboard(run.path / "tensorboard"))
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Numbered(blocks) if isinstance(blocks, PackedBlocks) else blocks,
            callbacks=callbacks,
        )
        self.pop_callback(PrinterCallback)
        if self.sharded:
            model.depth_by_depth = False  # it needs whole parameters
        self.model_accepts_loss_kwargs = True  # the loss is divided by what a whole step holds
        self.states = self._state_cache(rows, blocks.block_size)

    def _state_cache(self, rows: int | None, block_size: int) -> StateCache | None:
        """This process's part of the cache that the settings ask for."""
        if not self.settings.cache_gb or rows is None:
            return None
        processes = PartialState()
        limit = int(self.settings.cache_gb * 2**30 / processes.num_processes)
        path = self.run.states(processes.process_index)
        with self.accelerator.autocast():
            return StateCache(path, self.mtp, rows, block_size, limit)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does, and shards on CPUs too, where accelerate would make copies."""
        super().create_accelerator_and_postprocess()
        self.sharded = bool(self.args.fsdp)
        if self.sharded and not self.is_fsdp_enabled:
            shard_on_cpus(self.accelerator.state, cast(Any, self.args).fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss of all depths; the parts are kept for the next report."""
        index = inputs.pop("index", None)
        given = dict(inputs, objective=self.objective, weights=self.weights())
        row = inputs["input_ids"], inputs["position_ids"]
        with self.accelerator.autocast():  # as in the forward pass, which enters it by itself
            if self.objective.distill == "marginal":
                given["marginals"] = marginal_targets(
                    self.mtp, *row, self.objective, self.settings.accumulate, inputs.get("labels")
                )
            if self.states is not None:
                given["trunk"] = self.states.read(index, *row)
        output = model(**given, counts=num_items_in_batch, passes=self.settings.accumulate)
        self._sums.append(output.depth_losses)
        return (output.loss, output) if return_outputs else output.loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one step, and by what the losses of each depth are divided.

        That is the number of targets in the step over all batches and processes, per process,
        because DDP takes the mean of the processes' gradients.
        """
        batches = list(islice(epoch_iterator, num_batches))
        counts = torch.stack([self._count_targets(batch) for batch in batches]).sum(0)
        counts = self.accelerator.reduce(counts.to(device), reduction="mean")
        return batches, counts.clamp(min=1.0)

    def _count_targets(self, batch: dict[str, Tensor]) -> Tensor:
        labels = batch.get("labels", batch["input_ids"])
        return count_targets(labels, self.mtp.depth, batch["position_ids"])

    def weights(self) -> tuple[float, ...]:
        """Of the depths, now."""
        step = self.state.global_step
        return self.objective.at(self.mtp.depth, self.done(step), step)

    def warm_up_heads(self) -> None:
        """Let the backbone rest as long as only the heads are to learn.

        Its parameters stay among those that learn, as DDP and FSDP know them from the beginning.
        """
        limit, step = self.settings.head_warmup, self.state.global_step
        self.mtp.backbone_trains = step >= limit if limit >= 1 else self.done(step) >= limit
        self.mtp.train()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As transformers does; a backbone that rests forgets what heads passed on to it."""
        loss = super().training_step(*args, **kwargs)
        if self.settings.backbone_learns and not self.mtp.backbone_trains:
            for parameter in self.mtp.lm.parameters():
                parameter.grad = None
        return loss

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """Rows in the same order, however many processes and passes share them."""
        rows = self.args.max_steps * self.settings.batch_size
        return EndlessOrder(len(cast(_Numbered, self.train_dataset)), rows, self.settings.seed)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Ours, see `foretell.training.optimizers`."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.mtp, self.settings, self.roles)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LRScheduler:
        """Ours: along steps or along time, whichever is further."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_schedule(
                optimizer or cast(Optimizer, self.optimizer), self.settings, self.done
            )
        return self.lr_scheduler

    def done(self, step: int) -> float:
        """Share of the run that is behind at `step`, 0…1."""
        along_steps = step / self.total_steps if self.total_steps else 0.0
        return min(1.0, max(along_steps, self.clock.fraction()))

    def take_losses(self) -> tuple[float, ...]:
        """Mean depth losses since the last call, over all processes."""
        if self._sums:
            # Every batch holds its share of its step's loss, see `get_batch_samples`.
            total = torch.stack(self._sums).sum(0) / (len(self._sums) / self.settings.accumulate)
            self.latest = tuple(self.accelerator.reduce(total, reduction="mean").tolist())
            self._sums.clear()
        return self.latest

    def last_losses(self) -> tuple[float, ...]:
        """Depth losses of the last step alone, over all processes."""
        latest = torch.stack(self._sums[-self.settings.accumulate :]).sum(0)
        return tuple(self.accelerator.reduce(latest, reduction="mean").tolist())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As transformers does, with the loss of every depth."""
        if "learning_rate" in logs:
            losses = self.take_losses()
            logs |= {f"loss_depth_{depth}": loss for depth, loss in enumerate(losses)}
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def measure(self) -> tuple[float, ...]:
        """Mean depth losses on the held-out blocks, (K+1,)."""
        blocks = cast(PackedBlocks, self.held_out)
        self.mtp.eval()
        sums, counts = torch.zeros(2, self.mtp.depth + 1, dtype=torch.float64)
        for batch in DataLoader(blocks, batch_size=self.args.per_device_train_batch_size):
            targets = self._count_targets(batch)
            output = self.mtp(**{k: v.to(self.args.device) for k, v in batch.items()})
            sums += output.depth_losses.cpu() * targets
            counts += targets
        self.mtp.train()
        return tuple((sums / counts.clamp(min=1.0)).tolist())

    def gather(self) -> None:
        """Give the main process the whole model."""
        if self.sharded:
            gather_whole(self.mtp)

    def merge_adapters(self) -> None:
        """Where they are to be part of the backbone, and the process holds all of it."""
        whole = not self.sharded or self.args.should_save
        if whole and self.settings.recipe == "lora" and self.settings.lora.merge:
            self.mtp.merge_adapters()

    def store(self, directory: Path) -> None:
        """Save the model; heads alone where the backbone did not change and can be found again."""
        apart = self.mtp.adapters is not None or not self.settings.backbone_learns
        self.mtp.save_pretrained(
            directory,
            backbone_path=self.backbone_path if apart else None,
            tokenizer=None if apart and self.backbone_path else self.tokenizer_beside,
        )

    # -- checkpoints: one form for every number of processes, see `foretell.training.snapshots` --

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's weights and the optimiser's state."""
        directory = Path(output_dir or str(self.args.output_dir)) / "learned"
        if self.sharded or self.args.should_save:
            save_snapshot(directory, self.mtp, self._plain_optimizer, self.sharded)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir, SCHEDULER_FILE))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """With the optimiser, once model and optimiser are spread over the processes."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        load_snapshot(Path(checkpoint, "learned"), self.mtp, self._plain_optimizer, self.sharded)
        scheduler = cast(LRScheduler, self.lr_scheduler)
        scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_FILE), weights_only=True))
        for group, rate in zip(
            self._plain_optimizer.param_groups, scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = rate

    @property
    def _plain_optimizer(self) -> Optimizer:
        """Ours, without what accelerate puts around it."""
        return cast(Optimizer, getattr(self.optimizer, "optimizer", self.optimizer))


class _Numbered(Dataset[dict[str, Tensor]]):
    """Blocks that know their number."""

    def __init__(self, blocks: PackedBlocks) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**self.blocks[index], "index": torch.tensor(index)}


def _total_steps(config: TrainConfig, rows: int | None) -> int | None:
    """The number of steps, or None where only time limits the run; `rows` is None for a stream."""
    limits = [config.steps] if config.steps else []
    if config.epochs and rows is not None:
        limits.append(max(1, round(config.epochs * rows / config.batch_size)))
    return min(limits, default=None)
