"""What a probe measures on, and what it may learn from: never the same documents."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foretell.data import REFUSED, Bad, Document, PackedBlocks, held_out_split, read_documents
from foretell.data.tokenization import Tokenized, tokenize_all
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.ready import pack


@dataclass(frozen=True)
class Texts:
    """Text for a probe.

    Attributes:
        measured: on which everything is measured.
        learned: documents that n-grams may learn from, maybe none.
        blocks: the same for linear probes; None where there are none.
        dropped: how many documents are not learned from because they are measured on.
        digest: tells these texts from others.
    """

    measured: PackedBlocks
    learned: Sequence[Tokenized]
    blocks: PackedBlocks | None
    dropped: int
    digest: str


def read_texts(
    data: str | Path,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    train_data: str | Path | None = None,
    seed: int = 0,
    bad: Bad = REFUSED,
) -> Texts:
    """Read what a probe needs.

    Args:
        data: to measure on, see `foretell.data.read_documents`.
        model: that is probed.
        tokenizer: of the model.
        block_size: tokens per row.
        train_data: to learn from; None: a half of `data`, which is then not measured on, or nothing
            where that is too little for two halves.
        seed: of the halves.
        bad: what becomes of records that cannot be used.

    Raises:
        InputError: see `read_documents` and `PackedBlocks.from_documents`; all of `train_data` is
            in `data` too.
    """

    def texts(measured: Sequence[Document], learned: Sequence[Document]) -> Texts:
        held_out = list(tokenize_all(measured, tokenizer, bad=bad))
        found = list(tokenize_all(learned, tokenizer, bad=bad))
        pieces = _apart(found, held_out)
        blocks = pack(pieces, model, tokenizer, block_size) if pieces else None
        text = pack(held_out, model, tokenizer, block_size)
        digest = _digest(held_out) + _digest(pieces)
        return Texts(text, pieces, blocks, len(found) - len(pieces), digest)

    documents = list(read_documents(data, bad))
    if train_data is not None:
        both = texts(documents, list(read_documents(train_data, bad)))
        if not both.learned:
            raise InputError(f"every document of {train_data} is in {data} too; learn from others.")
        return both
    with suppress(InputError):  # too little for two halves: then nothing is learned
        learned, measured = held_out_split(documents, 0.5, seed)
        return texts(measured, learned)
    return texts(documents, [])


def _apart(learned: list[Tokenized], held_out: list[Tokenized]) -> list[Tokenized]:
    """What may be learned from: nothing that is measured on."""
    measured = {piece.ids.tobytes() for piece in held_out}
    return [piece for piece in learned if piece.ids.tobytes() not in measured]


def _digest(pieces: Sequence[Tokenized]) -> str:
    found = sha256()
    for piece in pieces:
        found.update(len(piece.ids).to_bytes(8, "little") + piece.ids.tobytes())
    return found.hexdigest()[:16]
