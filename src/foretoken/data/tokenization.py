"""Documents as token ids, and which of them are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from foretoken.data.documents import Document
from foretoken.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Documents tokenized by one call: enough for the tokenizer's own threads."""


@dataclass(frozen=True)
class Tokenized:
    """One document.

    Attributes:
        ids: (T,) token ids.
        learned: (T,) whether a token is to be predicted; None: all are.
        num_bytes: of its text in UTF-8.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_] | None
    num_bytes: int

    def end(self, length: int) -> Tokenized:
        """Its last `length` tokens, or all where it has fewer."""
        kept = min(length, len(self.ids))
        learned = None if self.learned is None else self.learned[-kept:]
        return Tokenized(self.ids[-kept:], learned, self.num_bytes * kept // len(self.ids))


def tokenize_all(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Tokenized]:
    """`tokenize`, some documents at a time; those without a token are left out.

    `progress` is called after every few documents with the number tokenized so far.
    """
    iterator, done = iter(documents), 0
    while batch := list(islice(iterator, BATCH)):
        yield from (piece for piece in tokenize(batch, tokenizer) if len(piece.ids))
        done += len(batch)
        if progress is not None:
            progress(done)


def tokenize(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Tokenized]:
    """Tokenize, with no special tokens but the end-of-sequence token behind every plain text.

    A conversation is what the tokenizer's chat template makes of it; the assistant's turns are
    learned, with the token that ends them. Ids that a document brings along stay as they are.

    Raises:
        InputError: a conversation, and no chat template, or one that rewrites earlier turns.
    """
    texts = [d for d in documents if d.messages is None and d.tokens is None]
    encoded = iter(_encode([document.text for document in texts], tokenizer) if texts else ())
    eos = tokenizer.eos_token_id
    tail = [] if eos is None else [eos]
    for document in documents:
        size = len(document.text.encode("utf-8"))
        if document.tokens is not None:
            learned = np.arange(len(document.tokens)) >= document.prompt_tokens
            yield Tokenized(np.array(document.tokens, np.int32), learned, size)
        elif document.messages is not None:
            yield _conversation(document, tokenizer, size)
        else:
            ids = next(encoded)
            yield Tokenized(np.array([*ids, *tail] if ids else [], np.int32), None, size)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,  # a document longer than the context is meant to be cut
    )
    return cast(list[list[int]], encoded["input_ids"])


def _conversation(document: Document, tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenized:
    """Render the turns once; learn the tokens that begin inside an assistant's turn."""
    turns = cast(Sequence[dict[str, str]], document.messages)
    whole = render(turns, tokenizer, document.source)
    encoded: Any = tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    begins = np.array([begin for begin, _ in encoded["offset_mapping"]], np.int64)
    learned = np.zeros(len(begins), bool)
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = render(turns[:number], tokenizer, document.source, prompt=True)
            until = render(turns[: number + 1], tokenizer, document.source)
            if not (whole.startswith(until) and until.startswith(before)):
                raise InputError(
                    f"{document.source}: the chat template writes earlier turns anew when later "
                    "ones follow, so what was said cannot be told from the prompt; give one "
                    "answer per conversation, or another template"
                )
            learned |= (begins >= len(before)) & (begins < len(until))
    return Tokenized(np.array(encoded["input_ids"], np.int32), learned, size)


def render(
    turns: Sequence[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    prompt: bool = False,
) -> str:
    """The text of a conversation; with `prompt`, up to where the assistant is to answer."""
    if not turns and not prompt:
        return ""
    try:
        text = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # templates raise whatever they like
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: the chat template cannot be applied ({reason})") from None
    return cast(str, text)
