"""The rows of a request as its client reads them: from the engine's thread to the server's loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from foretell.decoding import Stop
from foretell.serve.errors import as_api_error
from foretell.serve.jobs import Event, Job, RowStep, Settings
from foretell.serve.schema import Drafting, Finish, Usage
from foretell.serve.text import Piece, Writer


@dataclass(frozen=True, kw_only=True)
class RowRequest:
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
class Spent:
    """What some rows have taken so far."""

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def add(self, progress: RowStep) -> None:
        """Count one more step of a row."""
        step = progress.step
        self.forwards += 1
        self.tokens += len(step.tokens)
        self.drafted += step.drafted
        self.accepted += step.accepted
        self.seconds = max(self.seconds, progress.seconds)

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


class RowReading:
    """One row on its way.

    Attributes:
        row: what is decoded.
        job: the engine's side of it.
        ended: whether all of it has been read.
    """

    def __init__(
        self, row: RowRequest, events: "asyncio.Queue[tuple[int, Event]]", number: int
    ) -> None:
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (number, event))

        self.row, self.ended = row, False
        self.job = Job(row.prompt, row.settings, row.max_new_tokens, row.stops, row.seed, deliver)
        self._writer = Writer(row.tokenizer, row.prompt, row.texts)

    def read(self, progress: RowStep) -> list[Piece]:
        """What a step brings."""
        pieces = self._writer.add(progress.step)
        if progress.ended:
            self.ended = True
            pieces += self._writer.finish()
        return pieces

    @property
    def finish_reason(self) -> Finish | None:
        """Why it ended; None before."""
        if not self.ended:
            return None
        full = len(self.job.written) >= self.row.max_new_tokens
        ended_itself = any(stop((), self.job.written[-1:]) for stop in self.row.stops[:1])
        return "length" if full and not ended_itself and not self._writer.stopped else "stop"


class Reading:
    """Made in the server's loop. Close it when nobody reads any more, and its rows end.

    Attributes:
        rows: what is decoded, in the order of the answer's choices.
        tally: what they have taken.
    """

    def __init__(self, rows: Sequence[RowRequest]) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.rows = [RowReading(row, self._events, number) for number, row in enumerate(rows)]
        self.spent = Spent()

    @property
    def jobs(self) -> list[Job]:
        """The engine's side of it."""
        return [row.job for row in self.rows]

    async def pieces(self) -> AsyncIterator[tuple[int, list[Piece]]]:
        """What every step brings, as it comes, with its row; what brings no text yet too.

        Raises:
            ApiError: the engine failed.
        """
        while not all(row.ended for row in self.rows):
            number, event = await self._events.get()
            if isinstance(event, Exception):
                self.close()
                raise as_api_error(event) from event
            self.spent.add(event)
            yield number, self.rows[number].read(event)

    def close(self) -> None:
        """Nobody reads any more."""
        for row in self.rows:
            row.job.cancelled = row.job.cancelled or not row.ended

    @property
    def usage(self) -> Usage:
        """What all rows took."""
        prompt = sum(len(row.row.prompt) for row in self.rows)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=self.spent.tokens,
            total_tokens=prompt + self.spent.tokens,
            foretell=self.spent.drafting,
        )
