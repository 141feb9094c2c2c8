"""transformers' `Trainer` with what is ours; it brings mixed precision and resuming."""

from collections.abc import Iterator
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
    TrainingArguments,
)

from foretell.data import PackedBlocks, Sketch, StreamedBlocks
from foretell.model import MTPModel
from foretell.objective import ObjectiveConfig
from foretell.targets import count_targets
from foretell.training.config import TrainConfig
from foretell.training.marginals import marginal_targets
from foretell.training.optimizers import make_optimizer, make_schedule
from foretell.training.order import EndlessOrder
from foretell.training.preparation import checkpoint_activations
from foretell.training.processes import (
    gather_whole,
    rows_per_pass,
    shard_on_cpus,
    sharding,
)
from foretell.training.progress import Clock
from foretell.training.roles import roles
from foretell.training.rundir import RunDirectory
from foretell.training.snapshots import load_snapshot, save_snapshot
from foretell.training.states import StateCache

UNLIMITED = 10**9
SCHEDULER_FILE = "scheduler.pt"


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
    ) -> None:
        self.settings = config
        self.mtp = model
        self.blocks = blocks
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
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=_Numbered(blocks) if isinstance(blocks, PackedBlocks) else blocks,
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
        beside = self.mtp.tokenizer_path == self.mtp.backbone_path  # of the backbone
        known = Sketch.from_dict(self.mtp.trained_on) | self.blocks.sketch
        self.mtp.trained_on = known.to_dict() if len(known) else {}
        self.mtp.save_pretrained(
            directory,
            backbone_path=self.backbone_path if apart else None,
            tokenizer=None if apart and beside and self.backbone_path else self.tokenizer_beside,
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
