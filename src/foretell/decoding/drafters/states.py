"""States of the backbone, kept by position for drafters that read them again.

Shapes: B rows, S positions, W places of a pass, D hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foretell.decoding.transfer import to_device

SPARE = 64
"""Positions set aside at once."""


class KeptStates:
    """(B, S, D), growing; a later state of a position takes an earlier one's place."""

    def __init__(self) -> None:
        self.states: Tensor | None = None

    def add(self, states: Tensor, begin: Sequence[int], path: Tensor | None = None) -> None:
        """Keep those of a pass.

        Args:
            states: (B, W, D).
            begin: the position of the pass's first token, by row.
            path: (B, W) the places of the pass that stand, one position each; None: all, in order.
        """
        if path is not None:
            states = at(states, path)
        start = to_device(begin, states.device).unsqueeze(1)
        positions = start + torch.arange(states.shape[1], device=states.device)
        if self.states is None:
            self.states = states.new_zeros(states.shape[0], 0, states.shape[2])
        if (missing := max(begin) + states.shape[1] - self.states.shape[1]) > 0:
            self.states = pad(self.states, (0, 0, 0, missing + SPARE))
        self.states.scatter_(1, positions.unsqueeze(-1).expand_as(states), states)

    def select(self, places: Sequence[int]) -> None:
        """Keep some rows alone."""
        if self.states is not None:
            self.states = self.states[list(places)]

    def __getitem__(self, positions: Tensor) -> Tensor:
        """(B, P) → (B, P, D); anything at positions that were not kept."""
        assert self.states is not None
        return at(self.states, positions.clamp(max=self.states.shape[1] - 1))


def at(values: Tensor, places: Tensor) -> Tensor:
    """Values of each row at some places of it: (B, S, D), (B, P) → (B, P, D)."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
