"""Sequential heads: DeepSeek's chain of modules, each reading the one before and the next true
token.

DeepSeek-V3 technical report (arXiv 2412.19437), section 2.2, equations 21-23:

    h'^k_i = M_k [RMSNorm(h^{k-1}_i) ; RMSNorm(Emb(x_{i+k}))],   M_k ∈ R^{D×2D}
    h^k    = TRM_k(h'^k)
    P^k    = OutHead(h^k)

h^0 is the backbone's final hidden state; embedding and output head are the backbone's. With
`shared=True` one module serves every depth (FastMTP's recursion).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from foretoken.heads.base import EmbedAhead, Head, HeadConfig, Parts, RunBlock
from foretoken.heads.taps import States


class SequentialModule(nn.Module):
    """One link of the chain."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        size = parts.hidden_size
        self.hidden_norm = nn.RMSNorm(size, eps=1e-6)
        self.embedding_norm = nn.RMSNorm(size, eps=1e-6)
        self.projection = nn.Linear(2 * size, size, bias=False)
        self.block = parts.block()
        self.norm = parts.norm()

    def fuse(self, hidden: Tensor, ahead: Tensor) -> Tensor:
        """h'^k from h^{k-1} and Emb(x_{i+k}): two (B, T, D) → (B, T, D)."""
        # In the norms' own type: under autocast the states are bfloat16 and the weights float32.
        dtype = self.hidden_norm.weight.dtype
        pair = (self.hidden_norm(hidden.to(dtype)), self.embedding_norm(ahead.to(dtype)))
        return cast(Tensor, self.projection(torch.cat(pair, dim=-1)))


class SequentialHeads(Head):
    """The chain. Depth k's state is computed from depth k-1's and the token k places ahead."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadConfig):
        """Sequential heads.

        Attributes:
            shared: one module for all depths, applied recursively.
        """

        kind: ClassVar[str] = "sequential"
        shared: bool = False

    def __init__(self, config: "SequentialHeads.Config", parts: Parts) -> None:
        super().__init__(config, parts)
        count = 1 if config.shared else config.depth
        self.chain = nn.ModuleList(SequentialModule(parts) for _ in range(count))

    @property
    def chained(self) -> bool:
        return True

    def module(self, depth: int) -> SequentialModule:
        """The module of `depth` (1…K); deeper depths reuse the last one."""
        return cast(SequentialModule, self.chain[min(depth, len(self.chain)) - 1])

    def step(self, hidden: Tensor, ahead: Tensor, depth: int, run: RunBlock) -> Tensor:
        """h^k from h^{k-1} and Emb(x_{i+k}): two (B, T, D) → (B, T, D), before the output norm."""
        module = self.module(depth)
        return run(module.block, module.fuse(hidden, ahead), depth)

    def forward(
        self, states: States, embed_ahead: EmbedAhead, run: RunBlock, depths: Sequence[int]
    ) -> list[Tensor]:
        hidden, wanted = self.tap(states, 1), []
        for depth in range(1, max(depths) + 1):
            hidden = self.step(hidden, embed_ahead(depth), depth, run)
            if depth in depths:
                wanted.append(self.module(depth).norm(hidden))
        return wanted
