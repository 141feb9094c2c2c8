"""The only place that shifts tokens by depth.

Depth `k` at position `t` predicts `x_{t+1+k}`; depth 0 is the backbone's own next-token prediction.
Documents packed into one row are told apart by `position_ids`, which restart at every document
start (transformers' own convention): `x_j` belongs to the document of `x_t`, `j > t`, exactly when
`position_ids[j] - position_ids[t] == j - t`, because a restart in between can only lower the
difference. No prediction ever crosses such a boundary.

Shapes: B batch, T time.
"""

import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that has no target; `torch.nn.functional.cross_entropy` skips it."""

NO_TARGET = "no position has a target at every depth; use longer blocks, or longer documents."
"""What is wrong with a text where all labels are `IGNORE`."""


def tokens_ahead(tokens: Tensor, distance: int) -> Tensor:
    """`x_{t+distance}` at every position `t`, (B, T) → (B, T).

    The last `distance` positions have nothing ahead and repeat the row's last token. What a head
    computes there, or from a token beyond a document's end, is never a target and cannot reach one:
    attention only looks back, and every later position of that document has no target either.
    """
    length = tokens.shape[1]
    return tokens[:, places_ahead(torch.arange(length, device=tokens.device), distance, length)]


def places_ahead(places: Tensor, distance: int, length: int) -> Tensor:
    """The places `distance` ahead of `places`, (N,) → (N,); the end of a row as above.

    Places are counted through rows of `length` that are laid end to end.
    """
    inside = places % length
    return places - inside + (inside + distance).clamp(max=length - 1)


def depth_targets(labels: Tensor, depth: int, position_ids: Tensor | None = None) -> Tensor:
    """What depth `depth` has to predict at every position: `x_{t+1+depth}` or `IGNORE`.

    Args:
        labels: (B, T) token ids *not yet shifted*, `IGNORE` where a token is no target (padding,
            prompts).
        depth: k ≥ 0.
        position_ids: (B, T), restarting at every document start; None when a row is one document.

    Returns:
        (B, T) targets, `IGNORE` where `x_{t+1+depth}` is past the row or in another document.
    """
    distance = depth + 1
    targets = torch.full_like(labels, IGNORE)
    if labels.shape[1] <= distance:
        return targets
    ahead = labels[:, distance:]
    if position_ids is not None:
        same_document = position_ids[:, distance:] - position_ids[:, :-distance] == distance
        ahead = torch.where(same_document, ahead, IGNORE)
    targets[:, :-distance] = ahead
    return targets
