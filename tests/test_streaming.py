from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from foretell.checkpoints import load_tokenizer
from foretell.data import Document, PackedBlocks, StreamedBlocks
from foretell.errors import InputError
from foretell.targets import IGNORE
from packs import WITHOUT_EOS

TOKENIZER = load_tokenizer("tiny")


def documents(count: int = 30) -> list[Document]:
    return [
        Document(f"def f{n}(x):\n    return x + {n}\n" * (1 + n % 4), f"d{n}") for n in range(count)
    ]


def taken(blocks: StreamedBlocks, count: int) -> list[dict[str, torch.Tensor]]:
    return list(islice(blocks, count))


def as_tuples(items) -> list[tuple]:
    """Blocks as plain values, with labels where they are left to be understood."""
    whole = [{"labels": item["input_ids"], **item} for item in items]
    return [tuple((k, tuple(v.tolist())) for k, v in sorted(item.items())) for item in whole]


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("window", [1, 3, 4096])
def test_one_reading_has_the_blocks_that_packing_in_memory_has(one: bool, window: int) -> None:
    """The same blocks whatever the window, in another order within it."""
    packed = PackedBlocks.from_documents(documents(), TOKENIZER, 16, one_document_per_block=one)
    stream = StreamedBlocks(
        documents, TOKENIZER, 16, one_document_per_block=one, window=window, seed=1
    )
    found = as_tuples(taken(stream, len(packed)))
    expected = as_tuples(packed[i] for i in range(len(packed)))
    assert sorted(found) == sorted(expected)


def test_readings_follow_one_another_in_other_orders() -> None:
    count = len(PackedBlocks.from_documents(documents(), TOKENIZER, 16))
    found = as_tuples(taken(StreamedBlocks(documents, TOKENIZER, 16, seed=3), 2 * count))
    assert sorted(found[:count]) == sorted(found[count:])
    assert found[:count] != found[count:]
    again = as_tuples(taken(StreamedBlocks(documents, TOKENIZER, 16, seed=3), 2 * count))
    assert found == again
    other = as_tuples(taken(StreamedBlocks(documents, TOKENIZER, 16, seed=4), count))
    assert other != found[:count]


def test_only_a_window_of_documents_is_read_ahead() -> None:
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Document("x = 1\n" * 40, f"d{read}")

    taken(StreamedBlocks(endless, TOKENIZER, 16, window=8), 4)
    assert read <= 64 + 8  # documents are tokenized 64 at a time


def test_too_little_text_is_an_error_and_no_endless_loop() -> None:
    stream = StreamedBlocks(lambda: [Document("x", "d")], TOKENIZER, 64)
    with pytest.raises(InputError, match="shorter than one block of 64"):
        taken(stream, 1)


@pytest.mark.parametrize("one", [False, True])
def test_prompts_stay_masked_in_a_batch_with_texts_that_have_none(one: bool) -> None:
    """Whichever comes first: a batch takes its fields from its first block."""
    answers = [Document("", f"a{n}", tokens=(3,) * 20 + (7,) * 12, prompt_tokens=20) for n in "ab"]
    for mixed in (documents(8) + answers, answers + documents(8)):
        packed = PackedBlocks.from_documents(mixed, TOKENIZER, 16, one_document_per_block=one)
        stream = StreamedBlocks(
            lambda mixed=mixed: mixed, TOKENIZER, 16, window=1, one_document_per_block=one
        )
        (batch,) = islice(DataLoader(stream, batch_size=len(packed)), 1)
        expected = sorted(packed[index]["labels"].tolist() for index in range(len(packed)))
        assert sorted(batch["labels"].tolist()) == expected
        assert (batch["labels"] == IGNORE).sum() >= 40


def test_a_window_holds_so_many_blocks_also_when_they_are_filled_up(monkeypatch) -> None:
    sizes: list[int] = []
    original = PackedBlocks.from_pieces

    def counting(*args, **options) -> PackedBlocks:
        packed = original(*args, **options)
        sizes.append(len(packed))
        return packed

    monkeypatch.setattr(PackedBlocks, "from_pieces", counting)
    short = [Document("x", f"d{n}") for n in range(100)]
    taken(StreamedBlocks(lambda: short, TOKENIZER, 16, window=8, one_document_per_block=True), 100)
    assert sizes == [8] * 12 + [4]


def test_a_document_without_a_target_ends_no_stream() -> None:
    mixed = [Document("abcd", "a"), *(Document("x", f"x{n}") for n in range(9))]
    stream = StreamedBlocks(lambda: mixed, WITHOUT_EOS, 4, window=1, one_document_per_block=True)
    assert [item["input_ids"].tolist() for item in taken(stream, 3)] == [
        WITHOUT_EOS("abcd")["input_ids"]
    ] * 3
    for size, one in ((0, False), (1, True)):
        with pytest.raises(InputError, match="at least"):
            StreamedBlocks(documents, TOKENIZER, size, one_document_per_block=one)


def test_workers_of_a_loader_share_the_blocks(monkeypatch) -> None:
    stream = StreamedBlocks(documents, TOKENIZER, 16, seed=1)
    expected = as_tuples(taken(stream, 12))
    found: list[tuple] = []
    for number in range(3):

        class Worker:
            id, num_workers = number, 3

        monkeypatch.setattr("foretell.data.streaming.get_worker_info", lambda w=Worker: w)
        found += as_tuples(taken(stream, 4))
    assert sorted(found) == sorted(expected)
