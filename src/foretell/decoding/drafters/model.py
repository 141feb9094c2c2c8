"""Drafting with a model of its own: smaller, faster, with the same vocabulary.

Leviathan et al. 2023, "Fast inference from transformers via speculative decoding" (arXiv
2211.17192).

Shapes: B rows, W tokens of a pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foretell.backbone import Backbone
from foretell.decoding.cache import Past, new_past, takes_masks
from foretell.decoding.compiling import compile_fixed
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import Committed, Drafter
from foretell.decoding.sampling import Sampler
from foretell.decoding.transfer import to_device
from foretell.decoding.tree import TreeShape, chain, comb
from foretell.errors import InputError


class ModelDrafter(Drafter):
    """Drafts what another causal LM would say.

    Args:
        backbone: whose output is drafted.
        model: the view on the draft model.
        length: tokens per draft.
        shape: of a tree, which branches off the chain; None drafts the chain alone.

    Raises:
        InputError: the draft model has another vocabulary, or nothing like that can be drafted.
    """

    layers: tuple[int, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        model: Backbone,
        length: int = 4,
        shape: TreeShape | None = None,
    ) -> None:
        require_vocabulary(model, backbone.vocab_size)
        if length < 1:
            raise InputError(f"draft length {length}: draft at least 1 token.")
        if shape is not None:
            shape.check(backbone.vocab_size, length)
            length = min(length, shape.nodes or length)
        self.model, self.length, self.shape = model, length, shape

    @property
    def longest(self) -> int:
        return self.length

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.model.decoder, self.model.output

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        self.sampler = sampler
        compiled = past.compiled and bool(takes_masks(self.model, capacity))
        self.past = new_past(self.model, rows, capacity, compiled=compiled)
        self.read = [0] * rows
        # Of the class: a method bound to `self` would keep it, and its past, in a cycle.
        logits = ModelDrafter._logits
        self._steady = compile_fixed(logits, self.model) if compiled else logits

    def draft(self, committed: Committed, limit: int) -> Draft:
        device, lengths = committed.last.device, committed.lengths
        # What it has read of its own last draft stands as far as that was accepted. Of a tree it
        # has read the chain, and the last token that was accepted may be a leaf beside it.
        own = 1 if self.shape is None else 2
        self.read = [min(at, length - own) for at, length in zip(self.read, lengths, strict=True)]
        context = self.model.max_length
        room = [limit if context is None else min(limit, context - n) for n in lengths]
        limit = min(self.length, max(room))
        if limit < 1:
            return Draft.nothing(len(lengths), device)
        self.past.keep(self.read)
        starts = self.past.read
        width = max(length - start for length, start in zip(lengths, starts, strict=True))
        begin = to_device(starts, device).unsqueeze(1)
        places = (begin + torch.arange(width, device=device)).clamp(
            max=committed.tokens.shape[1] - 1
        )
        window = committed.tokens.gather(1, places)
        last = to_device(lengths, device).unsqueeze(1) - begin - 1
        drafts, logits = [], []
        for depth in range(limit):
            # Prompts, and what it catches up with where nothing was drafted, have any width.
            steady = all(self.past.read) and window.shape[1] <= 2
            run = self._steady if steady else ModelDrafter._logits
            given = self.past.enter(window.shape[1], stands=None if depth else lengths)
            scores = run(self, window, last, given)
            if self.shape is not None:
                logits.append(scores.clone())  # the next pass may write over them
            uniforms = None if self.shape else self.sampler.draft_uniforms(depth, 1)
            drafts.append(chain(scores, self.sampler, uniforms))
            if depth == 0:
                self.past.keep(lengths)
            else:
                self.past.assume()
            window, last = drafts[-1].tokens, torch.zeros_like(last)
        self.read = [length + len(drafts) - 1 for length in lengths]  # not its last token
        if self.shape is not None:
            reach = [min(pair) for pair in zip(room, committed.reach, strict=True)]
            draft = comb(torch.cat(logits, dim=1), self.shape, reach)
        else:
            draft = Draft.joined(drafts)
        if min(room) >= limit:
            return draft
        return replace(draft, reach=to_device(room, device).clamp(min=0))

    def select(self, places: Sequence[int]) -> None:
        self.past.select(places)
        self.read = [self.read[place] for place in places]

    def _logits(self, window: Tensor, last: Tensor, given: dict[str, Any]) -> Tensor:
        """After places `last` (B, 1) of a pass over `window` (B, W): (B, 1, V)."""
        final = self.model(window, **given).final
        final = final.gather(1, last.unsqueeze(-1).expand(-1, -1, final.shape[-1]))
        return self.model.unembed(final)


def require_vocabulary(draft: Backbone, size: int) -> None:
    """Refuse a draft model for a model of this many tokens.

    Raises:
        InputError: its vocabulary has another size.
    """
    if draft.vocab_size != size:
        raise InputError(
            f"the draft model has a vocabulary of {draft.vocab_size} tokens, the model one of "
            f"{size}; a draft model needs the same one."
        )
