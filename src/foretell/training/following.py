"""A run as it goes: what is written and reported along the way, and when it stops."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretell.errors import ForetellError, not_installed
from foretell.training.progress import Progress
from foretell.training.report import draw_curves
from foretell.training.trainer import MTPTrainer

FIRST = 10
"""Steps of a process that are reported one by one, for people to see that it runs."""


class Follow(TrainerCallback):
    """Writes the metrics, reports progress, marks whole checkpoints, and stops the clock.

    With every checkpoint it draws the curves so far.
    """

    def __init__(self, trainer: MTPTrainer, report: Callable[[Progress], None] | None) -> None:
        self.trainer, self.report = trainer, report
        self._began = 0
        self._since = self._shown = (0, time.monotonic())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.clock.start()
        self.trainer.clock.tick()
        self._began = state.global_step
        self._since = self._shown = (state.global_step, time.monotonic())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.trainer.settings.head_warmup:
            self.trainer.warm_up_heads()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.clock.tick()
        if self.trainer.clock.fraction() >= 1.0:
            control.should_training_stop = True
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_log = True  # what was learned since the last report
        if not control.should_log and state.global_step - self._began <= FIRST:
            shown, self._shown = self._shown, (state.global_step, time.monotonic())
            rate = float(kwargs["lr_scheduler"].get_last_lr()[0])
            progress = self._progress(state, self.trainer.last_losses(), shown, rate)
            if args.should_save and self.report is not None:
                self.report(progress)

    def _progress(
        self,
        state: TrainerState,
        losses: tuple[float, ...],
        since: tuple[int, float],
        rate: float,
    ) -> Progress:
        """Where the run stands; its speed is that since a step and a time."""
        trainer, (step, began) = self.trainer, since
        tokens = (state.global_step - step) * trainer.tokens_per_step
        return Progress(
            step=state.global_step,
            total_steps=trainer.total_steps,
            fraction=trainer.done(state.global_step),
            depth_losses=losses,
            learning_rate=rate,
            tokens_per_second=tokens / max(time.monotonic() - began, 1e-9),
            seconds=trainer.clock.seconds(),
        )

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs.get("logs") or {}
        if "learning_rate" not in logs:
            return
        trainer, every = self.trainer, self.trainer.settings.evaluate_every
        since, self._since = self._since, (state.global_step, time.monotonic())
        self._shown = self._since
        due = trainer.held_out is not None and every > 0
        due = due and since[0] // every < state.global_step // every
        progress = self._progress(state, trainer.latest, since, float(logs["learning_rate"]))
        if due:
            progress = replace(progress, held_out_losses=trainer.measure())
        if not all(map(math.isfinite, progress.depth_losses)):
            raise ForetellError(
                f"the loss is not finite at step {state.global_step} (by depth "
                f"{progress.depth_losses}); lower the learning rate or raise the precision."
            )
        if not args.should_save:  # not the main process
            return
        trainer.run.log({**asdict(progress), "gradient_norm": logs.get("grad_norm")})
        if self.report is not None:
            self.report(progress)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            run = self.trainer.run
            run.mark_complete(state.global_step, self.trainer.clock.seconds())
            draw_curves(run.metrics(), run.curves)


def tensorboard(directory: Path) -> TrainerCallback:
    """Writes what the trainer logs where TensorBoard reads it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback
    except ImportError:
        raise not_installed("tensorboard", "train") from None
    return TensorBoardCallback(SummaryWriter(str(directory)))
