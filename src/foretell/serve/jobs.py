"""What is asked of the engine, and what it answers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from foretell.decoding import Sampling, Step, Stop, StopTokens
from foretell.errors import ForetellError


class QueueFull(ForetellError):
    """As many requests wait as may."""


class Closed(ForetellError):
    """The engine takes nothing more."""


@dataclass(frozen=True)
class Settings:
    """What the rows of one batch have in common.

    Attributes:
        sampling: how tokens are chosen, seeds aside.
        drafted: whether the server's drafter proposes tokens; else one is decoded at a time.
    """

    sampling: Sampling
    drafted: bool = True


@dataclass(frozen=True)
class RowStep:
    """A step of one row.

    Attributes:
        step: what it brought.
        seconds: since the row's first batch began.
        ended: whether it is the last one.
    """

    step: Step
    seconds: float
    ended: bool


Event = RowStep | Exception


@dataclass(eq=False)
class Job:
    """One row to be decoded.

    Attributes:
        prompt: token ids.
        settings: that its batch has.
        max_new_tokens: how many tokens to emit.
        stops: where it ends earlier.
        seed: of what is drawn.
        deliver: is called from the engine's thread with every event; what it returns is ignored.
        cancelled: set it, from any thread, and the row ends at the next step.
        written: the tokens so far.
        created: when it was made, by the monotonic clock.
        began: when it was first decoded.
        first: when its first tokens came.
        finished: whether there will be no more events.
    """

    prompt: Sequence[int]
    settings: Settings
    max_new_tokens: int
    stops: Sequence[Stop]
    seed: int
    deliver: Callable[[Event], object]
    cancelled: bool = False
    written: list[int] = field(default_factory=list)
    created: float = field(default_factory=time.monotonic)
    began: float | None = None
    first: float | None = None
    finished: bool = False

    @property
    def tokens(self) -> list[int]:
        """All that stands: what a batch that takes it up again begins with."""
        return [*self.prompt, *self.written]

    @property
    def room(self) -> int:
        """How many tokens are still to come, at most."""
        return self.max_new_tokens - len(self.written)

    @property
    def remaining_stops(self) -> list[Stop]:
        """Its stops, for a batch that begins after what is written."""
        # A token ends the row whatever was written before.
        alone = [not self.written or isinstance(stop, StopTokens) for stop in self.stops]
        return [
            stop if same else Behind(self.written.copy(), stop)
            for stop, same in zip(self.stops, alone, strict=True)
        ]

    def began_now(self) -> None:
        """Note the time, if it is the first time."""
        self.began = self.began or time.monotonic()


@dataclass(frozen=True)
class Behind:
    """A stop that also looks at what was written before the batch began."""

    earlier: Sequence[int]
    stop: Stop

    def __call__(self, before: Sequence[int], new: Sequence[int]) -> int | None:
        return self.stop([*self.earlier, *before], new)
