"""The decoding loop: draft → verify → accept → commit.

Plain decoding is the same loop with a drafter that proposes nothing.

Shapes: B rows, T prompt, W nodes of a pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.backbone import Backbone
from foretoken.decoding.acceptance import AcceptanceRule
from foretoken.decoding.batch import Batch, Step
from foretoken.decoding.cache import new_past, takes_masks
from foretoken.decoding.draft import Draft
from foretoken.decoding.drafters import Committed, Drafter
from foretoken.decoding.sampling import Sampler, Sampling


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
) -> Iterator[tuple[Step, ...]]:
    """Continue the rows of `batch`, yielding a step of every row as soon as it is committed.

    Rows of a backbone that cannot tell them apart are continued one after another.
    """
    sampler = Sampler(sampling, batch.rows, backbone.device)
    if batch.rows == 1 or takes_masks(backbone):
        yield from _decode(backbone, batch, drafter, rule, sampler)
        return
    ended = Step(0, 0, ())
    for row in range(batch.rows):
        for (step,) in _decode(backbone, batch.row(row), drafter, rule, sampler.row(row)):
            yield tuple(step if other == row else ended for other in range(batch.rows))


@torch.inference_mode()
def _decode(
    backbone: Backbone, batch: Batch, drafter: Drafter, rule: AcceptanceRule, sampler: Sampler
) -> Iterator[tuple[Step, ...]]:
    past = new_past(backbone, batch.rows, batch.width + max(batch.room))
    drafter.start(past, sampler, batch.rows, batch.width + max(batch.room))
    window, draft = batch.tokens, Draft.nothing(batch.rows, batch.device)
    while True:
        # Verify: one pass over what the backbone has not read yet, and the draft behind it.
        begin, given = past.read, past.enter(window.shape[1], draft)
        output = backbone(window, layers=drafter.layers, **given)
        unread = [length - read for length, read in zip(batch.lengths, begin, strict=True)]
        first = torch.tensor(unread, device=batch.device) - 1  # node 0's place in the pass
        logits = backbone.unembed(_nodes(output.final, first, draft.size + 1))
        # Accept: a way through the draft, and the backbone's own token after it.
        scores = sampler.scores(logits, draft, batch.prefixes)
        verdict = rule(draft, scores, sampler.uniforms(draft.size + 1))
        # Commit: what stands, in every row; the past forgets the rest.
        steps = batch.commit(draft, verdict)
        past.keep([length - 1 for length in batch.lengths], verdict.path)
        yield steps
        if not any(batch.active):
            return
        # Draft: what may follow. The backbone adds one token of its own, so leave it room.
        committed = Committed(
            batch.tokens, batch.lengths, begin, output, first + verdict.last, verdict.path
        )
        draft = drafter.draft(committed, batch.limit)
        window = torch.cat([batch.unread(past.read), draft.tokens], dim=1)


def _nodes(final: Tensor, first: Tensor, width: int) -> Tensor:
    """The states of a draft's nodes, which begin at place `first` (B,) of the pass: (B, W, D)."""
    if final.shape[1] == width:
        return final
    places = first.unsqueeze(1) + torch.arange(width, device=first.device)
    return final.gather(1, places.unsqueeze(-1).expand(-1, -1, final.shape[-1]))
