"""A training run on the terminal: what it is about to do, how it goes, and how to go on."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import typer
from rich.console import RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from foretell.cli import common
from foretell.formats import layouts_for
from foretell.hardware import is_quick, slowdown
from foretell.model import MTPModel
from foretell.training import Plan, Progress
from foretell.training.rundir import RunDirectory

Report = Callable[[Progress], None]

SHOWN = 10
"""Steps that are shown one by one where there is no bar."""
PAUSE = 15.0
"""Seconds between lines after them."""


class Watch:
    """Says what a run is about to do, and warns where its time is too short for it.

    Args:
        model: that is trained.
        show: what shows the progress.
    """

    def __init__(self, model: MTPModel, show: Report) -> None:
        self.model, self.show = model, show
        self._plan: Plan | None = None
        self._last = time.monotonic()

    def begin(self, plan: Plan) -> None:
        """For `begin` of `train`."""
        self._plan, self._last = plan, time.monotonic()
        for line in describe_plan(plan, self.model):
            common.console.print(line)
        hint = describe_precision(torch.device(plan.device))
        if hint and plan.precision == "float32" and not common.console.quiet:
            typer.echo(hint, err=True)
        _warn(describe_passes(plan))

    def report(self, progress: Progress) -> None:
        """For `report` of `train`."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        if self._plan is not None:
            done = progress.step - self._plan.begun
            # The second step: the first makes ready what later ones use.
            if done == 2 or (done == 1 and progress.fraction >= 1.0):
                _warn(describe_pace(self._plan, seconds))
                if self._plan.minutes is not None:  # else it was said before
                    _warn(describe_passes(self._plan, seconds))
                self._plan = None
        self.show(progress)


def describe_plan(plan: Plan, model: MTPModel) -> list[str]:
    """What is about to happen, in a few lines."""
    learns = ", ".join(f"{part} ({count:,} parameters)" for part, count in plan.learns.items())
    rests = f"; {plan.rests:,} parameters stay as they are" if plan.rests else ""
    rows = f"{plan.batch_size} × {plan.block_size} tokens per step"
    data = "Reads a stream"
    if plan.documents is not None:
        data = f"Reads {plan.documents:,} documents, {plan.tokens:,} tokens"
    limits = [] if plan.steps is None else [f"{plan.steps:,} steps"]
    limits += [] if plan.minutes is None else [f"{plan.minutes:g} minutes"]
    until = " or ".join(limits)
    where = f"on {plan.device} in {plan.precision}"
    where += f", {plan.processes} processes" * (plan.processes > 1)
    begun = f"; continues after step {plan.begun}" * bool(plan.begun)
    lines = [f"Trains {learns}{rests}.", f"{data}, {rows}, for {until}, {where}{begun}."]
    if plan.drafted is not None and plan.coverage is not None:
        of_all = f"{plan.drafted:,} of {model.backbone.vocab_size:,} tokens"
        lines.append(f"The heads draft {of_all}, {plan.coverage:.1%} of what is to be predicted.")
    if model.head is not None:
        names = layouts_for(model)
        lines.append(
            f"`foretell export` can write these heads for: {', '.join(names)}."
            if names
            else "No serving engine runs heads of this kind as they are; train with --for LAYOUT "
            "to export them."
        )
    return lines


def describe_precision(device: torch.device) -> str | None:
    """What a run in float32 could do faster there; None: nothing."""
    if not is_quick(torch.bfloat16, device.type):
        return None
    return (
        f"This CPU multiplies matrices {1 / slowdown(torch.bfloat16, device.type):.1f} times as "
        "fast in bfloat16 as in float32: --precision bf16-mixed is likely to train faster."
    )


def describe_pace(plan: Plan, seconds: float) -> str | None:
    """A warning where few steps fit into the time, and what would help; None where enough do."""
    if (proposed := plan.proposed_batch_size(seconds)) is None:
        return None
    help_ = (
        f"--batch-size {proposed}"
        if proposed < plan.batch_size
        else "a smaller --block-size or more --minutes"
    )
    fitting = max(1, plan.steps_in_time(seconds) or 0)
    return (
        f"Warning: a step takes {seconds:.1f} s, so that about {fitting} fit into "
        f"{plan.minutes:g} minutes, too few to learn much; try {help_}."
    )


def describe_passes(plan: Plan, seconds: float = 0.0) -> str | None:
    """A warning where the same text is read over and over; None where it is not.

    Args:
        plan: of the run.
        seconds: that a step takes, once that is known.
    """
    if (passes := plan.too_many_passes(seconds)) is None:
        return None
    return (
        f"Warning: {passes:,.0f} passes over {plan.tokens:,} tokens: these texts will be learned "
        "by heart, which does not help on others; more text is better than more steps."
    )


def _warn(warning: str | None) -> None:
    if warning is not None:
        common.console.print(warning, style="bold red")


def describe_overrun(minutes: float | None, seconds: float) -> str | None:
    """By how much a run overran its time; None where it did not."""
    if minutes is None or seconds <= 60 * minutes + 1:
        return None
    return f"That is {seconds - 60 * minutes:.0f} s more than {minutes:g} minutes: a step is long."


def describe_interruption(out: Path) -> str:
    """How to go on with a run that was interrupted."""
    point = RunDirectory(out).resume_point()
    again = f"foretell {shlex.join(sys.argv[1:])}"
    if point is None:
        return f"No checkpoint was saved yet; the same command starts again: {again}"
    return f"The same command continues after step {point.step}: {again}"


@contextmanager
def training_bar(minutes: float | None = None) -> Iterator[Report]:
    """Yields what `train` reports to: a bar, or lines where no terminal shows one.

    Args:
        minutes: that limit the run; the bar then moves with the time.
    """
    if not common.console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("Training"),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    with _TimedBar(*columns, console=common.console) as bar:
        task = bar.add_task("train", total=1.0, numbers="")

        def report(progress: Progress) -> None:
            if measured := _held_out(progress):
                bar.console.print(measured)
            bar.update(task, completed=progress.fraction, numbers=_numbers(progress))
            bar.follow(progress, minutes)

        yield report


class _TimedBar(Bar):
    """Between reports moves as fast as the time that limits the run passes."""

    _clock: tuple[float, float] | None = None  # when the run began as its clock goes, and its limit

    def follow(self, progress: Progress, minutes: float | None) -> None:
        """Take the time from a report."""
        if minutes is not None:
            self._clock = time.monotonic() - progress.seconds, 60 * minutes

    def get_renderables(self) -> Iterator[RenderableType]:
        if self._clock is not None:
            began, limit = self._clock
            for task in self.tasks:
                share = min(1.0, (time.monotonic() - began) / limit)
                task.completed = max(task.completed, share)
        yield from super().get_renderables()


class _Lines:
    """A line for each of the first steps, then for some, and for the last."""

    def __init__(self) -> None:
        self._count, self._last = 0, -PAUSE

    def __call__(self, progress: Progress) -> None:
        self._count += 1
        if measured := _held_out(progress):
            common.console.print(measured)
        now = time.monotonic()
        if self._count > SHOWN and now < self._last + PAUSE and progress.fraction < 1.0:
            return
        self._last = now
        spent = timedelta(seconds=int(progress.seconds))
        common.console.print(f"{_numbers(progress)}, {100 * progress.fraction:.0f} %, {spent}")


def _numbers(progress: Progress) -> str:
    total = "" if progress.total_steps is None else f" of {progress.total_steps:,}"
    losses = " ".join(f"{loss:.2f}" for loss in progress.depth_losses)
    speed = f"{progress.tokens_per_second:,.0f} tokens/s"
    return f"step {progress.step:,}{total}, loss {losses}, {speed}"


def _held_out(progress: Progress) -> str | None:
    if not progress.held_out_losses:
        return None
    measured = " ".join(f"{loss:.3f}" for loss in progress.held_out_losses)
    return f"step {progress.step}: held-out loss by depth {measured} nats"
