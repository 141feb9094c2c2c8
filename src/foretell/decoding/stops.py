"""Where a continuation ends early: after some tokens, or once a string is complete."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from foretell.decoding.text import CONTEXT, UNKNOWN, Detokenizer
from foretell.errors import InputError


class Stop(Protocol):
    """Where a continuation ends early."""

    def __call__(self, before: Sequence[int], new: Sequence[int]) -> int | None:
        """How many of the `new` tokens are still emitted; None: all, and it goes on."""
        ...


@dataclass(frozen=True)
class StopTokens:
    """After the first of some tokens."""

    tokens: Collection[int] = ()

    def __call__(self, before: Sequence[int], new: Sequence[int]) -> int | None:
        return next((place + 1 for place, token in enumerate(new) if token in self.tokens), None)


class StopStrings:
    """After the token with which one of some strings is complete; the prompt is no part of them.

    Raises:
        InputError: a string is empty, or the tokenizer cannot write it.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        alone = isinstance(strings, str) or not isinstance(strings, Iterable)
        self.strings: list[Any] = [strings] if alone else list(strings)
        self.tokenizer = tokenizer
        for string in self.strings:
            if not isinstance(string, str):
                raise InputError(f"stop string {string!r} is no text; give strings.")
            if any("\ud800" <= letter <= "\udfff" for letter in string):
                raise InputError(f"stop string {string!r} has half of a character in it.")
            # Inside a text too: some tokenizers drop the spaces at its ends.
            texts = tokenizer([string, f"a{string}a"], add_special_tokens=False)["input_ids"]
            if not string or not any(string in tokenizer.decode(list(ids)) for ids in texts):
                raise InputError(
                    f"stop string {string!r} can never appear: the tokenizer does not write it."
                )
        self.reach = max(map(len, self.strings), default=0)
        # In front of what is decoded: some tokenizers drop the space that a text begins with.
        self.front = tokenizer("a", add_special_tokens=False)["input_ids"]
        self.begin = len(tokenizer.decode(self.front))

    def __call__(self, before: Sequence[int], new: Sequence[int]) -> int | None:
        if not self.strings or self._cannot_be_there(before, new):
            return None
        text, seen = self._behind(before)
        seen = seen[max(0, len(seen) + 1 - self.reach) :]  # its beginning may be no word's
        for place, token in enumerate(new, start=1):
            seen += text.add(token)
            if any(string in seen for string in self.strings):
                return place
        return None

    def _cannot_be_there(self, before: Sequence[int], new: Sequence[int]) -> bool:
        """Whether one look at enough of the text shows that no string has come: it nearly always
        does, in a third of the time.
        """
        size = self.reach + CONTEXT
        text = self.tokenizer.decode([*self.front, *before[-size:], *new])[self.begin :]
        earlier = len(text) - len(self.tokenizer.decode([*new]))
        enough = len(before) <= size or earlier > self.reach
        return enough and UNKNOWN not in text and not any(map(text.__contains__, self.strings))

    def _behind(self, before: Sequence[int]) -> tuple[Detokenizer, str]:
        """What gives the text of more tokens, and as much of the text so far as may matter."""
        text = Detokenizer(self.tokenizer, self.front, special=True)
        last = text.end(before, self.reach)
        seen = text.decode([*self.front, *last])[self.begin :]
        if UNKNOWN in seen or seen.endswith(text.unclean):  # not whole: token by token, as it came
            return text, "".join(map(text.add, last))
        return Detokenizer(self.tokenizer, [*self.front, *last], special=True), seen


def stopped_at(stops: Sequence[Stop], before: Sequence[int], new: Sequence[int]) -> int | None:
    """How many of the `new` tokens the first of some stops lets through; None: none stops."""
    ends = (stop(before, new) for stop in stops)
    return min((end for end in ends if end is not None), default=None)
