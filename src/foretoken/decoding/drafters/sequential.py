"""Drafting with sequential heads: each depth reads the token that the depth before it drafted.

At position i depth k reads x_{i+k}. For the last K-1 positions that token was still a draft one
round ago, so every round computes those positions again, with the tokens that now stand, before it
drafts from the last one. All depths run over this same window, so that they share one mask and one
rotary embedding, and what they compute is exactly what training computed.

Shapes: W positions of the window, K depths, D hidden.
"""

import torch
from torch import Tensor, nn

from foretoken.backbone import Backbone
from foretoken.decoding.cache import new_cache, rollback
from foretoken.decoding.drafters.base import Committed
from foretoken.heads import FINAL, SequentialHeads


class SequentialDrafter:
    """Greedy drafts from a chain of modules."""

    def __init__(self, backbone: Backbone, head: SequentialHeads) -> None:
        self.backbone, self.head = backbone, head
        self.caches = [new_cache() for _ in range(head.depth)]
        self.trailing: Tensor | None = None  # (1, ≤ K-1, D): tapped states that must be read again

    @property
    def layers(self) -> tuple[int, ...]:
        return self.head.layers

    def draft(self, committed: Committed, limit: int) -> Tensor:
        tapped = self._window(committed)
        end = committed.tokens.shape[1] - 1  # one past the last position that the backbone has read
        start = end - tapped.shape[1]
        for cache in self.caches:
            rollback(cache, cache.get_seq_length() - start)
        positions = torch.arange(start, end, device=tapped.device).unsqueeze(0)
        call = self.backbone.block_call(tapped, positions, self.caches[0])

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return call(block, hidden, self.caches[depth - 1])

        tokens, hidden = committed.tokens, tapped
        for depth in range(1, self.head.depth + 1):
            ahead = self.backbone.embed(tokens[:, start + depth : end + depth])
            hidden = self.head.step(hidden, ahead, depth, run)
            final = self.head.module(depth).norm(hidden[:, -1])
            drafted = self.backbone.unembed(final).argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, drafted], dim=1)
        return tokens[0, end + 1 : end + 1 + limit]

    def _window(self, committed: Committed) -> Tensor:
        """Tapped states of the window: the new positions that stand, behind the trailing ones."""
        output = committed.output
        states = {FINAL: output.final, **output.states}
        tapped: Tensor = self.head.tap(states, 1)[:, : committed.kept]
        if self.trailing is not None:
            tapped = torch.cat([self.trailing, tapped], dim=1)
        count = self.head.depth - 1
        self.trailing = tapped[:, max(0, tapped.shape[1] - count) :]
        return tapped
