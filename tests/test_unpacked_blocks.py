"""Blocks of one document each, for models that let packed documents attend to each other."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from typer.testing import CliRunner

import families
import foretell as ft
from foretell.backbone import isolates_documents
from foretell.cli import app
from foretell.data import PackedBlocks
from foretell.errors import BackboneError, InputError
from foretell.evaluation import measure_heads, measure_marginals
from foretell.model import MTPModel
from foretell.ready import read_blocks
from foretell.targets import IGNORE
from foretell.training import TrainConfig, train
from packs import WITH_EOS, WITHOUT_EOS, byte_tokenizer, pack, texts

LEAKING = [
    "opt",
    "gpt_oss",
    "qwen3_next",
    "qwen3_5_text",
    "mamba",
    "lfm2",
    "lfm2_conv",
]
DEPTH = 2
SIZE = 24
TEXTS = ["a-text-that-is-cut-into-stretches-of-two-sizes", "short-one", "ab", "last,and-no-least"]


def ascii_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes as tokens, with an end of sequence that the tiny models' vocabulary has room for."""
    tokenizer = byte_tokenizer(eos=False)
    tokenizer.eos_token = "~"
    assert tokenizer.eos_token_id < families.VOCAB
    return tokenizer


ASCII = ascii_tokenizer()


def unpacked(texts: list[str], size: int = SIZE, tokenizer=ASCII) -> PackedBlocks:
    return pack(texts, size, tokenizer, one_document_per_block=True)


def stretches_of(texts: list[str], size: int, tokenizer) -> list[list[list[int]]]:
    """Per document the token ids of its stretches, those of a single token left out."""
    found = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        if ids and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        cut: list[list[int]] = []
        while ids:
            cut.append(ids[:size])
            ids = ids[size:]
        found.append([stretch for stretch in cut if len(stretch) > 1])
    return found


# -- contents -----------------------------------------------------------------------------------


@given(st.lists(texts, max_size=9), st.integers(2, 9), st.booleans())
def test_blocks_equal_those_of_a_naive_loop(texts: list[str], size: int, eos: bool) -> None:
    tokenizer = WITH_EOS if eos else WITHOUT_EOS
    documents = stretches_of(texts, size, tokenizer)
    expected = [stretch for document in documents for stretch in document]
    if not expected:
        with pytest.raises(InputError, match="no document has 2 tokens"):
            unpacked(texts, size, tokenizer)
        return
    blocks = unpacked(texts, size, tokenizer)
    filler = tokenizer.eos_token_id if eos else 0
    assert blocks.one_document_per_block
    assert (len(blocks), blocks.block_size) == (len(expected), size)
    for index, stretch in enumerate(expected):
        item = blocks[index]
        missing = size - len(stretch)
        assert item["input_ids"].tolist() == stretch + [filler] * missing
        assert item["labels"].tolist() == stretch + [IGNORE] * missing
        assert item["position_ids"].tolist() == list(range(size))
        assert {value.dtype for value in item.values()} == {torch.int64}

    assert blocks.num_tokens == sum(map(len, expected))
    assert blocks.num_documents == sum(map(bool, documents))
    kept = [sum(map(len, document)) for document in documents]
    sizes = [len(text.encode()) for text in texts]
    shares = [n / (b + eos) * b for n, b in zip(kept, sizes, strict=True) if b]
    assert blocks.num_bytes == pytest.approx(sum(shares), abs=0.5001)


def test_blocks_by_hand() -> None:
    # a b c, d <eos>, e f g, h <eos>; the <eos> behind c would be a block without a target
    blocks = unpacked(["abc", "d", "", "efgh"], 3, WITH_EOS)
    eos, text = WITH_EOS.eos_token_id, WITH_EOS("abcdefgh")["input_ids"]
    a, b, c, d, e, f, g, h = text
    rows = [blocks[index]["input_ids"].tolist() for index in range(len(blocks))]
    assert rows == [[a, b, c], [d, eos, eos], [e, f, g], [h, eos, eos]]
    # The end of a document is a target, the same token behind it is not.
    assert blocks[1]["labels"].tolist() == [d, eos, IGNORE]
    # 3 of the 4 tokens of 3 bytes: 2.25, then 1 and 4.
    assert (blocks.num_tokens, blocks.num_documents, blocks.num_bytes) == (10, 3, 7)


def test_padding_fills_where_there_is_no_end_of_sequence() -> None:
    tokenizer = byte_tokenizer(eos=False)
    tokenizer.pad_token = "~"
    row = unpacked(["abc"], 5, tokenizer)[0]["input_ids"]
    assert row[3:].tolist() == [tokenizer.pad_token_id] * 2


def test_a_block_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 tokens"):
        unpacked(["abc"], 1)
    with pytest.raises(InputError, match="at least 1 token, not 0"):
        unpacked(["abc"], 0)


# -- every document as if alone -----------------------------------------------------------------


def alone(model: MTPModel, texts: list[str], size: int = SIZE) -> list[tuple[int, Tensor]]:
    """Tokens and depth losses of every stretch, each in a pass of its own with nothing added."""
    rows = [stretch for document in stretches_of(texts, size, ASCII) for stretch in document]
    return [(len(row), model(torch.tensor([row])).depth_losses) for row in rows]


def mean_by_depth(found: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Targets of every depth and the mean loss over them."""
    depths = torch.arange(len(found[0][1]))
    counts = torch.stack([(tokens - 1 - depths).clamp(min=0) for tokens, _ in found])
    total = (counts * torch.stack([losses for _, losses in found])).sum(0)
    return counts.sum(0), total / counts.sum(0)


@pytest.mark.parametrize("head", ["parallel", "sequential"])
@pytest.mark.parametrize("family", LEAKING)
@torch.no_grad()
def test_losses_are_those_of_the_document_alone(family: str, head: str) -> None:
    model = ft.attach(families.build(family), head, depth=DEPTH)
    assert not isolates_documents(model.backbone)
    blocks = unpacked(TEXTS)
    found = alone(model, TEXTS)
    assert len(found) == len(blocks) == 5
    for index, (_, losses) in enumerate(found):
        row = {name: value.unsqueeze(0) for name, value in blocks[index].items()}
        torch.testing.assert_close(model(**row).depth_losses, losses, rtol=1e-4, atol=1e-5)
    # And all in one batch.
    batch = next(iter(torch.utils.data.DataLoader(blocks, batch_size=len(blocks))))
    _, expected = mean_by_depth(found)
    torch.testing.assert_close(model(**batch).depth_losses, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", LEAKING)
@torch.no_grad()
def test_nothing_before_the_filling_sees_it(family: str) -> None:
    model = ft.attach(families.build(family), "sequential", depth=DEPTH)
    row = {name: value.unsqueeze(0) for name, value in unpacked(["short-one"])[0].items()}
    other = dict(row, input_ids=torch.where(row["labels"] == IGNORE, 7, row["input_ids"]))
    assert not torch.equal(row["input_ids"], other["input_ids"])
    # Not to the last bit: a mixture of experts multiplies other numbers of rows at once.
    torch.testing.assert_close(
        model(**row).depth_losses, model(**other).depth_losses, rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_measuring_counts_no_filling() -> None:
    model = ft.attach(families.build("opt"), "sequential", depth=DEPTH)
    blocks = unpacked(TEXTS)
    found = measure_heads(model, blocks)
    counts, losses = mean_by_depth(alone(model, TEXTS))
    rows = found.rows()
    assert [row.positions for row in rows] == counts.tolist()
    assert [row.nll.value for row in rows] == pytest.approx(losses.tolist(), rel=1e-4)
    tokens = sum(len(text) + 1 for text in TEXTS)  # and none of them dropped
    bits = float(losses[0]) / math.log(2) * tokens / sum(map(len, TEXTS))
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-4)


def test_marginals_read_no_filling() -> None:
    model = MTPModel(families.build("opt"))
    blocks = unpacked(["abcdef", "xy"])  # 7 and 3 tokens
    found = measure_marginals(model, blocks, depth=1, width=2, positions=32)
    assert [row.positions for row in found.rows()] == [6, 6]  # 7 − 2 and 3 − 2 places


# -- training -----------------------------------------------------------------------------------

SETTINGS = {
    "head": {"depth": DEPTH},
    "steps": 2,
    "batch_size": 2,
    "block_size": SIZE,
    "log_every": 1,
}


def test_training_takes_them_and_refuses_packed_ones(tmp_path: Path) -> None:
    model = ft.attach(families.build("opt"), "parallel", depth=DEPTH)
    config = TrainConfig.parse(SETTINGS)
    with pytest.raises(BackboneError, match=r"OPTForCausalLM .* one_document_per_block=True"):
        train(model, pack(TEXTS, SIZE, ASCII), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    before = [parameter.clone() for parameter in model.require_head().parameters()]
    result = train(model, unpacked(TEXTS), config, tmp_path / "run")
    assert result.steps == 2
    assert all(0 < loss < 20 for loss in result.depth_losses)
    assert len(result.depth_losses) == DEPTH + 1
    after = model.require_head().parameters()
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_commands_pack_where_the_model_keeps_documents_apart(family: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(TEXTS))
    model = MTPModel(families.build(family))
    blocks = read_blocks(str(tmp_path / "text.txt"), model, ASCII, SIZE)
    assert blocks.one_document_per_block == (family == "opt")


def test_the_train_command_serves_such_a_model(tmp_path: Path) -> None:
    config = families.FAMILIES["opt"]()
    config.vocab_size = len(ASCII)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    ASCII.save_pretrained(tmp_path / "opt")
    text = tmp_path / "text.txt"
    text.write_text("shorter")  # than a block
    out = tmp_path / "run"
    options = ["--data", str(text), "--out", str(out), "--steps", "1", "--depth", "1"]
    result = CliRunner().invoke(
        app, ["train", str(tmp_path / "opt"), *options, "--batch-size", "1", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    assert (out / "model").is_dir()
