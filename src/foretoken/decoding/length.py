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
from dataclasses import dataclass, field

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
"""Steps before one at another length, to see whether things have changed; twice as many each time
that changes nothing."""
EXPLORE_LEAST = 192
"""Steps after which another length is tried in any case: two that take twice as long cost 1 %."""
UNEVEN = 0.03
"""What drafting has to gain for each further row of a batch: rows that draft end at different
steps, and a step of the last few costs nearly what one of all does."""


@dataclass
class Measured:
    """What was seen so far of a drafter, on so many rows: one text after the other learns from it.

    Attributes:
        seconds: that steps took, by length.
        accepted: whether the draft's token stood, by depth, where those before it did.
        steps: how many there were.
        best: the length that was found best.
        interval: steps before another one is tried.
        due: the step at which that is.
        tries: how many there were.
    """

    seconds: dict[int, deque[float]] = field(default_factory=dict)
    accepted: dict[int, deque[bool]] = field(default_factory=dict)
    steps: int = 0
    best: int | None = None
    interval: int = EXPLORE
    due: int = EXPLORE
    tries: int = 0


class AutoLength:
    """Chooses the draft length of every step.

    Args:
        longest: the longest draft, or how deep a tree is.
        measured: in earlier texts, and in this one.
        rows: of the batch.

    Attributes:
        chosen: the lengths so far, in order.
    """

    def __init__(self, longest: int, measured: Measured | None = None, rows: int = 1) -> None:
        self.longest, self.margin = longest, 1 + UNEVEN * (rows - 1)
        self.measured = Measured() if measured is None else measured
        self.chosen: list[int] = []

    def choose(self) -> int:
        """The length of the next step."""
        self.chosen.append(self._next())
        return self.chosen[-1]

    def record(self, steps: Sequence[Step], length: int, seconds: float | None) -> None:
        """Learn from a step of `length`.

        Args:
            steps: of the rows.
            length: how deep was drafted.
            seconds: drafting and verifying took; None where some rows had left, since lengths are
                compared by steps of as many rows. What a first draft takes, or the first after
                steps without one, does not count: the drafter reads then what it has missed.
        """
        measured = self.measured
        measured.steps += 1
        caught_up = length == 0 or any(self.chosen[-2:-1])
        if seconds is not None and caught_up:
            measured.seconds.setdefault(length, deque(maxlen=TIMED)).append(seconds)
        for step in steps:
            for depth in range(min(step.drafted, step.accepted + 1)):
                seen = measured.accepted.setdefault(depth, deque(maxlen=REMEMBERED))
                seen.append(step.accepted > depth)

    def expected_tokens(self, length: int) -> float:
        """What a step of `length` emits, per row."""
        total = reach = rate = 1.0
        for depth in range(length):
            seen = self.measured.accepted.get(depth, ())
            # As the depth before where it is unknown, and less so with every step.
            rate = (sum(seen) + PRIOR * rate) / (len(seen) + PRIOR)
            reach *= rate
            total += reach
        return total

    def expected_seconds(self, length: int) -> float:
        """What a step of `length` takes: the median of its own, else along a straight line."""
        known = {n: statistics.median(seconds) for n, seconds in self.measured.seconds.items()}
        if length in known:
            return known[length]
        low, high = min(known), max(known)
        slope = (known[high] - known[low]) / (high - low) if high > low else 0.0
        return known[low] + slope * (length - low)

    def _next(self) -> int:
        steps, seconds = self.measured.steps, self.measured.seconds
        tried = {n: len(seconds.get(n, ())) for n in (0, self.longest)}
        if tried[0] < 3:
            return 0
        if steps < TRIAL or tried[self.longest] < 3:
            return self.longest
        rates = [
            self.expected_tokens(n) / self.expected_seconds(n) for n in range(self.longest + 1)
        ]
        best = max(range(len(rates)), key=rates.__getitem__)
        if rates[best] < rates[0] * self.margin:
            best = 0
        return self._trial(best) if self._is_due(best) else best

    def _is_due(self, best: int) -> bool:
        """Whether to try another length than the best."""
        measured = self.measured
        if best != measured.best:
            measured.best, measured.interval = best, EXPLORE
            measured.due = measured.steps + EXPLORE
        return measured.steps >= measured.due

    def _trial(self, best: int) -> int:
        """Another length: for two steps behind steps without a draft, since the first says little."""
        measured = self.measured
        others = [n for n in range(self.longest, -1, -1) if n != best] or [best]
        length = others[measured.tries % len(others)]
        if best > 0 or measured.steps > measured.due:
            measured.tries += 1
            measured.interval = min(2 * measured.interval, EXPLORE_LEAST)
            measured.due = measured.steps + measured.interval
        return length
