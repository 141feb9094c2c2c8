"""Text as tokens come: all pieces together are what the tokenizer decodes, whoever made it."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as Fast

from conftest import SHARED_DATA
from foretell.decoding import Detokenizer, Step, StopStrings
from foretell.errors import InputError
from foretell.generation.steps import shown_steps
from foretell.serve.text import Writer

LETTERS = "abdnerstv.,'!? \n"
WIDE = "é你好世界🙂👩\u200d🚀"
TEXTS = st.text(st.sampled_from(LETTERS + WIDE), max_size=16)
UNKNOWN = "\ufffd"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """GPT-2's and Qwen's kind, with tokens that begin and end inside a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    (text, _), *_ = spell.pre_tokenize_str(" 你好世界 n't 🙂你好")
    merges = list(dict.fromkeys(pairwise(text)))[::2]
    words = [*letters, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = spell, decoders.ByteLevel()
    return tokenizer


def byte_fallback(strip: bool) -> Tokenizer:
    """Llama 2's and Mistral's kind, or Gemma's, which keeps the space that a text begins with."""
    words = [*BYTES, "▁", *LETTERS.strip(), "你", UNKNOWN, "▁n", "n'", "'t", "▁▁"]
    merges = [("▁", "n"), ("n", "'"), ("'", "t"), ("▁", "▁")]
    vocab = {word: n for n, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), space]) if strip else space
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * strip])
    return tokenizer


def metaspace() -> Tokenizer:
    """T5's kind, without bytes to fall back on."""
    words = [*LETTERS.strip(), *WIDE, "\n", "▁", "▁n", "n'", "'t"]
    tokenizer = Tokenizer(models.Unigram([("?!", -9.0)] + [(w, -1.0) for w in words], 0, False))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's kind, whose decoding joins words and what stands behind them."""
    words = ["[UNK]", *LETTERS.strip(), *WIDE, *("##" + c for c in LETTERS.strip() + WIDE)]
    vocab = {word: n for n, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    return tokenizer


def words() -> Tokenizer:
    """Words that decoding joins with spaces, of which a clean-up takes some out again."""
    vocab = ["[UNK]", *LETTERS.strip(), *WIDE, "n't", "'s", "'re"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(vocab)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def word_ends() -> Tokenizer:
    """The first BPE: a token says that a word ends."""
    vocab = [*LETTERS.strip(), *WIDE, *(c + "</w>" for c in LETTERS.strip() + WIDE)]
    tokenizer = Tokenizer(
        models.BPE({w: n for n, w in enumerate(vocab)}, [], end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    return tokenizer


def fast(make: Callable[[], Tokenizer], clean: bool = False) -> PreTrainedTokenizerBase:
    return Fast(
        tokenizer_object=make(), eos_token="</s>", additional_special_tokens=["<sep>"],
        clean_up_tokenization_spaces=clean,
    )  # fmt: skip


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte level": lambda: fast(byte_level),
    "byte level, cleaned up": lambda: fast(byte_level, clean=True),
    "byte fallback": lambda: fast(lambda: byte_fallback(strip=True)),
    "byte fallback, spaces kept": lambda: fast(lambda: byte_fallback(strip=False)),
    "metaspace": lambda: fast(metaspace),
    "metaspace, cleaned up": lambda: fast(metaspace, clean=True),
    "word piece": lambda: fast(word_piece),
    "word piece, cleaned up": lambda: fast(word_piece, clean=True),
    "words, cleaned up": lambda: fast(words, clean=True),
    "word ends": lambda: fast(word_ends),
    "python": ByT5Tokenizer,
}
FALLBACK = ["byte fallback", "byte fallback, spaces kept"]
REAL = ["stories260K", "TinyStories-656K"]
every = pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(name, marks=pytest.mark.data) for name in REAL)]
)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    if kind in KINDS:
        return KINDS[kind]()
    folder = SHARED_DATA / "models" / kind
    if not folder.is_dir():
        pytest.skip("no shared data beside the checkout")
    file = str(folder / "tokenizer.json")
    return Fast(tokenizer_file=file, eos_token="</s>", clean_up_tokenization_spaces=False)


def ids_of(text: str, kind: str) -> list[int]:
    return list(tokenizer(kind)(text, add_special_tokens=False)["input_ids"])


def decoded(ids: list[int], kind: str) -> str:
    return str(tokenizer(kind).decode(ids, skip_special_tokens=True))


def pieces(ids: list[int], kind: str, prompt: list[int] | None = None) -> list[str]:
    text = Detokenizer(tokenizer(kind), prompt or [])
    return [*(text.add(token) for token in ids), text.finish()]


@st.composite
def spoken(draw: st.DrawFn, kind: str) -> list[int]:
    """Tokens of some texts with special tokens between them."""
    special = st.just(tokenizer(kind).all_special_ids[:1])
    parts = st.lists(TEXTS.map(lambda text: ids_of(text, kind)) | special, max_size=3)
    return [token for part in draw(parts) for token in part]


@every
@settings(max_examples=40)
@given(data=st.data())
def test_pieces_are_what_is_decoded_from_all_tokens(kind: str, data: st.DataObject) -> None:
    ids = data.draw(spoken(kind))
    found = pieces(ids, kind)
    assert "".join(found) == decoded(ids, kind)
    assert not any(piece.endswith(UNKNOWN) for piece in found[:-1])


@every
@settings(max_examples=40)
@given(data=st.data())
def test_a_continuation_is_what_its_prompt_leaves(kind: str, data: st.DataObject) -> None:
    """Also behind a long prompt, whose end alone is decoded."""
    prompt, ids = data.draw(spoken(kind)), data.draw(spoken(kind))
    prompt = data.draw(st.sampled_from([[], ids_of("好", kind) * 40])) + prompt
    before, both = decoded(prompt, kind), decoded(prompt + ids, kind)
    assume(both.startswith(before))  # a clean-up may take a space from the prompt
    assert "".join(pieces(ids, kind, prompt)) == both[len(before) :]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FALLBACK])
@settings(max_examples=40)
@given(data=st.data())
def test_any_tokens_at_all(kind: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokenizer(kind)) - 1), max_size=12))
    assert "".join(pieces(ids, kind)) == decoded(ids, kind)


@pytest.mark.parametrize("kind", FALLBACK)
@given(data=st.data())
def test_a_broken_run_of_bytes_keeps_its_whole_characters(kind: str, data: st.DataObject) -> None:
    """As sentencepiece decodes it: what is no character is one U+FFFD for every byte."""
    parts = st.sampled_from(["é", "你", "🙂", "a"]).map(str.encode) | st.sampled_from(
        [b"\xe4", b"\xe4\xbd", b"\xf0\x9f\x99", b"\xbd"]
    )
    run = b"".join(data.draw(st.lists(parts, max_size=8)))
    known = tokenizer(kind).get_vocab()
    ids = [known[BYTES[byte]] for byte in run]
    held: list[int] = []  # as long as these bytes are no character
    whole: list[int] = []
    for byte in run:
        held.append(known[BYTES[byte]])
        for start in range(len(held)):
            if UNKNOWN not in decoded(held[start:], kind):
                whole += [known[UNKNOWN]] * start + held[start:]
                held = []
                break
    whole += [known[UNKNOWN]] * len(held)
    assert "".join(pieces(ids, kind)) == decoded(whole, kind)
    more = [known["a"], known["▁"], known["a"]]
    assert "".join(pieces([*ids, *more], kind)) == decoded([*whole, *more], kind)


@pytest.mark.data
def test_characters_come_one_by_one(data_dir: Path) -> None:
    found = pieces(ids_of("你好世界", "stories260K"), "stories260K", prompt=[1])
    assert found == ["", "", "", "你", "", "", "好", "", "", "世", "", "", "界", ""]


@every
def test_a_character_that_the_prompt_began_is_the_continuations(kind: str) -> None:
    ids = ids_of("a🙂a", kind)
    texts = [decoded(ids[:n], kind) for n in range(len(ids) + 1)]
    for n, text in enumerate(texts):
        whole = text.rstrip(UNKNOWN)
        assert whole + "".join(pieces(ids[n:], kind, ids[:n])) == texts[-1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("cleaned up")])
@settings(max_examples=60)
@given(data=st.data())
def test_a_stop_is_found_where_it_is_in_the_whole_text(kind: str, data: st.DataObject) -> None:
    """However many tokens a step has, and the text ends before it."""
    model, stopped = tokenizer(kind), None
    front = ids_of("a", kind)
    ids = [token for token in data.draw(spoken(kind)) if token not in model.all_special_ids]
    texts = [decoded([*front, *ids[:n]], kind)[1:] for n in range(len(ids) + 1)]
    begin = data.draw(st.integers(0, len(texts[-1])))
    stop = texts[-1][begin : begin + data.draw(st.integers(1, 5))]
    stop = stop if stop in decoded(ids_of(stop, kind), kind) else ""
    assume(stop)
    stops, writer = StopStrings([stop], model), Writer(model, front, [stop])
    sizes, before, given_text = data.draw(st.lists(st.integers(1, 6), min_size=1)), 0, ""
    while stopped is None and before < len(ids):
        size = sizes[before % len(sizes)]
        new = ids[before : before + size]
        end = stops(ids[:before], new)
        stopped = None if end is None else before + end
        given_text += "".join(p.text for p in writer.add(Step(size, 0, tuple(new[:end]))))
        before += size
    given_text += "".join(piece.text for piece in writer.finish())
    assert stopped == next((n for n, text in enumerate(texts) if stop in text), None)
    assert stopped is not None
    assert writer.stopped
    assert given_text == texts[stopped].partition(stop)[0]


@every
@settings(max_examples=25)
@given(data=st.data())
def test_a_stop_does_not_depend_on_the_steps(kind: str, data: st.DataObject) -> None:
    """It is found with the token that completes it in the text as it comes."""
    model, front = tokenizer(kind), ids_of("a", kind)
    ids = [token for token in data.draw(spoken(kind)) if token not in model.all_special_ids]
    text = Detokenizer(model, front)
    came = "".join(found := [text.add(token) for token in ids])
    begin = data.draw(st.integers(0, len(came)))
    stop = came[begin : begin + data.draw(st.integers(1, 8))]
    assume(stop and stop in decoded(ids_of(stop, kind), kind))
    complete = next(n for n in range(len(ids) + 1) if stop in "".join(found[:n]))
    stops, size = StopStrings([stop], model), data.draw(st.integers(1, 6))
    steps = [(n, ids[n : n + size]) for n in range(0, len(ids), size)]
    ends = ((n, stops(ids[:n], new)) for n, new in steps)
    assert complete == next((n + end for n, end in ends if end is not None), None)


def test_one_string_is_one_stop() -> None:
    """And not each of its letters."""
    ids = ids_of("a b ab", "byte level")
    found = StopStrings("ab", tokenizer("byte level"))
    assert found.strings == ["ab"]
    assert found((), ids) == len(ids)


def test_half_a_character_is_no_stop() -> None:
    with pytest.raises(InputError, match="has half of a character in it"):
        StopStrings(["a\ud800"], tokenizer("byte level"))


@pytest.mark.parametrize("kind", FALLBACK)
def test_a_stop_is_found_behind_half_a_character(kind: str) -> None:
    """A run of bytes that is not whole yet has more places than characters."""
    text, stop = "a é🙂🙂🙂éb", "é🙂🙂🙂éb"
    ids = ids_of(text, kind)
    for count in range(len(ids)):
        assert StopStrings([stop], tokenizer(kind))(ids[:count], ids[count:]) == len(ids) - count


def test_a_stop_is_found_where_a_clean_up_took_out_a_space_before() -> None:
    kind = "words, cleaned up"
    ids = ids_of("a ' t d", kind)
    assert decoded(ids, kind) == "a't d"
    for count in range(3):
        assert StopStrings(["a't"], tokenizer(kind))(ids[:count], ids[count:]) == 3 - count


@pytest.mark.parametrize("word", ["an", "ter", "rev"])
def test_a_stop_ends_with_its_last_token_where_nothing_can_be_cleaned_up(word: str) -> None:
    """Its last letter alone does not begin what a clean-up takes out."""
    for kind in ("metaspace, cleaned up", "word piece, cleaned up"):
        ids = ids_of(f"a {word}", kind)
        stops = StopStrings([word], tokenizer(kind))
        assert stops((), [*ids, *ids_of("a", kind)]) == len(ids), kind


def test_no_stop_is_found_in_the_middle_of_a_word() -> None:
    """Where what is looked at may begin; a word that begins a text comes with a space."""
    model = tokenizer("word ends")
    ids = ids_of("banana" * 4, "word ends")
    assert " " not in decoded(ids, "word ends")
    for count in range(len(ids)):
        assert StopStrings([" a", " n"], model)(ids[:count], ids[count:]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_may_begin_and_end_with_spaces(kind: str) -> None:
    """Which some tokenizers drop where a text begins or ends."""
    ids, stop = ids_of("s a b", kind), " a "
    if "cleaned up" not in kind:
        end = StopStrings([stop], tokenizer(kind))((), ids)
        assert end is not None
        assert stop in decoded([*ids_of("s", kind), *ids[:end]], kind)


@every
def test_what_is_shown_of_steps_is_the_text(kind: str) -> None:
    prompt, ids = ids_of("a 好", kind), ids_of("你好 n't 世界 🙂", kind)
    both, before = decoded(prompt + ids, kind), decoded(prompt, kind)
    for size in (1, 2, 5):
        steps = [Step(size, 0, tuple(ids[n : n + size])) for n in range(0, len(ids), size)]
        shown = shown_steps(steps, tokenizer(kind), prompt)
        assert "".join(piece for step in shown for piece in step["pieces"]) == both[len(before) :]
