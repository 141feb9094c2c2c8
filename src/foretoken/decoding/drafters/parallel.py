"""Drafting with heads that read no drafted token: every depth from one pass over what was verified.

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
from foretoken.heads import FINAL, Head


class ParallelDrafter:
    """Greedy drafts from parallel or residual heads."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        self.backbone, self.head = backbone, head
        self.caches = [new_cache() for _ in range(head.depth)]
        self.depths = range(1, head.depth + 1)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.head.layers

    def draft(self, committed: Committed, limit: int) -> Tensor:
        output, last = committed.output, committed.kept - 1
        states = {FINAL: output.final, **output.states}

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return output.call(block, hidden, self.caches[depth - 1])

        per_depth = self.head(states, _no_embedding, run, self.depths)
        for cache in self.caches:
            rollback(cache, min(cache.get_seq_length(), output.final.shape[1] - committed.kept))
        logits = self.backbone.unembed(torch.cat([hidden[:, last] for hidden in per_depth]))
        return logits.argmax(dim=-1)[:limit]  # of (K, V)


def _no_embedding(distance: int) -> Tensor:
    raise AssertionError("parallel heads read no tokens ahead")
