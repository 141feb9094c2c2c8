"""Documents cut into blocks of one length: packed with nothing padded, or one to a block.

Shapes: T tokens per block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from foretell.data.records import REFUSED, Bad, Document
from foretell.data.sketch import Sketch
from foretell.data.tokenization import Tokenized, tokenize_all
from foretell.errors import InputError
from foretell.targets import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


class PackedBlocks(Dataset[dict[str, torch.Tensor]]):
    """A corpus as blocks of exactly T tokens, for training and for measuring.

    The tokens of all documents stand in one row. A plain text begins with what the tokenizer puts
    before a prompt, often nothing, and is followed by its end-of-sequence token where it has one;
    both belong to the document. The row is cut every T tokens, and a remainder shorter than T is
    dropped.

    An item is `{"input_ids": (T,) int64, "position_ids": (T,) int64}`. Positions count from 0 at
    the start of each block and of each document in it, and they alone tell where documents begin:
    transformers reads packed rows so, and lets no document attend to another. Where some tokens are
    not learned (prompts), an item has `"labels": (T,) int64` too, `IGNORE` on them.

    Not every model obeys (`foretell.backbone.isolates_documents`). For those that do not, a block
    can hold one document: each document, or stretch of T tokens of a longer one, then begins a
    block and is filled up at its end, and an item has labels too, `IGNORE` on the filling. The
    filling needs no attention mask: in a causal model nothing before it can see it. A stretch of a
    single token has nothing to predict and is dropped.

    Attributes:
        num_tokens: tokens kept, without filling; where blocks are packed, their number × T.
        num_documents: documents of which at least one token is kept.
        num_bytes: UTF-8 bytes of the text kept. Documents wholly kept count in full, wholly
            dropped not at all, and one that is kept in part in proportion to its tokens kept; the
            sum is rounded. Tokens that begin or end a sequence count and have no bytes.
        one_document_per_block: whether blocks are filled up rather than packed.
        document_bytes: (documents,), what each adds to `num_bytes`; None where that is not known.
        document_kinds: of each, see `document_kind`; empty where that is not known.
        sketch: which documents they are; empty where that is not known.
    """

    def __init__(
        self,
        blocks: NDArray[np.int32],
        starts: NDArray[np.int64],
        *,
        num_bytes: int,
        lengths: NDArray[np.int64] | None = None,
        learned: NDArray[np.bool_] | None = None,
        document_bytes: NDArray[np.float64] | None = None,
        document_kinds: Sequence[str] = (),
    ) -> None:
        """Take blocks already cut: `from_documents` is the way to make them.

        `blocks` is (N, T); `starts` are the places in the flattened blocks where a document begins,
        in rising order; `lengths` (N,) are the tokens of each block before its filling, None where
        blocks are packed; `learned` (N, T) tells tokens that are to be predicted, None where all
        are.
        """
        self._blocks = blocks
        self._starts = starts
        self._lengths = lengths
        self._learned = learned
        self.one_document_per_block = lengths is not None
        self.num_tokens = blocks.size if lengths is None else int(lengths.sum())
        self.num_documents = len(starts)
        self.num_bytes = num_bytes
        self.document_bytes = document_bytes
        self.document_kinds = tuple(document_kinds)
        self.sketch = Sketch()

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        one_document_per_block: bool = False,
        progress: Callable[[int], None] | None = None,
        bad: Bad = REFUSED,
    ) -> PackedBlocks:
        """Tokenize `documents` and cut them into blocks of `block_size` tokens.

        `one_document_per_block` is for models that let packed documents attend to each other; a
        shorter block is filled up with the end-of-sequence token, else the padding token, else 0.
        `progress` is called after every few documents with the number tokenized so far. `bad` says
        what becomes of documents that cannot be learned; by default the first is an error. The same
        documents give the same blocks.

        Raises:
            InputError: `block_size` is too small, or the text is too short: for one block, or with
                one document per block for a single target.
        """
        pieces = list(tokenize_all(documents, tokenizer, progress, bad))
        return cls.from_pieces(
            pieces, tokenizer, block_size, one_document_per_block=one_document_per_block
        )

    @classmethod
    def from_pieces(
        cls,
        pieces: list[Tokenized],
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        *,
        one_document_per_block: bool = False,
    ) -> PackedBlocks:
        """`from_documents` for documents that are tokenized already, each with a token at least."""
        check_block_size(block_size, one_document_per_block)
        if one_document_per_block:
            blocks = cls._fill(pieces, block_size, _filler(tokenizer))
        else:
            blocks = cls._cut(pieces, block_size)
        blocks.sketch = Sketch(piece.digest for piece in pieces)
        return blocks

    @classmethod
    def _cut(cls, pieces: list[Tokenized], block_size: int) -> PackedBlocks:
        """Put the documents in one row and cut it into blocks."""
        lengths = np.array([len(piece.ids) for piece in pieces], np.int64)
        total = int(lengths.sum())
        kept = total - total % block_size
        if not kept:
            raise InputError(
                f"the text has {total} tokens and one block takes {block_size}: give more text or "
                "a smaller block size"
            )
        ends = np.cumsum(lengths)
        starts = ends - lengths
        # Of every document, the share of its tokens that lie before the cut.
        shares = np.clip(kept - starts, 0, lengths) / lengths
        sizes = shares * [piece.num_bytes for piece in pieces]
        learned, inside = _learned(pieces), starts < kept
        return cls(
            np.concatenate([piece.ids for piece in pieces])[:kept].reshape(-1, block_size),
            starts[inside],
            num_bytes=round(float(sizes.sum())),
            learned=None if learned is None else learned[:kept].reshape(-1, block_size),
            document_bytes=sizes[inside],
            document_kinds=[p.kind for p, kept in zip(pieces, inside, strict=True) if kept],
        )

    @classmethod
    def _fill(cls, pieces: list[Tokenized], block_size: int, filler: int) -> PackedBlocks:
        """Begin a block with each document and every `block_size` tokens in it; fill it up."""
        totals = np.array([len(piece.ids) for piece in pieces], np.int64)
        kept = totals - (totals % block_size == 1)  # a last stretch of one token is dropped
        if not kept.any():
            raise InputError("no document has 2 tokens, so there is nothing to predict: give more")
        ends, counts = np.cumsum(totals), -(-kept // block_size)  # blocks of each document
        row, mask = np.concatenate([piece.ids for piece in pieces]), _learned(pieces)
        stretches = [
            (begin, min(begin + block_size, int(end)))
            for start, end in zip(ends - totals, ends - totals + kept, strict=True)
            for begin in range(int(start), int(end), block_size)
        ]
        blocks = np.full((len(stretches), block_size), filler, np.int32)
        learned = None if mask is None else np.zeros(blocks.shape, bool)
        for number, (begin, end) in enumerate(stretches):
            blocks[number, : end - begin] = row[begin:end]
            if learned is not None and mask is not None:
                learned[number, : end - begin] = mask[begin:end]
        sizes = kept / totals * [piece.num_bytes for piece in pieces]
        return cls(
            blocks,
            (np.cumsum(counts) - counts)[kept > 0] * block_size,
            num_bytes=round(float(sizes.sum())),
            lengths=np.array([end - begin for begin, end in stretches], np.int64),
            learned=learned,
            document_bytes=sizes[kept > 0],
            document_kinds=[p.kind for p, left in zip(pieces, kept, strict=True) if left],
        )

    @property
    def block_size(self) -> int:
        """T, the tokens of every block."""
        return int(self._blocks.shape[1])

    def describe(self) -> dict[str, Any]:
        """What tells this corpus from another, in plain values."""
        return {"blocks": len(self), "tokens": self.num_tokens, "bytes": self.num_bytes}

    def require_vocabulary(self, size: int) -> None:
        """Raise `InputError` unless every token is one of a model's 0…`size` - 1."""
        smallest, largest = int(self._blocks.min()), int(self._blocks.max())
        if smallest < 0 or largest >= size:
            raise InputError(
                f"the blocks hold token {largest if largest >= size else smallest} and the model "
                f"knows 0 to {size - 1}: make them with the model's own tokenizer"
            )

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        index = range(len(self))[index]  # from the end if negative; IndexError outside
        tokens = torch.from_numpy(self._blocks[index].astype(np.int64))
        item = {"input_ids": tokens, "position_ids": torch.from_numpy(self._positions(index))}
        if self._lengths is not None or self._learned is not None:
            item["labels"] = tokens.clone()
        if self._lengths is not None:
            item["labels"][self._lengths[index] :] = IGNORE
        if self._learned is not None:
            item["labels"][torch.from_numpy(~self._learned[index])] = IGNORE
        return item

    def documents(self, index: int) -> NDArray[np.int64]:
        """The number of the document that each token of block `index` belongs to, (T,)."""
        places = np.arange(index * self.block_size, (index + 1) * self.block_size)
        return np.searchsorted(self._starts, places, side="right") - 1

    def document_lengths(self) -> NDArray[np.int64]:
        """Tokens of each document without filling, (documents,)."""
        lengths = np.full(len(self), self.block_size) if self._lengths is None else self._lengths
        counted = np.arange(self.block_size) < lengths[:, None]
        numbers = np.searchsorted(self._starts, np.arange(self._blocks.size), side="right") - 1
        return np.bincount(numbers[counted.ravel()], minlength=self.num_documents)

    def _positions(self, index: int) -> NDArray[np.int64]:
        """Return how far each token of block `index` is from its document's start in it: (T,)."""
        begin = index * self.block_size
        first, last = np.searchsorted(self._starts, [begin, begin + self.block_size])
        places = np.arange(self.block_size)
        starts = np.zeros_like(places)
        inside = self._starts[first:last] - begin
        starts[inside] = inside
        return places - np.maximum.accumulate(starts)


def check_block_size(block_size: int, one_document_per_block: bool) -> None:
    """Raise `InputError` for blocks that would be empty or have nothing to predict."""
    if block_size < 1:
        raise InputError(f"block size must be at least 1 token, not {block_size}")
    if one_document_per_block and block_size == 1:
        raise InputError("a block of one document needs at least 2 tokens, or predicts nothing")


def _learned(pieces: list[Tokenized]) -> NDArray[np.bool_] | None:
    """Which tokens of all documents in a row are learned; None where all are."""
    if all(piece.learned is None for piece in pieces):
        return None
    return np.concatenate(
        [np.ones(len(p.ids), bool) if p.learned is None else p.learned for p in pieces]
    )


def _filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up a block: one that the model knows."""
    known = (tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return next(token for token in known if token is not None)
