"""Decoding side by side: the same prompts through every method, in one run, on one machine.

Batch by batch every method takes its turn, so that a slow minute of the machine hits them all, and
every measurement is repeated and its median taken. `plain` comes first: it is what the others are
compared with, in output and in speed.

Shapes: B rows of a batch, T prompt.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from foretell.decoding import Step
from foretell.decoding.compiling import compilations
from foretell.errors import InputError
from foretell.evaluation.loops import LOOK_AHEAD, loop_start
from foretell.evaluation.methods import Continuation, Method
from foretell.results import Row, select
from foretell.results.tables import AcceptedByDepth, DraftLength, Speed
from foretell.tally import Estimate


@dataclass(frozen=True)
class _Prompts:
    """A batch of prompts, and by how many tokens each is continued.

    Attributes:
        tokens: (B, T), padded in front.
        mask: (B, T), 0 there; None: nothing is padded.
        count: new tokens.
    """

    tokens: Tensor
    mask: Tensor | None
    count: int

    @classmethod
    def of(cls, rows: Sequence[tuple[Tensor, int]]) -> "_Prompts":
        """Prompts (1, T) with the length that each may have: the shortest counts for all."""
        width, count = max(row.shape[1] for row, _ in rows), min(count for _, count in rows)
        tokens = torch.cat([pad(row, (width - row.shape[1], 0)) for row, _ in rows])
        places = [torch.arange(width) >= width - row.shape[1] for row, _ in rows]
        mask = torch.stack(places).long().to(tokens.device)
        return cls(tokens, None if bool(mask.all()) else mask, count)


@dataclass
class _Record:
    """A method's sums over the prompts."""

    tokens: int = 0
    forwards: int = 0
    row_forwards: int = 0
    identical: int = 0
    seconds: float = 0.0
    peak: int = 0
    steps: list[Step] = field(default_factory=list)
    draft_lengths: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class SpeedTable:
    """What a comparison found.

    Attributes:
        rows: `Speed` of each method, then `AcceptedByDepth`, and `DraftLength` where that was
            chosen while decoding.
        draft_lengths: those over time, by method and batch.
        prompts: how many were measured.
        looped: prompts whose plain continuation falls into a loop.
        dropped: prompts left out because their loop begins at once.
    """

    rows: list[Row]
    prompts: int
    looped: int
    dropped: int
    draft_lengths: dict[str, list[list[int]]] = field(default_factory=dict)

    @property
    def speeds(self) -> list[Speed]:
        """How fast each method is, in order."""
        return select(self.rows, Speed)

    @property
    def accepted(self) -> list[AcceptedByDepth]:
        """What was accepted while decoding, by method and depth."""
        return select(self.rows, AcceptedByDepth)


def compare(
    methods: Sequence[Method],
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    repeats: int = 3,
    exclude_loops: bool = True,
    min_tokens: int = 16,
    batch_size: int = 1,
    progress: Callable[[float], None] | None = None,
) -> SpeedTable:
    """Continue every prompt with every method.

    Args:
        methods: the first one is `plain`, the reference.
        prompts: (1, T) token ids each.
        max_new_tokens: tokens per prompt.
        repeats: how often each is timed; the median counts.
        exclude_loops: stop every method where the plain continuation begins to loop, see
            `foretell.evaluation.loops`; prompts that loop before `min_tokens` are left out.
            Sampled continuations are measured to the end.
        min_tokens: shortest continuation worth measuring.
        batch_size: prompts at once, those with similar lengths to go together; the shortest of them
            counts for all. The last batch may be smaller.
        progress: called with the share done.

    Raises:
        InputError: no prompt is left to measure, or a number is less than 1.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; time every method at least once.")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1.")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; decode at least 1 prompt at once.")
    greedy = not methods[0].facts.get("temperature", 0.0)
    if greedy:
        measured, looped = _lengths(methods[0], prompts, max_new_tokens, exclude_loops)
        kept = [pair for pair in measured if pair[1] >= min(min_tokens, max_new_tokens)]
    else:
        kept, looped = [(prompt, max_new_tokens) for prompt in prompts], 0
    if not kept:
        raise InputError(
            f"none of the {len(prompts)} prompts is left: every plain continuation loops at once; "
            "give other prompts or include loops."
        )
    if batch_size > 1:
        kept.sort(key=lambda pair: -pair[1])
    starts = range(0, len(kept), batch_size)
    batches = [_Prompts.of(kept[start : start + batch_size]) for start in starts]
    records = [_Record() for _ in methods]
    for number, batch in enumerate(batches):
        _take_turns(methods, records, batch, repeats, number)
        if progress is not None:
            progress((number + 1) / len(batches))
    rows = _rows(methods, records, len(kept), min(batch_size, len(kept)), greedy)
    chosen = {
        method.name: record.draft_lengths
        for method, record in zip(methods, records, strict=True)
        if any(record.draft_lengths)
    }
    return SpeedTable(rows, len(kept), looped, len(prompts) - len(kept), chosen)


def _lengths(
    plain: Method, prompts: Sequence[Tensor], longest: int, exclude_loops: bool
) -> tuple[list[tuple[Tensor, int]], int]:
    """How far each prompt is continued, and how many plain continuations loop before `longest`."""
    lengths, looped = [], 0
    for prompt in prompts:
        start = loop_start(plain(prompt, longest + LOOK_AHEAD).rows[0])
        loops = start is not None and start < longest
        looped += loops
        lengths.append(
            (prompt, start if exclude_loops and loops and start is not None else longest)
        )
    return lengths, looped


def _take_turns(
    methods: Sequence[Method],
    records: Sequence[_Record],
    batch: _Prompts,
    repeats: int,
    first: int,
) -> None:
    """Time every method on one batch; who begins changes from turn to turn."""
    seconds: list[list[float]] = [[] for _ in methods]
    outcomes: list[Continuation | None] = [None] * len(methods)
    for method in methods:
        if method.facts.get("compiled"):  # compiling is no part of the measurement
            method(batch.tokens, batch.count, batch.mask)
    for turn in range(repeats):
        for offset in range(len(methods)):
            index = (first + turn + offset) % len(methods)
            outcomes[index], took = _timed(methods[index], batch)
            seconds[index].append(took)
            records[index].peak = max(records[index].peak, _peak(batch.tokens.device))
    reference = outcomes[0]
    for record, outcome, times in zip(records, outcomes, seconds, strict=True):
        assert outcome is not None
        assert reference is not None
        record.tokens += sum(map(len, outcome.rows))
        record.forwards += outcome.forwards
        record.row_forwards += outcome.row_forwards
        pairs = zip(outcome.rows, reference.rows, strict=True)
        record.identical += sum(row == plain for row, plain in pairs)
        record.seconds += statistics.median(times)
        record.steps.extend(outcome.steps)
        record.draft_lengths.append(list(outcome.draft_lengths))


def _timed(method: Method, batch: _Prompts) -> tuple[Continuation, float]:
    """What it says, and the seconds that takes; asked again until nothing is compiled."""
    while True:
        _forget_peak(batch.tokens.device)
        compiled, began = compilations(), time.perf_counter()
        outcome = method(batch.tokens, batch.count, batch.mask)
        _synchronize(batch.tokens.device)
        seconds = time.perf_counter() - began
        if compilations() == compiled:
            return outcome, seconds


def _rows(
    methods: Sequence[Method],
    records: Sequence[_Record],
    prompts: int,
    batch_size: int,
    greedy: bool,
) -> list[Row]:
    rate = records[0].tokens / records[0].seconds
    rows: list[Row] = []
    for method, record in zip(methods, records, strict=True):
        speed = record.tokens / record.seconds
        rows.append(
            Speed(
                method=method.name,
                **method.facts,
                batch=batch_size,
                prompts=prompts,
                identical=record.identical if greedy else None,
                tokens=record.tokens,
                forwards=record.forwards,
                tokens_per_forward=record.tokens / record.row_forwards,
                tokens_per_second=speed,
                speedup=speed / rate,
                seconds=record.seconds,
                peak_memory_bytes=record.peak or None,
            )
        )
    for method, record in zip(methods, records, strict=True):
        rows += [
            AcceptedByDepth(method=method.name, depth=depth, acceptance=Estimate(share))
            for depth, share in acceptance_by_depth(record.steps).items()
        ]
        lengths = [length for batch in record.draft_lengths for length in batch]
        rows += [
            DraftLength(method=method.name, draft_length=length, share=share)
            for length, share in share_by_length(lengths).items()
        ]
    return rows


def acceptance_by_depth(steps: Sequence[Step]) -> dict[int, float]:
    """Of the steps that reached depth k (1…k-1 accepted), the share that accepted it too."""
    deepest = max((step.drafted for step in steps), default=0)
    shares = {}
    for depth in range(1, deepest + 1):
        reached = [s for s in steps if s.drafted >= depth and s.accepted >= depth - 1]
        if reached:
            shares[depth] = sum(s.accepted >= depth for s in reached) / len(reached)
    return shares


def share_by_length(lengths: Sequence[int]) -> dict[int, float]:
    """Which share of the passes drafted how many tokens."""
    counts = Counter(lengths)
    return {length: counts[length] / len(lengths) for length in sorted(counts)}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    """Bytes at most since `_forget_peak`, weights included; 0 where torch does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
