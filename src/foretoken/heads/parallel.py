"""Parallel heads: one decoder block per depth, side by side on one tap.

Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction"
(arXiv 2404.19737), section 2: P(x_{t+1+k} | x_≤t) = softmax(f_u(f_{h_k}(z_t))), with a transformer
layer f_{h_k} per depth and the unembedding f_u shared. Their trunk z is our tap `"trunk"`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from foretoken.heads.base import EmbedAhead, Head, HeadConfig, Parts, RunBlock


class ParallelHeads(Head):
    """K blocks that know nothing of each other."""

    @dataclass(frozen=True, kw_only=True)
    class Config(HeadConfig):
        """Parallel heads; the default tap is Gloeckle's trunk."""

        kind: ClassVar[str] = "parallel"
        tap: str | int = "trunk"

    def __init__(self, config: HeadConfig, parts: Parts) -> None:
        super().__init__(config, parts)
        self.blocks = nn.ModuleList(parts.block() for _ in range(config.depth))
        self.norms = nn.ModuleList(parts.norm() for _ in range(config.depth))

    def forward(self, tapped: Tensor, embed_ahead: EmbedAhead, run: RunBlock) -> Iterator[Tensor]:
        tapped = tapped.to(next(self.parameters()).dtype)
        for depth, (block, norm) in enumerate(zip(self.blocks, self.norms, strict=True), start=1):
            yield norm(run(block, tapped, depth))
