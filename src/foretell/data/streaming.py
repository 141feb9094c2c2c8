"""Blocks of a corpus that does not fit into memory.

Shapes: T tokens per block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from foretell.data.packing import PackedBlocks, check_block_size
from foretell.data.records import REFUSED, Bad, Document
from foretell.data.sketch import Sketch
from foretell.data.tokenization import Tokenized, tokenize_all
from foretell.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StreamedBlocks(IterableDataset[dict[str, torch.Tensor]]):
    """Blocks as `PackedBlocks` has them, made while they are read, without end.

    Documents are read in their order, a window of them at a time; the blocks of a window come in
    random order. When the last document has been read it begins again with the first. The same seed
    gives the same blocks in the same order, so that a run resumes by passing over those it has
    learned from.

    Items always have labels, since some of a batch may hold prompts. Worker processes of a
    `DataLoader` take turns, block by block. Every process of a distributed run reads all blocks,
    and the trainer says which of them are its own.

    Args:
        documents: opens the corpus anew.
        tokenizer: of the model.
        block_size: T.
        one_document_per_block: see `PackedBlocks`.
        window: blocks in memory at once.
        seed: of the order.
        name: of the corpus, by which a resumed run knows it again.
        bad: what becomes of documents that cannot be learned; by default the first is an error.

    Attributes:
        sketch: which documents were read so far.

    Raises:
        InputError: `block_size` is too small; or, when iteration finds out, the text too short.
    """

    def __init__(
        self,
        documents: Callable[[], Iterable[Document]],
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        one_document_per_block: bool = False,
        window: int = 4096,
        seed: int = 0,
        name: str = "",
        bad: Bad = REFUSED,
    ) -> None:
        check_block_size(block_size, one_document_per_block)
        self._name, self._bad = name, bad
        self._documents = documents
        self._tokenizer = tokenizer
        self.block_size = block_size
        self.one_document_per_block = one_document_per_block
        self._window = window
        self._seed = seed
        self.sketch = Sketch()

    def describe(self) -> dict[str, Any]:
        """What tells this corpus from another, in plain values; its size is not known."""
        return {"stream": self._name, "block_size": self.block_size, "window": self._window}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        blocks = self._blocks()
        return blocks if worker is None else islice(blocks, worker.id, None, worker.num_workers)

    def beginning(self, number: int) -> Iterator[dict[str, torch.Tensor]]:
        """The first blocks, looked at and not learned: `sketch` knows nothing of them."""
        aside = copy(self)
        aside.sketch = Sketch()
        return islice(aside, number)

    def _blocks(self) -> Iterator[dict[str, torch.Tensor]]:
        for epoch in count():
            order = np.random.default_rng([self._seed, epoch])
            empty = True
            for blocks in self._windows():
                for index in order.permutation(len(blocks)):
                    empty = False
                    item = blocks[int(index)]
                    yield {"labels": item["input_ids"].clone(), **item}
            if empty:
                raise InputError(
                    f"the text is shorter than one block of {self.block_size} tokens: give more "
                    "text or a smaller block size"
                )

    def _windows(self) -> Iterator[PackedBlocks]:
        """One reading of the corpus; what does not fill a block at its end is dropped."""
        limit = self._window * self.block_size
        pieces: list[Tokenized] = []
        held = 0  # tokens in memory, the filling of their blocks included
        for piece in tokenize_all(self._documents(), self._tokenizer, bad=self._bad):
            if self.one_document_per_block and len(piece.ids) == 1:
                continue  # it has nothing to predict
            pieces.append(piece)
            self.sketch.add([piece.digest])
            held += self._taken(piece)
            if held >= limit:
                yield self._pack(pieces)
                pieces = self._left_over(pieces, held % self.block_size)
                held = sum(map(self._taken, pieces))
        if held >= self.block_size:
            yield self._pack(pieces)

    def _taken(self, piece: Tokenized) -> int:
        """Tokens that a document takes up in blocks."""
        length = len(piece.ids)
        size = self.block_size
        return -(-length // size) * size if self.one_document_per_block else length

    def _pack(self, pieces: list[Tokenized]) -> PackedBlocks:
        return PackedBlocks.from_pieces(
            pieces,
            self._tokenizer,
            self.block_size,
            one_document_per_block=self.one_document_per_block,
        )

    def _left_over(self, pieces: list[Tokenized], length: int) -> list[Tokenized]:
        """The end of the window that filled no block; it begins the next one.

        Position ids restart with every block anyway, so nothing changes by cutting here.
        """
        left: list[Tokenized] = []
        for piece in reversed(pieces):
            if length <= 0:
                break
            left.insert(0, piece.end(length))
            length -= len(left[0].ids)
        return left
