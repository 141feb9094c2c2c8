"""What the probe predicted of heads, beside what heads reach, by draft length.

Behind the text the range is compared with teacher-forced heads (`eval`, `benchmarks/recipes.py`),
behind the backbone's own continuation with greedy decoding of chains (`bench`): tokens per forward,
and the speed-up of the longest drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foretell.provenance import Row
from foretell.report.charts.selecting import (
    groups,
    names,
    number,
    of_heads,
    reached_by_length,
    speeds,
    table,
    teacher_forced,
    while_decoding,
)
from foretell.report.sources import Source


@dataclass(frozen=True)
class Compared:
    """One quantity of heads at one draft length.

    Attributes:
        who: their kind or run, behind their model where there are several.
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
    probes = [source for source in sources if table(source, "prediction")]
    return [
        found
        for probe in probes
        for source in sources
        for found in _compare(probe, source, alone=len(probes) == 1)
    ]


def _compare(probe: Source, source: Source, *, alone: bool) -> Iterator[Compared]:
    """`alone`: files that do not say whose they are can only belong to this probe."""
    ranges = {
        (row.get("behind"), int(number(row, "depth") or 0)): row
        for row in table(probe, "prediction")
    }
    timed = {key: rows[-1] for key, rows in groups(speeds(source)).items()}
    for behind, rows in (("text", _text(source)), ("own", _own(source))):
        members = groups(r for r in rows if _same_backbone(r, source, probe, alone=alone))
        labels = names(members)
        for key, one in members.items():
            values = reached_by_length(one, chained=behind == "own")
            reached = [("tokens_per_forward", n, value) for n, value in enumerate(values)]
            if key in timed and behind == "own":  # of drafts as long as they get
                speed = number(timed[key], "speedup") or 0.0
                reached.append(("speedup", len(values) - 1, speed))
            for quantity, length, value in reached:
                row = ranges.get((behind, length), {})
                low, high = (number(row, f"{quantity}_{end}") for end in ("min", "max"))
                if low is not None and high is not None:
                    where = (labels[key], quantity, behind, length)
                    yield Compared(*where, low, high, value, source)


def _text(source: Source) -> list[Row]:
    """Heads by depth on held-out text; not those that came with a backbone of their own."""
    return [
        row
        for row in teacher_forced(source)
        if of_heads(row, source)
        and number(row, "acceptance") is not None
        and row.get("recipe") != "pretrain"
    ]


def _own(source: Source) -> list[Row]:
    """Heads by depth in greedy decoding; not of trees, where several tokens may stand."""
    if any(number(row, "temperature") for row in source.rows):
        return []
    return [
        row
        for row in while_decoding(source)
        if of_heads(row, source) and "tree" not in str(row["method"]).split("-")
    ]


def _same_backbone(row: Row, source: Source, probe: Source, *, alone: bool) -> bool:
    """By the name of the model; or by the file's backbone, where that is the only one."""
    if row.get("model") in probe.models:
        return True
    if not source.identities:
        return alone
    return len(source.models) < 2 and bool(source.identities & probe.identities)
