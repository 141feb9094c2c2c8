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

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from foretell.errors import InputError
from foretell.fields import check_fields

Weights = Literal["sum", "mean", "geometric"]
Schedule = Literal["constant", "drop", "forward", "reverse"]
Distill = Literal["none", "backbone", "marginal"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The objective of a run.

    Attributes:
        weights: how depths 1…K share the loss.
        scale: λ, the weight of depths 1…K against depth 0's.
        decay: β of `geometric`, how much less each further depth counts.
        backbone: weight of depth 0; 0 leaves the backbone's own prediction out.
        schedule: how the weights change over the run.
        drop_at: where `drop` happens: a share of the run below 1, else an optimiser step.
        drop_to: λ from then on.
        curriculum: share of the run over which `forward` and `reverse` move through the depths.
        distill: what depths 1…K learn beside the text: nothing; `backbone`, what the backbone
            itself predicts once it has read the true tokens in between; or `marginal`, what it
            predicts without them, by numerical marginalization.
        distill_share: how much of a depth's loss that is, 0…1; the rest is the text's.
        temperature: of teacher and student in `backbone` distillation (Hinton et al. 2015).
        marginal_width: strings summed over per position and depth.
        marginal_positions: positions per row that are marginalized; it costs a pass over
            `marginal_width` tokens for each of them and each depth.
    """

    weights: Weights = "sum"
    scale: float = 1.0
    decay: float = 0.6
    backbone: float = 1.0
    schedule: Schedule = "constant"
    drop_at: float = 0.67
    drop_to: float = 0.1
    curriculum: float = 0.5
    distill: Distill = "none"
    distill_share: float = 1.0
    temperature: float = 1.0
    marginal_width: int = 8
    marginal_positions: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("scale", "drop_to", "temperature", "drop_at", "curriculum", "decay"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be positive.")
        for name in ("distill_share", "curriculum", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; it is a share, at most 1.")
        if not self.backbone >= 0:
            raise InputError(f"backbone is {self.backbone!r}; a weight cannot be negative.")
        if min(self.marginal_width, self.marginal_positions) < 1:
            raise InputError("marginal_width and marginal_positions must be at least 1.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain values; unknown names are errors."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"objective has no {name!r}; it has {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def skips_depths(self) -> bool:
        """Whether a depth counts nothing for a part of the run."""
        return self.schedule in ("forward", "reverse")

    def at(self, depth: int, done: float = 0.0, step: int = 0) -> tuple[float, ...]:
        """Weights of depths 0…`depth` when `done` (0…1) of the run, `step` steps, are behind."""
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
