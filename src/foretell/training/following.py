"""A run as it goes: what is written, measured and reported along the way."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from foretell.data import PackedBlocks
from foretell.errors import ForetellError, not_installed
from foretell.training.processes import mean_over_processes
from foretell.training.progress import Progress
from foretell.training.report import draw_curves
from foretell.training.trainer import Step, Trainer


class Follow:
    """Is told of every step: writes the metrics, reports progress, and has checkpoints written.

    With every checkpoint it draws the curves so far.

    Args:
        trainer: of the run.
        held_out: what to measure the loss on, now and then; None: nothing.
        report: called with the progress by the main process.

    Attributes:
        latest: depth losses (K+1,) of the last line of the metrics, which an earlier process may
            have written; empty before the first.
    """

    def __init__(
        self,
        trainer: Trainer,
        held_out: PackedBlocks | None,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.trainer, self.held_out, self.report = trainer, held_out, report
        written = trainer.run.metrics() if trainer.done else []
        self.latest = tuple(written[-1]["depth_losses"]) if written else ()
        self._written: int = written[-1]["step"] if written else 0
        self._main = trainer.processes.is_main_process
        self._steps: list[Step] = []  # since the last line
        self._since = self._shown = (trainer.done, time.monotonic())
        self._board = None
        if trainer.config.tensorboard and self._main:
            self._board = _tensorboard(trainer.run.path, trainer.done)

    def __call__(self, step: Step) -> None:
        """`step` is done."""
        config, over = self.trainer.config, self.trainer.over
        self._steps.append(step)
        if over or step.number % config.log_every == 0:
            self._write(step)
        elif self.trainer.reports(step.number):
            self._show(self._progress(step, [step], self._shown))
        if config.save_every and (over or step.number % config.save_every == 0):
            self.trainer.checkpoint()
            if self._main:
                run = self.trainer.run
                draw_curves(run.metrics(), run.curves)

    def close(self) -> None:
        """Nothing more comes."""
        if self._board is not None:
            self._board.close()

    def _write(self, step: Step) -> None:
        """A line of the metrics, of all steps since the last."""
        progress = self._progress(step, self._steps, self._since)
        progress = replace(progress, held_out_losses=self._measured(step.number))
        self._since = step.number, time.monotonic()  # measuring is no time of training
        self._steps, self.latest, self._written = [], progress.depth_losses, step.number
        if not all(map(math.isfinite, progress.depth_losses)):
            raise ForetellError(
                f"the loss is not finite at step {step.number} (by depth "
                f"{progress.depth_losses}); lower the learning rate or raise the precision."
            )
        if self._main:
            line = {**asdict(progress), "gradient_norm": float(step.gradient_norm)}
            self.trainer.run.log(line)
            self._draw(line)
        self._show(progress)

    def _measured(self, now: int) -> tuple[float, ...]:
        """The held-out loss, if it became due after the last line; else empty."""
        every = self.trainer.config.evaluate_every
        if self.held_out is None or not every or self._written // every == now // every:
            return ()
        return self.trainer.measure(self.held_out)

    def _progress(self, step: Step, steps: list[Step], since: tuple[int, float]) -> Progress:
        """Where the run stands: the losses of some steps, and the speed since a step and a time."""
        trainer, (number, began) = self.trainer, since
        measured = list(zip(*(one.measured for one in steps), strict=True))  # by depth
        every = torch.stack([one.depth_losses for one in steps], dim=1)  # (K+1, S)
        means = [row[list(which)].mean() for row, which in zip(every, measured, strict=True)]
        losses = mean_over_processes(torch.stack(means)).tolist()
        if self.latest:  # what was not measured is as it was
            parts = zip(losses, measured, self.latest, strict=True)
            losses = [loss if any(which) else last for loss, which, last in parts]
        tokens = (step.number - number) * trainer.tokens_per_step
        return Progress(
            step=step.number,
            total_steps=trainer.total_steps,
            fraction=trainer.fraction,
            depth_losses=tuple(losses),
            learning_rate=step.learning_rate,
            tokens_per_second=tokens / max(time.monotonic() - began, 1e-9),
            seconds=trainer.clock.seconds(),
        )

    def _show(self, progress: Progress) -> None:
        self._shown = progress.step, time.monotonic()
        if self._main and self.report is not None:
            self.report(progress)

    def _draw(self, line: dict[str, Any]) -> None:
        """The same line for TensorBoard."""
        if self._board is None:
            return
        for name in ("learning_rate", "gradient_norm", "tokens_per_second"):
            self._board.add_scalar(f"train/{name}", line[name], line["step"])
        for kind, field in (("train", "depth_losses"), ("held_out", "held_out_losses")):
            for depth, loss in enumerate(line[field]):
                self._board.add_scalar(f"{kind}/loss_depth_{depth}", loss, line["step"])


def _tensorboard(directory: Path, done: int) -> Any:
    """What writes a run's metrics where TensorBoard reads them; it forgets steps after `done`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise not_installed("tensorboard", "train") from None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=done + 1)
