"""How far a run is, and the clock that limits it."""

import time
from dataclasses import dataclass

from foretell.training.processes import agreed


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it.

    Attributes:
        step: optimiser steps done.
        total_steps: how many there will be; None where only time limits the run.
        fraction: share of the run that is over, 0…1.
        depth_losses: mean loss of depths 0…K in nats since the last report.
        held_out_losses: the same on held-out blocks; empty where none was measured just now.
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
    held_out_losses: tuple[float, ...] = ()


class Clock:
    """Training time spent, over all processes of a run, as a share of the minutes allowed.

    Args:
        minutes: None allows any.
        before: seconds spent by earlier processes.
        compiles: whether the first step does, which tells nothing of the next.
    """

    def __init__(self, minutes: float | None, before: float, *, compiles: bool = False) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.before = before
        self._started: float | None = None
        self._fraction = 0.0
        self._steps: list[float] = []
        self._last = 0.0
        self._skipped = 1 + compiles

    def start(self) -> None:
        self._started = time.monotonic()

    def seconds(self) -> float:
        now = 0.0 if self._started is None else time.monotonic() - self._started
        return self.before + now

    def tick(self) -> None:
        """Look at the clock, once per step: the schedule is the same in every process.

        The time is up where one more step, as long as the shorter of the last two, would overrun.
        """
        if self.limit is None:
            return
        now = agreed(self.seconds() / self.limit)
        took, self._last = now - self._last, now
        if self._skipped:  # the time until the first step, and of one that compiles
            self._skipped -= 1
        else:
            self._steps = [*self._steps[-1:], took]
        self._fraction = now if now + min(self._steps, default=0.0) <= 1.0 else 1.0

    def fraction(self) -> float:
        """At the last tick."""
        return self._fraction
