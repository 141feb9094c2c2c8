"""One training run on transformers' `Trainer`, which brings mixed precision and resuming."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from foretoken.checkpoint import replacing
from foretoken.data import PackedBlocks
from foretoken.errors import BackboneError, CheckpointError, ForetokenError, InputError
from foretoken.loading import cast_parameters
from foretoken.model import MTPModel
from foretoken.training.config import TrainConfig
from foretoken.training.optimizers import make_optimizer, make_schedule
from foretoken.training.rundir import RunDirectory

UNLIMITED = 10**9


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it.

    Attributes:
        step: optimiser steps done.
        total_steps: how many there will be; None where only time limits the run.
        fraction: share of the run behind, 0…1.
        depth_losses: mean loss of depths 0…K in nats since the last report.
        learning_rate: now.
        tokens_per_second: since the last report.
        seconds: training time spent, over all processes of the run.
    """

    step: int
    total_steps: int | None
    fraction: float
    depth_losses: tuple[float, ...]
    learning_rate: float
    tokens_per_second: float
    seconds: float


@dataclass
class TrainResult:
    """What a run leaves behind.

    Attributes:
        directory: of the trained model.
        steps: optimiser steps done.
        tokens: tokens read, over all steps, the filling of blocks included.
        seconds: training time spent, over all processes of the run.
        depth_losses: of the last report.
    """

    directory: Path
    steps: int
    tokens: int
    seconds: float
    depth_losses: tuple[float, ...] = field(default=())


def train(
    model: MTPModel,
    blocks: PackedBlocks,
    config: TrainConfig,
    out: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backbone_path: str | None = None,
    report: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train `model` on `blocks` and save it to `out/model`; resume where `out` holds a checkpoint.

    Args:
        model: with heads attached; changed in place.
        blocks: the corpus, one document per block where the backbone does not isolate documents.
        config: the settings.
        out: the run directory.
        tokenizer: saved with the model.
        backbone_path: where the backbone can be loaded from; then `frozen` stores heads alone.
        report: called with the progress every `config.log_every` steps.

    Raises:
        BackboneError: the backbone lets documents that are packed in `blocks` attend to each other.
        InputError: `out` belongs to a run with other settings.
    """
    if config.attention is not None:
        _set_attention(model, config.attention)
    _check_blocks(model, blocks)
    run = RunDirectory(out)
    source = {
        "backbone": model.backbone.fingerprint(),
        "blocks": len(blocks),
        "tokens": blocks.num_tokens,
        "bytes": blocks.num_bytes,
    }
    run.claim(config, source)
    if config.recipe == "frozen":
        model.freeze_backbone()
    _set_precision(model, config.precision)
    if config.compile:
        _compile_blocks(model)
    resume = run.resume_point()
    clock = _Clock(config.minutes, resume.seconds if resume else 0.0)
    trainer = _MTPTrainer(model, blocks, config, run, clock, tokenizer, backbone_path, report)
    outcome = trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume else None)
    seconds = clock.seconds()
    model.eval()
    trainer.store(run.model)
    run.finish()
    tokens = outcome.global_step * config.batch_size * config.block_size
    return TrainResult(run.model, outcome.global_step, tokens, seconds, trainer.latest)


class _MTPTrainer(Trainer):
    """transformers' trainer with our loss, optimiser, schedule and checkpoints."""

    def __init__(
        self,
        model: MTPModel,
        blocks: PackedBlocks,
        config: TrainConfig,
        run: RunDirectory,
        clock: "_Clock",
        tokenizer: PreTrainedTokenizerBase | None,
        backbone_path: str | None,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.settings = config
        self.learned = config.objective_config()
        self.tokenizer_beside = tokenizer
        self.backbone_path = backbone_path
        self.total_steps = _total_steps(config, len(blocks))
        self.clock = clock
        self.latest: tuple[float, ...] = ()
        self._sums: list[Tensor] = []
        arguments = TrainingArguments(
            output_dir=str(run.path),
            max_steps=self.total_steps or UNLIMITED,
            per_device_train_batch_size=config.batch_size,
            max_grad_norm=config.max_grad_norm,
            bf16=config.precision == "bf16-mixed",
            seed=config.seed,
            logging_steps=config.log_every,
            save_strategy="steps" if config.save_every else "no",
            save_steps=config.save_every or 1,
            save_total_limit=2,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.backbone.device.type == "cpu",
        )
        arguments._n_gpu = 1  # else Trainer would wrap the model in DataParallel; use torchrun
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=blocks,
            callbacks=[_Follow(self, run, report)],
        )
        self.pop_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted loss of all depths; the parts are kept for the next report."""
        output = model(**inputs, objective=self.learned)
        self._sums.append(output.depth_losses)
        return (output.loss, output) if return_outputs else output.loss

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Ours, see `foretoken.training.optimizers`."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(cast(MTPModel, self.model), self.settings)
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
        """Mean depth losses since the last call."""
        if self._sums:
            self.latest = tuple(torch.stack(self._sums).mean(0).tolist())
            self._sums.clear()
        return self.latest

    def store(self, directory: Path) -> None:
        """Save the model; heads alone where the backbone did not change and can be found again."""
        alone = self.settings.recipe == "frozen"
        cast(MTPModel, self.model).save_pretrained(
            directory,
            backbone_path=self.backbone_path if alone else None,
            tokenizer=None if alone and self.backbone_path else self.tokenizer_beside,
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint's model part."""
        if self.args.should_save:
            _save_weights(cast(MTPModel, self.model), Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        _load_weights(cast(MTPModel, self.model), Path(resume_from_checkpoint))


class _Follow(TrainerCallback):
    """Writes the metrics, reports progress, marks whole checkpoints, and stops the clock."""

    def __init__(
        self, trainer: _MTPTrainer, run: RunDirectory, report: Callable[[Progress], None] | None
    ) -> None:
        self.trainer, self.run, self.report = trainer, run, report
        self._since = (0, time.monotonic())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.clock.start()
        self._since = (state.global_step, time.monotonic())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.trainer.clock.fraction() >= 1.0:
            control.should_training_stop = True
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_log = True  # what was learned since the last report

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs.get("logs") or {}
        if "learning_rate" not in logs:
            return
        now, (step, since) = time.monotonic(), self._since
        settings = self.trainer.settings
        tokens = (state.global_step - step) * settings.batch_size * settings.block_size
        self._since = (state.global_step, now)
        progress = Progress(
            step=state.global_step,
            total_steps=self.trainer.total_steps,
            fraction=self.trainer.done(state.global_step),
            depth_losses=self.trainer.take_losses(),
            learning_rate=float(logs["learning_rate"]),
            tokens_per_second=tokens / max(now - since, 1e-9),
            seconds=self.trainer.clock.seconds(),
        )
        if not all(map(math.isfinite, progress.depth_losses)):
            raise ForetokenError(
                f"the loss is not finite at step {state.global_step} (by depth "
                f"{progress.depth_losses}); lower the learning rate or raise the precision."
            )
        self.run.log({**asdict(progress), "gradient_norm": logs.get("grad_norm")})
        if self.report is not None:
            self.report(progress)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.run.mark_complete(state.global_step, self.trainer.clock.seconds())


class _Clock:
    """Training time spent, over all processes of a run, as a share of the minutes allowed."""

    def __init__(self, minutes: float | None, before: float) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.before = before
        self._started: float | None = None

    def start(self) -> None:
        self._started = time.monotonic()

    def seconds(self) -> float:
        now = 0.0 if self._started is None else time.monotonic() - self._started
        return self.before + now

    def fraction(self) -> float:
        return 0.0 if self.limit is None else self.seconds() / self.limit


def _save_weights(model: MTPModel, directory: Path) -> None:
    """A checkpoint's weights: of what learns, tensor by tensor as the modules hold them."""
    with replacing(directory) as work:
        if model.head is not None:
            save_model(model.head, str(work / "head.safetensors"))
        if model.backbone_trains:
            save_model(model.lm, str(work / "backbone.safetensors"))


def _load_weights(model: MTPModel, directory: Path) -> None:
    """The inverse of `_save_weights`."""
    try:
        if model.head is not None:
            load_model(model.head, directory / "head.safetensors", strict=True)
        if model.backbone_trains:
            load_model(model.lm, directory / "backbone.safetensors", strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory}: does not fit the model ({error}); remove it to go on without it."
        ) from None


def _set_attention(model: MTPModel, implementation: str) -> None:
    try:
        model.lm.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"attention {implementation!r} cannot be used: {reason}") from None


def _set_precision(model: MTPModel, precision: str) -> None:
    """What learns is float32, unless the optimiser keeps float32 copies (`bf16`)."""
    if precision == "bf16":
        cast_parameters(model, torch.bfloat16)
        return
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _check_blocks(model: MTPModel, blocks: PackedBlocks) -> None:
    """Blocks must fit the context, and keep documents apart where the backbone does not."""
    if not (blocks.one_document_per_block or model.backbone.isolates_documents):
        raise BackboneError(
            f"{type(model.lm).__name__} lets packed documents attend to each other; "
            "make the blocks with one_document_per_block=True."
        )
    length, context = len(blocks[0]["input_ids"]), model.backbone.max_length
    if context is not None and length > context:
        raise InputError(
            f"blocks of {length} tokens are longer than the model's context of {context}; "
            "use a smaller block size."
        )


def _compile_blocks(model: MTPModel) -> None:
    kind = type(model.backbone.blocks[-1])
    for module in model.modules():
        if isinstance(module, kind):
            module.compile()


def _total_steps(config: TrainConfig, num_blocks: int) -> int | None:
    """The number of steps, or None where only time limits the run."""
    per_epoch = -(-num_blocks // config.batch_size)
    limits = [config.steps] if config.steps else []
    if config.epochs:
        limits.append(max(1, round(config.epochs * per_epoch)))
    return min(limits, default=None)
