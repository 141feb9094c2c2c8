"""What is trained on and what is measured on, streamed or in memory."""

import json
from itertools import islice
from pathlib import Path

import pytest

from foretell.checkpoints import load_tokenizer
from foretell.data import Document, held_out_split, read_corpus, read_documents
from foretell.data import corpus as corpus_module
from foretell.errors import InputError

TOKENIZER = load_tokenizer("tiny")
SIZE = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    texts = [f"number_{n} = {n}\n" * 5 for n in range(40)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def rows(blocks, count: int) -> list[list[int]]:
    return sorted(block["input_ids"].tolist() for block in islice(blocks, count))


def in_memory(documents: list[Document]) -> list[int]:
    """All tokens in a row."""
    ids = [TOKENIZER(document.text)["input_ids"] for document in documents]
    return [token for row in ids for token in [*row, TOKENIZER.eos_token_id]]


@pytest.mark.parametrize("one", [False, True])
def test_a_stream_has_the_sides_that_a_corpus_in_memory_has(path: Path, one: bool) -> None:
    options = {"held_out": 0.3, "seed": 1, "one_document_per_block": one}
    train, held_out = read_corpus(path, TOKENIZER, SIZE, **options)
    stream, measured = read_corpus(path, TOKENIZER, SIZE, streaming=True, **options)
    assert rows(stream, len(train)) == rows((train[i] for i in range(len(train))), len(train))
    assert [measured[i]["input_ids"].tolist() for i in range(len(measured))] == [
        held_out[i]["input_ids"].tolist() for i in range(len(held_out))
    ]
    sides = held_out_split(read_documents(path), 0.3, 1)
    assert (train.num_documents, held_out.num_documents) == tuple(map(len, sides))
    if not one:
        row = in_memory(sides[1])
        found = [token for i in range(len(held_out)) for token in held_out[i]["input_ids"].tolist()]
        assert found == row[: len(row) // SIZE * SIZE]


def test_without_held_out_documents_all_are_trained_on(path: Path) -> None:
    train, nothing = read_corpus(path, TOKENIZER, SIZE)
    assert nothing is None
    assert train.num_tokens == len(in_memory(list(read_documents(path)))) // SIZE * SIZE
    stream, nothing = read_corpus(path, TOKENIZER, SIZE, streaming=True)
    assert nothing is None
    assert rows(stream, len(train)) == rows((train[i] for i in range(len(train))), len(train))


@pytest.mark.parametrize("one", [False, True])
def test_of_an_endless_stream_a_bounded_part_is_measured_on(monkeypatch, one: bool) -> None:
    read = 0

    def endless(path, bad=None):
        nonlocal read
        for n in range(10**9):
            read += 1
            yield Document(f"number_{n}", f"d{n}")

    monkeypatch.setattr(corpus_module, "read_documents", endless)
    monkeypatch.setattr(corpus_module, "HELD_OUT_BLOCKS", 5)
    _, measured = read_corpus(
        "endless", TOKENIZER, SIZE, held_out=0.5, streaming=True, one_document_per_block=one
    )
    assert len(measured) == 5
    assert read < 300


@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_split_or_read_is_refused(path: Path, streaming: bool) -> None:
    options = {"streaming": streaming}
    with pytest.raises(InputError, match="leaves no held-out document"):
        read_corpus(path, TOKENIZER, SIZE, held_out=1e-9, **options)
    with pytest.raises(InputError, match=r"between 0 and 1, not -0\.5"):
        read_corpus(path, TOKENIZER, SIZE, held_out=-0.5, **options)
    with pytest.raises(InputError, match="no such file or folder"):
        read_corpus(path.with_name("gone.jsonl"), TOKENIZER, SIZE, **options)
