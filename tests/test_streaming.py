from itertools import islice

import pytest
import torch

from foretoken.data import Document, PackedBlocks, StreamedBlocks
from foretoken.errors import InputError
from foretoken.loading import load_tokenizer

TOKENIZER = load_tokenizer("tiny")


def documents(count: int = 30) -> list[Document]:
    return [
        Document(f"def f{n}(x):\n    return x + {n}\n" * (1 + n % 4), f"d{n}") for n in range(count)
    ]


def taken(blocks: StreamedBlocks, count: int) -> list[dict[str, torch.Tensor]]:
    return list(islice(blocks, count))


def as_tuples(items) -> list[tuple]:
    return [tuple((k, tuple(v.tolist())) for k, v in sorted(item.items())) for item in items]


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
