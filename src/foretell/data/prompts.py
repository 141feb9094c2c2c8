"""Prompts from texts and conversations: many to measure on, or one to continue.

Shapes: T prompt.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foretell.data.documents import RECORD_SUFFIXES, decode, read_documents
from foretell.data.records import REFUSED, Bad, Document
from foretell.data.sketch import Sketch, digest_of
from foretell.data.tokenization import given_prompt, opening
from foretell.errors import InputError
from foretell.files import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_prompts(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    *,
    room: int | None = None,
    bad: Bad = REFUSED,
    sketch: Sketch | None = None,
) -> list[torch.Tensor]:
    """Up to `count` prompts, (1, T) each, spread over the documents.

    A text longer than `length` tokens gives a stretch from a random place, a shorter one is used
    whole. A conversation, or what is marked as the prompt of token ids, is used whole. None comes
    twice from one document, so that there may be fewer than `count`.

    Args:
        path: see `read_documents`.
        tokenizer: of the model.
        length: longest prompt that is cut from a text, in tokens.
        count: how many prompts.
        seed: of the documents' order and the places.
        room: a prompt longer than this is passed over; None: however long.
        bad: what becomes of records that cannot be used.
        sketch: takes in which documents there are.

    Raises:
        InputError: see `read_documents`; there is no prompt, or none with room.
    """
    if length < 1 or count < 1:
        raise InputError(
            f"{count} prompts of {length} tokens were asked for; ask for at least 1 of at least 1 "
            "token."
        )
    documents: list[Document] = list(read_documents(path, bad))
    if sketch is not None:
        sketch.add(map(digest_of, documents))
    order = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(documents), generator=order)
    prefix = opening(tokenizer)
    prompts: list[torch.Tensor] = []
    taken: set[tuple[int, ...]] = set()  # the document's number, and the prompt
    too_long = 0
    for index in chosen.tolist() * max(1, -(-count // max(1, len(documents)))):
        try:
            ids = given_prompt(documents[index], tokenizer, length)
        except InputError as error:
            bad(error)
            continue
        if ids is not None and room is not None and len(ids) > room:
            too_long += 1
            continue
        if ids is None:
            text = tokenizer(documents[index].text, add_special_tokens=False, verbose=False)
            tokens = text["input_ids"]
            start = int(torch.randint(max(1, len(tokens) - length + 1), (1,), generator=order))
            ids = prefix + tokens[start : start + length] if tokens else []
        if not ids or (index, *ids) in taken:
            continue
        taken.add((index, *ids))
        prompts.append(torch.tensor([ids]))
        if len(prompts) == count:
            break
    if not prompts:
        what = f"leaves room to answer (at most {room} tokens)" if too_long else "has a token"
        raise InputError(f"{path}: no prompt in it {what}.")
    return prompts


def holds_records(path: Path) -> bool:
    """Whether the file is of a kind whose records say themselves what they are."""
    return path.name.lower().endswith(RECORD_SUFFIXES)


def read_prompt(path: str | Path) -> Document:
    """The one prompt in a file: its only record, or all of its text.

    Raises:
        InputError: it cannot be read, or holds several prompts.
    """
    file = local_path(path)
    if holds_records(file):
        records = list(islice(read_documents(file), 2))
        if len(records) > 1:
            raise InputError(f"{file}: holds more than one prompt; give a file of the one.")
        return records[0]
    try:
        return Document(decode(file.read_bytes(), str(file)), str(file))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None


def as_message(document: Document) -> Document:
    """Its text as what a user says in a conversation."""
    return replace(document, messages=({"role": "user", "content": document.text},))
