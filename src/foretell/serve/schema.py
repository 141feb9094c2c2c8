"""What can be asked, and what is answered: OpenAI's fields, checked, and a few of our own.

A field that would change the answer and is not supported is refused where it asks for something,
and so is one that nobody knows: what a client asks for is done or refused, never passed over.
"""

import json
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from foretell.decoding import Sampling
from foretell.errors import InputError
from foretell.serve.jobs import Settings

# JSON tells numbers, texts and true apart; so does a request.
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
TokenId = Annotated[Whole, Field(ge=0, lt=1 << 31)]
Seed = Annotated[Whole, Field(ge=-(1 << 63), lt=1 << 63)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]
ManyTokenIds = Annotated[list[TokenIds], Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]

MOST_STOPS = 16
"""OpenAI takes 4; evaluation harnesses send more."""
GREEDY_BELOW = 0.01
"""Temperatures under this take the likeliest token: drawing would give no other in practice."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # auto may choose among none
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields that are not supported, and what they may say all the same: that nothing is asked for, as
null does in each."""

_UNHEARD = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Fields that ask for nothing to be done differently here."""

_NEUTRAL_IN_TURNS: dict[str, tuple[Any, ...]] = {
    "refusal": ("",),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
}
"""The same in a turn: what OpenAI's answers have beside their text, and clients send back."""


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(extra="forbid")

    include_usage: Flag | None = Field(None, description="Send a last chunk that has the usage.")
    include_obfuscation: Literal[False] | None = None


class Asked(BaseModel):
    """What completions and chats have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: Number | None = Field(None, ge=0, le=2, description="1 by default; 0: greedy.")
    top_p: Number | None = Field(None, gt=0, le=1)
    seed: Seed | None = Field(None, description="By default another one for every request.")
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    top_k: Whole | None = Field(None, ge=0, description="Draw among this many tokens; 0: all.")
    min_p: Number | None = Field(None, ge=0, le=1, description="Least share of the likeliest.")
    repetition_penalty: Number | None = Field(None, ge=0.1, le=10)
    drafter: Literal["default", "none"] | None = Field(
        None, description="none: one token per forward pass, as without foretell."
    )
    show_drafts: Flag | None = Field(
        None, description="Say of every piece of text at which depth it was drafted."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        _refuse_surrogates(values)
        return _without(_UNHEARD, _without_neutral(_NEUTRAL, values))

    @model_validator(mode="after")
    def _refuse_useless(self) -> "Asked":
        if self.with_usage and not self.stream:
            message = "{field} are for streams; add stream, or leave them out."
            raise PydanticCustomError("useless", message, {"field": "stream_options"})
        return self

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def wanted(self) -> int | None:
        """How many tokens are asked for; None: what is usual."""
        raise NotImplementedError

    def settings(self) -> Settings:
        """What its batch must have."""
        temperature = 1.0 if self.temperature is None else self.temperature
        drawn: dict[str, Any] = {}
        if temperature >= GREEDY_BELOW:
            drawn = {"temperature": temperature, "top_k": self.top_k or 0}
            drawn |= {"top_p": self.top_p or 1.0, "min_p": self.min_p or 0.0}
        sampling = Sampling(repetition_penalty=self.repetition_penalty, **drawn)
        return Settings(sampling, drafted=self.drafter != "none")


def _refuse_empty(prompt: Any) -> Any:
    if isinstance(prompt, list) and (not prompt or [] in prompt):
        message = "an empty list is not a prompt; give a text, token ids, or a list of either."
        raise PydanticCustomError("empty", message)
    return prompt


class CompletionRequest(Asked):
    """`/v1/completions`."""

    prompt: Annotated[str | TokenIds | Texts | ManyTokenIds, BeforeValidator(_refuse_empty)]
    max_tokens: Whole | None = Field(None, ge=1, description="16 by default.")

    @property
    def wanted(self) -> int | None:
        return self.max_tokens or 16

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, as texts or as token ids."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[return-value]


class TextPart(BaseModel):
    """Text of a message that has parts."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        return _without_neutral(_NEUTRAL_IN_TURNS, values) if isinstance(values, dict) else values

    @property
    def text(self) -> str:
        """All that it says."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Asked):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1, description="By default what is left.")

    @property
    def wanted(self) -> int | None:
        asked = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(asked) > 1:
            raise InputError("max_tokens and max_completion_tokens are the same; give one.")
        return next(iter(asked), None)

    @property
    def turns(self) -> list[dict[str, str]]:
        """As chat templates read them."""
        return [
            {"role": turn.role, "content": turn.text} | ({"name": turn.name} if turn.name else {})
            for turn in self.messages
        ]


def _without_neutral(neutral: dict[str, tuple[Any, ...]], values: dict[str, Any]) -> dict[str, Any]:
    """The other values; refuses one of these that asks for something, by name."""
    for name, values_allowed in neutral.items():
        value = values.get(name)
        if value is not None and not any(_same(value, other) for other in values_allowed):
            message = "{field} is not supported by this server; leave it out."
            raise PydanticCustomError("unsupported", message, {"field": name})
    return _without(neutral, values)


def _without(names: Collection[str], values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _refuse_surrogates(values: dict[str, Any]) -> None:
    """JSON can say half of a character; no tokenizer knows it, and no answer can repeat it."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise ValueError("the request has text that is not Unicode.") from None


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


# -- answers ---------------------------------------------------------------------------------------


class Drafting(BaseModel):
    """How the tokens came."""

    forwards: int = Field(description="Forward passes of the backbone.")
    tokens_per_forward: float = Field(description="Plain decoding has 1.")
    drafted: int = Field(description="Tokens that were drafted.")
    accepted: int = Field(description="Drafted tokens that stand.")
    seconds: float = Field(description="From the first pass to the last.")


class Usage(BaseModel):
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    foretell: Drafting


Finish = Literal["stop", "length"]
DraftedText = tuple[str, int]
"""A piece of text, and the depth that drafted it; 0: the backbone's own."""


class CompletionChoice(BaseModel):
    """A continuation."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Finish | None = None
    drafts: list[DraftedText] | None = None


class Completion(BaseModel):
    """The answer of `/v1/completions`, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Said(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int = 0
    message: Said
    logprobs: None = None
    finish_reason: Finish
    drafts: list[DraftedText] | None = None


class Chat(BaseModel):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """A part of an answer."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: Finish | None = None
    drafts: list[DraftedText] | None = None


class ChatChunk(BaseModel):
    """Each chunk of the stream of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ServedModel(BaseModel):
    """A model, and what can be asked of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["foretell"] = "foretell"
    drafter: str = Field(description="What proposes tokens by default.")
    depth: int = Field(description="How many tokens at most are drafted for one forward pass.")
    max_prompt_tokens: int
    max_tokens: int
    chat: bool = Field(description="Whether it has a chat template.")


class Models(BaseModel):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer to what is refused."""

    error: ErrorFacts
