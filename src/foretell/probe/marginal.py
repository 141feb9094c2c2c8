"""Numerical marginalization: the multi-token distribution that a next-token model already has.

Mehra, Alonso Garcia and Mauch 2025 (arXiv 2502.09419):

    p(x_{t+1+k} | x_≤t) = Σ_{v_1…v_k} p(v_1 | x_≤t) ⋯ p(v_k | x_≤t, v_<k) · p(x_{t+1+k} | x_≤t,
    v_1…v_k)

The sum runs over `width` strings, found depth by depth by a beam; their total probability is the
*covered mass*. With `width` ≥ V^k it runs over all strings and is exact. Else the true distribution
lies between the *covered part* and that with the missing mass added, wherever it may belong.

All strings of all positions of a row hang on the same prefix, so they are computed as trees: one
pass over the row, then one pass per depth, see `foretell.probe.branches`.

A *reader* of these distributions drafts from them alone. Under speculative sampling (Leviathan et
al. 2023, arXiv 2211.17192, algorithm 1) a token drawn from q_k stands after a string s with
probability Σ_v min(p(v | s), q_k(v)), and it is v with probability min(p(v | s), q_k(v)). So all of
the first k drafted tokens stand with probability

    Σ_{v_1…v_k} p(v_1) Π_{j<k} min(p(v_{j+1} | v_≤j), q_j(v_{j+1})) · Σ_v min(p(v | v_≤k), q_k(v))

which the same strings give, again as an interval.

Shapes: P positions, M strings per position (`width`), K depths, V vocabulary, T row length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretell.backbone import Backbone
from foretell.errors import InputError
from foretell.probe.branches import ReadRow


@dataclass(frozen=True)
class Marginal:
    """What the backbone predicts at one depth.

    Attributes:
        depth: k.
        covered: (P, V), the sum over the strings: at most the true probabilities.
        covered_mass: (P,), probability of the strings that were summed over; 1 at depth 0.
        stands_min: (P,), at least with this probability a reader's first k drafted tokens all stand
            under speculative sampling.
        stands_max: (P,), and at most with this one.
    """

    depth: int
    covered: Tensor
    covered_mass: Tensor
    stands_min: Tensor
    stands_max: Tensor

    @property
    def missing(self) -> Tensor:
        """(P, 1), what the true probabilities have in all over the covered part."""
        return (1.0 - self.covered.sum(-1, keepdim=True)).clamp(min=0.0)

    @property
    def probabilities(self) -> Tensor:
        """(P, V), each row a distribution: what is missing is spread evenly."""
        return self.covered + self.missing / self.covered.shape[-1]


@torch.inference_mode()
def marginalize(
    backbone: Backbone, tokens: Tensor, positions: Tensor, depth: int, width: int | Sequence[int]
) -> Iterator[Marginal]:
    """Yield the distributions of depths 0…`depth` at `positions` of one row.

    Args:
        backbone: the model.
        tokens: (1, T).
        positions: (P,), each 0…T-1; position t predicts x_{t+1+k}.
        depth: K ≥ 0.
        width: M ≥ 1, strings kept per position; or as many at depths 1, 2, …, the last for all
            that are deeper.

    Raises:
        InputError: `depth` or `width` out of range.
        BackboneError: the backbone takes no mask of ours (`require_branches`), or its logits are
            not finite.
    """
    yield from marginalize_row(ReadRow(backbone, tokens, max(0, depth)), positions, depth, width)


@torch.inference_mode()
def marginalize_row(
    row: ReadRow, positions: Tensor, depth: int, width: int | Sequence[int]
) -> Iterator[Marginal]:
    """`marginalize` for a row that was read already."""
    widths = check_widths(depth, width)
    parts = [
        list(_grow(row, chunk, depth, widths))
        for chunk in row.chunks(positions, depth, max(widths))
    ]
    for level in zip(*parts, strict=True):
        yield _joined(level)


def check_widths(depth: int, width: int | Sequence[int]) -> tuple[int, ...]:
    """M at each of the depths 1…`depth`; one at least."""
    widths = (width,) if isinstance(width, int) else tuple(width)
    if depth < 0 or min(widths, default=0) < 1:
        shown = ", ".join(map(str, widths))
        raise InputError(f"depth is {depth} and width {shown}; use depth ≥ 0 and width ≥ 1.")
    return (*widths, *[widths[-1]] * (depth - len(widths)))[: max(1, depth)]


def _grow(row: ReadRow, positions: Tensor, depth: int, widths: Sequence[int]) -> Iterator[Marginal]:
    reader = row.distribution(positions)  # (P, V)
    sure = reader.new_ones(len(positions))
    yield Marginal(0, reader, sure, sure, sure)
    branches = row.branches(positions)
    following = reader.unsqueeze(1)  # (P, M, V): what follows each string
    strings = arrival = sure.unsqueeze(1)  # (P, M): their probability; that the reader gets there
    stands_max = sure
    for k in range(1, depth + 1):
        chances = (strings.unsqueeze(-1) * following).flatten(1)  # (P, M·V)
        if k == 1:
            reached = chances  # the first token is the backbone's own
        else:
            reached = (arrival.unsqueeze(-1) * torch.minimum(following, _beside(reader))).flatten(1)
        strings, picked = chances.topk(min(widths[k - 1], chances.shape[1]))  # (P, M)
        arrival = reached.gather(1, picked)
        parents, leaves = picked // following.shape[-1], picked % following.shape[-1]
        following = branches.extend(leaves, parents)  # (P, M, V)
        covered = torch.einsum("pm,pmv->pv", strings, following)
        missed = (stands_max - arrival.sum(1)).clamp(min=0.0)  # (P,)
        found = Marginal(k, covered, strings.sum(1), sure, sure)
        reader = found.probabilities
        overlap = torch.minimum(following, _beside(reader)).sum(-1)  # (P, M)
        stands_min = (arrival * overlap).sum(1)
        stands_max = (stands_min + missed).clamp(max=1.0)
        yield Marginal(k, covered, found.covered_mass, stands_min, stands_max)


def _beside(reader: Tensor) -> Tensor:
    """(P, V) beside (P, M, V)."""
    return reader.unsqueeze(1)


def _joined(parts: Sequence[Marginal]) -> Marginal:
    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    names = ("covered", "covered_mass", "stands_min", "stands_max")
    return Marginal(parts[0].depth, *map(whole, names))
