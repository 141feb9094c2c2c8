"""Heads that are measured on what they were trained on: it is known, and said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import foretell as ft
from command_line import TEXT, TOKENIZER, backbone, fine, refused
from foretell.checkpoints import CONFIG_FILE, load_tokenizer
from foretell.data import Document, PackedBlocks, Sketch, StreamedBlocks, held_out_split
from foretell.data.sketch import SIZE, digest_of
from foretell.evaluation import describe_seen, seen_in_training
from foretell.report import write_report
from foretell.results import read_result
from foretell.training import Plan, train
from runs import corpus, settings, small_model

SEEN = "Measured on the data it was trained on (100 % of the documents): new text will be worse."


def documents(begin: int, end: int) -> list[Document]:
    return [Document(f"text {number}", f"file:{number}") for number in range(begin, end)]


def sketch(begin: int, end: int) -> Sketch:
    return Sketch(map(digest_of, documents(begin, end)))


@pytest.mark.parametrize("size", [40, 20_000])
def test_a_sketch_tells_the_share_of_documents_that_two_corpora_have_in_common(size: int) -> None:
    learned = sketch(0, size)
    assert len(learned) == min(size, SIZE)
    assert sketch(0, size).share_in(learned) == 1.0
    assert sketch(size, 2 * size).share_in(learned) == 0.0
    assert sketch(size // 2, size + size // 2).share_in(learned) == pytest.approx(0.5, abs=0.1)
    assert sketch(size * 3 // 4, size).share_in(learned) == 1.0
    assert sketch(0, size * 2).share_in(learned) == pytest.approx(0.5, abs=0.1)
    assert Sketch().share_in(learned) is None
    assert Sketch([5, 20_000]).share_in(Sketch(range(1, 10_000))) is None  # one of chance
    assert learned.share_in(Sketch()) is None  # as of blocks that do not say what they are of


@pytest.mark.parametrize("size", [40, 20_000])
def test_sketches_are_joined_and_stored(size: int) -> None:
    both = sketch(0, size) | sketch(size, 2 * size)
    assert both.to_dict() == sketch(0, 2 * size).to_dict()
    stored = json.loads(json.dumps(both.to_dict()))
    assert Sketch.from_dict(stored).to_dict() == both.to_dict()
    assert len(json.dumps(stored)) < 5000
    assert Sketch.from_dict({}).share_in(both) is None


def test_only_what_a_document_says_counts() -> None:
    assert digest_of(Document("a", "here")) == digest_of(Document("a", "there"))
    assert digest_of(Document("a", "here")) != digest_of(Document("b", "here"))
    assert digest_of(Document("", "x", tokens=(1, 2))) != digest_of(Document("", "x", tokens=(1,)))


def test_held_out_documents_are_not_those_trained_on(tmp_path: Path) -> None:
    learned, held_out = held_out_split(documents(0, 200), 0.25, seed=1)
    tokenizer = load_tokenizer("tiny")
    blocks = PackedBlocks.from_documents(learned, tokenizer, 16)
    model = small_model(vocab=1024)
    train(model, blocks, settings(recipe="frozen", steps=1, save_every=0), tmp_path / "run")
    loaded = ft.MTPModel.from_pretrained(tmp_path / "run" / "model")

    def seen(measured: list[Document]) -> float | None:
        return seen_in_training(loaded, PackedBlocks.from_documents(measured, tokenizer, 16).sketch)

    assert (seen(learned), seen(held_out)) == (1.0, 0.0)
    assert seen([*learned, *held_out]) == len(learned) / 200
    assert seen_in_training(small_model(), blocks.sketch) is None
    loaded.head = None
    assert seen(learned) is None


def test_heads_that_learn_on_have_seen_both(tmp_path: Path) -> None:
    tokenizer, model = load_tokenizer("tiny"), small_model(vocab=1024)
    texts = documents(0, 100), documents(100, 200)
    packed = PackedBlocks.from_documents(texts[0], tokenizer, 16)
    stream = StreamedBlocks(lambda: texts[1], tokenizer, 16, window=8)
    for number, blocks in enumerate((packed, stream)):
        config = settings(recipe="frozen", steps=20, save_every=0)
        train(model, blocks, config, tmp_path / f"{number}")
    known = Sketch.from_dict(model.trained_on)
    assert packed.sketch.share_in(known) == 1.0
    assert sketch(100, 110).share_in(known) == 1.0
    assert sketch(200, 300).share_in(known) == 0.0


@pytest.mark.parametrize("trained_on", [{"digests": 5}, {"digests": "x"}, {"bound": []}])
def test_what_heads_say_of_it_is_read_with_suspicion(trained_on: dict) -> None:
    model = small_model()
    model.trained_on = trained_on
    with pytest.raises(ft.CheckpointError, match="trained_on"):
        seen_in_training(model, sketch(0, 3))


@pytest.mark.parametrize(("share", "said"), [(None, None), (0.01, None), (1.0, SEEN)])
def test_a_few_copies_are_not_worth_a_word(share: float | None, said: str | None) -> None:
    assert describe_seen(share) == said


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_commands_and_reports_say_it(tmp_path: Path, command: str) -> None:
    """By what the texts say: a copy under another name, from another directory, counts."""
    backbone().save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    learned, copy, other = (tmp_path / f"{name}.py" for name in ("learned", "copy", "other"))
    for file in (learned, copy):
        file.write_text(TEXT * 3)
    other.write_text(TEXT.replace("mean", "average") * 3)
    fine(
        "train", tmp_path / "plain", "--data", learned, "--out", tmp_path / "run",
        "--steps", 1, "--batch-size", 1, "--block-size", 32,
    )  # fmt: skip
    model = tmp_path / "run" / "model"
    option = "--data" if command == "eval" else "--prompts"
    more = ("--block-size", 32) if command == "eval" else (
        "--count", 1, "--prompt-tokens", 8, "--max-new-tokens", 4, "--repeats", 1,
        "--include-loops",
    )  # fmt: skip
    for text, share in ((copy, 1.0), (other, 0.0)):
        out = fine(command, model, option, text, *more, "--json", tmp_path / "found.json")
        assert (SEEN in out) == bool(share)
        result = read_result(tmp_path / "found.json")
        assert result.settings["seen_in_training"] == share
        write_report([tmp_path / "found.json"], tmp_path / "page.html")
        assert (SEEN in (tmp_path / "page.html").read_text()) == bool(share)
    stored = json.loads((model / CONFIG_FILE).read_text())
    (model / CONFIG_FILE).write_text(json.dumps({**stored, "trained_on": {"digests": "none"}}))
    assert "trained_on" in refused(command, model, option, copy, *more)


def test_many_passes_are_warned_of_as_soon_as_they_are_known(tmp_path: Path) -> None:
    """24 rows in batches of 4."""
    plans: list[Plan] = []
    config = settings(recipe="frozen", steps=1, save_every=0)
    train(small_model(), corpus(), config, tmp_path / "run", begin=plans.append)
    (plan,) = plans
    assert plan.rows == 24
    assert replace(plan, steps=120).too_many_passes() is None
    assert replace(plan, steps=240).too_many_passes() == 40
    timed = replace(plan, steps=None, minutes=1.0)
    assert timed.too_many_passes() is None
    assert timed.too_many_passes(seconds=0.25) == 40
    assert replace(timed, steps=120).too_many_passes(seconds=0.25) is None
    assert replace(plan, rows=None, steps=10**6).too_many_passes() is None


@pytest.mark.parametrize(("limit", "said"), [(("--steps", 30), True), (("--steps", 5), False)])
def test_train_warns_of_many_passes(tmp_path: Path, limit: tuple, said: bool) -> None:
    (tmp_path / "text.py").write_text(TEXT * 3)
    torch.manual_seed(0)
    backbone().save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    out = fine(
        "train", tmp_path / "plain", "--data", tmp_path / "text.py", "--out", tmp_path / "run",
        "--batch-size", 16, "--block-size", 32, "--set", "head.depth=1", "--save-every", 0, *limit,
    )  # fmt: skip
    assert ("passes over" in out and "learned by heart" in out) == said
