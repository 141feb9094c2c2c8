"""The rows of a batch: what stands of each, and where each ends.

Rows that have ended leave the passes; a row's *place* in a pass is not its number then.

Shapes: B rows, P of them in the passes, T prompt, N drafted tokens, W = N+1 nodes.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foretell.backbone import Backbone, warn_longer
from foretell.decoding.acceptance import Verdict
from foretell.decoding.draft import Draft
from foretell.decoding.numbers import are_several, wholes
from foretell.decoding.stops import Stop, stopped_at
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


@dataclass(eq=False)
class BatchRow:
    """A prompt and its continuation so far.

    Attributes:
        prompt_length: how many tokens the prompt has.
        length: how many tokens stand.
        room: how many more may be emitted.
        stops: where the row ends earlier.
        continuation: what was emitted.
        active: whether the row goes on.
    """

    prompt_length: int
    length: int
    room: int
    stops: Sequence[Stop]
    continuation: list[int] = field(default_factory=list)
    active: bool = True

    def emit(self, tokens: Sequence[int], drafted: int, accepted: int) -> Step:
        """Add tokens of a verdict, as far as the row goes.

        Args:
            tokens: the accepted ones and the backbone's own.
            drafted: how many were proposed.
            accepted: how many of them were accepted.
        """
        if not self.active:
            return ENDED
        tokens = tokens[: self.room]
        stopped = stopped_at(self.stops, self.continuation, tokens)
        if stopped is not None:
            tokens, drafted = tokens[:stopped], min(drafted, stopped)  # nothing counts after it
        self.continuation += tokens
        self.length += len(tokens)
        self.room -= len(tokens)
        self.active = stopped is None and self.room > 0
        return Step(drafted, min(accepted, drafted, len(tokens)), tuple(tokens))

    def reach(self, limit: int | None) -> int:
        """How many tokens a draft has room for: one more is the backbone's own.

        After position `limit`, where the row is read anew, nothing can be verified before it was.
        """
        reach = max(0, self.room - 1)
        return reach if limit is None or self.length > limit else min(reach, limit - self.length)


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
        rows: all rows, in the order of `prompts`.
        present: those that the passes hold, by place.
        tokens: (P, S) the tokens that stand, place by place, then filling.

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
        texts = _texts(prompts, attention_mask)
        limits = _each(max_new_tokens, len(texts))
        _check(backbone, texts, limits)
        self.device, self.name = backbone.device, type(backbone.model).__name__
        self.context, self.reread_behind = backbone.context, backbone.reread_behind
        lengths, most = [len(text) for text in texts], backbone.max_length
        self.rows = [
            BatchRow(
                prompt, length, limit if most is None else min(limit, most - length), [*stops, *own]
            )
            for prompt, length, limit, own in zip(
                prompt_lengths or lengths,
                lengths,
                limits,
                row_stops or [()] * len(texts),
                strict=True,
            )
        ]
        self.present = list(self.rows)
        tokens = torch.zeros(len(texts), max(lengths), dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text
        self.tokens = tokens.to(self.device)

    def __len__(self) -> int:
        """How many rows there are, ended ones included."""
        return len(self.rows)

    @property
    def over(self) -> bool:
        """Whether all rows have ended."""
        return not any(row.active for row in self.rows)

    @property
    def lengths(self) -> list[int]:
        """How many tokens stand, by place."""
        return [row.length for row in self.present]

    @property
    def room(self) -> int:
        """How many more tokens the row with most room may emit."""
        return max(row.room for row in self.present)

    @property
    def reach(self) -> list[int]:
        """How many tokens a draft has room for, by place (see `BatchRow.reach`)."""
        return [row.reach(self.reread_behind) for row in self.present]

    @property
    def limit(self) -> int:
        """How many tokens a draft has room for in the row that has most, of those that go on."""
        going_on = (row for row in self.present if row.active)
        return max((row.reach(self.reread_behind) for row in going_on), default=0)

    @property
    def rereads(self) -> bool:
        """Whether a row is to be read anew on its way: its drafts then are others."""
        limit = self.reread_behind
        return limit is not None and any(
            row.length <= limit < row.length + row.room - 1 for row in self.present
        )

    @property
    def complete(self) -> bool:
        """Whether passes still hold all rows."""
        return len(self.present) == len(self.rows)

    def let_go(self, fewest: int = 1) -> list[int] | None:
        """Have passes without the rows that have ended; the last ones take their places.

        Args:
            fewest: rows that a pass holds at least, if need be some that have ended.

        Returns:
            the places that stay, in their new order; None: all.
        """
        goes_on = [row.active for row in self.present]
        count = max(fewest, sum(goes_on))
        if not any(goes_on) or count >= len(goes_on):
            return None
        last = [place for place in range(count, len(goes_on)) if goes_on[place]]
        stay = [place if goes_on[place] or not last else last.pop() for place in range(count)]
        self.present = [self.present[place] for place in stay]
        self.tokens = self.tokens[stay]
        return stay

    def alone(self, number: int) -> "Batch":
        """One row as a batch of its own. They share the row; `tokens` of this one stay behind."""
        batch = copy(self)
        row = self.rows[number]
        batch.rows, batch.present = [row], [row]
        batch.tokens = self.tokens[number : number + 1, : row.length].clone()
        return batch

    def prefixes(self) -> list[Tensor]:
        """The tokens that stand, place by place."""
        return [tokens[:length] for tokens, length in zip(self.tokens, self.lengths, strict=True)]

    def behind(self, read: Sequence[int]) -> Tensor:
        """(P,) how many tokens stand after the first `read` of each row."""
        ends = zip(self.lengths, read, strict=True)
        return to_device([length - start for length, start in ends], self.device)

    def unread(self, read: Sequence[int]) -> Tensor:
        """(P, U) tokens after the first `read` of each row, and filling where there are fewer."""
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
        standing = draft.tokens  # (P, N)
        if verdict.path is not None:
            standing = draft.tokens.gather(1, (verdict.path[:, 1:] - 1).clamp(min=0))
        numbers = torch.stack([verdict.accepted, verdict.next_token, draft.deepest], dim=1)
        starts, steps = self.lengths, {}
        for row, values in zip(
            self.present, torch.cat([numbers, standing], dim=1).tolist(), strict=True
        ):
            accepted, own, deepest, *tokens = values
            steps[row] = row.emit([*tokens[:accepted], own], deepest, accepted)
        self._write(starts, [steps[row].tokens for row in self.present])
        return tuple(steps.get(row, ENDED) for row in self.rows)

    def _write(self, starts: Sequence[int], emitted: Sequence[Sequence[int]]) -> None:
        """Write what was emitted at each place after what stood there."""
        longest = max(self.lengths)
        if (missing := longest - self.tokens.shape[1]) > 0:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, max(missing, 64)))
        if self.context is not None and longest > self.context:
            warn_longer(self.name, self.context)
        written = [
            (place, position, token)
            for place, (start, new) in enumerate(zip(starts, emitted, strict=True))
            for position, token in enumerate(new, start)
        ]
        places, positions, tokens = to_device(written, self.device).view(-1, 3).unbind(1)
        self.tokens[places, positions] = tokens


def require_rows(prompts: Tensor, attention_mask: Any) -> None:
    """Check that the prompts are (B, T), and so is their mask.

    Raises:
        InputError: they are not.
    """
    if prompts.ndim != 2 or not prompts.shape[0]:
        raise InputError(
            f"the prompts have shape {tuple(prompts.shape)}; give rows of tokens, (B, T)."
        )
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor):
        kind = type(attention_mask).__name__
        raise InputError(f"the attention mask is a {kind}; give a tensor, (B, T).")
    if attention_mask.shape != prompts.shape:
        raise InputError(
            f"the attention mask has shape {tuple(attention_mask.shape)}, the prompts "
            f"{tuple(prompts.shape)}."
        )


def _texts(prompts: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """The prompts without padding."""
    require_rows(prompts, attention_mask)
    if attention_mask is None:
        return list(prompts)
    seen = attention_mask.bool()
    if bool((seen.int().diff(dim=1).abs().sum(1) > 1).any()):
        raise InputError("the attention mask has gaps; prompts are padded on one side.")
    return [row[keep] for row, keep in zip(prompts, seen, strict=True)]


def _each(max_new_tokens: int | Sequence[int], rows: int) -> list[int]:
    limits = wholes("max_new_tokens", max_new_tokens)
    if not are_several(max_new_tokens):
        limits *= rows
    if len(limits) != rows:
        raise InputError(
            f"max_new_tokens has {len(limits)} numbers for {rows} rows; give one each."
        )
    return limits


def _check(backbone: Backbone, texts: Sequence[Tensor], limits: Sequence[int]) -> None:
    if min(limits) < 1:
        raise InputError(f"max_new_tokens is {min(limits)}; ask for at least 1.")
    lengths, tokens = [len(text) for text in texts], torch.cat(list(texts))
    context, vocab_size = backbone.max_length, backbone.vocab_size
    if not min(lengths):
        raise InputError("the prompt is empty; give at least one token.")
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise InputError(
            f"the prompt has token ids outside the model's vocabulary of {vocab_size}."
        )
    if context is not None and max(lengths) >= context:
        raise InputError(
            f"the prompt has {max(lengths)} tokens and the model's context {context}; "
            "shorten the prompt."
        )
