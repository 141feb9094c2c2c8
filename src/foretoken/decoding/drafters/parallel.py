"""Drafting with heads that read no drafted token: every depth from one pass over what was verified.

The heads run over the very positions of the verify pass, called as the backbone called its last
block, and their caches stay in step with its own.

Shapes: B rows, W nodes of the pass, K depths, D hidden, V vocabulary.
"""

import torch
from torch import Tensor, nn

from foretoken.backbone import Backbone, BackboneOutput
from foretoken.decoding.cache import Past
from foretoken.decoding.draft import Draft
from foretoken.decoding.drafters.base import Committed
from foretoken.decoding.sampling import Sampler
from foretoken.decoding.tree import TreeShape, chain, tree
from foretoken.errors import InputError
from foretoken.heads import FINAL, Head


class ParallelDrafter:
    """Drafts from parallel or residual heads.

    Args:
        backbone: that the heads belong to.
        head: parallel or residual heads.
        length: how many depths are drafted; by default all.
        shape: of a tree; None drafts a chain.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        length: int | None = None,
        shape: TreeShape | None = None,
    ) -> None:
        length = head.depth if length is None else length
        if not 1 <= length <= head.depth:
            raise InputError(f"draft length {length}: these heads draft 1 to {head.depth} tokens.")
        if shape is not None:
            shape.check(backbone.vocab_size)
        self.backbone, self.head, self.shape = backbone, head, shape
        self.depths = range(1, length + 1)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.head.layers

    def start(self, past: Past, sampler: Sampler, rows: int, capacity: int) -> None:
        self.sampler = sampler
        self.caches = [past.beside() for _ in range(self.head.depth)]
        self._compiled = torch.compile(self._logits, dynamic=False) if past.fixed else self._logits

    def draft(self, committed: Committed, limit: int) -> Draft:
        output, last = committed.output, committed.last
        if limit < 1:
            return Draft.nothing(len(last), last.device)
        logits = (self._compiled if any(committed.begin) else self._logits)(output, last)[:, :limit]
        return chain(logits, self.sampler) if self.shape is None else tree(logits, self.shape)

    def _logits(self, output: BackboneOutput, last: Tensor) -> Tensor:
        """Of every depth after place `last` (B,) of a pass, (B, K, V)."""
        states = {FINAL: output.final, **output.states}

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return output.call(block, hidden, self.caches[depth - 1])

        per_depth = self.head(states, _no_embedding, run, self.depths)
        rows = torch.arange(len(last), device=last.device)
        final = torch.stack([hidden[rows, last] for hidden in per_depth], dim=1)
        return self.backbone.unembed(final)


def _no_embedding(distance: int) -> Tensor:
    raise AssertionError("parallel heads read no tokens ahead")
