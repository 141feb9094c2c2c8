"""Cross-entropy of one depth, without holding the logits of all positions.

The logits of a chunk of positions are computed, reduced to their loss, and computed again in the
backward pass, so that memory grows with the chunk and not with B·T·V. The unembedding is a function
(the backbone's own, with its scaling and soft-capping), not a weight.

Shapes: N positions, D hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from foretoken.targets import IGNORE

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB in float32."""


def cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    unembed: Callable[[Tensor], Tensor],
    vocab_size: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Mean of -log softmax(unembed(hidden))[target] over the positions that have a target, in nats.

    Args:
        hidden: (..., D).
        targets: (...) token ids, `IGNORE` where there is none.
        unembed: (N, D) → (N, V).
        vocab_size: V.
        chunk_elements: how many logits may exist at once.

    Returns:
        A scalar in float32; 0 where no position has a target.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)

    def chunk_loss(part: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(unembed(part).float(), target, ignore_index=IGNORE, reduction="sum")

    count = (targets != IGNORE).sum().clamp(min=1)
    rows = max(1, chunk_elements // vocab_size)
    if len(targets) <= rows:
        return chunk_loss(hidden, targets) / count
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        total = total + checkpoint(chunk_loss, part, target, use_reentrant=False)
    return total / count
