"""Documents as token ids, and which of them are learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from foretoken.data.documents import Document, Message
from foretoken.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Documents tokenized by one call: enough for the tokenizer's own threads."""

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What transformers' chat templates put before a text that the model is to write."""


@dataclass(frozen=True)
class Tokenized:
    """One document, or a conversation up to one of its answers.

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
    """Tokenize. A plain text begins as a prompt does, and ends with the end-of-sequence token.

    A conversation is what the tokenizer's chat template makes of it, and the answers in it are
    learned: what the template marks with `{% generation %}`, else an assistant's turn with the
    token that ends it. Many templates write earlier answers anew when later turns follow (without
    their reasoning, say); such a conversation is read once for every answer, as the model is asked
    for it, and that answer is learned. A turn before which nothing was said is no answer.

    Ids that a document brings along stay as they are.

    Raises:
        InputError: a conversation, and no chat template that fits or a tokenizer without offsets;
            ids of another tokenizer.
    """
    texts = [d for d in documents if d.messages is None and d.tokens is None]
    encoded = iter(_encode([document.text for document in texts], tokenizer) if texts else ())
    eos = tokenizer.eos_token_id
    head, tail = opening(tokenizer) if texts else [], [] if eos is None else [eos]
    for document in documents:
        size = len(document.text.encode("utf-8"))
        if document.tokens is not None:
            yield _given(document, tokenizer, size)
        elif document.messages is not None:
            yield from _conversation(document, tokenizer)
        else:
            ids = next(encoded)
            yield Tokenized(np.array([*head, *ids, *tail] if ids else [], np.int32), None, size)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,  # a document longer than the context is meant to be cut
    )
    return cast(list[list[int]], encoded["input_ids"])


def _given(document: Document, tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenized:
    tokens = list(document.tokens or ())
    if document.text:
        known = tokenizer.decode(tokens) == document.text
    else:
        known = max(tokens, default=0) < len(tokenizer)
    if not known:
        raise InputError(
            f"{document.source}: the tokens are another tokenizer's, of which the text would be "
            "another; use data that was written with this model"
        )
    learned = np.arange(len(tokens)) >= document.prompt_tokens
    return Tokenized(np.array(tokens, np.int32), learned, size)


def _conversation(document: Document, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokenized]:
    """Render the turns, at once if possible; learn the tokens that begin inside an answer."""
    turns, source = document.messages or (), document.source
    if not tokenizer.is_fast:
        raise InputError(
            f"{source}: a conversation needs a fast tokenizer, which knows where its tokens begin; "
            f"{type(tokenizer).__name__} is none"
        )
    whole = render(turns, tokenizer, source)
    if _GENERATION_TAG.search(str(tokenizer.get_chat_template())):
        marked: Any = tokenizer.apply_chat_template(
            list(turns), return_dict=True, return_assistant_tokens_mask=True
        )
        learned = np.array(marked["assistant_masks"], bool)
        yield Tokenized(np.array(marked["input_ids"], np.int32), learned, _size(turns))
        return
    answers = [n for n, turn in enumerate(turns) if n and turn["role"] == "assistant"]
    befores = [render(turns[:n], tokenizer, source, prompt=True) for n in answers]
    untils = [render(turns[: n + 1], tokenizer, source) for n in answers]
    spans = [(len(before), len(until)) for before, until in zip(befores, untils, strict=True)]
    for number, before, until in zip(answers, befores, untils, strict=True):
        if not until.startswith(before):
            raise InputError(
                f"{source}: the chat template asks for an answer otherwise than it writes one, so "
                f"where turn {number + 1} begins cannot be told; use another template"
            )
    if all(whole.startswith(until) for until in untils):
        yield _learn(whole, spans, tokenizer, _size(turns))
        return
    for number, until, span in zip(answers, untils, spans, strict=True):
        yield _learn(until, [span], tokenizer, _size(turns[: number + 1]))


def _learn(
    text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, size: int
) -> Tokenized:
    """Learn the tokens of `text` that begin inside one of `spans` of its characters."""
    encoded: Any = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    begins = np.array([begin for begin, _ in encoded["offset_mapping"]], np.int64)
    learned = np.zeros(len(begins), bool)
    for begin, end in spans:
        learned |= (begins >= begin) & (begins < end)
    return Tokenized(np.array(encoded["input_ids"], np.int32), learned, size)


def _size(turns: Sequence[Message]) -> int:
    return sum(len(turn.get("content", "").encode("utf-8")) for turn in turns)


def render(
    turns: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    prompt: bool = False,
) -> str:
    """The text of a conversation; with `prompt`, up to where the assistant is to answer."""
    try:
        text = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # templates raise whatever they like
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: the chat template cannot be applied ({reason})") from None
    return cast(str, text)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: a beginning-of-sequence token, or nothing."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    length = len(whole) - len(plain)
    begins = (n for n in range(length + 1) if whole[n : n + len(plain)] == plain)
    return whole[: next(begins, 0)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, behind what the tokenizer puts before a text, nothing after it."""
    return opening(tokenizer) + list(tokenizer(text, add_special_tokens=False)["input_ids"])
