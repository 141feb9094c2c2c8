"""How many tokens to draft: as many as bring most tokens per second, down to none.

Leviathan et al. 2023 (arXiv 2211.17192), section 3.3 and theorem 3.8, with costs and acceptance
measured while decoding goes on, and acceptance by depth in place of one rate: a step that drafts g
tokens emits

    1 + Σ_{k=1..g} Π_{j≤k} α_j

where α_j is the share of steps that accept the j-th token after accepting those before it. Costs
are multiples of a step without a draft, and only neighbours are compared: as a text grows steps
take longer, and other work on the machine comes and goes.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from foretell.decoding.batch import Step
from foretell.decoding.compiling import preparations

REMEMBERED = 128
"""Steps whose acceptance counts."""
RECENT = 2
"""Of them, where none drafted lately: one try shows that drafts have become good."""
PRIOR = 2
"""Steps that the first guess at a depth's acceptance counts for."""
COMPARED = 3
"""Steps on either side of a change of length whose median times are compared."""
HOLD = COMPARED + 1
"""Steps that a length is kept for at least. In the first one after steps without a draft, a
drafter reads what it has missed."""
RATIOS = 5
"""Comparisons of a length whose median counts."""
TRIAL = 12
"""Steps at full length after the first ones without a draft, in one text or several, so that
acceptance is known a little."""
EXPLORE = 24
"""Steps before others at another length, to see whether things have changed; twice as many each
time, until drafting begins or ends to be worth it."""
EXPLORE_AT_MOST = 768
"""Steps before others at another length at most: some texts."""
UNEVEN = 0.04
"""What drafting has to gain for each further row of a batch: rows that draft end at different
steps, and a step of the last few costs nearly what one of all does."""


@dataclass
class Measured:
    """What was seen so far of a drafter, on as many rows: one text after the other learns from it.

    Attributes:
        costs: of steps by length, in steps without a draft.
        accepted: whether the draft's token stood, by depth, where those before it did.
        worth: whether drafting was found to be worth it, once that was asked.
        interval: steps before another one is tried.
        waited: steps since one was.
        tries: how many there were.
    """

    costs: dict[int, deque[float]] = field(default_factory=dict)
    accepted: dict[int, deque[bool]] = field(default_factory=dict)
    worth: bool | None = None
    interval: int = EXPLORE
    waited: int = 0
    tries: int = 0


@dataclass
class Stretch:
    """Steps of one length, one after the other.

    Attributes:
        length: how deep was drafted.
        steps: how many.
        seconds: that they took, as far as they were timed.
    """

    length: int
    steps: int = 0
    seconds: list[float] = field(default_factory=list)


class AutoLength:
    """Chooses the draft length of every step.

    Args:
        longest: the longest draft, or how deep a tree is.
        measured: in earlier texts, and in this one.
        rows: of the batch.
        steps: that there can be; None: any number.

    Attributes:
        chosen: the lengths so far, in order.
        resting: nothing is drafted any more in this text; its drafter need not keep up.
    """

    def __init__(
        self,
        longest: int,
        measured: Measured | None = None,
        rows: int = 1,
        steps: int | None = None,
    ) -> None:
        self.longest, self.margin, self.steps = longest, 1 + UNEVEN * (rows - 1), steps
        self.measured = Measured() if measured is None else measured
        self.chosen: list[int] = []
        self.stretch, self.stretch_before = Stretch(0), Stretch(0)
        self.resting = False
        self._started: tuple[float, int, bool] | None = None  # when; and was the draft cut?

    def row(self) -> "AutoLength":
        """For one row by itself."""
        return AutoLength(self.longest, self.measured, steps=self.steps)

    def begin(self, limit: int) -> int:
        """Choose the length of the next step, at most `limit`; it takes its time from now on."""
        chosen = self.choose()
        self._started = time.perf_counter(), preparations(), chosen > limit
        return min(limit, chosen)

    def end(self, steps: Sequence[Step], complete: bool) -> None:
        """Learn from the step that began last, if any did.

        Args:
            steps: of the rows.
            complete: all rows were in it.
        """
        if self._started is not None:
            began, compiled, cut = self._started
            seconds = time.perf_counter() - began if complete and not cut else None
            self.record(steps, seconds, preparations() != compiled)

    @property
    def _left(self) -> float:
        return math.inf if self.steps is None else self.steps - len(self.chosen)

    def _due(self, ahead: float = 0) -> bool:
        """Whether another length is tried, now or this many steps ahead."""
        return self.measured.waited + ahead >= self.measured.interval

    def choose(self) -> int:
        """The length of the next step."""
        if not self.resting and (not self.chosen or self.stretch.steps >= HOLD):
            length = self._next()
            if length != self.stretch.length:
                self.stretch_before, self.stretch = self.stretch, Stretch(length)
        self.chosen.append(self.stretch.length)
        useless = self.measured.worth is False and not self.stretch.length
        self.resting = self.resting or (useless and not self._due(self._left))
        return self.stretch.length

    def record(self, steps: Sequence[Step], seconds: float | None, compiled: bool = False) -> None:
        """Learn from the step whose length was chosen last.

        Args:
            steps: of the rows.
            seconds: drafting and verifying took; None where some rows had left, since lengths are
                compared by steps of as many rows, or where the draft had to be shorter.
            compiled: something was, in that step: it counts for nothing but acceptance.
        """
        self.measured.waited += 1
        for step in steps:
            for depth in range(min(step.drafted, step.accepted + 1)):
                seen = self.measured.accepted.setdefault(depth, deque(maxlen=REMEMBERED))
                seen.append(step.accepted > depth)
        if compiled:
            return
        stretch = self.stretch
        stretch.steps += 1
        # In the first one the drafter may have had more to read.
        if seconds is not None and stretch.steps > 1:
            stretch.seconds.append(seconds)
            if len(stretch.seconds) == COMPARED:
                self._compare()

    def _compare(self) -> None:
        """Learn from a change of length."""
        now, before = self.stretch, self.stretch_before
        if len(before.seconds) < COMPARED:
            return
        ratio = statistics.median(now.seconds) / statistics.median(before.seconds[-COMPARED:])
        if now.length:
            length, cost = now.length, ratio * self.cost(before.length)
        else:
            length, cost = before.length, 1 / ratio
        self.measured.costs.setdefault(length, deque(maxlen=RATIOS)).append(cost)

    def cost(self, length: int) -> float:
        """Of a step of `length`, in steps without a draft: its own, else along a straight line."""
        known = {n: statistics.median(costs) for n, costs in self.measured.costs.items()}
        known[0] = 1.0
        if length in known:
            return known[length]
        low = max(n for n in known if n < length)
        high = min((n for n in known if n > length), default=low)
        slope = (known[high] - known[low]) / (high - low) if high > low else 0.0
        return known[low] + slope * (length - low)

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

    def gain(self, length: int) -> float:
        """How much faster than without a draft tokens come with drafts of `length`."""
        return self.expected_tokens(length) / self.cost(length)

    def _next(self) -> int:
        measured = self.measured
        if measured.worth is None and measured.waited < HOLD + TRIAL:
            return self.longest if self.chosen else 0
        # What was never timed, in short texts or since rows had left, is not risked.
        best = max(range(self.longest + 1), key=self.gain) if measured.costs else 0
        if self.gain(best) < self.margin:
            best = 0
        if (best > 0) != measured.worth:
            measured.worth, measured.interval, measured.waited = best > 0, EXPLORE, 0
        # A try has a neighbour. One that would come later in a text without drafts comes at its
        # start, where a drafter has little to catch up with.
        early = not best and len(self.chosen) == HOLD <= self._left < math.inf
        if not self.chosen or not self._due(self._left if early else 0):
            return best
        measured.tries += 1
        measured.interval, measured.waited = min(2 * measured.interval, EXPLORE_AT_MOST), 0
        if not best:
            for depth, seen in measured.accepted.items():
                measured.accepted[depth] = deque(list(seen)[-RECENT:], maxlen=REMEMBERED)
        return self._other(best)

    def _other(self, best: int) -> int:
        """Another length to try: every other time none at all, which the rest is measured by."""
        drafts, tries = [n for n in range(self.longest, 0, -1) if n != best], self.measured.tries
        if not drafts or (best and tries % 2):
            return 0
        turn = tries // 2 if best else tries
        return drafts[turn % len(drafts)]
