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


class Form(Protocol):
    """How an answer is written: as a completion or as a chat."""

    def whole(
        self, text: str, finish: Finish, drafts: list[DraftedText] | None, usage: Usage
    ) -> BaseModel:
        """All at once."""
        ...

    def opening(self) -> BaseModel | None:
        """A chunk before all others."""
        ...

    def chunk(
        self, text: str | None, finish: Finish | None, drafts: list[DraftedText] | None
    ) -> BaseModel:
        """Some text, or the end."""
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

    def whole(
        self, text: str, finish: Finish, drafts: list[DraftedText] | None, usage: Usage
    ) -> Completion:
        choice = CompletionChoice(text=text, finish_reason=finish, drafts=drafts)
        return self._made([choice], usage)

    def opening(self) -> None:
        return None

    def chunk(
        self, text: str | None, finish: Finish | None, drafts: list[DraftedText] | None
    ) -> Completion:
        return self._made([CompletionChoice(text=text or "", finish_reason=finish, drafts=drafts)])

    def closing(self, usage: Usage) -> Completion:
        return self._made([], usage)

    def _made(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


@dataclass(frozen=True)
class ChatForm:
    """As `/v1/chat/completions` answers."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(
        self, text: str, finish: Finish, drafts: list[DraftedText] | None, usage: Usage
    ) -> Chat:
        choice = ChatChoice(message=Said(content=text), finish_reason=finish, drafts=drafts)
        return Chat(
            id=self.id, created=self.created, model=self.model, choices=[choice], usage=usage
        )

    def opening(self) -> ChatChunk:
        return self._made([ChatChunkChoice(delta=Delta(role="assistant", content=""))])

    def chunk(
        self, text: str | None, finish: Finish | None, drafts: list[DraftedText] | None
    ) -> ChatChunk:
        choice = ChatChunkChoice(delta=Delta(content=text), finish_reason=finish, drafts=drafts)
        return self._made([choice])

    def closing(self, usage: Usage) -> ChatChunk:
        return self._made([], usage)

    def _made(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


async def whole(form: Form, reading: Reading, show_drafts: bool) -> BaseModel:
    """The answer, when all of it is there."""
    pieces = [piece async for some in reading.pieces() for piece in some]
    drafts = _drafts(pieces) if show_drafts else None
    return form.whole(_text(pieces), reading.finish_reason, drafts, reading.usage)


async def chunks(
    form: Form, reading: Reading, *, show_drafts: bool, usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events. What fails on the way is the last event."""
    try:
        if (opening := form.opening()) is not None:
            yield _event(opening)
        async for pieces in reading.pieces():
            if pieces or show_drafts:
                chunk = form.chunk(_text(pieces), None, _drafts(pieces) if show_drafts else None)
                yield _event(chunk, foretell=reading.tally.drafting if show_drafts else None)
        yield _event(form.chunk(None, reading.finish_reason, None))
        if usage:
            yield _event(form.closing(reading.usage))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error_body(error))}\n\n"


class Stream(StreamingResponse):
    """Server-sent events of a row, which ends where nobody reads it any more."""

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
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _drafts(pieces: Sequence[Piece]) -> list[DraftedText]:
    return [(piece.text, piece.depth) for piece in pieces]
