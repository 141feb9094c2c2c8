"""Acceptance rules: how much of a draft stands, and the token that follows.

A rule is a pure function of a draft, the backbone's logits at its nodes, and random numbers. Its
type says whether it is lossless, that is, whether what it emits is distributed exactly as the
backbone's own output.

Logits are those that tokens are drawn from, after temperature and whatever else was asked for (see
`foretell.decoding.sampling`). Random numbers are uniform in [0, 1); without them the backbone
takes its likeliest token.

Shapes: B rows, N drafted tokens, W = N+1 nodes, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from foretell.decoding.draft import Draft
from foretell.errors import InputError


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    accepted: (B,) how many drafted tokens stand.
    next_token: (B,) the backbone's own token after them.
    path: (B, W) the nodes that stand, node 0 first, in its first `accepted + 1` places; None: they
        are the first ones (a chain).
    """

    accepted: Tensor
    next_token: Tensor
    path: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """(B,) the last node that stands."""
        if self.path is None:
            return self.accepted
        return self.path.gather(1, self.accepted.unsqueeze(1)).squeeze(1)


RULES: dict[str, type["AcceptanceRule"]] = {}
"""Every rule by the name that commands and `MTPModel.decode` use, lossless ones first."""


class AcceptanceRule(Protocol):
    """A way to judge drafts.

    `class Mine(AcceptanceRule, name="mine")` is asked for by that name. `number` is what `mine:N`
    stands for where no N is given; None: the rule takes no number.
    """

    lossless: ClassVar[bool]
    number: ClassVar[float | None] = None

    def __init_subclass__(
        cls, *, name: str | None = None, number: float | None = None, **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            cls.number = number
            RULES[name] = cls

    @classmethod
    def of(cls, number: float | None) -> Self:
        """The rule with a number.

        Raises:
            InputError, ValueError: it does not take that one.
        """
        return cls() if number is None else cls(number)  # type: ignore[call-arg]

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        """Judge a draft.

        Args:
            draft: N tokens per row; N may be 0.
            logits: (B, W, V), the backbone's at node 0 and at each drafted token.
            uniforms: (B, 2, W) in [0, 1), for rules that accept or draw by chance; None: greedy.
        """
        ...


# -- lossless rules -----------------------------------------------------------------------------


class Exact(AcceptanceRule, name="exact"):
    """Accept what the backbone itself chooses (Stern et al. 2018, arXiv 1811.03115, section 3).

    Under sampling the choice is drawn from the backbone's distribution, whatever the draft is, so
    that the output is the backbone's for any drafter, in chains as in trees.
    """

    lossless: ClassVar[bool] = True

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        own = choose(draft, logits, uniforms)
        return longest(draft, draft.tokens == draft.at_parents(own), own)


class SpeculativeSampling(AcceptanceRule, name="speculative"):
    """Accept a drawn token with probability min(1, p/q), else draw from the rest of p.

    Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1. Siblings in a tree are tried one after
    another, each against what the ones before it left of p (Miao et al. 2024, "SpecInfer", arXiv
    2305.09781, algorithm 2; drawn without replacement as in Chen et al. 2024, "Sequoia", arXiv
    2402.12374). A token that was chosen and not drawn stands with probability p, as by `Exact`.
    """

    lossless: ClassVar[bool] = True

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        if draft.probabilities is None or uniforms is None:
            return Exact()(draft, logits, uniforms)
        target = logits.softmax(-1, dtype=torch.float32)  # (B, W, V)
        node = torch.zeros_like(draft.tokens[:, 0])  # (B,)
        left = target[:, 0]  # (B, V), of the backbone's distribution after `node`
        accepted, counts = torch.zeros_like(node), draft.counts  # (B,), (B, N)
        path = torch.zeros_like(target[..., 0], dtype=torch.long)  # (B, W)
        for number in range(draft.size):
            drawn_from = draft.probabilities[:, number]  # (B, V)
            token = draft.tokens[:, number, None]  # (B, 1)
            parent = number if draft.parents is None else draft.parents[:, number]
            tried = (node == parent) & counts[:, number]
            p, q = left.gather(1, token).squeeze(1), drawn_from.gather(1, token).squeeze(1)
            stands = tried & (uniforms[:, 0, number] * q < p)  # (B,)
            rest = (left - drawn_from).clamp(min=0.0)
            mass = rest.sum(-1, keepdim=True)  # 0 where p = q: then rejection had no chance
            rest = torch.where(mass > 0, rest / mass, left)
            left = torch.where(tried.unsqueeze(1), rest, left)
            left = torch.where(stands.unsqueeze(1), target[:, number + 1], left)
            node = torch.where(stands, number + 1, node)
            accepted = accepted + stands
            path.scatter_(1, accepted.unsqueeze(1), node.unsqueeze(1))
        following = draw(left, uniforms[:, 1].gather(1, accepted.unsqueeze(1)).squeeze(1))
        return Verdict(accepted, following, None if draft.parents is None else path)


# -- lossy rules: never a default -----------------------------------------------------------------


@dataclass(frozen=True)
class TopK(AcceptanceRule, name="top-k", number=2):
    """Accept what is among the backbone's `k` likeliest (Stern et al. 2018, section 5.1)."""

    k: int = 2
    lossless: ClassVar[bool] = False

    @classmethod
    def of(cls, number: float | None) -> "TopK":
        return cls(whole(number))

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is {self.k}; accept at least the likeliest token.")

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        at_parents = draft.at_parents(logits)  # (B, N, V)
        drafted = at_parents.gather(-1, draft.tokens.unsqueeze(-1))  # (B, N, 1)
        stands = (at_parents > drafted).sum(-1) < self.k
        stands &= drafted.squeeze(-1) > -torch.inf  # what was ruled out is not among any
        return longest(draft, stands, choose(draft, logits, uniforms))


@dataclass(frozen=True)
class Distance(AcceptanceRule, name="distance", number=1):
    """Accept what lies within `epsilon` of the backbone's choice, for ordinal vocabularies.

    Stern et al. 2018, section 5.2; token ids are the ordinals.
    """

    epsilon: int = 1
    lossless: ClassVar[bool] = False

    @classmethod
    def of(cls, number: float | None) -> "Distance":
        return cls(whole(number))

    def __post_init__(self) -> None:
        if self.epsilon < 0:
            raise InputError(f"epsilon is {self.epsilon}; a distance cannot be negative.")

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        own = choose(draft, logits, uniforms)
        stands = (draft.tokens - draft.at_parents(own)).abs() <= self.epsilon
        return longest(draft, stands, own)


@dataclass(frozen=True)
class Typical(AcceptanceRule, name="typical", number=0.09):
    """Accept what is likely enough, less where the backbone is unsure.

    p(x) > min(ε, δ·exp(-H(p))): Cai et al. 2024, "Medusa" (arXiv 2401.10774), section 2.3.1.
    """

    epsilon: float = 0.09
    delta: float = 0.3
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (0 < self.epsilon <= 1 and self.delta > 0):
            raise InputError("typical acceptance needs 0 < epsilon ≤ 1 and delta > 0.")

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        logs = draft.at_parents(logits).log_softmax(-1, dtype=torch.float32)  # (B, N, V)
        entropy = -(logs.exp() * logs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
        threshold = (self.delta * (-entropy).exp()).clamp(max=self.epsilon)  # (B, N)
        drafted = logs.gather(-1, draft.tokens.unsqueeze(-1)).squeeze(-1).exp()
        return longest(draft, drafted > threshold, choose(draft, logits, uniforms))


@dataclass(frozen=True)
class MinimumBlock(AcceptanceRule, name="minimum-block", number=1):
    """Accept at least `length` tokens, whatever they are (Stern et al. 2018, section 5.3).

    The token that follows is the backbone's, so that a step emits `length + 1`.
    """

    length: int = 1
    lossless: ClassVar[bool] = False

    @classmethod
    def of(cls, number: float | None) -> "MinimumBlock":
        return cls(whole(number))

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"length is {self.length}; a minimum block has at least 1 token.")

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None) -> Verdict:
        own = choose(draft, logits, uniforms)
        stands = draft.tokens == draft.at_parents(own)
        return longest(draft, stands | (draft.depths[:, 1:] <= self.length), own)


# -- what rules share -----------------------------------------------------------------------------


def whole(number: float | None) -> int:
    """A rule's number where it has to be whole; else ValueError."""
    if number is None or number != int(number) or abs(number) >= 1 << 63:
        raise ValueError(number)
    return int(number)


def choose(draft: Draft, logits: Tensor, uniforms: Tensor | None) -> Tensor:
    """The backbone's own token after each node, drawn or likeliest: (B, W, V) → (B, W).

    Nodes of one depth share a random number, since only one of them can stand.
    """
    if uniforms is None:
        return logits.argmax(-1)
    return draw(logits.softmax(-1, dtype=torch.float32), uniforms[:, 1].gather(1, draft.depths))


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inversion of the distribution function: (…, V), (…) → (…).

    A token of probability 0 is never drawn.
    """
    upto = probabilities.double().cumsum(-1)
    place = (uniforms.double() * upto[..., -1]).unsqueeze(-1).contiguous()
    token = torch.searchsorted(upto, place, right=True)
    last = probabilities.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1, keepdim=True)
    return torch.minimum(token, last).squeeze(-1)


def longest(draft: Draft, stands: Tensor, own: Tensor) -> Verdict:
    """The longest way from node 0 on which every token stands.

    Args:
        draft: the tree; the first of several ways of the same length is taken.
        stands: (B, N), whether a token may stand where its parent does.
        own: (B, W), the token that follows each node.
    """
    if draft.reach is not None:
        stands = stands & draft.counts
    if draft.parents is None:
        accepted = stands.long().cumprod(1).sum(1)
        return Verdict(accepted, own.gather(1, accepted.unsqueeze(1)).squeeze(1))
    stands = torch.cat([torch.ones_like(stands[:, :1]), stands], dim=1)  # (B, W)
    reached = (stands.unsqueeze(1) | ~draft.ancestors).all(-1)  # (B, W, W) → (B, W)
    last = torch.where(reached, draft.depths, -1).argmax(1, keepdim=True)  # (B, 1)
    on_path = draft.ancestors.gather(1, last.unsqueeze(-1).expand(-1, -1, own.shape[1])).squeeze(1)
    nodes = torch.arange(own.shape[1], device=own.device)
    path = torch.where(on_path, nodes, own.shape[1]).sort(1).values.clamp(max=own.shape[1] - 1)
    accepted = draft.depths.gather(1, last).squeeze(1)
    return Verdict(accepted, own.gather(1, last).squeeze(1), path)
