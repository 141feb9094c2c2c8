"""What the probe predicted of heads, beside what heads reach, by draft length.

Behind the text the range is compared with teacher-forced heads (`eval`, `benchmarks/recipes.py`),
after the backbone's own continuation with greedy decoding of chains (`bench`): tokens per forward,
and the speed-up of the longest drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foretell.report.charts.selecting import groups, names, of_heads, reached_by_length
from foretell.report.sources import Source
from foretell.results import Row
from foretell.results.benchmarks import Recipe
from foretell.results.tables import AcceptedByDepth, Predicted, ScoredByDepth, Speed
from foretell.tally import Estimate


@dataclass(frozen=True)
class Compared:
    """One quantity of heads at one draft length.

    Attributes:
        who: their kind or run, after their model where there are several.
        quantity: `tokens_per_forward` or `speedup`.
        behind: what is drafted behind, `text` or `own`.
        length: of the drafts.
        low: what was predicted at least.
        high: at most.
        reached: what was measured.
        source: the file that it was measured in.
    """

    who: str
    quantity: str
    behind: str
    length: int
    low: float
    high: float
    reached: float
    source: Source

    @property
    def verdict(self) -> str:
        """Where the measured value lies: inside the range, below or above it."""
        if self.reached < self.low:
            return "below"
        return "above" if self.reached > self.high else "inside"


def comparisons(sources: Sequence[Source]) -> list[Compared]:
    """Every prediction beside all heads on the same backbone, by head and draft length."""
    probes = [source for source in sources if source.table(Predicted)]
    return [
        found
        for probe in probes
        for source in sources
        for found in _compare(probe, source, alone=len(probes) == 1)
    ]


def _compare(probe: Source, source: Source, *, alone: bool) -> Iterator[Compared]:
    """`alone`: files that do not say whose they are can only belong to this probe."""
    ranges = {(row.behind, row.depth): row for row in probe.table(Predicted)}
    timed = {key: rows[-1] for key, rows in groups(source.table(Speed)).items()}
    for behind, rows in (("text", _text(source)), ("own", _own(source))):
        members = groups(r for r in rows if _same_backbone(r, source, probe, alone=alone))
        labels = names(members)
        for key, one in members.items():
            values = reached_by_length(one, chained=behind == "own")
            reached = [("tokens_per_forward", n, value) for n, value in enumerate(values)]
            if key in timed and behind == "own":  # of drafts as long as they get
                reached.append(("speedup", len(values) - 1, timed[key].speedup))
            for quantity, length, value in reached:
                found = getattr(ranges.get((behind, length)), quantity, Estimate())
                if found.min is not None and found.max is not None:
                    where = (labels[key], quantity, behind, length)
                    yield Compared(*where, found.min, found.max, value, source)


def _text(source: Source) -> list[ScoredByDepth]:
    """Heads by depth on held-out text; not those that came with a backbone of their own."""
    return [
        row
        for row in of_heads(source)
        if row.acceptance.value is not None
        and not (isinstance(row, Recipe) and row.recipe == "pretrain")
    ]


def _own(source: Source) -> list[AcceptedByDepth]:
    """Heads by depth in greedy decoding; not of trees, where several tokens may stand."""
    speeds = source.table(Speed)
    if any(row.temperature for row in speeds):
        return []
    chains = {row.method for row in speeds if row.drafter == "heads" and not row.tree}
    return [row for row in source.table(AcceptedByDepth) if row.method in chains]


def _same_backbone(row: Row, source: Source, probe: Source, *, alone: bool) -> bool:
    """By the name of the model; or by the file's backbone, where that is the only one."""
    if row.model in probe.models:
        return True
    if not source.identities:
        return alone
    return len(source.models) < 2 and bool(source.identities & probe.identities)
