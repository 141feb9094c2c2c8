"""Answers in OpenAI's forms, whole or as a stream of server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foretell.serve.errors import ApiError, error_body
from foretell.serve.reading import Reading
from foretell.serve.schema import (
    Chat,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    Completion,
    CompletionChoice,
    Delta,
    DraftedText,
    Finish,
    Said,
    Usage,
)
from foretell.serve.text import Piece


@dataclass(frozen=True)
class Choice:
    """What is said of one row: all of it, or what a chunk adds.

    Attributes:
        index: which row.
        text: what it says.
        finish: why it ended; None: it goes on.
        drafts: where each piece came from, if that was asked for.
    """

    index: int
    text: str
    finish: Finish | None = None
    drafts: list[DraftedText] | None = None


class Form(Protocol):
    """How an answer is written: as completions or as a chat."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> BaseModel:
        """All at once."""
        ...

    def opening(self) -> BaseModel | None:
        """A chunk before all others."""
        ...

    def chunk(self, choice: Choice) -> BaseModel:
        """Some text of a row, or its end."""
        ...

    def closing(self, usage: Usage) -> BaseModel:
        """A chunk that has the usage."""
        ...


@dataclass(frozen=True)
class CompletionForm:
    """As `/v1/completions` answers."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Completion:
        return self._made(choices, usage)

    def opening(self) -> None:
        return None

    def chunk(self, choice: Choice) -> Completion:
        return self._made([choice])

    def closing(self, usage: Usage) -> Completion:
        return self._made([], usage)

    def _made(self, choices: Sequence[Choice], usage: Usage | None = None) -> Completion:
        said = [
            CompletionChoice(index=c.index, text=c.text, finish_reason=c.finish, drafts=c.drafts)
            for c in choices
        ]
        return Completion(
            id=self.id, created=self.created, model=self.model, choices=said, usage=usage
        )


@dataclass(frozen=True)
class ChatForm:
    """As `/v1/chat/completions` answers."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Chat:
        said = [
            ChatChoice(
                index=c.index,
                message=Said(content=c.text),
                finish_reason=c.finish or "stop",
                drafts=c.drafts,
            )
            for c in choices
        ]
        return Chat(id=self.id, created=self.created, model=self.model, choices=said, usage=usage)

    def opening(self) -> ChatChunk:
        return self._made([ChatChunkChoice(delta=Delta(role="assistant", content=""))])

    def chunk(self, choice: Choice) -> ChatChunk:
        delta = Delta(content=choice.text or None)
        return self._made(
            [
                ChatChunkChoice(
                    index=choice.index,
                    delta=delta,
                    finish_reason=choice.finish,
                    drafts=choice.drafts,
                )
            ]
        )

    def closing(self, usage: Usage) -> ChatChunk:
        return self._made([], usage)

    def _made(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


async def whole(form: Form, reading: Reading, show_drafts: bool) -> BaseModel:
    """The answer, when all of it is there."""
    said: list[list[Piece]] = [[] for _ in reading.rows]
    async for number, pieces in reading.pieces():
        said[number] += pieces
    choices = [
        Choice(number, _text(pieces), row.finish_reason, _drafts(pieces) if show_drafts else None)
        for number, (row, pieces) in enumerate(zip(reading.rows, said, strict=True))
    ]
    return form.whole(choices, reading.usage)


async def chunks(
    form: Form, reading: Reading, *, show_drafts: bool, usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events. What fails on the way is the last event."""
    try:
        if (opening := form.opening()) is not None:
            yield _event(opening)
        async for number, pieces in reading.pieces():
            if pieces or show_drafts:
                drafts = _drafts(pieces) if show_drafts else None
                chunk = form.chunk(Choice(number, _text(pieces), drafts=drafts))
                yield _event(chunk, foretell=reading.spent.drafting if show_drafts else None)
            if (finish := reading.rows[number].finish_reason) is not None:
                yield _event(form.chunk(Choice(number, "", finish)))
        if usage:
            yield _event(form.closing(reading.usage))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error_body(error))}\n\n"


class Stream(StreamingResponse):
    """Server-sent events of rows, which end where nobody reads them any more."""

    def __init__(self, reading: Reading, events: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reading.close()


def _event(chunk: BaseModel, foretell: BaseModel | None = None) -> str:
    content: dict[str, Any] = chunk.model_dump(exclude_none=False)
    for choice in content["choices"]:
        if "delta" in choice:  # only what a chunk adds
            choice["delta"] = {k: v for k, v in choice["delta"].items() if v is not None}
        if choice["drafts"] is None:
            del choice["drafts"]
    if content["usage"] is None:
        del content["usage"]
    if foretell is not None:
        content["foretell"] = foretell.model_dump()
    return f"data: {json.dumps(content)}\n\n"  # escaped: many clients end lines at U+2028 too


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _drafts(pieces: Sequence[Piece]) -> list[DraftedText]:
    return [(piece.text, piece.depth) for piece in pieces]
