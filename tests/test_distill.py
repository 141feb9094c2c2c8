import json
from pathlib import Path

import pytest
import torch

from foretoken.cli import app
from foretoken.data import Document, PackedBlocks, read_documents
from foretoken.data.distill import Continuations, Sampling, prompts_of
from foretoken.errors import InputError
from foretoken.loading import load_tokenizer
from foretoken.model import MTPModel
from foretoken.targets import IGNORE
from test_conversations import TURNS, tokenizer

TOKENIZER = load_tokenizer("tiny")


@pytest.fixture(scope="module")
def tiny() -> MTPModel:
    return MTPModel.from_pretrained("tiny", dtype=torch.float32)


def prompts(count: int = 7) -> list[list[int]]:
    texts = [f"def function_{n}(" + "self, " * (n % 3) for n in range(count)]
    return [TOKENIZER(text)["input_ids"] for text in texts]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_continuations_are_the_backbones_own(tiny: MTPModel, tmp_path: Path) -> None:
    """Batched with padding or one by one with foretoken's own loop: the same tokens."""
    out = tmp_path / "deeper" / "own.jsonl"
    sampling = Sampling(max_new_tokens=12, batch_size=3)
    file = Continuations(out, tiny, TOKENIZER, prompts(), sampling)
    shares: list[float] = []
    written = file.write(shares.append)
    assert shares == [3 / 7, 6 / 7, 1.0]
    found = lines(out)
    assert [record["tokens"][: record["prompt_tokens"]] for record in found] == prompts()
    for prompt, record in zip(prompts(), found, strict=True):
        alone = tiny.generate(torch.tensor([prompt]), max_new_tokens=12)
        assert record["tokens"] == alone.sequences[0].tolist()
        assert record["text"] == TOKENIZER.decode(record["tokens"])
    assert written == sum(len(r["tokens"]) - r["prompt_tokens"] for r in found)


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.6, 0.99, 1.0])
def test_a_killed_command_goes_on_as_if_it_had_not_been(
    tiny: MTPModel, tmp_path: Path, kept: float
) -> None:
    sampling = Sampling(max_new_tokens=6, batch_size=2, temperature=1.0, top_p=0.9, seed=5)
    whole = tmp_path / "whole.jsonl"
    Continuations(whole, tiny, TOKENIZER, prompts(), sampling).write()
    content = whole.read_bytes()
    cut = tmp_path / "cut.jsonl"
    Continuations(cut, tiny, TOKENIZER, prompts(), sampling)  # began, and wrote so much:
    cut.write_bytes(content[: int(kept * len(content)) if kept <= 1 else int(kept)])
    again = Continuations(cut, tiny, TOKENIZER, prompts(), sampling)
    assert again.done % 2 == 0 or again.done == 7
    again.write()
    assert cut.read_bytes() == content


def test_draws_follow_the_seed(tiny: MTPModel, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=seed)
        Continuations(tmp_path / name, tiny, TOKENIZER, prompts(), sampling).write()
        found.append((tmp_path / name).read_text())
    assert found[0] == found[1] != found[2]


def test_continuations_are_training_data_for_the_response_alone(
    tiny: MTPModel, tmp_path: Path
) -> None:
    out = tmp_path / "own.jsonl"
    Continuations(out, tiny, TOKENIZER, prompts(), Sampling(max_new_tokens=8)).write()
    blocks = PackedBlocks.from_documents(
        read_documents(out), TOKENIZER, 32, one_document_per_block=True
    )
    for record, index in zip(lines(out), range(len(blocks)), strict=True):
        item, count = blocks[index], len(record["tokens"])
        assert item["input_ids"][:count].tolist() == record["tokens"]
        learned = (item["labels"] != IGNORE).nonzero().flatten().tolist()
        assert learned == list(range(record["prompt_tokens"], count))


def test_prompts_are_cut_from_texts_and_end_where_the_assistant_answers() -> None:
    text = Document("x = 1\n" * 40, "d")
    ids = TOKENIZER(text.text)["input_ids"] + [TOKENIZER.eos_token_id]
    found = list(prompts_of([text], TOKENIZER, 10, 20))
    assert found == [ids[start : start + 10] for start in range(0, len(ids), 30)]
    chat = tokenizer()
    (prompt,) = prompts_of([Document("", "d", messages=TURNS)], chat, 10, 20)
    assert chat.decode(prompt).endswith("<user>And two?</s>\n<assistant>")
    with pytest.raises(InputError, match="no turn to answer"):
        list(prompts_of([Document("", "d", messages=TURNS[1:2])], chat, 10, 20))


def test_what_cannot_be_continued_is_refused(tiny: MTPModel, tmp_path: Path) -> None:
    out, sampling = tmp_path / "own.jsonl", Sampling(max_new_tokens=8)
    for wrong, message in (
        ([], "no prompt"),
        ([[]], "prompt 1 is empty"),
        ([[1], [1] * 1020], "prompt 2 has 1020 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Continuations(out, tiny, TOKENIZER, wrong, sampling)
        assert not list(tmp_path.iterdir())
    Continuations(out, tiny, TOKENIZER, prompts(2), sampling).write()
    for other in (Sampling(max_new_tokens=9), Sampling(max_new_tokens=8, seed=1)):
        with pytest.raises(InputError, match="other settings"):
            Continuations(out, tiny, TOKENIZER, prompts(2), other)
    with pytest.raises(InputError, match="other settings"):
        Continuations(out, tiny, TOKENIZER, prompts(3), sampling)
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(InputError, match="not begun here"):
        Continuations(tmp_path / "mine.jsonl", tiny, TOKENIZER, prompts(2), sampling)
    assert (tmp_path / "mine.jsonl").read_text() == "precious"
    for options in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(InputError):
            Sampling(**options)


def test_the_command_writes_what_it_says(tmp_path: Path, capsys) -> None:
    command = [
        "distill", "tiny", "--prompts", "stdlib:held-out", "--count", "3", "--out",
        str(tmp_path / "own.jsonl"), "--max-new-tokens", "5", "--json", str(tmp_path / "r.json"),
    ]  # fmt: skip
    app(command, standalone_mode=False)
    assert "3 continuations" in capsys.readouterr().out
    assert len(lines(tmp_path / "own.jsonl")) == 3
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["rows"][0]["tokens"] == 15
    app(command, standalone_mode=False)
    assert "3 continuations, 3 of them before; 0 tokens" in capsys.readouterr().out
