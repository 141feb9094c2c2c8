"""Drafting with parallel heads: every depth from one pass over what was just verified.

The heads run over the very positions of the verify pass, called as the backbone called its last
block, and then forget the rejected ones as the backbone does. Their caches stay in step with its
own.

Shapes: W positions of the verify pass, K depths, D hidden.
"""

import torch
from torch import Tensor, nn

from foretoken.backbone import Backbone
from foretoken.decoding.cache import new_cache, rollback
from foretoken.decoding.drafters.base import Committed
from foretoken.heads import ParallelHeads, Tap


class ParallelDrafter:
    """Greedy drafts from parallel heads."""

    def __init__(self, backbone: Backbone, head: ParallelHeads, tap: Tap) -> None:
        self.backbone, self.head, self.tap = backbone, head, tap
        self.caches = [new_cache() for _ in range(head.depth)]

    @property
    def layers(self) -> tuple[int, ...]:
        return self.tap.layers

    def draft(self, committed: Committed, limit: int) -> Tensor:
        output, last = committed.output, committed.kept - 1
        tapped = self.tap.read(output.final, output.states)

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return output.call(block, hidden, self.caches[depth - 1])[:, last]

        per_depth = list(self.head(tapped, _no_embedding, run))
        for cache in self.caches:
            rollback(cache, tapped.shape[1] - committed.kept)
        logits = self.backbone.unembed(torch.cat(per_depth))  # (K, V)
        return logits.argmax(dim=-1)[:limit]


def _no_embedding(distance: int) -> Tensor:
    raise AssertionError("parallel heads read no tokens ahead")
