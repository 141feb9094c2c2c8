import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedModel

import families
import rotating
from chats import TURNS, tokenizer
from foretell.checkpoints import load_tokenizer
from foretell.cli import app, main
from foretell.data import Document, PackedBlocks, read_documents
from foretell.data.distill import Continuations, DistillOptions, prompts_of
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.targets import IGNORE

TOKENIZER = load_tokenizer("tiny")
LINE, SPACES = TOKENIZER("\n")["input_ids"], TOKENIZER("    ")["input_ids"]


@pytest.fixture(scope="module")
def tiny() -> MTPModel:
    return MTPModel.from_pretrained("tiny", dtype=torch.float32)


def prompts(count: int = 7) -> list[list[int]]:
    texts = [f"def function_{n}(" + "self, " * (n % 3) for n in range(count)]
    return [TOKENIZER(text)["input_ids"] for text in texts]


def by_length(prompts: list[list[int]]) -> list[list[int]]:
    """The order of so few prompts in the file."""
    return sorted(prompts, key=len, reverse=True)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_continuations_are_the_backbones_own(tiny: MTPModel, tmp_path: Path) -> None:
    """Batched with padding or one by one with foretell's own loop: the same tokens."""
    out = tmp_path / "deeper" / "own.jsonl"
    sampling = DistillOptions(max_new_tokens=12, batch_size=3)
    file = Continuations(out, tiny, TOKENIZER, prompts(), sampling)
    shares: list[float] = []
    written = file.write(shares.append)
    assert shares == [3 / 7, 6 / 7, 1.0]
    found = lines(out)
    ordered = by_length(prompts())
    assert ordered != prompts()
    assert [record["tokens"][: record["prompt_tokens"]] for record in found] == ordered
    for prompt, record in zip(ordered, found, strict=True):
        alone = tiny.decode(torch.tensor([prompt]), max_new_tokens=12)
        assert record["tokens"] == alone.sequences[0].tolist()
        assert record["text"] == TOKENIZER.decode(record["tokens"])
    assert written == sum(len(r["tokens"]) - r["prompt_tokens"] for r in found)


@pytest.mark.parametrize(
    "build",
    [
        partial(families.build, "falcon_h1"),
        partial(families.build, "llama4_tempered"),
        partial(families.build, "marian"),
        partial(rotating.build, "phi3"),
        partial(rotating.build, "llama dynamic"),
    ],
    ids=lambda build: build.args[0],
)
def test_a_row_says_what_it_says_alone(
    build: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """Also where padding, or a longer neighbour, would change it."""
    model = MTPModel(build())
    rows = [torch.randint(3, 99, (length,)).tolist() for length in (30, 12, 12, 3)]
    file = Continuations(
        tmp_path / "own", model, TOKENIZER, rows, DistillOptions(max_new_tokens=12)
    )
    file.write()
    for prompt, record in zip(rows, lines(tmp_path / "own"), strict=True):
        ends = file._ends
        alone = model.decode(torch.tensor([prompt]), max_new_tokens=12, stop_tokens=ends)
        assert record["tokens"] == prompt + alone.new_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 5.0, "do_sample": True, "top_k": 3},
        {"repetition_penalty": 1.6, "eos_token_id": LINE},  # not of the padding, which is that too
        {"min_length": 24, "eos_token_id": SPACES},  # padding does not count
        {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": SPACES},
        {"stop_strings": ["self", ":"]},
        {"return_dict_in_generate": True, "output_scores": True, "max_time": 0.0},
        {"prompt_lookup_num_tokens": 3, "num_return_sequences": 2, "do_sample": True},
    ],
    ids=str,
)
def test_the_models_generation_config_counts_as_in_generate(
    tiny: MTPModel, tmp_path: Path, options: dict
) -> None:
    own = tiny.lm.generation_config
    tiny.lm.generation_config = GenerationConfig(**{"eos_token_id": own.eos_token_id} | options)
    some = [TOKENIZER(text)["input_ids"] for text in ("def f(self, x", "import os\n", "self", "x")]
    longest = max(map(len, some))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in some])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in some])
    sampling = DistillOptions(max_new_tokens=16)
    try:
        ends = {*tiny.stop_tokens, TOKENIZER.eos_token_id}
        own_words = tiny.decode(
            rows, mask, max_new_tokens=16, tokenizer=TOKENIZER, stop_tokens=ends
        ).continuations
        Continuations(tmp_path / "a.jsonl", tiny, TOKENIZER, some, sampling).write()
        found = {tuple(record["tokens"]) for record in lines(tmp_path / "a.jsonl")}
        assert found == {(*row, *new) for row, new in zip(some, own_words, strict=True)}
    finally:
        tiny.lm.generation_config = own


def test_a_file_of_another_generation_config_is_not_gone_on_with(
    tiny: MTPModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sampling = tmp_path / "a.jsonl", DistillOptions(max_new_tokens=2)
    Continuations(out, tiny, TOKENIZER, prompts(1), sampling).write()
    for name, value in (("repetition_penalty", 1.1), ("eos_token_id", 5), ("stop_strings", ["x"])):
        with monkeypatch.context() as changed:
            changed.setattr(tiny.lm.generation_config, name, value)
            with pytest.raises(InputError, match="begun with other settings"):
                Continuations(out, tiny, TOKENIZER, prompts(1), sampling)


def test_a_continuation_ends_where_model_or_tokenizer_end_a_text(
    tiny: MTPModel, tmp_path: Path
) -> None:
    (prompt,) = prompts(1)
    greedy = tiny.decode(torch.tensor([prompt]), max_new_tokens=12).new_tokens
    at = next(n for n in range(2, 12) if greedy[n] not in greedy[:n])
    ending = load_tokenizer("tiny")
    ending.eos_token = ending.convert_ids_to_tokens(greedy[at])
    sampling = DistillOptions(max_new_tokens=12)
    Continuations(tmp_path / "a.jsonl", tiny, ending, [prompt], sampling).write()
    (record,) = lines(tmp_path / "a.jsonl")
    assert record["tokens"] == prompt + list(greedy[: at + 1])


def test_draws_follow_the_backbones_distribution(tiny: MTPModel, tmp_path: Path) -> None:
    prompt = TOKENIZER("def ")["input_ids"]  # what follows is open
    count = 800
    sampling = DistillOptions(max_new_tokens=1, temperature=0.8, top_p=0.9, batch_size=count)
    Continuations(tmp_path / "a.jsonl", tiny, TOKENIZER, [prompt] * count, sampling).write()
    drawn = [record["tokens"][-1] for record in lines(tmp_path / "a.jsonl")]
    with torch.inference_mode():
        logits = tiny.lm(torch.tensor([prompt])).logits[0, -1]
    ordered, tokens = (logits / 0.8).softmax(-1).sort(descending=True)
    nucleus = ordered.cumsum(0) - ordered < 0.9
    expected = torch.zeros(len(logits)).index_put((tokens[nucleus],), ordered[nucleus])
    expected /= expected.sum()
    observed = torch.bincount(torch.tensor(drawn), minlength=len(logits)) / count
    assert 4 <= nucleus.sum() <= 200
    assert observed[expected == 0].sum() == 0
    # Twice the mean distance of so many draws from their own distribution.
    allowed = (2 * expected * (1 - expected) / (torch.pi * count)).sqrt().sum()
    assert (observed - expected).abs().sum() < 2 * allowed


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.6, 0.99, 1.0])
def test_a_killed_command_goes_on_as_if_it_had_not_been(
    tiny: MTPModel, tmp_path: Path, kept: float
) -> None:
    sampling = DistillOptions(max_new_tokens=6, batch_size=2, temperature=1.0, top_p=0.9, seed=5)
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
        sampling = DistillOptions(max_new_tokens=8, temperature=1.0, seed=seed)
        Continuations(tmp_path / name, tiny, TOKENIZER, prompts(), sampling).write()
        found.append((tmp_path / name).read_text())
    assert found[0] == found[1] != found[2]


def test_continuations_are_training_data_for_the_response_alone(
    tiny: MTPModel, tmp_path: Path
) -> None:
    out = tmp_path / "own.jsonl"
    Continuations(out, tiny, TOKENIZER, prompts(), DistillOptions(max_new_tokens=8)).write()
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
    ids = TOKENIZER(text.text)["input_ids"]
    found = list(prompts_of([text], TOKENIZER, 10, 20))
    assert found == [ids[start : start + 10] for start in range(0, len(ids), 30)]
    beginning = load_tokenizer("tiny")
    beginning.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", beginning.bos_token_id)]
    )
    prefixed = list(prompts_of([text], beginning, 10, 20))
    assert prefixed == [[beginning.bos_token_id, *prompt] for prompt in found]
    chat = tokenizer()
    (prompt,) = prompts_of([Document("", "d", messages=TURNS)], chat, 10, 20)
    assert chat.decode(prompt).endswith("<user>And two?</s>\n<assistant>")
    with pytest.raises(InputError, match="no turn to answer"):
        list(prompts_of([Document("", "d", messages=TURNS[1:2])], chat, 10, 20))


def test_what_cannot_be_continued_is_refused(tiny: MTPModel, tmp_path: Path) -> None:
    out, sampling = tmp_path / "own.jsonl", DistillOptions(max_new_tokens=8)
    bounded = MTPModel(families.build("gpt2"))  # whose positions end
    for model, wrong, message in (
        (tiny, [], "no prompt"),
        (tiny, [[]], "prompt 1 is empty"),
        (bounded, [[1], [1] * 510], "prompt 2 has 510 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Continuations(out, model, TOKENIZER, wrong, sampling)
        assert not list(tmp_path.iterdir())
    Continuations(out, tiny, TOKENIZER, prompts(2), sampling).write()
    for other in (DistillOptions(max_new_tokens=9), DistillOptions(max_new_tokens=8, seed=1)):
        with pytest.raises(InputError, match="other settings"):
            Continuations(out, tiny, TOKENIZER, prompts(2), other)
    with pytest.raises(InputError, match="other settings"):
        Continuations(out, tiny, TOKENIZER, prompts(3), sampling)
    halved = MTPModel.from_pretrained("tiny", dtype=torch.bfloat16)
    with pytest.raises(InputError, match="other settings"):
        Continuations(out, halved, TOKENIZER, prompts(2), sampling)
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(InputError, match="not begun here"):
        Continuations(tmp_path / "mine.jsonl", tiny, TOKENIZER, prompts(2), sampling)
    assert (tmp_path / "mine.jsonl").read_text() == "precious"
    for options in (
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"top_p": 0.0},
    ):
        with pytest.raises(InputError):
            DistillOptions(**options)


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder", "is not a file"),
        ("text.py/own.jsonl", "cannot be written to"),
        ("text.py", "was not begun here"),
        ("own.jsonl", "was not begun here"),  # of the same kind, and without its note
        ("noted", "cannot be written to"),
        (249 * "x", "cannot be written to"),
        ("/dev/null", "is not a file"),
        ("/proc/own.jsonl", "cannot be written to"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_and_stays_as_it_was(
    tmp_path: Path, monkeypatch, capsys, out: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "noted.settings.json").mkdir()
    (tmp_path / "text.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "own.jsonl").write_text('{"tokens": [1, 2], "prompt_tokens": 1, "text": "a"}\n')
    before = contents(tmp_path)
    command = ["distill", "tiny", "--prompts", str(tmp_path / "text.py"), "--count", "1"]
    command += ["--max-new-tokens", "2", "--out", str(tmp_path / out)]
    monkeypatch.setattr(sys, "argv", ["foretell", *command])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "other",
    [
        b"precious",
        b'{"text": "precious"}\n',
        b'{"tokens": [1, 2], "prompt_tokens": 1, "text": "a"}\n',
        None,  # more lines than prompts
    ],
)
def test_what_took_the_place_of_continuations_is_kept(
    tiny: MTPModel, tmp_path: Path, other: bytes | None
) -> None:
    out, sampling = tmp_path / "own.jsonl", DistillOptions(max_new_tokens=2, batch_size=2)
    Continuations(out, tiny, TOKENIZER, prompts(3), sampling).write()
    content = out.read_bytes()
    held = content + content if other is None else other
    out.write_bytes(held)
    with pytest.raises(InputError, match="something else than continuations"):
        Continuations(out, tiny, TOKENIZER, prompts(3), sampling)
    assert out.read_bytes() == held


def test_the_command_writes_what_it_says(tmp_path: Path, capsys) -> None:
    command = [
        "distill", "tiny", "--prompts", "stdlib:held-out", "--count", "3", "--out",
        str(tmp_path / "own.jsonl"), "--max-new-tokens", "5", "--json", str(tmp_path / "r.json"),
    ]  # fmt: skip
    app(command, standalone_mode=False)
    assert "3 continuations" in capsys.readouterr().out
    assert len(lines(tmp_path / "own.jsonl")) == 3
    result = json.loads((tmp_path / "r.json").read_text())
    (row,) = result["rows"]
    assert (row["table"], row["model"]) == ("distilled", "tiny")
    assert (row["prompts"], row["tokens"]) == (3, 15)
    assert row["tokens_per_second"] == pytest.approx(15 / row["seconds"])
    settings = {"prompts": "stdlib:held-out", "count": 3, "prompt_tokens": 64, "before": 0}
    settings |= {"max_new_tokens": 5, "temperature": 0.0, "top_p": 1.0, "batch_size": 16, "seed": 0}
    settings |= {"skip_bad": False, "bad_records": 0}
    assert result["settings"].pop("backbone")
    assert result["settings"] == settings
    assert result["provenance"]["seed"] == 0
    app(command, standalone_mode=False)
    assert "3 continuations, 3 of them before; 0 tokens" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (row["prompts"], row["tokens"]) == (0, 0)


def test_the_command_leaves_out_what_does_not_fit_into_the_context(tmp_path: Path, capsys) -> None:
    long = " ".join(f"x{n} = {n}" for n in range(900))
    data = tmp_path / "chat.jsonl"
    with data.open("w") as file:
        for text in (long, "Hello", long):
            turns = [{"role": "user", "content": text}]
            file.write(json.dumps({"messages": turns}) + "\n")
    lm = MTPModel.from_pretrained("tiny", dtype=torch.float32).lm
    lm.save_pretrained(tmp_path / "chat")
    tokenizer().save_pretrained(tmp_path / "chat")
    command = ["distill", str(tmp_path / "chat"), "--prompts", str(data), "--out"]
    app([*command, str(tmp_path / "own.jsonl"), "--max-new-tokens", "3"], standalone_mode=False)
    assert "2 prompts are left out" in capsys.readouterr().out
    (record,) = lines(tmp_path / "own.jsonl")
    assert record["text"].startswith("<user>Hello</s>\n<assistant>")
