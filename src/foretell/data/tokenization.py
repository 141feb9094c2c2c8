"""Documents as token ids, and which of them are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from foretell.data.conversations import asked, size, written
from foretell.data.documents import document_kind
from foretell.data.records import REFUSED, Bad, Document
from foretell.data.sketch import digest_of
from foretell.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Documents tokenized by one call: enough for the tokenizer's own threads."""


@dataclass(frozen=True)
class Tokenized:
    """One document, or a conversation up to one of its answers.

    Attributes:
        ids: (T,) token ids.
        learned: (T,) whether a token is to be predicted; None: all are.
        num_bytes: of its text in UTF-8.
        kind: of the document, see `document_kind`.
        digest: of the document, see `digest_of`.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_] | None
    num_bytes: int
    kind: str = "text"
    digest: int = 0

    def end(self, length: int) -> Tokenized:
        """Its last `length` tokens, or all where it has fewer."""
        kept = min(length, len(self.ids))
        learned = None if self.learned is None else self.learned[-kept:]
        num_bytes = self.num_bytes * kept // len(self.ids)
        return replace(self, ids=self.ids[-kept:], learned=learned, num_bytes=num_bytes)


def tokenize_all(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    progress: Callable[[int], None] | None = None,
    bad: Bad = REFUSED,
) -> Iterator[Tokenized]:
    """`tokenize`, some documents at a time; those without a token are left out.

    `progress` is called after every few documents with the number tokenized so far.
    """
    iterator, done = iter(documents), 0
    while batch := list(islice(iterator, BATCH)):
        yield from (piece for piece in tokenize(batch, tokenizer, bad) if len(piece.ids))
        done += len(batch)
        if progress is not None:
            progress(done)


def tokenize(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, bad: Bad = REFUSED
) -> Iterator[Tokenized]:
    """Tokenize. A plain text begins as a prompt does, and ends with the end-of-sequence token.

    A conversation is what the tokenizer's chat template makes of it, and the answers in it are
    learned: what the template marks with `{% generation %}`, else an assistant's turn with the
    token that ends it. Many templates write earlier answers anew when later turns follow (without
    their reasoning, say); such a conversation is read once for every answer, as the model is asked
    for it, and that answer is learned. A turn before which nothing was said is no answer.

    Of a prompt and its completion the completion is learned, with the end-of-sequence token after
    it. Ids that a document brings along stay as they are. `bad` says what becomes of documents that
    cannot be learned; by default the first is an error.

    Raises:
        InputError: a conversation, and no chat template that fits and keeps what is said, no answer
            or an empty one; a tokenizer that joins an answer with what stands around it; ids of
            another tokenizer; a prompt without an answer.
    """
    texts = [d for d in documents if _is_plain(d)]
    encoded = iter(_encode([document.text for document in texts], tokenizer) if texts else ())
    eos = tokenizer.eos_token_id
    head, tail = opening(tokenizer) if texts else [], [] if eos is None else [eos]
    for document in documents:
        if _is_plain(document):
            ids = next(encoded)
            whole = np.array([*head, *ids, *tail] if ids else [], np.int32)
            pieces = [Tokenized(whole, None, len(document.text.encode("utf-8")))]
        else:
            try:
                pieces = _learned(document, tokenizer)
            except InputError as error:
                bad(error)
                continue
        facts: dict[str, Any] = {"kind": document_kind(document), "digest": digest_of(document)}
        yield from (replace(piece, **facts) for piece in pieces)


def _is_plain(document: Document) -> bool:
    """Whether all of its text is learned."""
    known = document.messages is not None or document.tokens is not None
    return not (known or document.is_prompt or document.prompt_length)


def _learned(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[Tokenized]:
    """A document of which a part is learned."""
    num_bytes = len(document.text.encode("utf-8"))
    if document.is_prompt:
        raise InputError(
            f"{document.source}: a 'prompt' and no answer to learn from; add a 'completion', write "
            "both as 'text' or 'messages', or have the model answer with `foretell distill`"
        )
    if document.tokens is not None:
        return [_given(document, tokenizer)]
    if document.messages is not None:
        return list(_conversation(document, tokenizer))
    return [_completion(document, tokenizer, num_bytes)]


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,  # a document longer than the context is meant to be cut
    )
    return cast(list[list[int]], encoded["input_ids"])


def _given(document: Document, tokenizer: PreTrainedTokenizerBase) -> Tokenized:
    tokens = _known_tokens(document, tokenizer)
    learned = np.arange(len(tokens)) >= document.prompt_tokens
    text = document.text or str(tokenizer.decode(tokens, skip_special_tokens=True))
    return Tokenized(np.array(tokens, np.int32), learned, len(text.encode("utf-8")))


def _known_tokens(document: Document, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a document brings along, where they are this tokenizer's."""
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
    return tokens


def _conversation(document: Document, tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokenized]:
    """Render the turns, at once if possible, and learn the answers in them."""
    turns = document.messages or ()
    for one in written(document, tokenizer):
        num_bytes = size(turns[: one.turns])
        yield _learn(one.text, one.spans, tokenizer, num_bytes, document.source)


def _completion(document: Document, tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenized:
    """Learn what follows the prompt, and the end."""
    text, eos = document.text, tokenizer.eos_token_id
    spans = [(document.prompt_length, len(text))]
    middle = _learn(text, spans, tokenizer, size, document.source)
    head, tail = opening(tokenizer), [] if eos is None else [eos]
    ids = np.array([*head, *middle.ids, *tail], np.int32)
    learned = [*[False] * len(head), *cast(Any, middle.learned), *[True] * len(tail)]
    return Tokenized(ids, np.array(learned, bool), size)


def _learn(
    text: str,
    spans: list[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    source: str,
) -> Tokenized:
    """Learn the tokens of `text` that lie in `spans` of its characters.

    An answer has only tokens of its own, after the very prompt that asks for it: where an edge
    would change the tokens around it (a line break before an answer and one that begins it are
    one token, say; two before a word are not the one that they are at an end), the text is cut
    there first.
    """
    spans = [span for span in spans if span[0] < span[1]]
    edges = sorted({edge for span in spans for edge in span})
    ids, counts, cut = _apart(text, edges, tokenizer)
    before = dict(zip(edges, counts, strict=True))
    if any(before[begin] == before[end] for begin, end in spans) or (
        cut and tokenizer.decode(ids) != tokenizer.decode(_encode([text], tokenizer)[0])
    ):
        raise InputError(
            f"{source}: the tokenizer joins the edge of an answer with the text around it "
            "and cannot keep them apart; use another template, or move the edge"
        )
    learned = np.zeros(len(ids), bool)
    for begin, end in spans:
        learned[before[begin] : before[end]] = True
    return Tokenized(np.array(ids, np.int32), learned, size)


def _apart(
    text: str, edges: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int], bool]:
    """Token ids of `text`, how many stand before each of some places, and whether it was cut.

    It is cut where the tokens before a place are not those of the text that ends there.
    """
    (ids,) = _encode([text], tokenizer)
    counts, start, done = [], 0, 0  # where what was not cut yet begins, in characters and tokens
    for edge in edges:
        head = _encode([text[start:edge]], tokenizer)[0]
        count = done + len(head)
        if ids[done:count] != head:
            ids = ids[:done] + head + _encode([text[edge:]], tokenizer)[0]
            start, done = edge, count
        counts.append(count)
    return ids, counts, done > 0


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: a beginning-of-sequence token, or nothing."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    length = len(whole) - len(plain)
    begins = (n for n in range(length + 1) if whole[n : n + len(plain)] == plain)
    return whole[: next(begins, 0)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, after what the tokenizer puts before a text, nothing after it."""
    return opening(tokenizer) + list(tokenizer(text, add_special_tokens=False)["input_ids"])


def given_prompt(
    document: Document, tokenizer: PreTrainedTokenizerBase, length: int | None = None
) -> list[int] | None:
    """Token ids of the prompt that a document is itself; None of a text, which is only text.

    A conversation is one up to where the assistant would answer for the last time, as the chat
    template asks for it; a text that is a prompt, all of it, and of one with a completion, what
    stands before that; of ids that a document brings along, those marked as its prompt, else the
    first `length`.

    Raises:
        InputError: nobody speaks before the assistant, the chat template cannot be applied, or the
            ids are another tokenizer's.
    """
    if document.tokens is not None:
        tokens = _known_tokens(document, tokenizer)
        return tokens[: document.prompt_tokens or length]
    if document.messages is None:
        if not document.is_prompt and not document.prompt_length:
            return None
        return prompt_ids(tokenizer, document.text[: document.prompt_length or None])
    turns = list(document.messages)
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise InputError(f"{document.source}: the conversation has no turn to answer")
    text = asked(turns, tokenizer, document.source, document.beside)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
