"""Residual heads: feed-forward layers beside the final hidden state, the cheapest heads there are.

Stern et al. 2018, "Blockwise Parallel Decoding for Deep Autoregressive Models" (arXiv 1811.03115),
section 4, and Cai et al. 2024, "Medusa" (arXiv 2401.10774), section 2.1.1:

    h^k = h + SiLU(W_k h + b_k),   P^k = OutHead(h^k)

with W_k and b_k zero at first, so that every head begins as the backbone's own (Medusa's
initialisation). Stern's heads share the model's vocabulary projection, as ours do, which keeps them
small; Medusa gives every head an output matrix of its own.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from foretell.heads.base import DEEPEST, EmbedAhead, Head, HeadConfig, Parts, RunBlock
from foretell.heads.taps import States


class ResidualLayer(nn.Linear):
    """h + SiLU(W h + b), the identity at first."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + F.silu(super().forward(hidden))


class ResidualHeads(Head):
    """K stacks of residual layers."""

    class Config(HeadConfig):
        """Residual heads. `init` and `block` do not concern them: they have no decoder blocks."""

        kind: ClassVar[str] = "residual"
        layers: Annotated[int, Field(ge=1, le=DEEPEST)] = 1
        """Residual layers per head."""

        @property
        def modules(self) -> int:
            return self.depth * self.layers

    def __init__(self, config: "ResidualHeads.Config", parts: Parts) -> None:
        super().__init__(config, parts)
        self.heads = nn.ModuleList(
            nn.Sequential(*(ResidualLayer(parts.hidden_size) for _ in range(config.layers)))
            for _ in range(config.depth)
        )

    @property
    def runs_blocks(self) -> bool:
        return False

    def forward(
        self, states: States, embed_ahead: EmbedAhead, run: RunBlock, depths: Sequence[int]
    ) -> list[Tensor]:
        dtype = next(self.heads.parameters()).dtype
        return [self.heads[k - 1](self.tap(states, k).to(dtype)) for k in depths]
