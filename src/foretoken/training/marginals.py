"""Marginal distributions as targets: parallel heads learn what they can know, and no more.

Mehra et al. 2025 (arXiv 2502.09419) measure against the backbone's numerical marginalization;
here it teaches. A head that reads no token in between can at best predict this distribution.

Shapes: B rows, T row length, V vocabulary.
"""

import torch
from torch import Tensor

from foretoken.model import MTPModel
from foretoken.objective import MarginalTarget, ObjectiveConfig
from foretoken.probe import marginalize


def marginal_targets(
    model: MTPModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    objective: ObjectiveConfig,
    passes: int = 1,
) -> dict[int, MarginalTarget]:
    """Marginalize the backbone at random positions of every row's longest document.

    Args:
        model: its backbone is the teacher, as it is now.
        input_ids: (B, T).
        position_ids: (B, T), restarting at every packed document; None: a row is one document.
        objective: `marginal_width` strings at `marginal_positions` positions per row.
        passes: how many of these make up a step.

    Returns:
        By depth 1…K, positions in the flattened (B·T).
    """
    was_training = model.training
    model.eval()  # a teacher drops nothing out
    length = input_ids.shape[1]
    positions: list[Tensor] = []
    taught: dict[int, list[Tensor]] = {depth: [] for depth in range(1, model.depth + 1)}
    for row, tokens in enumerate(input_ids):
        start, stop = _longest_document(None if position_ids is None else position_ids[row], length)
        chosen = torch.randperm(stop - start)[: objective.marginal_positions].sort().values
        positions.append(row * length + start + chosen)
        document = tokens[start:stop].unsqueeze(0)
        where = chosen.to(tokens.device)
        for found in marginalize(
            model.backbone, document, where, model.depth, objective.marginal_width
        ):
            if found.depth:
                taught[found.depth].append(found.probabilities)
    model.train(was_training)
    where = torch.cat(positions)
    return {
        # Cloned, so that they can be used outside inference mode.
        depth: MarginalTarget(where, torch.cat(parts).clone(), passes * len(where))
        for depth, parts in taught.items()
    }


def _longest_document(position_ids: Tensor | None, length: int) -> tuple[int, int]:
    """Where the longest document of a row begins and ends."""
    if position_ids is None:
        return 0, length
    starts = (position_ids == 0).nonzero().flatten().tolist()
    return max(zip(starts, [*starts[1:], length], strict=True), key=lambda span: span[1] - span[0])
