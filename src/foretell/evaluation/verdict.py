"""Whether heads pay on a machine, and what would have to be true for it.

A step with a draft of g tokens emits τ tokens and takes as long as c plain steps, so that heads pay
where τ > c. With the same acceptance α at every depth τ is 1 + α + … + α^g (Leviathan et al. 2023,
arXiv 2211.17192, equation 1), and the α at which that is c is the break-even.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from foretell.evaluation.depths import DepthTable
from foretell.evaluation.speed import SpeedTable
from foretell.model import MTPModel
from foretell.probe.prediction import Costs, measure_costs, speedup, tokens_per_forward
from foretell.results import Row, select
from foretell.results.tables import AcceptedByDepth, Speed

CLOSE = 0.03
"""Speed-ups that are nearer to 1 than this are called even."""


@dataclass(frozen=True)
class Verdict:
    """What heads bring on a machine.

    Attributes:
        length: g, tokens per draft.
        tokens_per_forward: τ.
        cost: c, of a step in plain steps.
        measured: whether τ and c come from decoding; otherwise from held-out text and timed passes.
        auto: over plain decoding, the speed of drafts whose length was chosen at every step; None
            where they were not measured.
    """

    length: int
    tokens_per_forward: float
    cost: float
    measured: bool
    auto: float | None = None

    @property
    def speedup(self) -> float:
        """Over plain decoding."""
        return self.tokens_per_forward / self.cost

    @property
    def acceptance(self) -> float:
        """α, as if it were the same at every depth."""
        return _acceptance(self.tokens_per_forward, self.length)

    @property
    def break_even(self) -> float | None:
        """The α from which on such drafts pay; None where not even 1 would do."""
        return None if self.cost > self.length + 1 else _acceptance(self.cost, self.length)

    def __str__(self) -> str:
        """One sentence: whether they pay, what it takes, and what to do next."""
        return f"{self._outcome()}: {self._balance()}; {self._condition()}; {self._advice()}."

    def _outcome(self) -> str:
        if abs(self.speedup - 1.0) < CLOSE:
            found = "break even" if self.measured else "should break even"
        elif self.speedup > 1.0:
            found = "pay" if self.measured else "should pay"
        else:
            found = "do not pay" if self.measured else "would not pay"
        return f"These heads {found} on this machine ({self.speedup:.2f}× plain decoding)"

    def _balance(self) -> str:
        drafted = f"{self.length} token{'s' * (self.length != 1)}"
        return (
            f"a step that drafts {drafted} takes as long as {self.cost:.2f} plain ones and gives "
            f"{self.tokens_per_forward:.2f} tokens"
        )

    def _condition(self) -> str:
        if self.break_even is None:
            return "not even drafts that are always accepted would pay at that cost"
        return (
            f"if all depths were alike, break-even would be at {100 * self.break_even:.0f} % "
            f"accepted per depth, and these are worth {100 * self.acceptance:.0f} %"
        )

    def _advice(self) -> str:
        auto, chosen = "--draft-length auto", f"--draft-length {self.length}"
        if self.auto is not None and self.auto > max(self.speedup, 1.0 + CLOSE):
            return f"use `{auto}`, which is faster ({self.auto:.2f}×)"
        if self.break_even is None:
            where = "decode where wide passes cost less, as on a GPU"
            return f"draft fewer tokens (`{auto}`), or {where}"
        if self.speedup > 1.0 + CLOSE:
            if self.measured:
                return f"use `{chosen}`" + f", and try `{auto}`" * (self.auto is None)
            return f"check it with `foretell bench` and `{chosen}`"
        return (
            "train longer or on the model's own words (`foretell distill`), or draft fewer tokens "
            f"(`{auto}`: none where that is faster)"
        )


def verdict_of_speed(rows: Iterable[Row]) -> Verdict | None:
    """Of the rows of one model in a comparison: the fastest way to draft chains of one length.

    It is held against plain decoding of its own kind, compiled or not. Trees, and lengths chosen
    while decoding, have no one cost and no one length; the latter are only named where they are
    faster. None where no such way was measured.
    """
    rows = list(rows)
    timed = select(rows, Speed)
    plain = {row.compiled: row.speedup for row in timed if row.method.startswith("plain")}
    chains = [
        replace(row, speedup=row.speedup / plain.get(row.compiled, 1.0))
        for row in timed
        if row.drafter == "heads" and not row.tree
    ]
    heads = [row for row in chains if row.draft_length != "auto"]
    if not heads:
        return None
    best = max(heads, key=lambda row: row.speedup)
    auto = [row.speedup for row in chains if row.draft_length == "auto"]
    depths = [row.depth for row in select(rows, AcceptedByDepth) if row.method == best.method]
    tokens = best.tokens_per_forward
    cost, length = tokens / best.speedup, max(depths, default=1)
    return Verdict(length, tokens, cost, measured=True, auto=max(auto, default=None))


def verdicts_of_speed(found: Iterable[tuple[str, SpeedTable]]) -> dict[str, str]:
    """By model, in words, whether its heads pay; those without heads are not there."""
    said = ((model, verdict_of_speed(table.rows)) for model, table in found)
    return {model: str(verdict) for model, verdict in said if verdict is not None}


def verdict_of_depths(acceptance: Sequence[float], costs: Costs) -> Verdict:
    """Of held-out text, at the draft length that is best on this machine.

    Args:
        acceptance: A_1…A_K, the share of positions at which the first k drafted tokens all stand.
        costs: of passes over 1…K+1 tokens, and of drafting one.
    """
    lengths = range(1, len(acceptance) + 1)
    best = max(lengths, key=lambda length: speedup(acceptance, costs, length))
    tokens = tokens_per_forward(acceptance, best)
    return Verdict(best, tokens, costs.relative(best), measured=False)


def verdict_of_heads(model: MTPModel, found: DepthTable) -> Verdict:
    """Of what `measure_heads` found of this model; passes are timed now, on this machine."""
    acceptance = [
        float(found.tally.means("acceptance", method=found.method, depth=depth)[0])
        for depth in range(1, found.depth + 1)
    ]
    return verdict_of_depths(acceptance, measure_costs(model, found.depth))


def _acceptance(tokens: float, length: int) -> float:
    """The α in 0…1 with 1 + α + … + α^`length` = `tokens`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        reached = sum(middle**depth for depth in range(length + 1))
        low, high = (middle, high) if reached < tokens else (low, middle)
    return high
