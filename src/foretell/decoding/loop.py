"""The decoding loop: draft → verify → accept → commit.

Plain decoding is the same loop with a drafter that proposes nothing.

Shapes: B rows, T prompt.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretell.backbone import Backbone
from foretell.decoding.batch import ENDED, Batch, Step
from foretell.decoding.cache import takes_masks
from foretell.decoding.constraints import constraints
from foretell.decoding.draft import Draft
from foretell.decoding.drafters import NoDrafter
from foretell.decoding.kernels import Kernels
from foretell.decoding.length import AutoLength
from foretell.decoding.options import DecodeOptions
from foretell.decoding.passes import Passes, capacity
from foretell.decoding.sampling import Sampler
from foretell.decoding.turns import alone, in_turns, turn_of


@dataclass(frozen=True)
class Generation:
    """What `MTPModel.decode` returns, and `generate` where a dictionary is asked for.

    Attributes:
        sequences: (B, T') prompts as they were given, and continuations, filled up at the end.
        continuations: the new tokens of each row.
        steps: one tuple for each forward pass, the pass over the prompts included; in it a step
            for each row.
        full: which rows fill all positions that the model has, and can go no further.
    """

    sequences: Tensor
    continuations: list[list[int]]
    steps: list[tuple[Step, ...]]
    full: list[bool]

    def __getitem__(self, name: str) -> Any:
        """`["sequences"]`, as of what transformers returns."""
        return getattr(self, name)

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
    options: DecodeOptions,
    *,
    length: AutoLength | None = None,
) -> Iterator[tuple[Step, ...]]:
    """Continue the rows of `batch`, yielding a step of every row as soon as it is committed.

    What is asked for is checked at once, before the first step. Rows of a backbone that cannot tell
    them apart are continued one after another, and so are those of which one has to be read anew.
    Steps that several threads ask of one model are made one after another. The first compiled pass
    takes its minutes.

    Args:
        backbone: that reads and verifies.
        batch: the rows; they are written to.
        options: how they are continued.
        length: chooses how far every draft goes, in place of what `options` says.
    """
    model = backbone.model
    with turn_of(model):
        options.require_trees(backbone, batch)
        histories = constraints(model, batch, options.sampling, options.config)
        sampler = Sampler(options.sampling, len(batch), backbone.device, histories)
        length = length or options.lengths(backbone, batch)
    return in_turns(model, _rows(backbone, batch, options, sampler, length))


def _rows(
    backbone: Backbone,
    batch: Batch,
    options: DecodeOptions,
    sampler: Sampler,
    length: AutoLength | None,
) -> Generator[tuple[Step, ...]]:
    """All rows at once, or one after another."""
    width, compiled = options.pass_width, options.compiled
    together = takes_masks(backbone, capacity(batch, width)) and not batch.rereads
    if len(batch) == 1 or together:
        passes = Passes(backbone, batch, width, compiled)
        yield from _decode(passes, batch, options, sampler, length)
        return
    for number in (n for n, row in enumerate(batch.rows) if row.active):
        alone = batch.alone(number)
        passes = Passes(backbone, alone, width, compiled)
        chooses = None if length is None else length.row()
        for (step,) in _decode(passes, alone, options, sampler.row(number), chooses):
            yield tuple(step if other == number else ENDED for other in range(len(batch)))


@torch.inference_mode()
def _decode(
    passes: Passes,
    batch: Batch,
    options: DecodeOptions,
    sampler: Sampler,
    length: AutoLength | None,
) -> Iterator[tuple[Step, ...]]:
    rule = options.rule
    draft = Draft.nothing(len(batch), batch.device)
    sampler.begin(batch.lengths)
    backbone, layers = passes.backbone, options.drafter.layers
    with alone(options.drafter) as drafter, backbone.watch(layers), backbone.rotated():
        drafter.start(passes.past, sampler, len(batch), passes.capacity)
        kernels = Kernels(backbone, drafter)
        while True:
            # Verify: one pass over what the backbone has not read yet, and the draft after it.
            with kernels.chosen():
                verified = passes.verify(batch, draft, layers)
            # Accept: a way through the draft, and the backbone's own token after it.
            scores = sampler.scores(verified.logits, draft, batch.prefixes)
            verdict = rule(draft, scores, sampler.uniforms(draft.size + 1))
            # Commit: what stands, in every row; the past forgets the rest.
            steps = batch.commit(draft, verdict)
            passes.past.keep([count - 1 for count in batch.lengths], verdict.path)
            if length is not None:
                length.end(steps, batch.complete)
            yield steps
            if batch.over:
                return
            # Draft: what may follow.
            sampler.begin(batch.lengths)
            limit = passes.limit(batch)
            if length is not None:
                limit = length.begin(limit)
                drafter = NoDrafter() if length.resting else drafter
            with kernels.chosen():
                proposed = drafter.draft(verified.committed(batch, verdict), limit)
            draft = passes.fitted(batch.within(proposed), min(limit, drafter.longest))
            # Let go of rows that have ended.
            if (stay := batch.let_go(passes.fewest)) is not None:
                draft = draft.select(stay)
                for part in (passes.past, sampler, drafter):
                    part.select(stay)
