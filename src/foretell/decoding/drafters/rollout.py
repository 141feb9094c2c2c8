"""Drafting with one module, step by step, as serving engines run it (EAGLE: Li et al. 2024, arXiv
2401.15077, section 4; vLLM and SGLang run every multi-token module so).

The module reads the positions that were verified, each with the backbone's state and the token
after it, and drafts one token. Every further step is one position further on, in the same past: it
reads what the step before handed on and the token that it drafted. Those positions are forgotten
when the draft is done, and read again once they are verified.

Shapes: B rows, W positions of the window, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foretell.decoding.cache import Past, new_past
from foretell.decoding.draft import Draft
from foretell.decoding.drafters.base import Committed
from foretell.decoding.drafters.output import HeadOutput
from foretell.decoding.drafters.sequential import ModuleDrafter
from foretell.decoding.drafters.states import KeptStates, at
from foretell.decoding.sampling import Sampler
from foretell.decoding.transfer import to_device
from foretell.decoding.tree import chain, comb
from foretell.heads import FINAL


class RolloutDrafter(ModuleDrafter, of_heads="rollout"):
    """Drafts with a module that continues its own past."""

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        self.sampler, self.output = sampler, HeadOutput(self.backbone, self.head)
        self.past = new_past(self.backbone, rows, capacity)
        self.cache = self.past.beside()
        self.tapped = KeptStates()

    def draft(self, committed: Committed, limit: int) -> Draft:
        last = committed.last
        states = {FINAL: committed.output.final, **committed.output.states}
        self.tapped.add(self.head.tap(states, 1), committed.begin, committed.path)
        if limit < 1:
            return Draft.nothing(len(last), last.device)
        read = [length - 1 for length in committed.lengths]
        starts = self.past.read
        width = max(end - start for end, start in zip(read, starts, strict=True))
        begin = to_device(starts, last.device).unsqueeze(1)
        places = begin + torch.arange(width, device=last.device)  # (B, W)
        ends = to_device(read, last.device).unsqueeze(1) - 1  # (B, 1), positions
        furthest = committed.tokens.shape[1] - 1
        tokens = committed.tokens.gather(1, places.clamp(max=furthest))
        ahead = self.backbone.embed(committed.tokens.gather(1, (places + 1).clamp(max=furthest)))
        newest = committed.tokens.gather(1, (ends + 1).clamp(max=furthest))
        if self.head.zero_first:
            ahead = ahead.masked_fill((places == 0).unsqueeze(-1), 0.0)
        # A row that has ended has nothing new to read, and its draft is of no account.
        last_places = (ends - begin).clamp(min=0)
        hidden = self._step(self.tapped[places], tokens, ahead, places, 1, committed.lengths)
        hidden = at(hidden, last_places)
        drafts: list[Draft] = []
        logits: list[Tensor] = []
        for depth in range(1, min(self.length, limit) + 1):
            if depth > 1:
                tokens, newest = newest, drafts[-1].tokens
                ahead = self.backbone.embed(newest)
                hidden = self.head.hand_on(hidden, depth - 1)
                if depth == 2:
                    self.past.keep(read)
                else:  # a recurrent state goes back to where it was kept last
                    self.past.assume()
                hidden = self._step(hidden, tokens, ahead, ends + depth - 1, depth)
            logits.append(self.output.logits(self.head.module(depth).norm(hidden)))
            uniforms = None if self.shape else self.sampler.draft_uniforms(depth - 1, 1)
            drafts.append(self.output.named(chain(logits[-1], self.sampler, uniforms)))
        self.past.keep(read)
        if self.shape is not None:
            found = comb(torch.cat(logits, dim=1), self.shape, committed.reach)
            return self.output.named(found)
        return Draft.joined(drafts)

    def _step(
        self,
        hidden: Tensor,
        tokens: Tensor,
        ahead: Tensor,
        places: Tensor,
        depth: int,
        stands: Sequence[int] | None = None,
    ) -> Tensor:
        """Read `hidden` and `ahead` (B, W, D) at `tokens` (B, W) of positions `places` (B, W).

        Of each row as many tokens as `stands` says stand, see `Past.enter`.
        """
        given = self.past.enter(hidden.shape[1], stands=stands)
        call = self.backbone.block_call(
            tokens,
            places.clamp(max=(self.backbone.max_length or 1 << 62) - 1),
            self.cache,
            given.get("attention_mask"),
            given.get("rotation"),
        )

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return call(block, hidden, self.cache)

        return self.head.step(hidden, ahead, depth, run)
