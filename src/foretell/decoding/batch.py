"""The rows of a batch: what stands of each, and where each ends.

Rows that have ended leave the passes. From then on a row's *place* in a pass is another than its
number.

Shapes: B rows, P of them in the passes, T prompt, N drafted tokens, W = N+1 nodes.
"""

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from foretell.backbone import Backbone, warn_longer
from foretell.decoding.acceptance import Verdict
from foretell.decoding.draft import Draft
from foretell.decoding.text import CONTEXT, UNKNOWN, Detokenizer
from foretell.decoding.transfer import to_device
from foretell.errors import InputError


@dataclass(frozen=True)
class Step:
    """What one forward pass of the backbone brought to one row.

    Attributes:
        drafted: how many tokens were proposed, along the longest way where they were a tree.
        accepted: how many of them stand and were emitted.
        tokens: what was emitted: the accepted tokens and the backbone's own next one, cut where the
            row ends. Empty for a row that had ended before.
    """

    drafted: int
    accepted: int
    tokens: tuple[int, ...]


ENDED = Step(0, 0, ())
"""Of a row that had ended before."""


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

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.strings, self.tokenizer = list(strings), tokenizer
        for string in self.strings:
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
        if UNKNOWN in seen:  # a character that is not whole: token by token, as it came
            return text, "".join(map(text.add, last))
        return Detokenizer(self.tokenizer, [*self.front, *last], special=True), seen


def stopped_at(stops: Sequence[Stop], before: Sequence[int], new: Sequence[int]) -> int | None:
    """How many of the `new` tokens the first of some stops lets through; None: none stops."""
    ends = (stop(before, new) for stop in stops)
    return min((end for end in ends if end is not None), default=None)


class Batch:
    """B prompts and their continuations so far.

    Args:
        backbone: that continues them.
        prompts: (B, T).
        attention_mask: (B, T), 0 where a prompt is padded, on either side; None: nowhere.
        max_new_tokens: one number for all rows, or one each.
        stops: where any row ends earlier.
        row_stops: where each row does besides, where they differ.
        prompt_lengths: how many tokens of each row are its prompt, where some of `prompts` was
            written before; None: all.

    Attributes:
        present: the rows that the passes hold, by place.
        prompt_lengths: how many tokens each prompt has, by a row's number.
        lengths: how many tokens stand, by place.
        room: how many more may be emitted, by place.
        tokens: (P, S) the tokens that stand, then filling.
        active: whether a row goes on, by its number.
        continuations: what was emitted, by a row's number.

    Raises:
        InputError: a prompt is empty, too long, or not of the vocabulary.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Tensor,
        attention_mask: Tensor | None,
        max_new_tokens: int | Sequence[int],
        stops: Sequence[Stop] = (),
        row_stops: Sequence[Sequence[Stop]] | None = None,
        prompt_lengths: Sequence[int] | None = None,
    ) -> None:
        rows = _rows(prompts, attention_mask)
        limits = _each(max_new_tokens, len(rows))
        _check(backbone, rows, limits)
        self.rows, self.device = len(rows), backbone.device
        self.present = list(range(self.rows))
        self.stops = [[*stops, *own] for own in row_stops or [()] * len(rows)]
        self.lengths = [len(row) for row in rows]
        self.prompt_lengths = list(prompt_lengths or self.lengths)
        self.width = max(self.lengths)
        self.name, self.context = type(backbone.model).__name__, backbone.context
        self.reread_behind, context = backbone.reread_behind, backbone.max_length
        self.room = [
            limit if context is None else min(limit, context - length)
            for limit, length in zip(limits, self.lengths, strict=True)
        ]
        self.continuations: list[list[int]] = [[] for _ in rows]
        self.active = [True] * self.rows
        self.tokens = torch.zeros(self.rows, self.width, dtype=torch.long)
        for number, row in enumerate(rows):
            self.tokens[number, : len(row)] = row
        self.tokens = self.tokens.to(self.device)

    @property
    def reach(self) -> list[int]:
        """How many tokens a draft has room for, by place: one more is the backbone's own.

        Behind a place where the row is read anew nothing can be verified before it was.
        """
        reach, limit = [max(0, room - 1) for room in self.room], self.reread_behind
        if limit is None:
            return reach
        ends = zip(reach, self.lengths, strict=True)
        return [end if length > limit else min(end, limit - length) for end, length in ends]

    @property
    def rereads(self) -> bool:
        """Whether a row is to be read anew on its way: its drafts then are others."""
        limit, rooms = self.reread_behind, zip(self.lengths, self.room, strict=True)
        return limit is not None and any(n <= limit < n + room - 1 for n, room in rooms)

    @property
    def limit(self) -> int:
        """How many tokens a draft has room for in the row that has most, of those that go on."""
        places = zip(self.reach, self.present, strict=True)
        return max((reach for reach, row in places if self.active[row]), default=0)

    @property
    def complete(self) -> bool:
        """Whether passes still hold all rows."""
        return len(self.present) == self.rows

    def end(self, row: int) -> None:
        """Emit nothing more for a row; the others go on."""
        self.active[row] = False

    def let_go(self, fewest: int = 1) -> list[int] | None:
        """Have passes without the rows that have ended; the last ones take their places.

        Args:
            fewest: rows that a pass holds at least, if need be some that have ended.

        Returns:
            the places that stay, in their new order; None: all.
        """
        goes_on = [self.active[row] for row in self.present]
        count = max(fewest, sum(goes_on))
        if not any(goes_on) or count >= len(goes_on):
            return None
        last = [place for place in range(count, len(goes_on)) if goes_on[place]]
        stay = [place if goes_on[place] or not last else last.pop() for place in range(count)]
        self.present = [self.present[place] for place in stay]
        self.lengths = [self.lengths[place] for place in stay]
        self.room = [self.room[place] for place in stay]
        self.stops = [self.stops[place] for place in stay]
        self.tokens = self.tokens[stay]
        return stay

    def row(self, number: int) -> "Batch":
        """One row as a batch of its own; this one sees what it emits only through its steps."""
        alone = copy(self)
        alone.rows, alone.present, alone.active = 1, [0], [True]
        alone.stops = [self.stops[number]]
        alone.prompt_lengths = [self.prompt_lengths[number]]
        alone.lengths, alone.room = [self.lengths[number]], [self.room[number]]
        alone.continuations = [self.continuations[number]]
        alone.width = alone.lengths[0]
        alone.tokens = self.tokens[number : number + 1, : alone.width].clone()
        return alone

    def prefixes(self) -> list[Tensor]:
        """The tokens that stand, place by place."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths, strict=True)]

    def behind(self, read: Sequence[int]) -> Tensor:
        """(P,) how many tokens stand behind the first `read` of each row."""
        ends = zip(self.lengths, read, strict=True)
        return to_device([length - start for length, start in ends], self.device)

    def unread(self, read: Sequence[int]) -> Tensor:
        """(P, U) tokens behind the first `read` of each row, and filling where there are fewer."""
        count = max(length - start for length, start in zip(self.lengths, read, strict=True))
        begin = to_device(read, self.device).unsqueeze(1)
        return self.tokens.gather(1, begin + torch.arange(count, device=self.device))

    def within(self, draft: Draft) -> Draft:
        """The draft, which counts in each row as far as there is room."""
        if min(self.reach) >= draft.size:
            return draft
        reach = to_device(self.reach, self.device)
        return replace(
            draft, reach=reach if draft.reach is None else torch.minimum(reach, draft.reach)
        )

    def commit(self, draft: Draft, verdict: Verdict) -> tuple[Step, ...]:
        """Add what a verdict lets stand; a step for every row, also those that passes let go.

        Here the host waits for what the device has computed.
        """
        standing = draft.tokens
        if verdict.path is not None:
            standing = draft.tokens.gather(1, (verdict.path[:, 1:] - 1).clamp(min=0))
        numbers = torch.stack([verdict.accepted, verdict.next_token, draft.deepest], dim=1)
        steps = [ENDED] * self.rows
        for place, values in enumerate(torch.cat([numbers, standing], dim=1).tolist()):
            accepted, own, deepest, *tokens = values
            if self.active[self.present[place]]:
                tokens = [*tokens[:accepted], own]
                steps[self.present[place]] = self._commit_row(place, tokens, deepest, accepted)
        self._write([steps[row].tokens for row in self.present])
        return tuple(steps)

    def _commit_row(self, place: int, tokens: list[int], drafted: int, accepted: int) -> Step:
        row, tokens = self.present[place], tokens[: self.room[place]]
        stopped = stopped_at(self.stops[place], self.continuations[row], tokens)
        if stopped is not None:
            tokens, drafted = tokens[:stopped], min(drafted, stopped)  # nothing counts behind it
        self.continuations[row] += tokens
        self.room[place] -= len(tokens)
        self.active[row] = stopped is None and self.room[place] > 0
        return Step(drafted, min(accepted, drafted, len(tokens)), tuple(tokens))

    def _write(self, emitted: Sequence[Sequence[int]]) -> None:
        lengths = [length + len(new) for length, new in zip(self.lengths, emitted, strict=True)]
        if (missing := max(lengths) - self.tokens.shape[1]) > 0:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, max(missing, 64)))
        written = [
            (place, self.lengths[place] + offset, token)
            for place, new in enumerate(emitted)
            for offset, token in enumerate(new)
        ]
        if self.context is not None and max(lengths) > self.context:
            warn_longer(self.name, self.context)
        places, positions, tokens = to_device(written, self.device).view(-1, 3).unbind(1)
        self.tokens[places, positions] = tokens
        self.lengths = lengths


def _rows(prompts: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """The prompts without padding."""
    if prompts.ndim != 2 or not prompts.shape[0]:
        raise InputError(
            f"the prompts have shape {tuple(prompts.shape)}; give rows of tokens, (B, T)."
        )
    if attention_mask is None:
        return list(prompts)
    if attention_mask.shape != prompts.shape:
        raise InputError(
            f"the attention mask has shape {tuple(attention_mask.shape)}, the prompts "
            f"{tuple(prompts.shape)}."
        )
    seen = attention_mask.bool()
    if bool((seen.int().diff(dim=1).abs().sum(1) > 1).any()):
        raise InputError("the attention mask has gaps; prompts are padded on one side.")
    return [row[keep] for row, keep in zip(prompts, seen, strict=True)]


def _each(max_new_tokens: int | Sequence[int], rows: int) -> list[int]:
    limits = [max_new_tokens] * rows if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != rows:
        raise InputError(
            f"max_new_tokens has {len(limits)} numbers for {rows} rows; give one each."
        )
    return limits


def _check(backbone: Backbone, rows: Sequence[Tensor], limits: Sequence[int]) -> None:
    if min(limits) < 1:
        raise InputError(f"max_new_tokens is {min(limits)}; ask for at least 1.")
    context = backbone.max_length
    for row in rows:
        if not len(row):
            raise InputError("the prompt is empty; give at least one token.")
        if not 0 <= int(row.min()) <= int(row.max()) < backbone.vocab_size:
            raise InputError(
                f"the prompt has token ids outside the model's vocabulary of {backbone.vocab_size}."
            )
        if context is not None and len(row) >= context:
            raise InputError(
                f"the prompt has {len(row)} tokens and the model's context {context}; "
                "shorten the prompt."
            )
