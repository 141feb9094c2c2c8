"""What a drafter proposes: for every row a tree of tokens. A chain is a tree of width one.

Node 0 is the last token that stands; node n > 0 is the n-th drafted token, and its parent comes
before it. The nodes of a draft, node 0 first, are the window of the pass that verifies them.

Shapes: B rows, N drafted tokens, W = N+1 nodes, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from foretell.errors import InputError


@dataclass(frozen=True)
class Draft:
    """Attributes:
    tokens: (B, N); N may be 0.
    parents: (B, N), the node before each token; None: a chain.
    probabilities: (B, N, V), the distribution that each token was drawn from, earlier siblings
        taken out; None: the tokens were chosen, not drawn.
    reach: (B,) how deep each row's draft counts; None: as deep as it goes.
    """

    tokens: Tensor
    parents: Tensor | None = None
    probabilities: Tensor | None = None
    reach: Tensor | None = None

    @classmethod
    def nothing(cls, rows: int, device: torch.device) -> "Draft":
        """No token for any row."""
        return cls(torch.empty(rows, 0, dtype=torch.long, device=device))

    @classmethod
    def joined(cls, chains: Sequence["Draft"]) -> "Draft":
        """Chains, one after the other."""
        drawn = [part.probabilities for part in chains if part.probabilities is not None]
        tokens = torch.cat([part.tokens for part in chains], dim=1)
        return cls(tokens, probabilities=torch.cat(drawn, dim=1) if drawn else None)

    def cut(self, length: int) -> "Draft":
        """The first `length` tokens of a chain."""
        drawn = None if self.probabilities is None else self.probabilities[:, :length]
        return Draft(self.tokens[:, :length], probabilities=drawn)

    def select(self, places: Sequence[int]) -> "Draft":
        """Of the rows at some places."""
        parts = (self.tokens, self.parents, self.probabilities, self.reach)
        return Draft(*(None if part is None else part[list(places)] for part in parts))  # type: ignore[arg-type]

    def padded(self, size: int) -> "Draft":
        """A chain of `size` tokens, of which only this one's count.

        Raises:
            InputError: it is a tree.
        """
        if self.parents is not None:
            raise InputError("passes of one width verify chains, not trees; leave out one of them.")
        filling = size - self.size
        if not filling:
            return self
        reach = self.tokens.new_full(self.tokens.shape[:1], self.size)
        return Draft(
            pad(self.tokens, (0, filling)),
            probabilities=(
                None if self.probabilities is None else pad(self.probabilities, (0, 0, 0, filling))
            ),
            reach=reach if self.reach is None else torch.minimum(reach, self.reach),
        )

    @property
    def size(self) -> int:
        """N."""
        return self.tokens.shape[1]

    @cached_property
    def ancestors(self) -> Tensor:
        """(B, W, W): whether node j is node i or lies on the way to it."""
        rows, width = self.tokens.shape[0], self.size + 1
        if self.parents is None:
            ones = torch.ones(width, width, dtype=torch.bool, device=self.tokens.device)
            return ones.tril().expand(rows, -1, -1)
        reach = torch.eye(width, device=self.tokens.device).repeat(rows, 1, 1)
        reach[:, 1:].scatter_(2, self.parents.unsqueeze(-1), 1.0)
        for _ in range((width - 1).bit_length()):  # every round doubles how far it reaches
            reach = (reach @ reach).clamp(max=1.0)
        return reach > 0

    @cached_property
    def depths(self) -> Tensor:
        """(B, W): how far each node is from node 0."""
        if self.parents is None:
            rows, width = self.tokens.shape[0], self.size + 1
            return torch.arange(width, device=self.tokens.device).expand(rows, -1)
        return self.ancestors.sum(-1) - 1

    @property
    def counts(self) -> Tensor:
        """(B, N): which tokens may stand at all."""
        if self.reach is None:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        return self.depths[:, 1:] <= self.reach.unsqueeze(1)

    @property
    def deepest(self) -> Tensor:
        """(B,): how deep the tokens go that may stand."""
        deepest = self.depths.amax(1)
        return deepest if self.reach is None else torch.minimum(deepest, self.reach)

    def at_parents(self, values: Tensor) -> Tensor:
        """The value of each drafted token's parent: (B, W, …) → (B, N, …)."""
        if self.parents is None:
            return values[:, :-1]
        index = self.parents.reshape(*self.parents.shape, *[1] * (values.ndim - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))
