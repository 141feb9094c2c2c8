"""How many tokens to draft: as many as bring most tokens per second, down to none.

Leviathan et al. 2023 (arXiv 2211.17192), section 3.3 and theorem 3.8, with costs and acceptance
measured while decoding goes on, and acceptance by depth in place of one rate: a step that drafts g
tokens emits

    1 + Σ_{k=1..g} Π_{j≤k} α_j

where α_j is the share of steps that accept the j-th token after accepting those before it.
"""

import statistics
from collections import deque
from collections.abc import Sequence

from foretoken.decoding.batch import Step

REMEMBERED = 128
"""Steps whose acceptance counts."""
PRIOR = 2
"""Steps that the first guess at a depth's acceptance counts for."""
TIMED = 9
"""Steps of each length whose median time counts."""
TRIAL = 12
"""Steps at full length to begin with, so that acceptance is known a little."""
EXPLORE = 24
"""Steps between two that are drafted at another length, to see whether things have changed: one in
24 that takes half as long again costs 2 %."""


class AutoLength:
    """Chooses the draft length of every step.

    Args:
        longest: the longest draft, or how deep a tree is.

    Attributes:
        chosen: the lengths so far, in order.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.chosen: list[int] = []
        self._seconds: dict[int, deque[float]] = {}
        self._accepted: list[deque[bool]] = [deque(maxlen=REMEMBERED) for _ in range(longest)]

    def choose(self) -> int:
        """The length of the next step."""
        self.chosen.append(self._next())
        return self.chosen[-1]

    def record(self, steps: Sequence[Step], length: int, seconds: float) -> None:
        """Learn from a step of `length`.

        Args:
            steps: of the rows.
            length: how deep was drafted.
            seconds: drafting and verifying took.
        """
        self._seconds.setdefault(length, deque(maxlen=TIMED)).append(seconds)
        for step in steps:
            for depth in range(min(step.drafted, step.accepted + 1)):
                self._accepted[depth].append(step.accepted > depth)

    def expected_tokens(self, length: int) -> float:
        """What a step of `length` emits, per row."""
        total = reach = rate = 1.0
        for depth in range(length):
            seen = self._accepted[depth]
            # As the depth before where it is unknown, and less so with every step.
            rate = (sum(seen) + PRIOR * rate) / (len(seen) + PRIOR)
            reach *= rate
            total += reach
        return total

    def expected_seconds(self, length: int) -> float:
        """What a step of `length` takes: the median of its own, else along a straight line."""
        known = {n: statistics.median(seconds) for n, seconds in self._seconds.items()}
        if length in known:
            return known[length]
        low, high = min(known), max(known)
        slope = (known[high] - known[low]) / (high - low) if high > low else 0.0
        return known[low] + slope * (length - low)

    def _next(self) -> int:
        tried = {n: len(self._seconds.get(n, ())) for n in (0, self.longest)}
        if tried[0] < 3:
            return 0
        if len(self.chosen) < TRIAL or tried[self.longest] < 3:
            return self.longest
        best = max(
            range(self.longest + 1),
            key=lambda n: self.expected_tokens(n) / self.expected_seconds(n),
        )
        if len(self.chosen) % EXPLORE == 0:
            others = [n for n in range(self.longest, -1, -1) if n != best] or [best]
            return others[len(self.chosen) // EXPLORE % len(others)]
        return best
