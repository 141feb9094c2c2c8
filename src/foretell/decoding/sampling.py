"""How the next token is chosen: greedily, or drawn after transformers' own logits processors.

Each row has its own random numbers, so that what it draws does not depend on its neighbours.

Shapes: B rows, W nodes of a draft, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    ClassifierFreeGuidanceLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from foretell.decoding.draft import Draft
from foretell.decoding.numbers import are_several, require_number, whole, wholes
from foretell.decoding.transfer import to_device
from foretell.errors import InputError

BY_PLACE = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
)
"""Processors that have something for each row of a batch; ours see one row at a time."""
BY_CALL = (
    ClassifierFreeGuidanceLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
"""Processors that keep something from call to call, or read the whole batch in each."""
WIDEST = 256
"""Nodes of a draft that have random numbers."""
COLDEST = 1e-6
"""The least temperature but 0: logits divided by much less are no numbers any more."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What transformers' `generate` can be told, with its meaning and its order there.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: draw among this many likeliest tokens; 0: all.
        top_p: draw from the smallest set of tokens with this probability.
        min_p: leave out tokens less likely than this share of the likeliest one.
        repetition_penalty: divides the scores of tokens that are there already, also when greedy;
            None: as the model's generation config says.
        processors: any of transformers' `LogitsProcessor` whose scores depend on a row's tokens and
            logits alone. They see one row at a time, without padding, and drafted tokens too.
        cuts: more of transformers' warpers, which look at logits alone, after the others.
        seeds: of the rows, one each, or one number for the first; the others follow it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float | None = None
    processors: Sequence[LogitsProcessor] = ()
    cuts: Sequence[LogitsProcessor] = ()
    seeds: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            require_number(name, getattr(self, name))
        whole("top_k", self.top_k)
        wholes("seeds", self.seeds)
        if self.repetition_penalty is not None:
            require_number("repetition_penalty", self.repetition_penalty)
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be 0 or more.")
        if 0 < self.temperature < COLDEST:
            raise InputError(
                f"temperature is {self.temperature}; under {COLDEST:g} only the likeliest token is "
                "left: use 0, which takes it."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be over 0 and at most 1.")
        if not 0 <= self.min_p <= 1 or self.top_k < 0:
            raise InputError("min_p must be in 0…1 and top_k 0 (all) or more.")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; it is over 0.")

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0


class Sampler:
    """A `Sampling` at work on some rows.

    Args:
        sampling: how tokens are chosen.
        rows: how many.
        device: where their logits are.
        by_history: of each row, what changes its scores by its tokens (`constraints`).
    """

    def __init__(
        self,
        sampling: Sampling,
        rows: int,
        device: torch.device,
        by_history: Sequence[Sequence[LogitsProcessor]] = (),
    ) -> None:
        self.greedy, self.device, self.given = sampling.greedy, device, bool(sampling.processors)
        seeds = wholes("seeds", sampling.seeds)
        if not are_several(sampling.seeds):
            seeds = [seeds[0] + row for row in range(rows)]
        if len(seeds) != rows:
            raise InputError(f"{len(seeds)} seeds were given for {rows} rows; give one each.")
        self.seeds = seeds
        self.random = torch.empty(rows, 3, 0)
        self.by_history = list(by_history)
        self.by_scores: list[LogitsProcessor] = []
        if not sampling.greedy:
            if sampling.temperature != 1:
                self.by_scores.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self.by_scores.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.by_scores.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p:
                self.by_scores.append(MinPLogitsWarper(sampling.min_p))
            self.by_scores += sampling.cuts

    def row(self, number: int) -> "Sampler":
        """For one row alone, with its own random numbers."""
        alone = copy(self)
        alone.seeds, alone.by_history = [self.seeds[number]], self.by_history[number : number + 1]
        return alone

    def select(self, places: Sequence[int]) -> None:
        """Go on with the rows at some places alone."""
        self.seeds = [self.seeds[place] for place in places]
        if self.by_history:
            self.by_history = [self.by_history[place] for place in places]
        if not self.greedy:
            self.random = self.random[list(places)]

    def begin(self, lengths: Sequence[int]) -> None:
        """Fresh random numbers for what follows the first `lengths` tokens of each row.

        They depend on a row's seed and length alone: not on its neighbours, nor on how far others
        draft.
        """
        if not self.greedy:
            generator, drawn = torch.Generator(), []
            for seed, length in zip(self.seeds, lengths, strict=True):
                generator.manual_seed(_mixed(seed, length))
                drawn.append(torch.rand(3, WIDEST, generator=generator))
            self.random = to_device(torch.stack(drawn), self.device)

    def uniforms(self, width: int) -> Tensor | None:
        """(B, 2, width) in [0, 1), to judge a draft by; None where nothing is left to chance.

        Raises:
            InputError: a draft is too wide.
        """
        if self.greedy:
            return None
        if width > WIDEST:
            raise InputError(
                f"{width - 1} tokens were drafted; sampling judges at most {WIDEST - 1} in one "
                "pass: draft fewer."
            )
        return self.random[:, :2, :width]

    def draft_uniforms(self, first: int, count: int) -> Tensor | None:
        """(B, count) in [0, 1), to draw depths `first` + 1 on by."""
        return None if self.greedy else self.random[:, 2, first : first + count]

    def scores(
        self, logits: Tensor, draft: Draft, prefixes: Callable[[], Sequence[Tensor]]
    ) -> Tensor:
        """What tokens are drawn from, (B, W, V).

        Args:
            logits: (B, W, V), the backbone's.
            draft: whose nodes they belong to.
            prefixes: gives the tokens that stand of each row, (T_b,).
        """
        if any(self.by_history):
            logits = logits.to(torch.float32, copy=True)  # what processors work on, there as here
            for processors, nodes, tokens in self._by_history(draft, prefixes()):
                rows, places = zip(*nodes, strict=True)
                scores = logits[rows, places]
                for processor in processors:
                    scores = _scored(processor, tokens, scores)
                logits[rows, places] = scores
        return self.warped(logits)

    def _by_history(
        self, draft: Draft, prefixes: Sequence[Tensor]
    ) -> Iterator[tuple[Sequence[LogitsProcessor], list[tuple[int, int]], Tensor]]:
        """Processors, the nodes that they score at once (row, node), and the tokens (N, T) there:
        nodes with as many tokens, of rows that share their processors. A processor of the caller's
        sees one node at a time.
        """
        groups: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
        texts: dict[tuple[int, int], Tensor] = {}
        for row, prefix in enumerate(prefixes):
            for node in range(draft.size + 1):
                way = slice(node) if draft.parents is None else draft.ancestors[row, node, 1:]
                text = torch.cat([prefix, draft.tokens[row][way]])
                texts[row, node] = text
                alike = (row, node) if self.given else (id(self.by_history[row]), len(text))
                groups[alike].append((row, node))
        for nodes in groups.values():
            tokens = torch.stack([texts[node] for node in nodes])
            yield self.by_history[nodes[0][0]], nodes, tokens

    def warped(self, logits: Tensor) -> Tensor:
        """The part that looks at scores alone; drafts are drawn so: (B, W, V) → (B, W, V)."""
        if not self.by_scores or not logits.numel():
            return logits
        flat = logits.flatten(0, 1).float()
        for processor in self.by_scores:
            flat = processor(cast(Any, None), flat)
        return flat.view(logits.shape)


def _scored(processor: LogitsProcessor, tokens: Tensor, scores: Tensor) -> Tensor:
    """What a processor makes of scores (N, V) after `tokens` (N, T).

    Raises:
        InputError: it is transformers' own, and was told of tokens that the model has not.
    """
    try:
        return cast(Tensor, processor(cast(Any, tokens), cast(Any, scores)))
    except (IndexError, ValueError) as error:
        if not type(processor).__module__.startswith("transformers."):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{type(processor).__name__} cannot be obeyed: {reason}") from None


def require_local(processors: Sequence[LogitsProcessor], rows: int) -> None:
    """Refuse processors of transformers whose scores depend on more than a row's tokens."""
    for processor in processors:
        name = type(processor).__name__
        if isinstance(processor, BY_CALL):
            raise InputError(
                f"{name} has to be called on the whole batch, once for every token, and cannot "
                "score drafts; use transformers' generate."
            )
        if rows > 1 and isinstance(processor, BY_PLACE):
            raise InputError(f"{name} has to know its row of the batch; decode one at a time.")


def _mixed(seed: int, length: int) -> int:
    """One number of both, spread over 64 bits (the finalizer of SplitMix64: Steele et al. 2014)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + length * 0xD1B54A32D192ED03) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
