"""Decoding side by side: the same prompts through every method, in one run, on one machine.

Prompt by prompt every method takes its turn, so that a slow minute of the machine hits them all,
and every measurement is repeated and its median taken. `plain` comes first: it is what the others
are compared with, in output and in speed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig

from foretoken.decoding import NoDrafter, Step
from foretoken.errors import InputError
from foretoken.evaluation.loops import LOOK_AHEAD, loop_start
from foretoken.model import MTPModel


@dataclass(frozen=True)
class Continuation:
    """What a method made of a prompt.

    Attributes:
        tokens: the new ones.
        forwards: passes of the backbone.
        steps: what each pass drafted and accepted, where the method tells.
    """

    tokens: list[int]
    forwards: int
    steps: Sequence[Step] = ()


class Method(Protocol):
    """A way to continue a prompt greedily by exactly `count` tokens."""

    name: str

    def __call__(self, prompt: Tensor, count: int) -> Continuation:
        """Continue (1, T)."""
        ...


class Foretoken:
    """Our loop: with the model's heads, or `plain` with no drafter."""

    def __init__(self, model: MTPModel, name: str | None = None, *, plain: bool = False) -> None:
        self.model, self.plain = model, plain
        self.name = name or ("plain" if plain else model.require_head().config.kind)

    def __call__(self, prompt: Tensor, count: int) -> Continuation:
        drafter = NoDrafter() if self.plain else None
        result = self.model.generate(prompt, max_new_tokens=count, drafter=drafter, stop_tokens=())
        return Continuation(result.new_tokens, result.forwards, result.row_steps)


class Transformers:
    """transformers' own `generate`, alone or with its prompt lookup."""

    def __init__(self, model: MTPModel, lookup: int | None = None) -> None:
        self.lm, self.lookup = model.lm, lookup
        self.name = "transformers" if lookup is None else "transformers-prompt-lookup"

    def __call__(self, prompt: Tensor, count: int) -> Continuation:
        forwards = 0

        def tally(*_: Any) -> None:
            nonlocal forwards
            forwards += 1

        # In place of the model's own, from which `generate` would add an end-of-sequence token.
        own = self.lm.generation_config
        self.lm.generation_config = GenerationConfig(
            max_new_tokens=count,
            do_sample=False,
            prompt_lookup_num_tokens=self.lookup,
            pad_token_id=0,
        )
        handle = self.lm.register_forward_pre_hook(tally)
        try:
            output = self.lm.generate(  # type: ignore[operator]
                prompt, attention_mask=torch.ones_like(prompt)
            )
        finally:
            handle.remove()
            self.lm.generation_config = own
        return Continuation(output[0, prompt.shape[1] :].tolist(), forwards)


@dataclass
class _Record:
    """A method's sums over the prompts."""

    tokens: int = 0
    forwards: int = 0
    identical: int = 0
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class SpeedTable:
    """What a comparison found.

    Attributes:
        rows: one record per method, then one per method and drafted depth.
        prompts: how many were measured.
        looped: prompts whose plain continuation falls into a loop.
        dropped: prompts left out because their loop begins at once.
    """

    rows: list[dict[str, Any]]
    prompts: int
    looped: int
    dropped: int


def compare(
    methods: Sequence[Method],
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    repeats: int = 3,
    exclude_loops: bool = True,
    min_tokens: int = 16,
    progress: Callable[[float], None] | None = None,
) -> SpeedTable:
    """Continue every prompt with every method.

    Args:
        methods: the first one is `plain`, the reference.
        prompts: (1, T) token ids each.
        max_new_tokens: tokens per prompt.
        repeats: how often each is timed; the median counts.
        exclude_loops: stop every method where the plain continuation begins to loop, see
            `foretoken.evaluation.loops`; prompts that loop before `min_tokens` are left out.
        min_tokens: shortest continuation worth measuring.
        progress: called with the share done.

    Raises:
        InputError: no prompt is left to measure, or `repeats` is less than 1.
    """
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; time every method at least once.")
    plain = methods[0]
    lengths: list[tuple[Tensor, int]] = []
    looped = dropped = 0
    for prompt in prompts:
        start = loop_start(plain(prompt, max_new_tokens + LOOK_AHEAD).tokens)
        loops = start is not None and start < max_new_tokens
        looped += loops
        length = start if exclude_loops and loops and start is not None else max_new_tokens
        if length < min(min_tokens, max_new_tokens):
            dropped += 1
        else:
            lengths.append((prompt, length))
    if not lengths:
        raise InputError(
            f"none of the {len(prompts)} prompts is left: every plain continuation loops at once; "
            "give other prompts or include loops."
        )
    records = [_Record() for _ in methods]
    for number, (prompt, length) in enumerate(lengths):
        _take_turns(methods, records, prompt, length, repeats, number)
        if progress is not None:
            progress((number + 1) / len(lengths))
    rows = _rows(methods, records, len(lengths))
    return SpeedTable(rows, len(lengths), looped, dropped)


def _take_turns(
    methods: Sequence[Method],
    records: Sequence[_Record],
    prompt: Tensor,
    length: int,
    repeats: int,
    first: int,
) -> None:
    """Time every method on one prompt; who begins changes from turn to turn."""
    seconds: list[list[float]] = [[] for _ in methods]
    outcomes: list[Continuation | None] = [None] * len(methods)
    for turn in range(repeats):
        for offset in range(len(methods)):
            index = (first + turn + offset) % len(methods)
            began = time.perf_counter()
            outcomes[index] = methods[index](prompt, length)
            _synchronize(prompt.device)
            seconds[index].append(time.perf_counter() - began)
    reference = outcomes[0]
    for record, outcome, times in zip(records, outcomes, seconds, strict=True):
        assert outcome is not None
        assert reference is not None
        record.tokens += len(outcome.tokens)
        record.forwards += outcome.forwards
        record.identical += outcome.tokens == reference.tokens
        record.seconds += statistics.median(times)
        record.steps.extend(outcome.steps)


def _rows(
    methods: Sequence[Method], records: Sequence[_Record], prompts: int
) -> list[dict[str, Any]]:
    rate = records[0].tokens / records[0].seconds
    rows: list[dict[str, Any]] = []
    for method, record in zip(methods, records, strict=True):
        speed = record.tokens / record.seconds
        rows.append(
            {
                "method": method.name,
                "prompts": prompts,
                "identical": record.identical,
                "tokens": record.tokens,
                "forwards": record.forwards,
                "tokens_per_forward": record.tokens / record.forwards,
                "tokens_per_second": speed,
                "speedup": speed / rate,
                "seconds": record.seconds,
            }
        )
    for method, record in zip(methods, records, strict=True):
        rows += [
            {"method": method.name, "depth": depth, "acceptance": share}
            for depth, share in acceptance_by_depth(record.steps).items()
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


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
