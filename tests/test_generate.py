"""`MTPModel.generate`: what transformers' users write gives what it gives there."""

import inspect
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

import families
import foretell as ft
from foretell.checkpoints import load_tokenizer
from foretell.decoding import Generation, NoDrafter, Sampler, Sampling
from foretell.errors import InputError
from foretell.generation import GenerateOptions
from foretell.generation.translation import SEARCHES, UNREAD, translated

NEW = 12
ROW = families.prompt(1, 9, seed=3)
PAIR = torch.cat([ROW, pad(families.prompt(1, 5, seed=8), (4, 0), value=3)])
MASK = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])


@cache
def model() -> ft.MTPModel:
    torch.manual_seed(5)
    found = ft.attach(families.build("llama"), "parallel", depth=3).eval()
    found.generation_config.update(pad_token_id=0, eos_token_id=100)
    return found


def theirs(*args: Any, **options: Any) -> Any:
    return model().lm.generate(*args, **options)  # type: ignore[operator]


@cache
def seventh() -> int:
    """A token that greedy decoding comes to."""
    return int(theirs(ROW, max_new_tokens=NEW)[0, 15])


class Seen(BaseStreamer):
    """What a streamer is shown."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.shown.append(value.tolist())

    def end(self) -> None:
        self.shown.append("end")


class AfterThree(StoppingCriteria):
    """Ends a row with its third new token, by the length that it is shown."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 12)


class Never(torch.nn.Module):
    """Forbids a token."""

    def forward(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, seventh()] = -torch.inf
        return scores


# -- the same tokens ------------------------------------------------------------------------------

SAME: dict[str, dict[str, Any]] = {
    "bare": {"max_new_tokens": NEW},
    "max_length": {"max_length": 15},
    "both lengths": {"max_length": 11, "max_new_tokens": 6},
    "min_new_tokens": {"max_new_tokens": NEW, "min_new_tokens": 9, "eos_token_id": [7, 100]},
    "eos": {"max_new_tokens": NEW, "eos_token_id": 7},
    "no eos": {"max_new_tokens": NEW, "eos_token_id": None},
    "padding": {"max_new_tokens": NEW, "eos_token_id": 7, "pad_token_id": 5},
    "penalty": {"max_new_tokens": NEW, "repetition_penalty": 1.7},
    "others": {"max_new_tokens": NEW, "no_repeat_ngram_size": 1, "suppress_tokens": [1, 2, 3]},
    "config": {"generation_config": GenerationConfig(max_new_tokens=5, repetition_penalty=1.7)},
    "over config": {"generation_config": GenerationConfig(max_new_tokens=5), "max_new_tokens": 8},
    "greedy by word": {"max_new_tokens": NEW, "do_sample": False, "temperature": None},
    "neutral": {"max_new_tokens": NEW, "num_beams": 1, "use_cache": True, "guidance_scale": 1.0},
    "criteria": {"max_new_tokens": NEW, "stopping_criteria": [AfterThree()]},
    "their criteria": {
        "max_new_tokens": NEW,
        "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(13)]),
    },
}


@pytest.mark.parametrize("drafter", [None, "lookup"])
@pytest.mark.parametrize("name", SAME)
def test_greedy_output_is_that_of_transformers(name: str, drafter: str | None) -> None:
    options = dict(SAME[name])
    if options.get("eos_token_id") == 7:
        options["eos_token_id"] = seventh()
    for ids, mask in ((ROW, torch.ones_like(ROW)), (PAIR, MASK)):
        own = theirs(ids, attention_mask=mask, **options)
        found = model().generate(ids, mask, drafter=drafter, **options)
        assert isinstance(found, Tensor)
        assert torch.equal(found, own), name


def test_the_type_of_token_ids_is_that_of_transformers() -> None:
    found = model().generate(ROW.int(), max_new_tokens=2)
    assert found.dtype == theirs(ROW.int(), max_new_tokens=2).dtype == torch.int64


def test_processors_are_honoured_on_drafts_too() -> None:
    for own in (NoRepeatNGramLogitsProcessor(1), Never()):
        options: dict[str, Any] = {
            "max_new_tokens": NEW, "logits_processor": LogitsProcessorList([own])
        }  # fmt: skip
        expected = theirs(ROW, **options)
        assert torch.equal(model().generate(ROW, **options), expected)
        assert not torch.equal(expected, theirs(ROW, max_new_tokens=NEW))
    with pytest.raises(ft.InputError, match="logits_processor cannot be honoured beside padding"):
        model().generate(PAIR, MASK, **options)


def test_the_order_of_what_counts_is_transformers_own() -> None:
    own = model().generation_config
    try:
        model().generation_config = GenerationConfig(
            pad_token_id=0, eos_token_id=100, max_new_tokens=4, repetition_penalty=1.7
        )
        given = GenerationConfig(max_new_tokens=6)
        for options, count in (
            ({}, 4),
            ({"max_new_tokens": 5}, 5),
            ({"generation_config": given}, 6),
        ):
            expected = theirs(ROW, **options)
            assert expected.shape == (1, 9 + count)
            assert torch.equal(model().generate(ROW, **options), expected)
    finally:
        model().generation_config = own


def test_without_a_length_there_are_twenty_tokens_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="model-agnostic default"):
        own = theirs(ROW)
    with pytest.warns(UserWarning, match="20 new tokens; give max_new_tokens"):
        found = model().generate(ROW)
    assert torch.equal(found, own)
    assert found.shape == (1, 29)


def test_stop_strings_end_where_they_do_there() -> None:
    tiny, tokenizer = ft.MTPModel.from_pretrained("tiny"), load_tokenizer("tiny")
    given = tokenizer("def main(", return_tensors="pt")
    bare = tiny.generate(**given, max_new_tokens=16)
    string = tokenizer.decode(bare[0, -6:-4])
    options: dict[str, Any] = {"max_new_tokens": 16, "stop_strings": string}
    found = tiny.generate(**given, tokenizer=tokenizer, **options)
    assert torch.equal(found, tiny.lm.generate(**given, tokenizer=tokenizer, **options))
    assert found.shape[1] < bare.shape[1]
    with pytest.raises(ft.InputError, match="need the tokenizer too"):
        tiny.generate(**given, **options)


def test_a_dictionary_has_sequences_and_what_was_drafted() -> None:
    found = model().generate(ROW, max_new_tokens=NEW, return_dict_in_generate=True)
    assert isinstance(found, Generation)
    assert torch.equal(found["sequences"], theirs(ROW, max_new_tokens=NEW))
    assert found.forwards == len(found["steps"])


@pytest.mark.parametrize(("ids", "mask"), [(ROW, None), (PAIR, MASK)])
def test_streamers_are_shown_what_they_are_shown_there(ids: Tensor, mask: Tensor | None) -> None:
    mask = torch.ones_like(ids) if mask is None else mask
    own, ours = Seen(), Seen()
    options: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": seventh()}
    theirs(ids, attention_mask=mask, streamer=own, **options)
    model().generate(ids, mask, streamer=ours, **options)
    assert ours.shown == own.shown
    assert ours.shown[0] == ids.tolist()
    assert ours.shown[-1] == "end"


def test_without_a_prompt_it_begins_with_the_first_token() -> None:
    found = model().generate(max_new_tokens=3, bos_token_id=4)
    assert torch.equal(found, theirs(max_new_tokens=3, bos_token_id=4))


def test_it_leaves_training_as_it_was() -> None:
    torch.manual_seed(5)
    other = ft.attach(families.build("llama"), "parallel", depth=2).train()
    other.lm.model.layers[0].eval()
    before = [module.training for module in other.modules()]
    other.generate(ROW, max_new_tokens=3)
    assert [module.training for module in other.modules()] == before
    assert True in before
    assert False in before


# -- drawing --------------------------------------------------------------------------------------

DRAWN: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_k": None, "top_p": 0.6},
    {"top_k": 0, "min_p": 0.2},
    {"temperature": None, "typical_p": 0.5},
    {"top_h": 0.4},
    {"epsilon_cutoff": 0.01, "top_k": 20},
    {"eta_cutoff": 0.02, "temperature": 1.5},
]


@pytest.mark.parametrize("options", DRAWN)
def test_tokens_are_drawn_from_what_transformers_draws_from(options: dict[str, Any]) -> None:
    lm = model().lm
    asked: dict[str, Any] = {"do_sample": True, "max_new_tokens": 4, **options}
    request = translated(lm, {"input_ids": ROW, **asked})
    logits = torch.randn(1, 3, families.VOCAB) * 3
    found = Sampler(request.sampling, 1, lm.device).warped(logits.clone())
    prepare: Any = GenerationMixin._prepare_generation_config
    config, _ = prepare(lm, None, **asked)
    config._eos_token_tensor = None
    own = lm._get_logits_processor(config, 9, ROW)
    for place in range(3):
        assert torch.equal(found[:, place], own(ROW, logits[:, place].clone()))


def test_draws_are_fresh_unless_a_seed_is_given() -> None:
    asked: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True}
    first, second = model().generate(ROW, **asked), model().generate(ROW, **asked)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    again = model().generate(ROW, **asked)
    torch.manual_seed(0)
    assert torch.equal(model().generate(ROW, **asked), again)
    state = torch.get_rng_state()
    seeded = model().generate(ROW, seed=3, **asked)
    assert torch.equal(model().generate(ROW, seed=3, **asked), seeded)
    assert torch.equal(torch.get_rng_state(), state)
    many = model().generate(ROW, seed=3, num_return_sequences=4, **asked)
    assert many.shape[0] == 4
    assert torch.equal(many[:1, : seeded.shape[1]], seeded)
    assert len({tuple(row) for row in many.tolist()}) == 4


def test_a_generation_config_that_draws_is_followed() -> None:
    given = GenerationConfig(do_sample=True, max_new_tokens=NEW, top_k=1)
    assert torch.equal(
        model().generate(ROW, generation_config=given), theirs(ROW, max_new_tokens=NEW)
    )


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SEARCHES, *UNREAD])
def test_what_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    value: Any = [[5]] if name in ("constraints", "force_words_ids") else 2
    value = {"cache_implementation": "static", "output_scores": True}.get(name, value)
    with pytest.raises(ft.InputError, match=rf"{name}.* cannot be honoured"):
        model().generate(ROW, max_new_tokens=2, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 3}, "no argument max_new_token; did you mean max_new_tokens?"),
        ({"max_length": 9}, "max_length is 9 and the prompt has 9 tokens already"),
        ({"max_new_tokens": 0}, "must be greater than 0"),
        ({"max_new_tokens": 2, "num_return_sequences": 2}, "Greedy methods"),
        ({"max_new_tokens": 2, "do_sample": True, "temperature": 0.0}, "give one over 0"),
        ({"max_new_tokens": 2, "do_sample": True, "top_p": -2.0}, "top_p"),
        ({"max_new_tokens": 2, "drafter": "nonsense"}, "model 'nonsense' does not exist"),
        ({"max_new_tokens": 2, "rule": "nonsense"}, "the rule 'nonsense' is unknown"),
        ({"max_new_tokens": 2, "inputs": ROW}, "give one of them"),
        ({"generation_config": {"max_new_tokens": 2}}, "generation_config is a dict"),
        ({"max_new_tokens": 2, "token_type_ids": torch.ones(1, 9)}, "token_type_ids"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ft.InputError, match=message.replace("?", r"\?")):
        model().generate(ROW, **options)


@pytest.mark.parametrize("way", ["decode", "stream"])
def test_tokens_that_are_no_tensor_are_refused(way: str) -> None:
    model = ft.MTPModel(families.build("llama"))
    with pytest.raises(ft.InputError, match="return_tensors='pt'"):
        getattr(model, way)([1, 2, 3], max_new_tokens=2)


def test_texts_are_no_prompts() -> None:
    tokenizer = load_tokenizer("tiny")
    for wrong in ("def main(", [[1, 2]], tokenizer("def", return_tensors="pt")):
        with pytest.raises(ft.InputError, match=r"give \*\*tokenizer"):
            model().generate(wrong, max_new_tokens=2)  # type: ignore[call-overload]


@pytest.mark.parametrize("way", ["decode", "generate"])
def test_prompts_and_masks_that_are_no_rows_are_refused(way: str) -> None:
    ask = getattr(ft.MTPModel(families.build("llama")), way)
    for prompts in (torch.tensor([1, 2]), torch.tensor(1), torch.ones(1, 2, 2).long()):
        with pytest.raises(ft.InputError, match=r"the prompts have shape \(.*; give rows"):
            ask(prompts, max_new_tokens=2)
    for mask, message in ((torch.ones(2), r"shape \(2,\)"), ([[1, 1]], "is a list; give a tensor")):
        with pytest.raises(ft.InputError, match=f"the attention mask .*{message}"):
            ask(torch.tensor([[1, 2]]), mask, max_new_tokens=2)


def test_the_signature_says_what_the_types_say() -> None:
    given = inspect.signature(ft.MTPModel.generate).parameters
    named = {name for name, each in given.items() if each.kind is each.KEYWORD_ONLY}
    others = {
        "min_length", "max_time", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens",
        "use_cache", "token_type_ids",
    }  # fmt: skip
    assert named | others == GenerateOptions.__annotations__.keys() | {"return_dict_in_generate"}
    assert others - {"use_cache", "token_type_ids"} <= vars(GenerationConfig()).keys()


# -- what else a transformers model has -----------------------------------------------------------


def test_drafters_are_known_by_name() -> None:
    expected = theirs(ROW, max_new_tokens=NEW)
    for options in (
        {"drafter": "heads", "draft_length": 2, "rule": "exact"},
        {"drafter": "lookup", "draft_length": "auto"},
        {"drafter": NoDrafter()},
    ):
        assert torch.equal(model().generate(ROW, max_new_tokens=NEW, **options), expected)
        assert torch.equal(model().decode(ROW, max_new_tokens=NEW, **options).sequences, expected)


def test_a_draft_model_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.build("llama").save_pretrained(tmp_path / "small")
    loaded = []
    load = ft.MTPModel.from_pretrained

    def noted(path: str, **options: Any) -> ft.MTPModel:
        loaded.append(path)
        return load(path, **options)

    monkeypatch.setattr(ft.MTPModel, "from_pretrained", noted)
    name = str(tmp_path / "small")
    for _ in range(2):
        found = model().generate(ROW, max_new_tokens=NEW, drafter=name)
        assert torch.equal(found, theirs(ROW, max_new_tokens=NEW))
    assert loaded == [name]


def test_it_answers_as_the_backbone_does() -> None:
    lm = model().lm
    assert (model().device, model().dtype) == (lm.device, lm.dtype)
    assert model().config is lm.config
    assert model().generation_config is lm.generation_config
    for mask in (None, MASK):
        with torch.no_grad():
            own = lm(PAIR, attention_mask=mask).logits
            found = model()(PAIR, attention_mask=mask)
        seen = torch.ones_like(PAIR).bool() if mask is None else mask.bool()
        assert torch.allclose(found.logits[seen], own[seen], atol=1e-5)
    alone = model()(PAIR[1:, 4:])
    padded = model()(PAIR[1:], attention_mask=MASK[1:], position_ids=None)
    assert padded.depth_losses.shape == alone.depth_losses.shape == (4,)
    labels = PAIR.masked_fill(MASK == 0, -100)
    said = model()(PAIR, attention_mask=MASK, labels=labels)
    assert torch.equal(said.loss, model()(PAIR, attention_mask=MASK).loss)
    assert said.loss.requires_grad


def test_pipelines_take_it() -> None:
    tiny, tokenizer = (
        ft.MTPModel.from_pretrained("tiny-mtp", dtype="float32"),
        load_tokenizer("tiny-mtp"),
    )
    asked: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    own = pipeline("text-generation", model=tiny.lm, tokenizer=tokenizer)
    ours = pipeline("text-generation", model=tiny, tokenizer=tokenizer)  # type: ignore[call-overload]
    assert ours("def main(", **asked) == own("def main(", **asked)
    assert "MTPModel" in repr(ours)


def test_attach_loads_what_it_is_given_by_name(tmp_path: Path) -> None:
    families.build("llama").save_pretrained(tmp_path / "backbone")
    for place in (tmp_path / "backbone", str(tmp_path / "backbone")):
        found = ft.attach(place, "parallel", depth=2)
        assert found.depth == 2
        assert found.tokenizer_path == str(tmp_path / "backbone")
    with pytest.raises(ft.InputError, match="does not exist"):
        ft.attach("nowhere", "parallel", depth=1)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu")])
def test_device_maps_name_one_device(tmp_path: Path, device_map: Any) -> None:
    families.build("llama").save_pretrained(tmp_path / "backbone")
    found = ft.MTPModel.from_pretrained(
        tmp_path / "backbone", device_map=device_map, dtype=torch.bfloat16
    )
    assert found.dtype == torch.bfloat16
    if device_map != "auto":
        assert found.device == torch.device("cpu")


@pytest.mark.parametrize(
    "device_map", ["balanced", {"model": 0, "lm_head": "cpu"}, {"": "disk"}, {}]
)
def test_device_maps_that_spread_a_model_are_refused(device_map: Any) -> None:
    with pytest.raises(ft.InputError, match="one device"):
        ft.MTPModel.from_pretrained("tiny", device_map=device_map)


def test_it_is_pushed_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            asked["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            asked["repository"] = repo_id, options

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> Any:
            asked["upload"] = repo_id, options
            folder_path.rename(tmp_path / "there")
            return type("Commit", (), {"commit_url": "https://hub/commit/1"})

    monkeypatch.setattr("foretell.checkpoints.saving.HfApi", Api)
    url = model().push_to_hub("owner/name", private=True, token="t", commit_message="First")
    assert url == "https://hub/commit/1"
    assert asked["token"] == "t"
    assert asked["repository"] == ("owner/name", {"private": True, "exist_ok": True})
    assert asked["upload"] == ("owner/name", {"commit_message": "First"})
    again = ft.MTPModel.from_pretrained(tmp_path / "there")
    assert torch.equal(again.generate(ROW, max_new_tokens=4), theirs(ROW, max_new_tokens=4))
    with pytest.raises(ft.InputError, match="a directory of this machine"):
        model().push_to_hub("owner/name", backbone_path=str(tmp_path))


PROGRAM = """
import torch
import foretell as ft
from foretell.decoding import Generation
from transformers import PreTrainedConfig

model = ft.attach("owner/name", "parallel", depth=3)
ids = torch.tensor([[1, 2]])
sequences: torch.Tensor = model.generate(ids, max_new_tokens=8, do_sample=True, top_p=0.9)
whole: Generation = model.generate(ids, max_new_tokens=8, return_dict_in_generate=True)
ours: Generation = model.decode(ids, max_new_tokens=8, drafter="lookup", rule="exact")
config: PreTrainedConfig = model.config
logits: torch.Tensor = model.forward(ids).logits
model.generate(ids, max_new_token=8)  # error
model.decode(ids, max_new_tokens="many")  # error
with ft.patch(model.lm, "lookup") as patched:
    patched.undo()
"""


@pytest.mark.slow
def test_types_are_complete_in_an_editor(tmp_path: Path) -> None:
    """mypy over a sample program finds the two mistakes in it and nothing else."""
    program, root = tmp_path / "program.py", Path(__file__).parents[1]
    program.write_text(PROGRAM)
    ran = subprocess.run(  # with the settings, and the cache, of `make test`
        [sys.executable, "-m", "mypy", str(program)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = [n for n, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")]
    found = {int(line.split(":")[1]) for line in ran.stdout.splitlines() if ": error:" in line}
    assert found == set(wrong), ran.stdout + ran.stderr


ODD: dict[str, tuple[dict[str, object], str]] = {
    "half a token": ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; give a whole number"),
    "no length": ({"max_new_tokens": None}, "max_new_tokens is None; give a whole number"),
    "text": ({"max_new_tokens": "5"}, "max_new_tokens is '5'; give a whole number"),
    "half a draft": ({"draft_length": 1.5}, "draft_length is 1.5; give a whole number"),
    "a draft of text": ({"draft_length": "x"}, "draft_length is 'x'; give a whole number"),
    "a drafter's number": ({"drafter": 5}, "drafter is 5; give one, or its name"),
    "a rule's number": ({"rule": 5}, "rule is 5; give an acceptance rule"),
    "half a width": ({"pass_width": 2.5}, "pass_width is 2.5; give a whole number"),
    "text that ends": ({"stop_tokens": ["a"]}, "stop_tokens is 'a'; give a whole number"),
    "a dictionary": ({"sampling": {"temperature": 1}}, "sampling is .* give a foretell.decoding"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_decode_cannot_read_is_refused_in_one_line(case: str) -> None:
    told, problem = ODD[case]
    model = ft.MTPModel(families.build("llama"))
    with pytest.raises(InputError, match=problem) as caught:
        model.decode(families.prompt(2, 5), **{"max_new_tokens": 4, **told})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "told",
    [{"temperature": "1"}, {"top_k": 1.5}, {"top_p": True}, {"seeds": 1.5}, {"seeds": ["a"]}],
)
def test_sampling_is_told_numbers(told: dict) -> None:
    with pytest.raises(InputError, match=r"; give a (whole )?number"):
        Sampling(**told)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    model = ft.MTPModel(families.build("llama"))
    ids, sampled = families.prompt(2, 5), Sampling(temperature=1.0, seeds=3)
    plain = model.decode(ids, max_new_tokens=4, stop_tokens=(7,), sampling=sampled).continuations
    for number in (np.int64, torch.tensor):
        told = {"max_new_tokens": number(4), "stop_tokens": number(7)}
        sampling = replace(sampled, seeds=[number(3), number(4)])
        assert model.decode(ids, **told, sampling=sampling).continuations == plain
    assert replace(sampled, seeds=np.int64(3)).seeds == 3


@pytest.mark.parametrize(
    "told", [{"stop_strings": []}, {"is_assistant": False}, {"max_new_tokens": 3.5}], ids=str
)
def test_what_asks_for_nothing_is_heard(told: dict) -> None:
    model, ids = ft.MTPModel(families.build("llama")), families.prompt(2, 5)
    model.generation_config.is_assistant = True  # for a draft model of transformers
    expected = model.lm.generate(ids, is_assistant=False, do_sample=False, max_new_tokens=4)
    assert torch.equal(
        model.generate(ids, **{"max_new_tokens": 4, "do_sample": False, **told}), expected
    )


def test_fewer_texts_than_one_are_refused() -> None:
    model = ft.MTPModel(families.build("llama"))
    with pytest.raises(InputError, match="num_return_sequences is -1; ask for at least 1"):
        model.generate(families.prompt(), max_new_tokens=4, do_sample=True, num_return_sequences=-1)


def test_token_0_can_end_texts_too() -> None:
    lm = families.build("llama")
    lm.generation_config.pad_token_id = 0
    model = ft.MTPModel(lm)
    prompt = torch.tensor([[0, 6, 7]])
    one = model.decode(prompt, max_new_tokens=6, stop_tokens=0)
    several = model.decode(prompt, max_new_tokens=6, stop_tokens=torch.tensor([0, 0]))
    assert one.continuations == several.continuations
    assert (
        one.continuations == model.decode(prompt, max_new_tokens=6, stop_tokens=[0]).continuations
    )


@pytest.mark.parametrize("strings", [5, [5]])
def test_stop_strings_are_texts(strings: Any) -> None:
    model = ft.MTPModel(families.build("llama"))
    with pytest.raises(InputError, match="stop string 5 is no text"):
        model.decode(
            torch.tensor([[5]]), max_new_tokens=2, stop_strings=strings,
            tokenizer=ft.load_tokenizer("tiny"),
        )  # fmt: skip


def test_an_infinite_text_is_not_asked_for() -> None:
    model = ft.MTPModel(families.build("llama"))
    with pytest.raises(InputError, match="max_new_tokens is inf"):
        model.generate(torch.tensor([[5]]), max_new_tokens=float("inf"))


@pytest.mark.parametrize("tokens", [5, torch.tensor(5), [[1, 2]]])
def test_what_is_drafted_is_a_list_of_tokens(tokens: Any) -> None:
    head = ft.attach(families.build("llama"), depth=1).require_head()
    with pytest.raises(InputError, match="are not token ids"):
        head.draft_only(tokens)
