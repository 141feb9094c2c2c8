"""How much each depth counts in the loss.

sum      L = L^0 + Σ_k L^k                 Gloeckle et al. 2024 (arXiv 2404.19737), equation 2
mean     L = L^0 + (λ/D) Σ_k L^k           DeepSeek-V3 (arXiv 2412.19437), equation 25
"""

from dataclasses import dataclass
from typing import Literal

from foretoken.errors import InputError


@dataclass(frozen=True)
class DepthWeights:
    """Weights of depths 0…K.

    Attributes:
        kind: `"sum"` (every depth counts 1) or `"mean"` (depths 1…K share `scale`: DeepSeek's λ/D).
        scale: λ; multiplies depths 1…K under both kinds.
        backbone: weight of depth 0; 0 where the backbone does not learn.
    """

    kind: Literal["sum", "mean"] = "sum"
    scale: float = 1.0
    backbone: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("sum", "mean"):
            raise InputError(f"loss weights {self.kind!r} are unknown; use 'sum' or 'mean'.")
        if self.scale <= 0 or self.backbone < 0:
            raise InputError(
                "loss weights must be positive: check the scale and the backbone weight."
            )

    def of(self, depth: int) -> tuple[float, ...]:
        """Weights of depths 0…`depth`."""
        each = self.scale / max(1, depth) if self.kind == "mean" else self.scale
        return (self.backbone, *[each] * depth)
