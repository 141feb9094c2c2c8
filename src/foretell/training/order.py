"""In which order a run reads the rows of a corpus, and which process reads which."""

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")


def endless_order(rows: int, seed: int) -> Iterator[int]:
    """All rows in random order, then all in another one, and so on.

    A step reads the next rows of this one sequence, so that what it learns from does not depend on
    how many processes and passes share it, and no step is smaller than the others.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator).tolist()


def own_passes(
    rows: Iterator[T], per_pass: int, passes: int, process: int, processes: int
) -> Iterator[list[list[T]]]:
    """What one process reads in step after step: the rows of each of its passes.

    Args:
        rows: all rows of the run in their order, without end.
        per_pass: rows that a process reads at once.
        passes: of a process in a step.
        process: which one, from 0.
        processes: how many there are.
    """
    while True:
        shared = [list(islice(rows, per_pass * processes)) for _ in range(passes)]
        yield [read[process * per_pass :][:per_pass] for read in shared]
