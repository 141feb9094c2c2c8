import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from foretell.data import Document, held_out_split
from foretell.data.tokenization import prompt_ids
from foretell.errors import InputError
from packs import WITH_EOS, WITHOUT_EOS, byte_tokenizer, pack, texts


def naive(texts: list[str], eos: bool) -> Iterator[tuple[int, int, float]]:
    """Yield (document, place in it, bytes) of every token, one by one."""
    for number, text in enumerate(texts):
        size = len(text.encode())
        length = size + eos if size else 0
        for place in range(length):
            yield number, place, size / length


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy cores
@given(st.lists(texts, max_size=9), st.integers(1, 9), st.booleans())
def test_blocks_equal_those_of_a_naive_loop(texts: list[str], size: int, eos: bool) -> None:
    tokens = list(naive(texts, eos))
    if len(tokens) < size:
        with pytest.raises(InputError, match=f"has {len(tokens)} tokens .* takes {size}:"):
            pack(texts, size, WITH_EOS if eos else WITHOUT_EOS)
        return
    blocks = pack(texts, size, WITH_EOS if eos else WITHOUT_EOS)
    kept = tokens[: len(tokens) // size * size]

    assert len(blocks) * size == blocks.num_tokens == len(kept)
    assert blocks.num_documents == len({document for document, _, _ in kept})
    assert blocks.num_bytes == pytest.approx(sum(share for _, _, share in kept), abs=0.5001)
    text_ids = [WITHOUT_EOS(text)["input_ids"] + [WITH_EOS.eos_token_id] for text in texts]
    for index, item in enumerate(blocks[i] for i in range(len(blocks))):
        inside = kept[index * size : (index + 1) * size]
        assert item["input_ids"].tolist() == [text_ids[d][place] for d, place, _ in inside]
        # A token's position is how many tokens of its own document precede it in the block.
        expected = [
            sum(other == d for other, _, _ in inside[:i]) for i, (d, _, _) in enumerate(inside)
        ]
        assert item["position_ids"].tolist() == expected


def test_items_are_what_a_trainer_takes() -> None:
    blocks = pack(["abcdef", "gh"], 4)
    item = blocks[0]
    assert {name: (value.shape, value.dtype) for name, value in item.items()} == {
        "input_ids": ((4,), torch.int64),
        "position_ids": ((4,), torch.int64),
    }
    assert blocks.block_size == 4
    batch = next(iter(torch.utils.data.DataLoader(blocks, batch_size=2)))
    assert batch["input_ids"].shape == (2, 4)
    item["input_ids"].zero_()  # a caller's copy, not the corpus
    assert blocks[0]["input_ids"].any()


def test_positions_by_hand() -> None:
    # a b c <eos> | d <eos> e f | g h i j, and k <eos> dropped
    blocks = pack(["abc", "d", "efghijk"], 4)
    positions = [blocks[index]["position_ids"].tolist() for index in range(len(blocks))]
    assert positions == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3]]
    assert blocks.num_documents == 3
    # 3 bytes, 1 byte, and 6 of the 8 tokens of a document of 7 bytes: 5.25.
    assert blocks.num_bytes == 9


def test_a_document_behind_the_last_cut_is_not_counted() -> None:
    blocks = pack(["abc", "defghij"], 4, WITHOUT_EOS)
    assert (blocks.num_tokens, blocks.num_documents) == (8, 2)
    blocks = pack(["abc", "de"], 4)  # a b c <eos>, and d e <eos> dropped
    assert (blocks.num_tokens, blocks.num_documents, blocks.num_bytes) == (4, 1, 3)


def test_every_byte_counts_when_nothing_is_dropped() -> None:
    blocks = pack(["é", "abc", ""], 7)
    assert (blocks.num_tokens, blocks.num_bytes, blocks.num_documents) == (7, 5, 2)


def test_an_index_outside_is_refused() -> None:
    blocks = pack(["abcdefgh"], 4)
    assert torch.equal(blocks[-1]["input_ids"], blocks[1]["input_ids"])
    for index in (2, -3):
        with pytest.raises(IndexError):
            blocks[index]


def test_a_block_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 token, not 0"):
        pack(["abc"], 0)


def test_progress_counts_all_documents() -> None:
    seen: list[int] = []
    pack(["ab"] * 150, 4, progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == 150
    assert len(seen) > 1


DOCUMENTS = [Document(f"text {n}", f"{n % 40}.py") for n in range(400)]


def test_a_split_is_a_partition_near_the_fraction() -> None:
    train, held_out = held_out_split(DOCUMENTS, 0.1, seed=0)
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, DOCUMENTS))
    assert 20 <= len(held_out) <= 60  # 40 ± 3 standard deviations


def test_a_split_depends_on_the_seed_and_not_on_other_documents() -> None:
    _, held_out = held_out_split(DOCUMENTS, 0.2, seed=1)
    _, other = held_out_split(DOCUMENTS, 0.2, seed=2)
    assert held_out != other
    others = [Document("new", "new.py"), Document("newer", "newer.py")]
    _, after = held_out_split(others + DOCUMENTS, 0.2, seed=1)
    assert [document for document in after if document not in others] == held_out
    _, larger = held_out_split(DOCUMENTS, 0.4, seed=1)
    assert set(held_out) < set(larger)


def test_copies_stay_together_wherever_they_lie() -> None:
    copies = [Document(document.text, f"copy of {document.source}") for document in DOCUMENTS]
    train, held_out = held_out_split(DOCUMENTS + copies, 0.3, seed=0)
    assert not {document.text for document in train} & {document.text for document in held_out}
    tokens = [Document("", "own.jsonl", tokens=(n, n + 1)) for n in range(40)]
    assert 4 <= len(held_out_split(tokens, 0.3, seed=0)[1]) <= 20


def test_a_split_is_the_same_in_every_process() -> None:
    # Python's own hash of a string differs from process to process; this must not.
    code = (
        "from foretell.data import Document, held_out_split\n"
        "documents = [Document(str(n), str(n)) for n in range(20)]\n"
        "print([d.source for d in held_out_split(documents, 0.3, 7)[1]])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    documents = [Document(str(n), str(n)) for n in range(20)]
    assert run.stdout.strip() == str([d.source for d in held_out_split(documents, 0.3, 7)[1]])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        held_out_split(DOCUMENTS, fraction, seed=0)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(InputError, match="of 1 documents leaves no held-out document"):
        held_out_split(DOCUMENTS[:1], 1e-9, seed=0)
    with pytest.raises(InputError, match="of 1 documents leaves no training document"):
        held_out_split(DOCUMENTS[:1], 1 - 1e-9, seed=0)
    with pytest.raises(InputError, match="of 0 documents"):
        held_out_split([], 0.5, seed=0)


@pytest.mark.parametrize("template", ["<eos> $A", "<eos> ~ $A ~", "$A ~", "$A"])
def test_a_text_begins_as_a_prompt_does_and_ends_with_the_end_token(template: str) -> None:
    tokenizer = byte_tokenizer(eos=True)
    added = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<eos>", "~")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=added
    )
    text, eos = "abc", tokenizer.eos_token_id
    before = [dict(added)[token] for token in template.partition("$A")[0].split()]
    prompt = prompt_ids(tokenizer, text)
    assert prompt == before + WITHOUT_EOS(text)["input_ids"]
    assert prompt_ids(tokenizer, "") == before
    ids = [*prompt, eos, *before, *WITHOUT_EOS("de")["input_ids"], eos]
    blocks = pack([text, "", "de"], len(ids), tokenizer)
    assert blocks[0]["input_ids"].tolist() == ids
    assert blocks[0]["position_ids"][len(prompt) + 1] == 0
    assert blocks.num_bytes == 5
