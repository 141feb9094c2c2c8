"""Parallel heads: one decoder block per depth, side by side on one tap.

Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction"
(arXiv 2404.19737), section 2: P(x_{t+1+k} | x_≤t) = softmax(f_u(f_{h_k}(z_t))), with a transformer
layer f_{h_k} per depth and the unembedding f_u shared. Their trunk z is our tap `"trunk"`.

Their appendix on alternative architectures has three more, here `variant`:

causal       f_{h_k} reads what f_{h_{k-1}} gives; depth 1 reads what the model's own last block
             gives (tap `"last"`), which is their first head
anticausal   the other way round: f_{h_K} reads the trunk, f_{h_k} what f_{h_{k+1}} gives. Theirs
             ends in the next-token head; ours at depth 1, so that the backbone stays a model of its
             own
linear       f_{h_k} is one matrix
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import model_validator
from torch import Tensor, nn

from foretell.heads.base import EmbedAhead, Head, HeadConfig, Parts, RunBlock
from foretell.heads.taps import States

Variant = Literal["parallel", "causal", "anticausal", "linear"]


class ParallelHeads(Head):
    """K blocks, which know nothing of each other unless `variant` chains them."""

    class Config(HeadConfig):
        """Parallel heads. They read Gloeckle's trunk unless another tap is given."""

        kind: ClassVar[str] = "parallel"
        variant: Variant = "parallel"
        """How the heads hang together: `parallel`, `causal`, `anticausal` or `linear`."""
        tap: str | int = "trunk"
        """Hidden state that heads read; by default `trunk`, or `last` for `causal` heads."""

        @model_validator(mode="before")
        @classmethod
        def _causal_heads_follow_the_last_block(cls, told: dict[str, Any]) -> dict[str, Any]:
            return {"tap": "last", **told} if told.get("variant") == "causal" else told

    def __init__(self, config: "ParallelHeads.Config", parts: Parts) -> None:
        super().__init__(config, parts)
        linear = config.variant == "linear"
        size = parts.hidden_size
        self.blocks = nn.ModuleList(
            nn.Linear(size, size, bias=False) if linear else parts.block()
            for _ in range(config.depth)
        )
        self.norms = nn.ModuleList(parts.norm() for _ in range(config.depth))

    @property
    def variant(self) -> Variant:
        """How the heads hang together."""
        return cast(ParallelHeads.Config, self.config).variant

    @property
    def runs_blocks(self) -> bool:
        return self.variant != "linear"

    @property
    def chained(self) -> bool:
        return self.variant in ("causal", "anticausal")

    def forward(
        self, states: States, embed_ahead: EmbedAhead, run: RunBlock, depths: Sequence[int]
    ) -> list[Tensor]:
        if not self.chained:
            return [self._norm(self._block(self._read(states, k), k, run), k) for k in depths]
        order = list(range(1, self.depth + 1))
        if self.variant == "anticausal":
            order.reverse()
        wanted, done = set(depths), {}
        hidden = self._read(states, order[0])
        for depth in order:
            hidden = self._block(hidden, depth, run)
            if depth in wanted:
                done[depth] = self._norm(hidden, depth)
                wanted.remove(depth)
            if not wanted:
                break
        return [done[depth] for depth in depths]

    def _read(self, states: States, depth: int) -> Tensor:
        # In the heads' own type: under autocast the states are bfloat16 and the weights float32.
        tapped: Tensor = self.tap(states, depth)
        return tapped.to(next(self.blocks.parameters()).dtype)

    def _block(self, hidden: Tensor, depth: int, run: RunBlock) -> Tensor:
        block = self.blocks[depth - 1]
        return block(hidden) if isinstance(block, nn.Linear) else run(block, hidden, depth)

    def _norm(self, hidden: Tensor, depth: int) -> Tensor:
        result: Tensor = self.norms[depth - 1](hidden)
        return result
