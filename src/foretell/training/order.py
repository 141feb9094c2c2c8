"""In which order a run reads the rows of a corpus."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EndlessOrder(Sampler[int]):
    """All rows in random order, then all in another one, and so on.

    A step reads the next rows of this one sequence, so that what it learns from does not depend on
    how many processes and passes share it, and no step is smaller than the others.

    Args:
        rows: of the corpus.
        length: rows that the run reads.
        seed: of the order.
    """

    def __init__(self, rows: int, length: int, seed: int) -> None:
        self.rows, self.length, self.seed = rows, length, seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.length, self.rows):
            order = torch.randperm(self.rows, generator=generator)
            yield from order[: self.length - start].tolist()
