"""How far a head's prediction q is from its teacher's p: what a draft learns to lower.

Under speculative sampling a drafted token stands with probability α = Σ_v min(p(v), q(v)), which is
1 - TV(p, q) (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5). The Kullback-Leibler divergence
bounds it from one side only; some of these aim at α itself (Samarin et al. 2026, "LK losses", arXiv
2602.23881):

kl          Σ p log(p/q)
rkl         Σ q log(q/p)
jsd         half of each against m = (p+q)/2
tv          1 - α
nla         -log α
lk_hybrid   λ kl + (1-λ) tv with λ = exp(-3α), which is not differentiated: the worse a draft is,
            the more it learns by kl

Heads with a draft vocabulary learn from what the teacher says among its tokens; α then is that of
these.

Shapes: C positions, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["kl", "rkl", "jsd", "tv", "nla", "lk_hybrid"]

SHARPNESS = 3.0
"""How fast `lk_hybrid` turns from kl to tv as drafts get better."""
LEAST = 1e-30
"""The least α whose logarithm is taken."""


def divergence(kind: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """Of every position, (C,) in nats, or a probability for `tv`.

    Args:
        kind: which one.
        teacher: (C, V) log-probabilities.
        student: (C, V) likewise.
    """
    return DIVERGENCES[kind](teacher, student)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    ruled_out = teacher == -torch.inf  # before the product: 0 · ∞ has no gradient
    return (teacher.exp() * torch.where(ruled_out, 0.0, teacher - student)).sum(-1)


def _rkl(teacher: Tensor, student: Tensor) -> Tensor:
    return _kl(student, teacher)


def _jsd(teacher: Tensor, student: Tensor) -> Tensor:
    ruled_out = torch.maximum(teacher, student) == -torch.inf  # the sum would have no gradient
    known = (one.masked_fill(ruled_out, 0.0) for one in (teacher, student))
    mixture = torch.logaddexp(*known) - math.log(2.0)
    return 0.5 * (_kl(teacher, mixture) + _kl(student, mixture))


def _overlap(teacher: Tensor, student: Tensor) -> Tensor:
    """α."""
    return torch.minimum(teacher, student).exp().sum(-1)


def _tv(teacher: Tensor, student: Tensor) -> Tensor:
    return 1.0 - _overlap(teacher, student)


def _nla(teacher: Tensor, student: Tensor) -> Tensor:
    return -_overlap(teacher, student).clamp(min=LEAST).log()


def _lk_hybrid(teacher: Tensor, student: Tensor) -> Tensor:
    overlap = _overlap(teacher, student)
    share = torch.exp(-SHARPNESS * overlap.detach())
    return share * _kl(teacher, student) + (1.0 - share) * (1.0 - overlap)


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "rkl": _rkl,
    "jsd": _jsd,
    "tv": _tv,
    "nla": _nla,
    "lk_hybrid": _lk_hybrid,
}
