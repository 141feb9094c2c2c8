"""A corpus by its name: what to train on, and what to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from foretell.data.documents import read_documents
from foretell.data.packing import PackedBlocks
from foretell.data.records import REFUSED, Bad, Document
from foretell.data.streaming import StreamedBlocks
from foretell.data.tokenization import Tokenized, tokenize_all
from foretell.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT_BLOCKS = 256
"""Of a stream, how many blocks of held-out documents are read: enough to measure on."""


def read_corpus(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    held_out: float = 0.0,
    seed: int = 0,
    streaming: bool = False,
    one_document_per_block: bool = False,
    bad: Bad = REFUSED,
) -> tuple[PackedBlocks | StreamedBlocks, PackedBlocks | None]:
    """The blocks to train on, and those held out (None where `held_out` is 0).

    Streamed or not, the same documents are held out. Of a stream, which may be larger than memory,
    the first `HELD_OUT_BLOCKS` blocks of them are measured on.

    Args:
        path: see `read_documents`.
        tokenizer: of the model.
        block_size: T.
        held_out: share of the documents, see `held_out_split`.
        seed: of what is held out, and of a stream's order.
        streaming: read while training.
        one_document_per_block: see `PackedBlocks`.
        bad: what becomes of records that cannot be used; of a stream, while it is read.

    Raises:
        InputError: see `read_documents`, `held_out_split` and `PackedBlocks.from_documents`.
    """
    if held_out:
        _check_fraction(held_out)

    def packed(documents: Iterable[Document]) -> PackedBlocks:
        return PackedBlocks.from_documents(
            documents,
            tokenizer,
            block_size,
            one_document_per_block=one_document_per_block,
            bad=bad,
        )

    if not streaming:
        if not held_out:
            return packed(read_documents(path, bad)), None
        train, measured = held_out_split(read_documents(path, bad), held_out, seed)
        return packed(train), packed(measured)

    read_documents(path)  # what cannot be read at all is said now

    def documents(side: bool) -> Iterator[Document]:
        read = read_documents(path, bad)
        return (d for d in read if is_held_out(d, held_out, seed) == side)

    stream = StreamedBlocks(
        lambda: documents(False),
        tokenizer,
        block_size,
        one_document_per_block=one_document_per_block,
        seed=seed,
        name=str(path),
        bad=bad,
    )
    if not held_out:
        return stream, None
    pieces: list[Tokenized] = []
    blocks = 0.0
    for piece in tokenize_all(documents(True), tokenizer, bad=bad):
        pieces.append(piece)
        share = len(piece.ids) / block_size
        blocks += ceil(share) if one_document_per_block else share
        if blocks >= HELD_OUT_BLOCKS:
            break
    if not pieces:
        raise InputError(_one_sided(f"the documents of {path}", held_out, "held-out"))
    return stream, PackedBlocks.from_pieces(
        pieces, tokenizer, block_size, one_document_per_block=one_document_per_block
    )


def held_out_split(
    documents: Iterable[Document], fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Split `documents` into (train, held out), about `fraction` of them held out.

    Each document is drawn by a hash of the seed and its content: it stays on its side when others
    are added, removed or put in another order, and a copy of it goes where it goes.

    Raises:
        InputError: `fraction` is not between 0 and 1, or one side is empty.
    """
    _check_fraction(fraction)
    train: list[Document] = []
    held_out: list[Document] = []
    for document in documents:
        (held_out if is_held_out(document, fraction, seed) else train).append(document)
    if not train or not held_out:
        what = f"{len(train) + len(held_out)} documents"
        raise InputError(_one_sided(what, fraction, "held-out" if train else "training"))
    return train, held_out


def is_held_out(document: Document, fraction: float, seed: int) -> bool:
    """Whether `held_out_split` holds this document out."""
    digest = hashlib.sha256(f"{seed}\0{document.content}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48 < fraction


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, not {fraction}")


def _one_sided(what: str, fraction: float, empty: str) -> str:
    return (
        f"holding out {fraction:g} of {what} leaves no {empty} document: give more documents, or "
        "another fraction or seed"
    )
