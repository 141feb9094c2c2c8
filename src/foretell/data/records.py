"""What a record says: one line of JSON, one row of a table or of a data set.

A record is a text, a prompt with what completes it, a conversation, or token ids. Conversations are
taken in OpenAI's form (`role`, `content`) and in ShareGPT's (`from`, `value`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from foretell.errors import InputError

Message = dict[str, Any]
"""`role` and `content`, and whatever else the chat template reads; `weight` is there, and 0, where
an answer is not to be learned."""

FIELDS = (
    "text", "messages", "conversations", "tokens", "prompt_tokens", "prompt", "completion",
    "system", "tools", "functions", "documents", "chat_template_kwargs",
)  # fmt: skip
"""Of a record, all that is read."""

SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "bing": "assistant", "bard": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""Roles by the names that ShareGPT's form has for them."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document and where it came from.

    Attributes:
        text: all of it.
        source: a path relative to what was read, with `:line` appended for a file that holds a
            document per line or row. It does not contain the machine's own folders, so it is the
            same everywhere.
        messages: the turns of a conversation; what is learned is the assistant's.
        tokens: token ids that are known already, so that nothing is tokenized differently.
        prompt_tokens: how many of `tokens` are a prompt, which is not learned.
        is_prompt: whether all of it is a prompt; there is nothing to learn in it.
        prompt_length: how many turns of `messages`, or else characters of `text`, are a prompt,
            which is not learned.
        beside: what the chat template is given beside the turns: `tools`, `documents`, and the
            settings that it has of its own.
    """

    text: str
    source: str
    messages: tuple[Message, ...] | None = None
    tokens: tuple[int, ...] | None = None
    prompt_tokens: int = 0
    is_prompt: bool = False
    prompt_length: int = 0
    beside: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def content(self) -> str:
        """What it says, wherever it stands: for digests."""
        return f"{self.tokens or ''}\0{self.text}"


@dataclass
class Bad:
    """What becomes of records that cannot be used: the first is an error, or all are left out.

    Attributes:
        skip: whether they are left out.
        found: the errors of those that were, each once.
    """

    skip: bool = False
    found: dict[str, None] = field(default_factory=dict)

    def __call__(self, error: InputError) -> None:
        """Take note of one, or raise it."""
        if not self.skip:
            raise error
        self.found.setdefault(str(error))

    def __str__(self) -> str:
        return f"bad records left out: {len(self.found)}; the first: {next(iter(self.found))}"


REFUSED = Bad()
"""The first bad record is an error."""


def document_of(record: dict[str, Any], where: str, source: str) -> Document:
    """What a record holds; `where` names its place in an error.

    Raises:
        InputError: a field is missing or not what it should be, or two would be learned.
    """
    if record.get("tokens") is not None:
        return _tokens_of(record, where, source)
    learned = ("text", "messages", "conversations", "completion")
    found = [name for name in learned if record.get(name) is not None]
    if len(found) > 1:
        raise InputError(f"{where}: has both {found[0]!r} and {found[1]!r}; keep what is learned")
    for name in ("messages", "conversations"):
        if name in found:
            return _conversation(_turns(record[name], name, where), record, where, source)
    if "completion" in found:
        return _completed(record, where, source)
    if "text" not in record and "prompt" in record:
        if isinstance(record["prompt"], list):
            turns = _turns(record["prompt"], "prompt", where)
            return replace(_conversation(turns, record, where, source), is_prompt=True)
        text = string(record["prompt"], "the field 'prompt'", where)
        return Document(text=text, source=source, is_prompt=True)
    if "text" not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where}: the field 'text' is missing (fields: {fields})")
    return Document(text=string(record["text"], "the field 'text'", where), source=source)


def without_nulls(value: Any) -> Any:
    """What is left of a row of a table, where every field that any row has is in all of them."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _tokens_of(record: dict[str, Any], where: str, source: str) -> Document:
    tokens, prompt = record["tokens"], record.get("prompt_tokens") or 0
    if not isinstance(tokens, list) or not all(map(_is_count, tokens)):
        raise InputError(f"{where}: the field 'tokens' must be a list of token ids")
    if not _is_count(prompt) or prompt > len(tokens):
        raise InputError(f"{where}: the field 'prompt_tokens' must be 0 to {len(tokens)}")
    text = string(record.get("text") or "", "the field 'text'", where)
    return Document(text=text, source=source, tokens=tuple(tokens), prompt_tokens=prompt)


def _completed(record: dict[str, Any], where: str, source: str) -> Document:
    """A prompt and its completion: two texts, or two lists of turns."""
    prompt, completion = record.get("prompt"), record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        asked = _turns(prompt, "prompt", where)
        turns = asked + _turns(completion, "completion", where)
        return _conversation(turns, record, where, source, len(asked))
    prompt = string(prompt, "the field 'prompt', as 'completion' is one,", where)
    completion = string(completion, "the field 'completion', as 'prompt' is one,", where)
    if not completion.strip():
        raise InputError(f"{where}: the field 'completion' is empty; leave the record out")
    return Document(text=prompt + completion, source=source, prompt_length=len(prompt))


def _conversation(
    turns: list[Message], record: dict[str, Any], where: str, source: str, prompt_length: int = 0
) -> Document:
    if (system := record.get("system")) and string(system, "the field 'system'", where).strip():
        if turns[0]["role"] == "system":
            raise InputError(f"{where}: has a field 'system' and a turn of that role; keep one")
        turns = [{"role": "system", "content": system}, *turns]
        prompt_length += bool(prompt_length)
    return Document(
        text="\n".join(turn.get("content", "") for turn in turns),
        source=source,
        messages=tuple(turns),
        prompt_length=prompt_length,
        beside=_beside(record, where),
    )


def _beside(record: dict[str, Any], where: str) -> dict[str, Any]:
    """What else the chat template is given; lists may be written as strings of JSON."""
    if record.get("functions"):
        raise InputError(f"{where}: the field 'functions' is not read; write 'tools'")
    beside: dict[str, Any] = {}
    for name in ("tools", "documents"):
        value = _parsed(record.get(name))
        if not value:
            continue
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise InputError(f"{where}: the field {name!r} must be a list of objects")
        beside[name] = value
    settings = record.get("chat_template_kwargs") or {}
    if not isinstance(settings, dict) or settings.keys() & {"tools", "documents"}:
        raise InputError(
            f"{where}: the field 'chat_template_kwargs' must be an object without 'tools' and "
            "'documents', which are fields of their own"
        )
    return {**settings, **beside}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _turns(turns: Any, name: str, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{where}: the field {name!r} must be a list of turns")
    return [_turn(turn, number, where) for number, turn in enumerate(turns, start=1)]


def _turn(given: Any, number: int, where: str) -> Message:
    if not isinstance(given, dict):
        raise InputError(f"{where}: turn {number} must be an object, not {kind(given)}")
    turn: Message = {name: value for name, value in given.items() if value is not None}
    if "role" not in turn and "from" in turn:
        speaker = string(turn.pop("from"), f"'from' of turn {number}", where)
        if speaker not in SPEAKERS:
            known = ", ".join(SPEAKERS)
            raise InputError(f"{where}: turn {number} is from {speaker!r}; known are {known}")
        turn = {"role": SPEAKERS[speaker], "content": turn.pop("value", None), **turn}
    string(turn.get("role"), f"'role' of turn {number}", where)
    if isinstance(turn.get("content"), list):
        turn["content"] = _joined(turn["content"], number, where)
    if "content" in turn or "tool_calls" not in turn:
        string(turn.get("content"), f"'content' of turn {number}", where)
    if (weight := turn.pop("weight", 1)) not in (0, 1):
        raise InputError(
            f"{where}: 'weight' of turn {number} must be 0, an answer not to learn, or 1"
        )
    if weight == 0 and turn["role"] == "assistant":
        turn["weight"] = 0
    return turn


def _joined(parts: list[Any], number: int, where: str) -> str:
    """The text of a content that is a list of parts."""
    texts = []
    for part in parts:
        if isinstance(part, dict):
            if (of := part.get("type", "text")) != "text":
                raise InputError(f"{where}: turn {number} has a part {of!r}; only text is read")
            part = part.get("text")
        texts.append(string(part, f"a part of turn {number}", where))
    return "".join(texts)


def string(value: object, what: str, where: str) -> str:
    """A string that has a meaning in UTF-8; `what` and `where` tell in an error which it is."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} must be a string, not {kind(value)}")
    try:
        value.encode("utf-8")  # JSON can escape half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair at character {error.start}") from None
    return value


def kind(value: object) -> str:
    """What a value of JSON is called."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
