"""Documents as token ids, and which of them are learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from foretell.data.documents import Document, Message, document_kind
from foretell.errors import InputError

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
        kind: of the document, see `document_kind`.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_] | None
    num_bytes: int
    kind: str = "text"

    def end(self, length: int) -> Tokenized:
        """Its last `length` tokens, or all where it has fewer."""
        kept = min(length, len(self.ids))
        learned = None if self.learned is None else self.learned[-kept:]
        num_bytes = self.num_bytes * kept // len(self.ids)
        return Tokenized(self.ids[-kept:], learned, num_bytes, self.kind)


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
        InputError: a conversation, and no chat template that fits, a tokenizer without offsets, no
            answer or an empty one; ids of another tokenizer; a prompt without an answer.
    """
    texts = [d for d in documents if d.messages is None and d.tokens is None]
    encoded = iter(_encode([document.text for document in texts], tokenizer) if texts else ())
    eos = tokenizer.eos_token_id
    head, tail = opening(tokenizer) if texts else [], [] if eos is None else [eos]
    for document in documents:
        size, kind = len(document.text.encode("utf-8")), document_kind(document)
        if document.is_prompt:
            raise InputError(
                f"{document.source}: a 'prompt' and no answer to learn from; write both as 'text' "
                "or 'messages', or have the model answer with `foretell distill`"
            )
        if document.tokens is not None:
            yield replace(_given(document, tokenizer, size), kind=kind)
        elif document.messages is not None:
            for piece in _conversation(document, tokenizer):
                yield replace(piece, kind=kind)
        else:
            ids = next(encoded)
            whole = np.array([*head, *ids, *tail] if ids else [], np.int32)
            yield Tokenized(whole, None, size, kind)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,  # a document longer than the context is meant to be cut
    )
    return cast(list[list[int]], encoded["input_ids"])


def _given(document: Document, tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenized:
    tokens = _known_tokens(document, tokenizer)
    learned = np.arange(len(tokens)) >= document.prompt_tokens
    return Tokenized(np.array(tokens, np.int32), learned, size)


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
    turns, source = document.messages or (), document.source
    if not tokenizer.is_fast:
        raise InputError(
            f"{source}: a conversation needs a fast tokenizer, which knows where its tokens begin; "
            f"{type(tokenizer).__name__} is none"
        )
    answers = [n for n, turn in enumerate(turns) if n and turn["role"] == "assistant"]
    for number in answers:
        if _says_nothing(turns[number]):
            raise InputError(f"{source}: turn {number + 1} is an empty answer; leave it out")
    whole = render(turns, tokenizer, source)
    if _GENERATION_TAG.search(str(tokenizer.get_chat_template())):
        spans, untils = _marked(turns, tokenizer), [whole]
    else:
        spans, untils = _between(turns, answers, tokenizer, source)
    if not any(begin < end for begin, end in spans):
        raise InputError(f"{source}: the assistant answers nothing, so there is nothing to learn")
    if all(whole.startswith(until) for until in untils):
        yield _learn(whole, spans, tokenizer, _size(turns), source)
        return
    for number, until, span in zip(answers, untils, spans, strict=True):
        yield _learn(until, [span], tokenizer, _size(turns[: number + 1]), source)


def _says_nothing(turn: Message) -> bool:
    values = (value for name, value in turn.items() if name != "role")
    return not any(value.strip() if isinstance(value, str) else value for value in values)


def _marked(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """What the template marks with `{% generation %}`, as characters of the conversation."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(  # text and spans, whatever its annotation says
        conversations=[list(turns)],
        chat_template=tokenizer.get_chat_template(),
        return_assistant_tokens_mask=True,
        **cast(Any, tokenizer.special_tokens_map),
    )
    return list(rendered[1][0])


def _between(
    turns: Sequence[Message], answers: list[int], tokenizer: PreTrainedTokenizerBase, source: str
) -> tuple[list[tuple[int, int]], list[str]]:
    """For each of `answers`, the characters it takes up, and the conversation up to its end."""
    spans, untils = [], []
    for number in answers:
        before = render(turns[:number], tokenizer, source, prompt=True)
        until = render(turns[: number + 1], tokenizer, source)
        if not until.startswith(before):
            raise InputError(
                f"{source}: the chat template asks for an answer otherwise than it writes one, so "
                f"where turn {number + 1} begins cannot be told; use another template"
            )
        heading = _heading(turns[number], until[len(before) :])
        if heading and before == render(turns[:number], tokenizer, source):
            raise InputError(
                f"{source}: the chat template writes {heading!r} before turn {number + 1}, but not "
                "when it asks for an answer; use one that heeds add_generation_prompt"
            )
        spans.append((len(before), len(until)))
        untils.append(until)
    return spans, untils


def _heading(turn: Message, written: str) -> str:
    """What stands before the content of a turn that has nothing else to say."""
    content = turn.get("content", "").strip()
    if not content or turn.keys() - {"role", "content"}:
        return ""
    return written[: max(0, written.find(content))].strip()


def _learn(
    text: str,
    spans: list[tuple[int, int]],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    source: str,
) -> Tokenized:
    """Learn the tokens of `text` that lie in `spans` of its characters.

    Where the tokenizer would join the edge of a span with what stands around it (a line break
    before an answer with one that begins it, say) the text is cut there first: an answer has only
    tokens of its own, behind the very prompt that asks for it.
    """
    ids, begins, ends = _with_places(text, tokenizer)
    edges = {edge for span in spans for edge in span if span[0] < span[1]}
    cuts = sorted(edge for edge in edges if ((begins < edge) & (edge < ends)).any())
    if cuts:
        joined = ids
        stretches = list(pairwise([0, *cuts, len(text)]))
        parts = [_with_places(text[begin:end], tokenizer) for begin, end in stretches]
        ids = np.concatenate([part[0] for part in parts])
        begins = np.concatenate(
            [part[1] + begin for part, (begin, _) in zip(parts, stretches, strict=True)]
        )
        if tokenizer.decode(ids) != tokenizer.decode(joined):
            raise InputError(
                f"{source}: the tokenizer joins the edge of an answer with what stands around it "
                "and cannot keep them apart; use another template"
            )
    learned = np.zeros(len(ids), bool)
    for begin, end in spans:
        learned |= (begins >= begin) & (begins < end)
    return Tokenized(ids, learned, size)


def _with_places(
    text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Token ids, and for each the characters where it begins and ends: (T,) each.

    Some tokenizers do not count the spaces that begin a token as its own; here they are.
    """
    encoded: Any = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    places = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    begins, ends = places[:, 0], places[:, 1]
    reached = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
    return np.array(encoded["input_ids"], np.int32), np.minimum(begins, reached), ends


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


def given_prompt(
    document: Document, tokenizer: PreTrainedTokenizerBase, length: int | None = None
) -> list[int] | None:
    """Token ids of the prompt that a document is itself; None of a text, which is only text.

    A conversation is one up to where the assistant would answer for the last time, as the chat
    template asks for it; a text that is a prompt, all of it; of ids that a document brings along,
    those marked as its prompt, else the first `length`.

    Raises:
        InputError: nobody speaks before the assistant, the chat template cannot be applied, or the
            ids are another tokenizer's.
    """
    if document.tokens is not None:
        tokens = _known_tokens(document, tokenizer)
        return tokens[: document.prompt_tokens or length]
    if document.is_prompt:
        return prompt_ids(tokenizer, document.text)
    if document.messages is None:
        return None
    turns = list(document.messages)
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise InputError(f"{document.source}: the conversation has no turn to answer")
    text = render(turns, tokenizer, document.source, prompt=True)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
