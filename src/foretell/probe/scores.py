"""How good a prediction is: against the text, against the backbone, and as a draft.

At depth k and position t, with q the prediction and p the backbone after the true tokens x_≤t+k:

top1, top5      whether x_{t+1+k} is q's likeliest token, or among its five likeliest
nll             -log q(x_{t+1+k}), in nats
entropy         of q, in nats
agreement       whether q's likeliest token is p's: greedy verification would let it stand
acceptance      agreement at all of the depths 1…k
speculative     that all of the first k tokens drawn from q stand under speculative sampling:
                Π_{1≤j<k} min(1, q_j(x_{t+1+j}) / p_j(x_{t+1+j})) · Σ_v min(p(v), q(v)), which over
                texts that the backbone wrote is what Leviathan et al. 2023 (arXiv 2211.17192,
                theorem 3.5) sum to the expected number of tokens
own_agreement   whether q's likeliest token is the one in the backbone's own greedy continuation
own_acceptance  the same at all of the depths 1…k: what greedy decoding from here would accept

Where only a covered part of q is known, `_min` and `_max` bound what the whole would score.

Shapes: N positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Scores = dict[str, Tensor]
"""(N,) by name; not a number where nothing is to be counted."""

SMALLEST = 1e-30


@dataclass(frozen=True)
class Truth:
    """What stands at one depth.

    Attributes:
        tokens: (N,), in the text.
        chances: (N, V), the backbone's distribution there.
        chain: (N,), in the backbone's own greedy continuation; None where it is not known.
    """

    tokens: Tensor
    chances: Tensor
    chain: Tensor | None = None


class Scorer:
    """Scores one method at N positions, depth by depth from the first that it predicts."""

    def __init__(self) -> None:
        self._stands: dict[str, Tensor] = {}
        self._drawn: Tensor | None = None

    def distribution(
        self,
        depth: int,
        covered: Tensor,
        target: Truth,
        *,
        missing: Tensor | None = None,
        drafted: Tensor | None = None,
    ) -> Scores:
        """Score a distribution.

        Args:
            depth: k.
            covered: (N, V).
            target: what it predicts.
            missing: (N, 1), its mass beyond `covered`; None: there is none.
            drafted: (N,), what is drafted after the backbone's own tokens, where that is not the
                likeliest one.
        """
        whole = covered if missing is None else covered + missing / covered.shape[-1]
        tokens, own = target.tokens, target.chances.argmax(-1)
        best = whole.topk(min(5, whole.shape[-1])).indices  # (N, 5)
        hits = best == tokens.unsqueeze(1)
        chance = at(whole, tokens)
        scores = {
            "top1": hits[:, 0],
            "top5": hits.any(1),
            "nll": -chance.clamp(min=SMALLEST).log(),
            "entropy": entropy(whole),
            **self._standing(depth, "", best[:, 0] == own),
            "speculative": self._speculative(depth, whole, target),
        }
        if target.chain is not None:
            chosen = best[:, 0] if drafted is None else drafted
            scores |= self._standing(depth, "own_", chosen == target.chain)
        if missing is not None:
            scores |= self._bounds(depth, covered, missing, target)
        return numbers(scores)

    def tokens(self, depth: int, drafted: Tensor, behind_chain: Tensor, target: Truth) -> Scores:
        """Score tokens (N,) that are no distribution; -1 is none.

        Args:
            depth: k.
            drafted: after the text.
            behind_chain: after the backbone's own continuation.
            target: what they are to be.
        """
        own = target.chances.argmax(-1)
        stands = at(target.chances, drafted.clamp(min=0)) * (drafted >= 0)
        if depth > 1 and self._drawn is not None:
            stands = stands * self._drawn
        hits = (drafted == target.tokens).to(stands.dtype)
        if depth > 0:
            self._drawn = hits if self._drawn is None else self._drawn * hits
        scores = {
            "top1": hits,
            **self._standing(depth, "", drafted == own),
            "speculative": stands,
        }
        if target.chain is not None:
            scores |= self._standing(depth, "own_", behind_chain == target.chain)
        return numbers(scores)

    def _standing(self, depth: int, prefix: str, agrees: Tensor, suffix: str = "") -> Scores:
        """Agreement at this depth, and at all from depth 1 to it."""
        stands = self._stands.get(prefix + suffix, torch.ones_like(agrees)) & agrees
        if depth > 0:
            self._stands[prefix + suffix] = stands
        return {f"{prefix}agreement{suffix}": agrees, f"{prefix}acceptance{suffix}": stands}

    def _speculative(self, depth: int, whole: Tensor, target: Truth) -> Tensor:
        overlap = torch.minimum(whole, target.chances).sum(-1)
        if depth == 0:
            return overlap
        drawn = torch.ones_like(overlap) if self._drawn is None else self._drawn
        chance = at(target.chances, target.tokens).clamp(min=SMALLEST)
        self._drawn = drawn * (at(whole, target.tokens) / chance).clamp(max=1.0)
        return drawn * overlap

    def _bounds(self, depth: int, covered: Tensor, missing: Tensor, target: Truth) -> Scores:
        tokens, rest = target.tokens, missing.squeeze(1)
        part = at(covered, tokens)
        least, most = entropy_bounds(covered, missing)
        scores = {
            "nll_min": -(part + rest).clamp(SMALLEST, 1.0).log(),
            "nll_max": -part.clamp(min=SMALLEST).log(),
            "entropy_min": least,
            "entropy_max": most,
        }
        for name, count in (("top1", 1), ("top5", 5)):
            sure, possible = among_likeliest(covered, missing, tokens, count)
            scores |= {f"{name}_min": sure, f"{name}_max": possible}
        chosen = {"": target.chances.argmax(-1), "own_": target.chain}
        for prefix, wanted in chosen.items():
            if wanted is not None:
                sure, possible = among_likeliest(covered, missing, wanted, 1)
                scores |= self._standing(depth, prefix, sure, "_min")
                scores |= self._standing(depth, prefix, possible, "_max")
        return scores


def at(values: Tensor, tokens: Tensor) -> Tensor:
    """The value of each row's token: (N, V), (N,) → (N,)."""
    return values.gather(1, tokens.unsqueeze(1)).squeeze(1)


def numbers(scores: Scores) -> Scores:
    """Yes and no as 1 and 0."""
    return {
        name: value.float() if value.dtype == torch.bool else value
        for name, value in scores.items()
    }


def entropy(probabilities: Tensor) -> Tensor:
    """(N, V) → (N,), in nats."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def among_likeliest(
    covered: Tensor, missing: Tensor, tokens: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Whether `tokens` (N,) surely are, and may be, among the `count` likeliest: (N,) each.

    They surely are where lifting the best `count` others to their level takes more than is missing;
    they may be where all that is missing lifts them to the level of the last of these.
    """
    part = at(covered, tokens).unsqueeze(1)  # (N, 1)
    others = covered.scatter(1, tokens.unsqueeze(1), -torch.inf)
    best = others.topk(min(count, others.shape[1])).values  # (N, count)
    lifting = (part - best).clamp(min=0.0).sum(-1)
    rest = missing.clamp(min=0.0).squeeze(1)
    return lifting > rest, best[:, -1] <= part.squeeze(1) + rest


def entropy_bounds(covered: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest entropy of what `covered` (N, V) may be completed to.

    Entropy falls as mass gathers and rises as it evens out (it is Schur-concave): least where all
    that is missing belongs to the likeliest token, greatest where it fills up the lowest ones to
    one level.
    """
    best = covered.argmax(-1, keepdim=True)
    least = entropy(covered.scatter_add(1, best, missing))
    rising = covered.sort(-1).values
    counts = torch.arange(1, rising.shape[1] + 1, device=rising.device)
    levels = (rising.cumsum(-1) + missing) / counts  # if the lowest 1, 2, … are filled up
    fits = levels >= rising
    number = fits.sum(-1, keepdim=True).clamp(min=1) - 1
    level = levels.gather(1, number)  # (N, 1)
    return least, entropy(torch.maximum(covered, level))
