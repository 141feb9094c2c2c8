"""Marginal distributions as targets: parallel heads learn what they can know, and no more.

Mehra et al. 2025 (arXiv 2502.09419) measure against the backbone's numerical marginalization;
here it teaches. A head that reads no token in between can at best predict this distribution.

Shapes: B rows, T row length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretell.model import MTPModel
from foretell.objective import JointLoss, MarginalTarget, ObjectiveConfig
from foretell.probe import marginalize
from foretell.targets import IGNORE


def marginal_targets(
    model: MTPModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    objective: ObjectiveConfig,
    passes: int = 1,
    labels: Tensor | None = None,
) -> dict[int, MarginalTarget]:
    """Marginalize the backbone at random positions, in one document of every row.

    It is the document with the most positions that have something to predict ahead; only those are
    drawn, and a depth learns at those drawn that have a target at that depth.

    Args:
        model: its backbone is the teacher, as it is now.
        input_ids: (B, T).
        position_ids: (B, T), restarting at every packed document; None: a row is one document.
        objective: `marginal_width` strings at `marginal_positions` positions per row.
        passes: how many of these make up a step; each counts the same.
        labels: (B, T) not shifted, `IGNORE` where a token is no target; None: all are.

    Returns:
        By depth 1…K, positions in the flattened (B·T).
    """
    known = JointLoss(model.backbone, model.head).targets(
        input_ids if labels is None else labels, position_ids
    )
    learned = (torch.stack(known[1:]) != IGNORE).cpu()  # (K, B, T)
    rows: list[_Taught] = []
    was_training = model.training
    model.eval()  # a teacher drops nothing out
    for row, tokens in enumerate(input_ids):
        starts = None if position_ids is None else position_ids[row]
        rows += _teach(model, tokens, starts, learned[:, row], objective, row * len(tokens))
    model.train(was_training)
    depths = range(1, model.depth + 1)
    nothing = torch.zeros(0, model.backbone.vocab_size, device=input_ids.device)
    return {k: _joined([one for one in rows if one.depth == k], nothing, passes) for k in depths}


@dataclass(frozen=True)
class _Taught:
    """What one depth learns from one row: (P,) positions in all rows, (P, V) probabilities."""

    depth: int
    positions: Tensor
    probabilities: Tensor


def _teach(
    model: MTPModel,
    tokens: Tensor,
    position_ids: Tensor | None,
    learned: Tensor,
    objective: ObjectiveConfig,
    offset: int,
) -> Iterator[_Taught]:
    """Marginalize at some positions of the row `tokens` (T,), where `learned` (K, T) says so."""
    start, stop = _fullest_document(learned.any(0), position_ids)
    learned = learned[:, start:stop]
    candidates = learned.any(0).nonzero().flatten()
    drawn = torch.randperm(len(candidates))[: objective.marginal_positions]
    chosen = candidates[drawn.sort().values]
    if not len(chosen):
        return
    where, document = chosen.to(tokens.device), tokens[start:stop].unsqueeze(0)
    for found in marginalize(
        model.backbone, document, where, model.depth, objective.marginal_width
    ):
        if found.depth:
            counts = learned[found.depth - 1, chosen]
            probabilities = found.probabilities[counts.to(where.device)]
            yield _Taught(found.depth, offset + start + chosen[counts], probabilities)


def _joined(rows: Sequence[_Taught], nothing: Tensor, passes: int) -> MarginalTarget:
    """One depth's targets in all rows; `nothing` (0, V) where there are none."""
    positions = torch.cat([torch.zeros(0, dtype=torch.long), *(row.positions for row in rows)])
    # `cat` copies, so that they can be used outside inference mode.
    probabilities = torch.cat([nothing, *(row.probabilities for row in rows)])
    return MarginalTarget(positions, probabilities, passes * len(positions))


def _fullest_document(learned: Tensor, position_ids: Tensor | None) -> tuple[int, int]:
    """Where the document of a row begins and ends that holds most of `learned` (T,)."""
    length = len(learned)
    if position_ids is None:
        return 0, length
    starts = (position_ids == 0).nonzero().flatten().tolist()
    spans = zip(starts, [*starts[1:], length], strict=True)
    return max(spans, key=lambda span: int(learned[span[0] : span[1]].sum()))
