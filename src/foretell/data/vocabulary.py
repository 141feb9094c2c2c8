"""How often tokens are learned, and how much of a text a few of them are.

Shapes: V the model's tokens, V' some of them.
"""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from foretell.data.packing import PackedBlocks
from foretell.data.streaming import StreamedBlocks

COUNTED = 1 << 15
"""Blocks in which tokens are counted, about: of a larger corpus some from all over it, of a stream
the first."""


def learned_tokens(blocks: PackedBlocks | StreamedBlocks, vocab_size: int) -> Tensor:
    """How often each token is a target, (V,), in up to about `COUNTED` blocks."""
    rows = blocks.beginning(COUNTED) if isinstance(blocks, StreamedBlocks) else _rows(blocks)
    return _counted(rows, vocab_size)


def most_frequent(counts: Tensor, size: int, needed: Collection[int] = ()) -> Tensor:
    """The tokens (V',) that occur most often, in rising order; of equals the first.

    Args:
        counts: (V,) how often each does.
        size: V'.
        needed: tokens that are among them, however rare.
    """
    wanted = counts.clone()
    inside = [token for token in needed if 0 <= token < len(counts)]
    wanted[inside] = int(counts.max()) + 1
    return wanted.argsort(descending=True, stable=True)[:size].sort().values


def coverage(counts: Tensor, tokens: Tensor) -> float:
    """The share of what was counted (V,) that is of these tokens (V',)."""
    return float(counts[tokens].sum() / counts.sum().clamp(min=1))


def coverage_by_size(blocks: PackedBlocks, vocab_size: int) -> dict[int, float]:
    """How much of unseen text the most frequent tokens are, by how many.

    Tokens are counted in every second block and looked for in the others. Sizes are powers of two,
    from a sixty-fourth of the vocabulary on.

    Returns:
        nothing, where there is but one block.
    """
    if len(blocks) < 2:
        return {}
    seen, unseen = (_counted(_rows(blocks, first, 2), vocab_size) for first in (0, 1))
    sizes = [1 << power for power in range(vocab_size.bit_length())]
    return {
        size: coverage(unseen, most_frequent(seen, size))
        for size in sizes
        if vocab_size <= 64 * size and size < vocab_size
    }


def _rows(blocks: PackedBlocks, first: int = 0, step: int = 1) -> Iterator[dict[str, Tensor]]:
    """Every `step`th block from the `first` on, or fewer where there are too many."""
    thinned = max(1, len(blocks) // COUNTED)
    return (blocks[row] for row in range(first, len(blocks), step * thinned))


def _counted(rows: Iterator[dict[str, Tensor]], vocab_size: int) -> Tensor:
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for row in rows:
        labels = row.get("labels", row["input_ids"])
        counts += torch.bincount(labels[labels >= 0], minlength=vocab_size)
    return counts
