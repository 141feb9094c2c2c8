"""Conversations as their chat template writes them, and where the answers lie in that.

What a turn says must be in what is written: a template may know no tools, no such role or no
reasoning, and would leave it out without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

from foretell.data.records import Document, Message
from foretell.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What transformers' chat templates put before a text that the model is to write."""

_SPOKEN = ("content", "reasoning_content", "reasoning", "thinking")
"""Fields of a turn that are said. Names and ids are labels, for which templates may have no use."""


@dataclass(frozen=True)
class Written:
    """A conversation up to one of its answers, or the whole of it.

    Attributes:
        text: what the template makes of it.
        spans: where what is learned lies in it.
        turns: how many there are.
    """

    text: str
    spans: list[Span]
    turns: int


def written(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[Written]:
    """The turns at once if possible, with the answers in them; else once for every answer.

    Raises:
        InputError: the template cannot be applied, does not tell where an answer begins, or leaves
            out what is said; there is no answer, or an empty one.
    """
    turns, source, beside = document.messages or (), document.source, document.beside
    first = max(1, document.prompt_length)  # a turn before which nothing was said is no answer
    answers = [
        n
        for n, turn in enumerate(turns)
        if n >= first and turn["role"] == "assistant" and turn.get("weight", 1)
    ]
    for number in answers:
        if _says_nothing(turns[number]):
            raise InputError(f"{source}: turn {number + 1} is an empty answer; leave it out")
    whole = render(turns, tokenizer, source, beside)
    found = (
        _marked_answers(document, answers, tokenizer)
        if _GENERATION_TAG.search(_template(tokenizer, beside))
        else _answers_between(document, answers, whole, tokenizer)
    )
    if not any(begin < end for one in found for begin, end in one.spans):
        raise InputError(f"{source}: the assistant answers nothing, so there is nothing to learn")
    _require_others(turns, beside, whole, source)
    return found


def asked(
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    beside: dict[str, Any] | None = None,
) -> str:
    """The text of a conversation up to where the assistant is to answer.

    Raises:
        InputError: the template cannot be applied, or leaves out what somebody else says.
    """
    text = render(turns, tokenizer, source, beside, prompt=True)
    _require_others(turns, beside or {}, text, source)
    return text


def render(
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    beside: dict[str, Any] | None = None,
    *,
    prompt: bool = False,
) -> str:
    """The text of a conversation; with `prompt`, up to where the assistant is to answer."""
    return _rendered(turns, tokenizer, source, prompt, beside or {})[0]


def _rendered(
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    prompt: bool,
    beside: dict[str, Any],
) -> tuple[str, list[Message]]:
    """The text, and the turns as the template takes them.

    Templates write the arguments of a tool call as JSON themselves, so they are given objects, also
    where the data has strings; a few put them there as they are, and are given strings.
    """
    known = signature(tokenizer.apply_chat_template).parameters.keys() - {"tools", "documents"}
    if taken := beside.keys() & known:
        raise InputError(f"{source}: {min(taken)!r} is not a setting of a chat template")
    spellings = [_parsed_arguments, _dumped_arguments]
    failure: Exception | None = None
    for spelled in spellings if any("tool_calls" in turn for turn in turns) else spellings[:1]:
        given = [_with_arguments(turn, spelled) for turn in turns]
        try:
            rendered = tokenizer.apply_chat_template(
                given, tokenize=False, add_generation_prompt=prompt, **beside
            )
            text = cast(str, rendered)
            text.encode("utf-8")
        except Exception as error:  # templates raise whatever they like
            failure = failure or error
            continue
        if not any(_printed(arguments, text) for arguments in _arguments(given)):
            return text, given
    reason = " ".join(str(failure or "it prints arguments as Python does").split())
    raise InputError(f"{source}: the chat template cannot be applied ({reason})")


def size(turns: Sequence[Message]) -> int:
    """Bytes of what is said, in UTF-8."""
    return sum(len(turn.get("content", "").encode("utf-8")) for turn in turns)


def _template(tokenizer: PreTrainedTokenizerBase, beside: dict[str, Any]) -> str:
    """The one in use; some tokenizers have another one for tools."""
    return str(tokenizer.get_chat_template(tools=beside.get("tools")))


def _says_nothing(turn: Message) -> bool:
    values = (value for name, value in turn.items() if name != "role")
    return not any(value.strip() if isinstance(value, str) else value for value in values)


def _marked_answers(
    document: Document, answers: list[int], tokenizer: PreTrainedTokenizerBase
) -> list[Written]:
    """What the template marks with `{% generation %}`, in the whole if all answers are in that."""
    turns = document.messages or ()
    one = _marked(document, len(turns), document.prompt_length, tokenizer)
    learned = _squeezed(_learned(one))
    if all(turn.get("weight", 1) for turn in turns) and all(
        _left_out(turns[number], learned) is None for number in answers
    ):
        return [one]
    each = [_marked(document, number + 1, number, tokenizer) for number in answers]
    for number, one in zip(answers, each, strict=True):
        _require(turns[number], number, _learned(one), document.source)
    return each


def _marked(
    document: Document, count: int, behind: int, tokenizer: PreTrainedTokenizerBase
) -> Written:
    """The first turns, and what the template marks in those after some of them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    turns, source, beside = document.messages or (), document.source, document.beside

    def marks(count: int) -> tuple[str, list[Span]]:
        text, given = _rendered(turns[:count], tokenizer, source, False, beside)
        rendered: Any = render_jinja_template(  # text and spans, whatever its annotation says
            conversations=[given],
            chat_template=_template(tokenizer, beside),
            return_assistant_tokens_mask=True,
            **{**cast(Any, tokenizer.special_tokens_map), **beside},
        )
        return text, list(rendered[1][0])

    text, spans = marks(count)
    earlier = len(marks(behind)[1]) if behind else 0
    return Written(text, spans[earlier:], count)


def _learned(one: Written) -> str:
    return "".join(one.text[begin:end] for begin, end in one.spans)


def _answers_between(
    document: Document, answers: list[int], whole: str, tokenizer: PreTrainedTokenizerBase
) -> list[Written]:
    """What stands between where an answer is asked for and where its turn ends."""
    turns, source, beside = document.messages or (), document.source, document.beside
    each = []
    for number in answers:
        bare = render(turns[:number], tokenizer, source, beside)
        before = render(turns[:number], tokenizer, source, beside, prompt=True)
        until = render(turns[: number + 1], tokenizer, source, beside)
        if not until.startswith(before):
            raise InputError(
                f"{source}: the chat template asks for an answer otherwise than it writes one, so "
                f"where turn {number + 1} begins cannot be told; use another template, or other "
                "settings of it (chat_template_kwargs)"
            )
        # An answer may begin in what asks for it: with the mark of reasoning, say.
        begin = len(bare) if before.startswith(bare) else len(before)
        _require(turns[number], number, until[begin:], source)
        heading = _heading(turns[number], until[len(before) :])
        if heading and before == bare:
            raise InputError(
                f"{source}: the chat template writes {heading!r} before turn {number + 1}, but not "
                "when it asks for an answer; use one that heeds add_generation_prompt"
            )
        each.append(Written(until, [(len(before), len(until))], number + 1))
    if not all(whole.startswith(one.text) for one in each):
        return each
    return [Written(whole, [span for one in each for span in one.spans], len(turns))]


def _heading(turn: Message, text: str) -> str:
    """What stands before the content of a turn that has nothing else to say."""
    content = turn.get("content", "").strip()
    if not content or turn.keys() - {"role", "content"}:
        return ""
    return text[: max(0, text.find(content))].strip()


# -- what is said must be written ------------------------------------------------------------------


def _require_others(
    turns: Sequence[Message], beside: dict[str, Any], text: str, source: str
) -> None:
    """Refuse a template that leaves out what others than the assistant say, or what it is given."""
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            _require(turn, number, text, source)
    seen = _squeezed(text)
    for name, values in (("tools", _tool_names(beside)), ("documents", _document_texts(beside))):
        if not all(_holds(seen, value) for value in values):
            raise InputError(f"{source}: the chat template leaves out {name!r}; use another one")


def _require(turn: Message, number: int, text: str, source: str) -> None:
    if (name := _left_out(turn, _squeezed(text))) is not None:
        raise InputError(
            f"{source}: the chat template leaves out {name!r} of turn {number + 1} "
            f"({turn['role']}); use another template, or data without it"
        )


def _left_out(turn: Message, seen: str) -> str | None:
    """A field of a turn that is not all in a text without white space."""
    return next((name for name, said in _said(turn) if not _holds(seen, said)), None)


def _said(turn: Message) -> Iterator[tuple[str, str]]:
    for name in _SPOKEN:
        if isinstance(value := turn.get(name), str):
            yield name, value
    for name in ("tool_calls", "function_call"):
        for leaf in _leaves(_functions(turn.get(name) or [])):
            yield name, leaf


def _functions(calls: Any) -> Any:
    """Of tool calls, what is called and with what; ids and types are labels."""
    if isinstance(calls, list):
        return [_functions(call) for call in calls]
    if not isinstance(calls, dict):
        return calls
    function = calls.get("function", calls)
    if not isinstance(function, dict):
        return function
    parts = {name: function[name] for name in ("name", "arguments") if name in function}
    return [_parsed_arguments(value) for value in parts.values()]


def _leaves(value: Any) -> Iterator[str]:
    """All strings in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)


def _tool_names(beside: dict[str, Any]) -> list[str]:
    functions = [tool.get("function", tool) for tool in beside.get("tools", ())]
    return [str(one["name"]) for one in functions if isinstance(one, dict) and "name" in one]


def _document_texts(beside: dict[str, Any]) -> Iterator[str]:
    for document in beside.get("documents", ()):
        yield from filter(None, map(document.get, ("text", "content")))


def _holds(seen: str, said: str) -> bool:
    """Whether a text without white space has in it what is said, as it is or as JSON."""
    spellings = (said, json.dumps(said, ensure_ascii=False)[1:-1], json.dumps(said)[1:-1])
    return any(_squeezed(spelled) in seen for spelled in spellings)


def _squeezed(text: str) -> str:
    """Without white space, with which templates are free."""
    return "".join(text.split())


# -- arguments of tool calls -----------------------------------------------------------------------


def _with_arguments(turn: Message, spelled: Callable[[Any], Any]) -> Message:
    """A turn with the arguments of its tool calls spelled otherwise."""
    calls = turn.get("tool_calls")
    if not isinstance(calls, list):
        return turn

    def changed(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        if "function" in part:
            return {**part, "function": changed(part["function"])}
        return {**part, "arguments": spelled(part["arguments"])} if "arguments" in part else part

    return {**turn, "tool_calls": [changed(call) for call in calls]}


def _arguments(turns: Sequence[Message]) -> Iterator[Any]:
    found: list[Any] = []
    for turn in turns:
        _with_arguments(turn, found.append)
    yield from found


def _parsed_arguments(arguments: Any) -> Any:
    """The object that a string of JSON stands for."""
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _dumped_arguments(arguments: Any) -> Any:
    """An object as JSON."""
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


def _printed(arguments: Any, text: str) -> bool:
    """Whether an object stands in a text as Python prints it, and that is no JSON."""
    if not isinstance(arguments, dict):
        return False
    shown = str(arguments)
    return shown in text and shown != _dumped_arguments(arguments)
