"""Blocks of a corpus that does not fit into memory.

Shapes: T tokens per block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from foretoken.data.documents import Document
from foretoken.data.packing import PackedBlocks
from foretoken.data.tokenization import Tokenized, tokenize_all
from foretoken.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StreamedBlocks(IterableDataset[dict[str, torch.Tensor]]):
    """Blocks as `PackedBlocks` has them, made while they are read, without end.

    Documents are read in their order, a window of them at a time; the blocks of a window come in
    random order. When the last document has been read it begins again with the first. The same seed
    gives the same blocks in the same order, so that a run resumes by passing over those it has
    learned from.

    Args:
        documents: opens the corpus anew.
        tokenizer: of the model.
        block_size: T.
        one_document_per_block: see `PackedBlocks`.
        window: blocks in memory at once.
        seed: of the order.
        name: of the corpus, by which a resumed run knows it again.
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
    ) -> None:
        self._name = name
        self._documents = documents
        self._tokenizer = tokenizer
        self.block_size = block_size
        self.one_document_per_block = one_document_per_block
        self._window = window
        self._seed = seed

    def describe(self) -> dict[str, Any]:
        """What tells this corpus from another, in plain values; its size is not known."""
        return {"stream": self._name, "block_size": self.block_size, "window": self._window}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for epoch in count():
            order = np.random.default_rng([self._seed, epoch])
            empty = True
            for blocks in self._windows():
                for index in order.permutation(len(blocks)):
                    empty = False
                    yield blocks[int(index)]
            if empty:
                raise InputError(
                    f"the text is shorter than one block of {self.block_size} tokens: give more "
                    "text or a smaller block size"
                )

    def _windows(self) -> Iterator[PackedBlocks]:
        """One reading of the corpus; what does not fill a block at its end is dropped."""
        size = self._window * self.block_size
        pieces: list[Tokenized] = []
        held = 0
        for piece in tokenize_all(self._documents(), self._tokenizer):
            pieces.append(piece)
            held += len(piece.ids)
            if held >= size:
                yield self._pack(pieces)
                pieces = self._left_over(pieces, held % self.block_size)
                held = sum(len(piece.ids) for piece in pieces)
        if held >= self.block_size or (self.one_document_per_block and held > 1):
            yield self._pack(pieces)

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
        if self.one_document_per_block or not length:
            return []
        left: list[Tokenized] = []
        for piece in reversed(pieces):
            if length <= 0:
                break
            left.insert(0, piece.end(length))
            length -= len(left[0].ids)
        return left
