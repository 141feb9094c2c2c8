"""The models in the package. Where they are missing these tests fail: they belong to it."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import foretell as ft
from foretell import demo
from foretell.backbone import fingerprint
from foretell.checkpoints import CONFIG_FILE, HEADS_FILE, read_heads
from foretell.data import Document, PackedBlocks, read_prompts
from foretell.data.stdlib import HELD_OUT, standard_library
from foretell.decoding import NoDrafter
from foretell.errors import CheckpointError
from foretell.evaluation import loop_start, measure_heads
from foretell.report.drafts import continuations
from foretell.report.sources import collect
from foretell.results.tables import Generated

NAMES = ("tiny", "tiny-mtp")
MAX_BYTES = 12_000_000
MAX_BITS_PER_BYTE = 1.6


def place(name: str) -> Path:
    return Path(str(files("foretell") / "bundled" / name))


@cache
def loaded(name: str) -> ft.MTPModel:
    return ft.MTPModel.from_pretrained(name, dtype=torch.float32)


@cache
def tokenizer(name: str):
    return AutoTokenizer.from_pretrained(place(name))


@cache
def held_out() -> tuple[Document, ...]:
    return tuple(standard_library("held-out"))


@cache
def blocks(name: str) -> PackedBlocks:
    return PackedBlocks.from_documents(held_out(), tokenizer(name), 256)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_stored_in_bfloat16(name: str) -> None:
    assert sum(file.stat().st_size for file in place(name).rglob("*")) <= MAX_BYTES
    stored = AutoModelForCausalLM.from_pretrained(place(name), dtype="auto")
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}
    suffixes = {file.suffix for file in place(name).iterdir()}
    assert suffixes <= {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_here_and_in_plain_transformers(name: str) -> None:
    plain, info = AutoModelForCausalLM.from_pretrained(
        place(name), dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.tensor([tokenizer(name)("def main(argv):\n    return")["input_ids"]])
    model = loaded(name)
    assert torch.equal(plain.eval()(tokens).logits, model.lm(tokens).logits)
    assert len(tokenizer(name)) == model.backbone.vocab_size


def test_only_tiny_mtp_has_heads() -> None:
    assert loaded("tiny").head is None
    assert not (place("tiny") / CONFIG_FILE).exists()
    assert not (place("tiny") / HEADS_FILE).exists()
    config = loaded("tiny-mtp").head.config
    assert config == ft.ParallelHeads.Config(depth=3, tap="trunk", normalize=False)
    stored = read_heads(place("tiny-mtp"))
    assert stored.backbone.fingerprint == fingerprint(loaded("tiny-mtp").lm)
    assert stored.backbone.path is None


def test_heads_for_smollm2_are_stored_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = place("smollm2-mtp")
    assert sum(file.stat().st_size for file in where.rglob("*")) <= MAX_BYTES
    stored = read_heads(where)
    config = ft.SequentialHeads.Config.from_dict(stored.head)
    assert config.vocabulary == len(stored.tensors["vocabulary.tokens"])
    assert 2 in stored.tensors["vocabulary.tokens"]  # the end of an answer
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"make smollm2.*--backbone"):
        ft.MTPModel.from_pretrained("smollm2-mtp")


def test_heads_for_smollm2_draft_what_it_says() -> None:
    if not Path("models/SmolLM2-135M-Instruct").is_dir():
        pytest.skip("models/SmolLM2-135M-Instruct is not here: make smollm2")
    model = ft.MTPModel.from_pretrained("smollm2-mtp", dtype=torch.float32)
    told = ft.load_tokenizer("smollm2-mtp").apply_chat_template(
        [{"role": "user", "content": "What is 12 + 30?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    plain = model.lm.generate(**told, max_new_tokens=24, do_sample=False)
    found = model.decode(told["input_ids"], max_new_tokens=24)
    assert found.sequences.tolist() == plain.tolist()
    assert found.tokens_per_forward > 1.5


def test_both_are_the_same_but_for_their_weights() -> None:
    configs = [loaded(name).lm.config.to_dict() for name in NAMES]
    for config in configs:
        config.pop("_name_or_path", None)
    assert configs[0] == configs[1]
    assert tokenizer("tiny").get_vocab() == tokenizer("tiny-mtp").get_vocab()
    fingerprints = {fingerprint(loaded(name).lm) for name in NAMES}
    assert len(fingerprints) == 2


@pytest.mark.parametrize("name", NAMES)
def test_any_text_survives_the_tokenizer(name: str) -> None:
    made = tokenizer(name)
    texts = [document.text for document in held_out()]
    assert len(texts) > 20
    for text in (*texts, "é 日本 🎉\t\r\n\x00", " x ", "\n\n\n"):
        assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("name", NAMES)
def test_the_model_card_says_what_it_must(name: str) -> None:
    card = (place(name) / "README.md").read_text(encoding="utf-8")
    assert "PSF" in card or "Python Software Foundation" in card
    for module in HELD_OUT:
        assert f"`{module}`" in card
    stated = re.search(r"(\d\.\d+) bits per byte", card)
    assert stated is not None
    assert 0.5 < float(stated[1]) < MAX_BITS_PER_BYTE
    for word in ("hardware", "steps", "tokens", "commit"):
        assert word in card


@pytest.mark.parametrize("name", NAMES)
def test_it_predicts_code_that_it_has_not_seen(name: str) -> None:
    table = measure_heads(loaded(name), blocks(name), limit=8)
    assert table.bits_per_byte < MAX_BITS_PER_BYTE
    rows = table.rows()
    assert len(rows) == (4 if name == "tiny-mtp" else 1)
    # Deeper is harder, and even the deepest knows more than nothing.
    assert [row.nll.value for row in rows] == sorted(row.nll.value for row in rows)
    assert all(row.top1.value > 0.1 for row in rows)


def test_greedy_output_is_the_backbones_own() -> None:
    model = loaded("tiny-mtp")
    drafted = accepted = 0
    for prompt in read_prompts("stdlib:held-out", tokenizer("tiny-mtp"), 48, 3, seed=0):
        with_heads = model.decode(prompt, max_new_tokens=48)
        plain = model.decode(prompt, max_new_tokens=48, drafter=NoDrafter())
        own = model.lm.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=48,
            do_sample=False,
        )
        assert with_heads.new_tokens == plain.new_tokens
        length = own.shape[1]  # shorter where it ended the document
        assert torch.equal(own, with_heads.sequences[:, :length])
        assert length == prompt.shape[1] + 48 or int(own[0, -1]) == model.lm.config.eos_token_id
        until = loop_start(plain.new_tokens) or len(plain.new_tokens)
        for step in with_heads.row_steps:
            if until > 0:
                drafted, accepted = drafted + step.drafted, accepted + step.accepted
            until -= len(step.tokens)
    assert accepted > drafted / 4


def test_the_demo_ends_with_text_for_its_report(tmp_path: Path) -> None:
    demo._continue_one(tmp_path / "generate.json", "tiny-mtp", loaded("tiny-mtp"), seed=0)
    (source,) = collect([tmp_path]).results
    (found,) = continuations([source])
    assert found.title == "tiny-mtp, parallel"
    assert found.summary.startswith("64 tokens in ")
    assert source.table(Generated)[0].forwards < 64
    texts = [piece.text for piece in found.pieces]
    assert len(texts) == 64
    first = read_prompts("stdlib:held-out", tokenizer("tiny-mtp"), 64, 1, 0)
    assert found.prompt == tokenizer("tiny-mtp").decode(first[0][0])
