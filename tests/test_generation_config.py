"""What a checkpoint's generation config asks for, as transformers' own `generate` does it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

import families
import foretell as ft
from command_line import fine, run
from foretell.checkpoints import load_tokenizer
from foretell.decoding import (
    Batch,
    DecodeOptions,
    LookupDrafter,
    NoDrafter,
    Sampling,
    StopTokens,
    decode,
)
from foretell.decoding.constraints import left_out, obeyed
from foretell.errors import InputError
from foretell.evaluation import Transformers

pytestmark = pytest.mark.usefixtures("_tried_once")

NEW = 16
ROW = families.prompt(1, 30, seed=3)
HALF = list(range(50))
ASKED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "sequence_bias": {"sequence_bias": [[[5], 40.0], [[5, 6], 40.0]]},
    "bad_words_ids": {"bad_words_ids": [[n] for n in range(60)]},
    "suppress_tokens": {"suppress_tokens": list(range(60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(100))},
    "forced_bos_token_id": {"forced_bos_token_id": 5},  # only behind a prompt of one token
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": HALF},
    "min_length": {"min_length": 42, "eos_token_id": HALF},
    "min_length, min_new_tokens": {"min_length": 46, "min_new_tokens": 3, "eos_token_id": HALF},
    "exponential": {"exponential_decay_length_penalty": (3, 1.9), "eos_token_id": [7, 8]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "watermarking_config": {"watermarking_config": {"bias": 2.5, "seeding_scheme": "selfhash"}},
    "drawn": {"do_sample": True, "temperature": 0.3, "top_k": 3, "top_p": 0.5},
    "several": {"repetition_penalty": 1.2, "suppress_tokens": HALF, "no_repeat_ngram_size": 2},
}
BY_LENGTH = ("min_length", "watermarking_config")
"""What transformers counts padding for, or looks at it for."""


@cache
def attached(family: str) -> ft.MTPModel:
    torch.manual_seed(5)
    return ft.attach(families.build(family), "parallel", depth=3).eval()


@contextmanager
def asking(model: ft.MTPModel, **options: Any) -> Iterator[None]:
    """With a generation config that asks for something."""
    own = model.lm.generation_config
    model.lm.generation_config = deepcopy(own)
    model.lm.generation_config.update(**options)
    try:
        yield
    finally:
        model.lm.generation_config = own


def theirs(model: ft.MTPModel, rows: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """transformers' own."""
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    found: Tensor = model.lm.generate(rows, attention_mask=mask, **options)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("name", ASKED)
def test_it_is_obeyed_as_transformers_obeys_it(name: str) -> None:
    model = attached("llama")
    row = ROW[:, :1] if name == "forced_bos_token_id" else ROW
    bare = theirs(model, row)
    with asking(model, **ASKED[name]):
        own = theirs(model, row)
        assert torch.equal(own, bare) == (name == "drawn")
        for drafter in (None, LookupDrafter(3), NoDrafter()):
            assert torch.equal(
                model.decode(row, max_new_tokens=NEW, drafter=drafter).sequences, own
            )


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("llama", name) for name in ASKED if name not in BY_LENGTH),
        ("qwen3_next", "several"),  # rows one after another
    ],
)
def test_every_row_has_its_own(family: str, name: str) -> None:
    model, short = attached(family), families.prompt(1, 5, seed=8)
    rows = torch.cat([ROW, pad(short, (25, 0), value=3)])
    mask = torch.tensor([[1] * 30, [0] * 25 + [1] * 5])
    with asking(model, pad_token_id=100, **ASKED[name]):
        own = [theirs(model, row)[0, row.shape[1] :].tolist() for row in (ROW, short)]
        found = model.decode(rows, mask, max_new_tokens=NEW).continuations
        assert found == [row[: len(mine)] for row, mine in zip(own, found, strict=True)]
        assert all(set(row[len(mine) :]) <= {100} for row, mine in zip(own, found, strict=True))


def test_what_generate_gives_back_is_not_its_own_to_say() -> None:
    model = attached("llama")
    bare = Transformers(model)(ROW, NEW)
    with asking(model, prompt_lookup_num_tokens=3, return_dict_in_generate=True, max_time=0.0):
        assert Transformers(model)(ROW, NEW) == bare
    assert bare.forwards == NEW


def test_what_it_says_can_be_written_down() -> None:
    model = attached("llama")
    marked = {"watermarking_config": {"bias": 2.5}, "sequence_bias": {(5, 6): 4.0}}
    with asking(model, **marked, temperature=0.5, do_sample=True):
        assert json.loads(json.dumps(obeyed(model.lm))).keys() == marked.keys()
        assert left_out(model.lm) == {"do_sample": True, "temperature": 0.5}
    with asking(model, temperature=0.5):
        assert left_out(model.lm) == obeyed(model.lm) == {}


def test_what_is_asked_for_takes_its_place() -> None:
    model = attached("llama")
    bare = theirs(model, ROW)
    with asking(model, repetition_penalty=1.7):
        for penalty in (1.0, 3.0):
            sampling = Sampling(repetition_penalty=penalty)
            found = model.decode(ROW, max_new_tokens=NEW, sampling=sampling).sequences
            assert torch.equal(found, theirs(model, ROW, repetition_penalty=penalty))
            assert torch.equal(found, bare) == (penalty == 1)


def test_drawn_tokens_obey_it_too() -> None:
    model = attached("llama")
    with asking(model, suppress_tokens=HALF):
        sampling = Sampling(temperature=2.0)
        found = model.decode(ROW.expand(20, -1), max_new_tokens=5, sampling=sampling)
    drawn = [token for row in found.continuations for token in row]
    assert min(drawn) >= 50
    assert len(set(drawn)) > 10


def test_a_row_taken_up_again_goes_on_where_it_was() -> None:
    """What counts from the prompt on does so in the server's batches that are begun anew."""
    model = attached("llama")
    with asking(model, min_new_tokens=12, begin_suppress_tokens=HALF, eos_token_id=HALF):
        whole = model.decode(ROW, max_new_tokens=NEW).new_tokens
        again = torch.cat([ROW, torch.tensor([whole[:5]])], dim=1)
        stops = [StopTokens(HALF)]
        batch = Batch(model.backbone, again, None, NEW - 5, stops, prompt_lengths=[ROW.shape[1]])
        steps = decode(model.backbone, batch, DecodeOptions())
        assert [token for (step,) in steps for token in step.tokens] == whole[5:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "asks for beam search, which drafts cannot follow"),
        ({"num_beams": 2, "do_sample": True}, "asks for beam search"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "asks for contrastive search"),
        ({"guidance_scale": 1.5}, "Unbatched.* has to be called on the whole batch"),
    ],
)
def test_what_drafts_cannot_follow_is_refused(options: dict[str, Any], message: str) -> None:
    model = attached("llama")
    with asking(model, **options), pytest.raises(InputError, match=message):
        model.decode(ROW, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0.0}, "cannot be obeyed: `penalty` has to be"),
        ({"repetition_penalty": "1.2"}, "cannot be obeyed: `penalty` has to be"),
        ({"bad_words_ids": []}, "cannot be obeyed: `bad_words_ids` has to be"),
        ({"suppress_tokens": ["a"]}, "cannot be obeyed"),
        ({"min_new_tokens": "3"}, "cannot be obeyed"),
        ({"bad_words_ids": [[500]]}, "NoBadWords.* cannot be obeyed: .* vocabulary size is 101"),
        ({"sequence_bias": [[[500], 1.0]]}, "SequenceBias.* cannot be obeyed"),
        ({"forced_eos_token_id": 500}, "ForcedEOS.* cannot be obeyed"),
        ({"eos_token_id": "5"}, "eos_token_id of the generation config is '5'; it must be a token"),
    ],
)
@pytest.mark.parametrize("way", ["decode", "generate"])
def test_what_makes_no_sense_is_refused(way: str, options: dict[str, Any], message: str) -> None:
    """As transformers refuses it, in one line of ours."""
    model = attached("llama")
    with asking(model, **options), pytest.raises(InputError, match=message):
        getattr(model, way)(ROW, max_new_tokens=2)


# -- padding --------------------------------------------------------------------------------------


def test_padding_without_a_mask_is_inferred_as_there() -> None:
    model, short = attached("llama"), families.prompt(1, 5, seed=8)
    short[short == 9] = 10
    rows = torch.cat([ROW.masked_fill(ROW == 9, 10), pad(short, (25, 0), value=9)])
    with asking(model, pad_token_id=9, eos_token_id=7):
        found = model.decode(rows, max_new_tokens=NEW, drafter=LookupDrafter(3))
        assert torch.equal(found.sequences, theirs(model, rows))
        alone = model.decode(short, max_new_tokens=NEW).new_tokens
        assert found.continuations[1] == alone
        assert (
            model.decode(rows, torch.ones_like(rows), max_new_tokens=NEW).continuations[1] != alone
        )
        middle = torch.tensor([[3, 9, 4]])
        with pytest.raises(InputError, match="the padding token 9 in its middle"):
            model.decode(middle, max_new_tokens=2)
        assert model.decode(middle, torch.ones_like(middle), max_new_tokens=2).new_tokens


@pytest.mark.parametrize("ends", [9, [7, 9]])
def test_padding_that_also_ends_texts_is_read_as_there(ends: Any) -> None:
    model = attached("llama")
    rows = torch.tensor([[3, 5, 9, 4, 6], [9, 9, 9, 4, 6]])
    with asking(model, pad_token_id=9, eos_token_id=ends):
        assert torch.equal(model.decode(rows, max_new_tokens=NEW).sequences, theirs(model, rows))


@pytest.mark.parametrize("padding", [None, 9])
def test_rows_are_filled_up_as_there(padding: int | None) -> None:
    model = attached("llama")
    rows = families.prompt(4, 9, seed=3)
    ends = theirs(model, rows)[0, 12].item()  # the first row ends early
    with asking(model, pad_token_id=padding, eos_token_id=[ends, 100]):
        own = theirs(model, rows, torch.ones_like(rows))
        found = model.decode(rows, torch.ones_like(rows), max_new_tokens=NEW)
        assert len({len(row) for row in found.continuations}) > 1
        assert torch.equal(found.sequences, own)


# -- stop strings, and the commands ---------------------------------------------------------------


def test_its_stop_strings_end_texts() -> None:
    model, tokenizer = ft.MTPModel.from_pretrained("tiny"), load_tokenizer("tiny")
    row = torch.tensor([tokenizer("def main(")["input_ids"]])
    bare = model.decode(row, max_new_tokens=24).new_tokens
    string = tokenizer.decode(bare[10:12])
    with asking(model, stop_strings=[string]):
        found = model.decode(row, max_new_tokens=24, tokenizer=tokenizer).sequences
        own = theirs(model, row, torch.ones_like(row), max_new_tokens=24, tokenizer=tokenizer)
        assert torch.equal(found, own)
        assert found.shape[1] < row.shape[1] + 24
        with pytest.raises(InputError, match="need the tokenizer too"):
            model.decode(row, max_new_tokens=24)
        nowhere = model.decode(row, max_new_tokens=24, stop_strings=())
        assert nowhere.new_tokens == bare


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that asks for much."""
    place = tmp_path_factory.mktemp("asking")
    model, tokenizer = ft.MTPModel.from_pretrained("tiny"), load_tokenizer("tiny")
    model.lm.generation_config.update(
        do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.3, no_repeat_ngram_size=3
    )
    model.save_pretrained(place, tokenizer=tokenizer)
    return place


def test_commands_say_what_they_take_from_it(place: Path, tmp_path: Path) -> None:
    asked = ("generate", place, "--prompt", "def main(", "--max-new-tokens", 12)
    ran, other = run(*asked), run("generate", "tiny", *asked[2:])
    assert ran.status == 0, ran.err
    assert "From its generation config: repetition_penalty 1.3, no_repeat_ngram_size 3." in ran.err
    assert "Not from its generation config: do_sample True, temperature 0.7, top_k 20;" in ran.err
    assert "generation config" not in other.err
    assert ran.out != other.out
    plain = run(*asked, "--repetition-penalty", 1)
    assert "From its generation config: no_repeat_ngram_size 3." in plain.err
    size = ("--count", 1, "--prompt-tokens", 12, "--max-new-tokens", 10, "--repeats", 1)
    prompts = tmp_path / "text.py"
    prompts.write_text("def main(arguments):\n    return arguments\n" * 20)
    out = fine("bench", place, "--prompts", prompts, *size, "--include-loops")
    assert "From its generation config: repetition_penalty 1.3" in out
    assert out.count("1 of 1") == 4  # plain, lookup, and both of transformers'
