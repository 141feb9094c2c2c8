"""One row as its client reads it: from the engine's thread to the server's loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from foretell.decoding import Stop
from foretell.serve.errors import as_api_error
from foretell.serve.jobs import Event, Job, Progress, Settings
from foretell.serve.schema import Drafting, Finish, Usage
from foretell.serve.text import Piece, Writer


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is to be decoded and sent.

    Attributes:
        prompt: token ids.
        settings: that its batch has.
        max_new_tokens: how many tokens to emit.
        seed: of what is drawn.
        stops: where it ends earlier.
        texts: that it stops before.
        tokenizer: whose tokens they are.
    """

    prompt: Sequence[int]
    settings: Settings
    max_new_tokens: int
    seed: int
    stops: Sequence[Stop]
    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerBase


@dataclass
class Tally:
    """What a row has taken so far."""

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def add(self, progress: Progress) -> None:
        """Count one more step."""
        step = progress.step
        self.forwards += 1
        self.tokens += len(step.tokens)
        self.drafted += step.drafted
        self.accepted += step.accepted
        self.seconds = progress.seconds

    @property
    def drafting(self) -> Drafting:
        """How the tokens came."""
        return Drafting(
            forwards=self.forwards,
            tokens_per_forward=self.tokens / max(1, self.forwards),
            drafted=self.drafted,
            accepted=self.accepted,
            seconds=self.seconds,
        )


@dataclass
class Reading:
    """Made in the server's loop. Close it when nobody reads any more, and the row ends.

    Attributes:
        row: what is decoded.
        job: the engine's side of it.
        tally: what it has taken.
    """

    row: Row
    job: Job = field(init=False)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        loop, row = asyncio.get_running_loop(), self.row
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._writer = Writer(row.tokenizer, row.prompt, row.texts)
        self._ended = False

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.job = Job(row.prompt, row.settings, row.max_new_tokens, row.stops, row.seed, deliver)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What every step brings, as it comes; what brings no text yet too.

        Raises:
            ApiError: the engine failed.
        """
        while not self._ended:
            event = await self._events.get()
            if isinstance(event, Exception):
                self._ended = True
                raise as_api_error(event) from event
            self.tally.add(event)
            pieces = self._writer.add(event.step)
            if event.ended:
                self._ended = True
                pieces += self._writer.finish()
            yield pieces

    def close(self) -> None:
        """Nobody reads any more."""
        if not self._ended:
            self.job.cancelled = True

    @property
    def finish_reason(self) -> Finish:
        """Why it ended."""
        full = self.tally.tokens >= self.row.max_new_tokens
        ended_itself = any(stop((), self.job.written[-1:]) for stop in self.row.stops[:1])
        return "length" if full and not ended_itself and not self._writer.stopped else "stop"

    @property
    def usage(self) -> Usage:
        """What it took."""
        prompt = len(self.row.prompt)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=self.tally.tokens,
            total_tokens=prompt + self.tally.tokens,
            foretell=self.tally.drafting,
        )
