"""The decoding loop: draft → verify → accept → commit.

Plain decoding is the same loop with a drafter that proposes nothing.

Shapes: B rows, T prompt, W nodes of a pass.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretoken.backbone import Backbone, BackboneOutput
from foretoken.decoding.acceptance import AcceptanceRule
from foretoken.decoding.batch import Batch, Step
from foretoken.decoding.cache import new_past, takes_masks
from foretoken.decoding.compiling import compile_fixed
from foretoken.decoding.draft import Draft
from foretoken.decoding.drafters import Committed, Drafter
from foretoken.decoding.invariance import require_invariance
from foretoken.decoding.length import AutoLength
from foretoken.decoding.sampling import Sampler, Sampling

UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    Attributes:
        sequences: (B, T') prompts as they were given, and continuations, filled up at the end.
        continuations: the new tokens of each row.
        steps: one tuple for each forward pass, the pass over the prompts included; in it a step
            for each row.
    """

    sequences: Tensor
    continuations: list[list[int]]
    steps: list[tuple[Step, ...]]

    @property
    def new_tokens(self) -> list[int]:
        """The continuation of the first row."""
        return self.continuations[0]

    @property
    def forwards(self) -> int:
        """Passes of the backbone."""
        return len(self.steps)

    @property
    def draft_lengths(self) -> list[int]:
        """How many tokens deep each pass but the first drafted, over time."""
        return [max(step.drafted for step in steps) for steps in self.steps[1:]]

    @property
    def row_steps(self) -> list[Step]:
        """Steps of all rows, without those after a row's end."""
        return [step for steps in self.steps for step in steps if step.tokens]

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per pass of the backbone and row; plain decoding has 1."""
        steps = self.row_steps
        return sum(len(step.tokens) for step in steps) / max(1, len(steps))


def decode(
    backbone: Backbone,
    batch: Batch,
    drafter: Drafter,
    rule: AcceptanceRule,
    sampling: Sampling,
    *,
    length: AutoLength | None = None,
    pass_width: int | None = None,
    compiled: bool = False,
) -> Iterator[tuple[Step, ...]]:
    """Continue the rows of `batch`, yielding a step of every row as soon as it is committed.

    Rows of a backbone that cannot tell them apart are continued one after another. `length` chooses
    how far every draft goes; without it that is the drafter's affair. `pass_width` makes every pass
    but the first so many tokens wide, whatever is drafted (see `foretoken.decoding.invariance`).
    `compiled` runs every pass but the first in one shape, compiled by torch; the first time takes
    its minutes.
    """
    sampler = Sampler(sampling, batch.rows, backbone.device)
    if batch.rows == 1 or takes_masks(backbone):
        yield from _decode(backbone, batch, drafter, rule, sampler, length, pass_width, compiled)
        return
    ended = Step(0, 0, ())
    for row in range(batch.rows):
        alone = (batch.row(row), drafter, rule, sampler.row(row), length, pass_width, compiled)
        for (step,) in _decode(backbone, *alone):
            yield tuple(step if other == row else ended for other in range(batch.rows))


@torch.inference_mode()
def _decode(
    backbone: Backbone,
    batch: Batch,
    drafter: Drafter,
    rule: AcceptanceRule,
    sampler: Sampler,
    length: AutoLength | None,
    pass_width: int | None,
    compiled: bool,
) -> Iterator[tuple[Step, ...]]:
    capacity, widest = batch.width + max(batch.room), UNLIMITED
    if pass_width is not None:
        capacity, widest = capacity + pass_width, pass_width - 1
    fixed = compiled or pass_width is not None
    past = new_past(backbone, batch.rows, capacity, fixed=fixed, compiled=compiled)
    if pass_width is not None:
        require_invariance(backbone, batch.rows, pass_width, capacity)
    drafter.start(past, sampler, batch.rows, capacity)
    sampler.begin(batch.lengths)
    window, draft, verify = batch.tokens, Draft.nothing(batch.rows, batch.device), _verify
    steady = compile_fixed(_verify) if compiled else _verify
    drafted, began = None, 0.0
    with backbone.watch(drafter.layers):
        while True:
            # Verify: one pass over what the backbone has not read yet, and the draft behind it.
            begin, given = past.read, past.enter(window.shape[1], draft)
            first = batch.behind(begin) - 1  # node 0's place in the pass
            output, logits = verify(backbone, window, drafter.layers, given, first, draft.size + 1)
            # Accept: a way through the draft, and the backbone's own token after it.
            scores = sampler.scores(logits, draft, batch.prefixes)
            verdict = rule(draft, scores, sampler.uniforms(draft.size + 1))
            # Commit: what stands, in every row; the past forgets the rest.
            steps = batch.commit(draft, verdict)
            past.keep([count - 1 for count in batch.lengths], verdict.path)
            if length is not None and drafted is not None:
                length.record(steps, drafted, time.perf_counter() - began)
            yield steps
            if not any(batch.active):
                return
            # Draft: what may follow. The backbone adds one token of its own, so leave it room.
            sampler.begin(batch.lengths)
            began, limit = time.perf_counter(), widest if compiled else min(widest, batch.limit)
            if length is not None:
                drafted = length.choose()
                limit = min(limit, drafted)
            last = first + verdict.last
            committed = Committed(batch.tokens, batch.lengths, begin, output, last, verdict.path)
            draft = batch.within(drafter.draft(committed, limit))
            if pass_width is not None:
                draft = draft.padded(widest)
            window = torch.cat([batch.unread(past.read), draft.tokens], dim=1)
            verify = steady


def _verify(
    backbone: Backbone,
    window: Tensor,
    layers: tuple[int, ...],
    given: dict[str, Any],
    first: Tensor,
    nodes: int,
) -> tuple[BackboneOutput, Tensor]:
    """A pass over `window`, and the logits at a draft's nodes, which begin at place `first`."""
    output = backbone(window, layers=layers, **given)
    final = output.final
    if final.shape[1] != nodes:
        places = first.unsqueeze(1) + torch.arange(nodes, device=first.device)
        final = final.gather(1, places.unsqueeze(-1).expand(-1, -1, final.shape[-1]))
    return output, backbone.unembed(final)
