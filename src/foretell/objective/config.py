"""What is learned at each depth, and how much each depth counts over the run.

sum         L = L^0 + λ Σ_k L^k                      Gloeckle et al. 2024 (arXiv 2404.19737), eq. 2
mean        L = L^0 + (λ/K) Σ_k L^k                  DeepSeek-V3 (arXiv 2412.19437), equation 25
geometric   L = L^0 + λ Σ_k β^{k-1}/Σ_j β^{j-1} L^k  FastMTP (arXiv 2509.18362)

A schedule changes the weights while the run goes on:

constant    not at all
drop        λ becomes `drop_to` from `drop_at` on (DeepSeek-V3, section 4.2: 0.3, then 0.1)
forward     depths join one after another over the first `curriculum` of the run
reverse     depths leave one after another, deepest first, over the first `curriculum` of the run
            (both Aynetdinov and Akbik 2025, "Pre-training curriculum for multi-token prediction in
            language models", arXiv 2505.22757)
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from foretell.config import BaseConfig, Count, NotNegative, Number, Positive
from foretell.errors import InputError
from foretell.objective.divergences import Divergence

Weights = Literal["sum", "mean", "geometric"]
Schedule = Literal["constant", "drop", "forward", "reverse"]
Distill = Literal["none", "backbone", "marginal"]


class ObjectiveConfig(BaseConfig):
    """The objective of a run."""

    weights: Weights = "sum"
    """How depths share the loss: `sum`, `mean` (DeepSeek's λ/D), `geometric` (FastMTP)."""
    scale: Positive = 1.0
    """λ, the weight of depths 1…K against depth 0's."""
    decay: Annotated[Positive, Field(le=1)] = 0.6
    """β of `geometric`, how much less each further depth counts."""
    backbone: NotNegative = 1.0
    """Weight of depth 0; 0 leaves the backbone's own prediction out."""
    schedule: Schedule = "constant"
    """How the weights change over the run: `constant`, `drop`, `forward`, `reverse`."""
    drop_at: Positive = 0.67
    """Where `drop` happens: a share of the run below 1, else an optimiser step."""
    drop_to: Positive = 0.1
    """λ after `drop`."""
    curriculum: Annotated[Positive, Field(le=1)] = 0.5
    """Share of the run over which `forward` and `reverse` move through the depths."""
    distill: Distill = "none"
    """What depths 1…K learn beside the text: `none`; `backbone`, what the backbone itself predicts
    once it has read the true tokens in between; or `marginal`, what it predicts without them, by
    numerical marginalization."""
    distill_share: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Share of a depth's loss that `distill` has, 0…1; the rest is the text's."""
    divergence: Divergence = "kl"
    """How far heads are from their teacher in `backbone` distillation: `kl`, `rkl` (reversed) or
    `jsd` (both); or what aims at acceptance under sampling: `tv` (1 - α), `nla` (-log α) or
    `lk_hybrid` (from `kl` to `tv` as drafts get better)."""
    temperature: Positive = 1.0
    """Temperature of teacher and student in `backbone` distillation (Hinton et al. 2015)."""
    marginal_width: Count = 8
    """Strings summed over per position and depth."""
    marginal_positions: Count = 16
    """Positions per row that are marginalized; it costs a pass over `marginal_width` tokens for
    each of them and each depth."""

    @classmethod
    def called(cls) -> str:
        return "objective"

    @model_validator(mode="after")
    def _only_the_backbone_says_more(self) -> Self:
        if self.divergence != "kl" and self.distill != "backbone":
            raise InputError(
                f"divergence {self.divergence!r} is one from a teacher; use distill 'backbone'."
            )
        return self

    @property
    def skips_depths(self) -> bool:
        """Whether a depth counts nothing for a part of the run."""
        return self.schedule in ("forward", "reverse")

    def at(self, depth: int, done: float = 0.0, step: int = 0) -> tuple[float, ...]:
        """Weights of depths 0…`depth` when `done` (0…1) of the run, `step` steps, are over."""
        dropped = self.schedule == "drop" and (
            step >= self.drop_at if self.drop_at >= 1 else done >= self.drop_at
        )
        scale = self.drop_to if dropped else self.scale
        ratio = self.decay if self.weights == "geometric" else 1.0
        powers = [ratio**k for k in range(depth)]
        total = 1.0 if self.weights == "sum" else sum(powers)
        shares = [power / total for power in powers]
        active = self._active(depth, done)
        return (
            self.backbone,
            *(scale * share if k < active else 0.0 for k, share in enumerate(shares)),
        )

    def _active(self, depth: int, done: float) -> int:
        """How many of the depths 1…K count now; at least one where depth 0 does not."""
        if self.schedule not in ("forward", "reverse"):
            return depth
        least = 0 if self.backbone > 0 else min(1, depth)
        stage = min(depth - least, int(done / self.curriculum * (depth - least + 1)))
        return least + stage if self.schedule == "forward" else depth - stage
