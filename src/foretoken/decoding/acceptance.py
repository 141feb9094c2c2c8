"""Acceptance rules: how much of a draft stands, and the token that follows.

A rule is a pure function of the draft and the backbone's logits over it. Its type says whether it
is lossless, that is, whether what it emits is distributed exactly as the backbone's own output.

Shapes: G drafted tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    accepted: how many drafted tokens stand, 0…G.
    next_token: the backbone's own token after them.
    """

    accepted: int
    next_token: int


class AcceptanceRule(Protocol):
    """A way to judge drafts."""

    lossless: ClassVar[bool]

    def __call__(self, draft: Tensor, logits: Tensor) -> Verdict:
        """Judge a chain.

        Args:
            draft: (G,) token ids; G may be 0.
            logits: (G+1, V), the backbone's at the token before the draft and at each drafted one.
        """
        ...


class Exact:
    """Accept while the draft is the backbone's greedy choice (Stern et al. 2018, section 3)."""

    lossless: ClassVar[bool] = True

    def __call__(self, draft: Tensor, logits: Tensor) -> Verdict:
        greedy = logits.argmax(dim=-1).tolist()
        accepted = 0
        for drafted, own in zip(draft.tolist(), greedy, strict=False):
            if drafted != own:
                break
            accepted += 1
        return Verdict(accepted, greedy[accepted])
