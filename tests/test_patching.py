"""`foretell.patch`: a model's own `generate`, called by code that knows nothing of us."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    pipeline,
)

import families
import foretell as ft
from foretell.checkpoints import Adapters, load_tokenizer
from foretell.decoding import LookupDrafter

NEW = 12
ROW = families.prompt(1, 9, seed=3)


@cache
def lm() -> PreTrainedModel:
    found = families.build("llama").eval()
    found.generation_config.update(pad_token_id=0, eos_token_id=100)
    return found


@cache
def heads() -> ft.MTPModel:
    """On the same model, used once: what it can do has been tried."""
    torch.manual_seed(0)
    found = ft.attach(lm(), "parallel", depth=3)
    found.generate(ROW, max_new_tokens=2)
    return found


@pytest.fixture
def passes() -> Iterator[list[int]]:
    """The tokens of each pass of the model."""
    counted: list[int] = []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        counted.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1])

    hook = lm().model.register_forward_pre_hook(count, with_kwargs=True)
    yield counted
    hook.remove()
    ft.unpatch(lm())


class Counting(LogitsProcessor):
    """Has a state: forbids every other call's likeliest token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        return (
            scores.scatter(1, scores.argmax(1, keepdim=True), -torch.inf)
            if self.calls % 2
            else scores
        )


class BySum(StoppingCriteria):
    """Looks at the whole batch."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return (input_ids.sum() % 3 == 0).expand(len(input_ids))


REPEATING = ROW.repeat(1, 4)  # prompt lookup finds something
CALLS: dict[str, dict[str, Any]] = {
    "by name": {"inputs": REPEATING, "max_new_tokens": NEW},
    "tokenizer's": {
        "input_ids": REPEATING, "attention_mask": torch.ones_like(REPEATING), "max_new_tokens": NEW,
    },
    "config": {
        "inputs": REPEATING,
        "generation_config": GenerationConfig(max_new_tokens=NEW, repetition_penalty=1.3),
    },
    "criteria": {
        "inputs": REPEATING, "max_new_tokens": NEW, "stopping_criteria": [BySum()],
    },
    "disable_compile": {"inputs": REPEATING, "max_new_tokens": NEW, "disable_compile": True},
}  # fmt: skip
ORIGINAL: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 2},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "state": {"logits_processor": [Counting()]},
    "batch": {"inputs": REPEATING.expand(2, -1), "stopping_criteria": [BySum()]},
    "cache": {"cache_implementation": "static"},
    "beams drawn": {"num_beams": 2, "do_sample": True},
    "dictionary drawn": {"return_dict_in_generate": True, "do_sample": True},
}


@pytest.mark.parametrize("name", CALLS)
def test_whatever_the_form_of_the_call_it_gives_the_same(name: str, passes: list[int]) -> None:
    own, drafts = lm().generate(**CALLS[name]), heads()
    passes.clear()
    lm().generate(**CALLS[name])
    alone = len(passes)
    with ft.patch(lm(), drafts):
        passes.clear()
        assert torch.equal(lm().generate(**CALLS[name]), own)
        assert 4 in passes
    passes.clear()
    assert torch.equal(lm().generate(**CALLS[name]), own)
    assert len(passes) == alone
    assert "generate" not in vars(lm())


def test_arguments_by_place_are_those_of_transformers(passes: list[int]) -> None:
    given = GenerationConfig(max_new_tokens=NEW)
    own = lm().generate(REPEATING, given)
    ft.patch(lm(), heads())
    passes.clear()
    assert torch.equal(lm().generate(REPEATING, given), own)
    assert 4 in passes


@pytest.mark.parametrize("name", ORIGINAL)
def test_what_drafts_cannot_follow_is_answered_by_the_original(name: str) -> None:
    options = {"inputs": REPEATING, "max_new_tokens": 5, **ORIGINAL[name]}
    torch.manual_seed(1)
    own = lm().generate(**copy.deepcopy(options))
    with ft.patch(lm()):
        torch.manual_seed(1)
        found = lm().generate(**options)
    if options.get("return_dict_in_generate"):
        assert type(found) is type(own)
        own, found = own.sequences, found.sequences
    assert torch.equal(found, own)


PADDED = torch.nn.functional.pad(REPEATING[:, :-5], (5, 0), value=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 2.0},
        {"min_length": 40, "eos_token_id": list(range(50, 101))},
        {"encoder_repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "top_k": 1, "repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_padding_counts_as_it_does_there(side: str, options: dict[str, Any]) -> None:
    rows = torch.cat([REPEATING, PADDED if side == "left" else PADDED.roll(-5, 1)])
    asked = {"inputs": rows, "attention_mask": (rows != 0).long(), "max_new_tokens": NEW}
    own = lm().generate(**asked, **options)
    with ft.patch(lm(), heads()):
        assert torch.equal(lm().generate(**asked, **options), own)


def test_prompts_padded_on_the_left_are_drafted(passes: list[int]) -> None:
    rows = torch.cat([REPEATING, PADDED])
    asked = {"inputs": rows, "attention_mask": (rows != 0).long(), "max_new_tokens": NEW}
    own = lm().generate(**asked)
    with ft.patch(lm(), heads()):
        passes.clear()
        assert torch.equal(lm().generate(**asked), own)
        assert 4 in passes


def test_token_types_that_a_model_reads_are_not_passed_over() -> None:
    gpt = families.build("gpt2").eval()
    asked = {"inputs": ROW, "token_type_ids": torch.zeros_like(ROW), "max_new_tokens": NEW}
    own = gpt.generate(**asked)
    assert not torch.equal(own, gpt.generate(ROW, max_new_tokens=NEW))  # zeros are something here
    with pytest.raises(ft.InputError, match="token_type_ids cannot be honoured: GPT2LMHeadModel"):
        ft.MTPModel(gpt).generate(**asked)
    with ft.patch(gpt):
        assert torch.equal(gpt.generate(**asked), own)


def test_mistakes_are_transformers_own_to_report() -> None:
    with ft.patch(lm()), pytest.raises(ValueError, match="max_new_token"):
        lm().generate(REPEATING, max_new_token=5)


def test_heads_draft_for_it(tmp_path: Path, passes: list[int]) -> None:
    model = heads()
    model.save_pretrained(tmp_path / "heads", backbone_path="owner/name")
    own = lm().generate(ROW, max_new_tokens=NEW)
    for drafts in (model, tmp_path / "heads", str(tmp_path / "heads")):
        passes.clear()
        with ft.patch(lm(), drafts):
            assert torch.equal(lm().generate(ROW, max_new_tokens=NEW), own)
        assert 4 in passes
    families.build("llama").save_pretrained(tmp_path / "small")
    for drafter in (tmp_path / "small", LookupDrafter(3)):
        with ft.patch(lm(), drafter):
            assert torch.equal(lm().generate(ROW, max_new_tokens=NEW), own)


def test_a_model_is_patched_once_and_by_what_fits(tmp_path: Path) -> None:
    with ft.patch(lm()) as patched:
        with pytest.raises(ft.InputError, match="patched already"):
            ft.patch(lm())
        patched.undo()
        patched.undo()
        ft.unpatch(lm())
        ft.patch(lm(), "none")
        ft.unpatch(lm())
    other = ft.attach(families.build("llama"), "parallel", depth=2)
    with pytest.raises(ft.InputError, match="another model object"):
        ft.patch(lm(), other)
    for wrong in ("heads", "nowhere"):
        with pytest.raises(ft.ForetellError, match=r"no heads|does not exist"):
            ft.patch(lm(), wrong)
    with pytest.raises(ft.BackboneError, match="cannot be decoded in drafts"):
        ft.patch(families.build("mamba"))
    assert "generate" not in vars(lm())


def test_training_goes_on_as_it_was() -> None:
    model = families.build("llama").train()
    with ft.patch(model):
        found = model.generate(REPEATING, max_new_tokens=4, eos_token_id=None)
        assert model.training
        assert all(module.training for module in model.modules())
    assert torch.equal(found, model.generate(REPEATING, max_new_tokens=4, eos_token_id=None))


def test_a_copy_has_its_own_generate() -> None:
    model = families.build("llama").eval()
    with ft.patch(model):
        other = copy.deepcopy(model)
        other.lm_head.weight.data.neg_()
        found = other.generate(ROW, max_new_tokens=4)
        with pytest.raises(ft.InputError, match="cannot be pickled"):
            pickle.dumps(model)
    assert not torch.equal(found, model.generate(ROW, max_new_tokens=4))
    assert torch.equal(found, type(other).generate(other, ROW, max_new_tokens=4))


def test_a_pipeline_that_knows_nothing_of_it() -> None:
    model, tokenizer = (
        ft.MTPModel.from_pretrained("tiny-mtp", dtype="float32"),
        load_tokenizer("tiny-mtp"),
    )
    speak = pipeline("text-generation", model=model.lm, tokenizer=tokenizer)
    texts = ["def main(", "import os\nimport "]
    asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    counted: list[int] = []
    with ft.patch(model.lm, model):
        own = speak(texts, **asked)  # what it can do is tried
        model.lm.model.register_forward_pre_hook(lambda *_: counted.append(1))
        assert speak(texts, **asked) == own
        assert len(counted) < 20
    counted.clear()
    assert speak(texts, **asked) == own
    assert len(counted) == 2 * 12


def small() -> PreTrainedModel:
    """A model of its own, that a test may change."""
    return families.build("llama").eval()


def stored(path: Path, lora: bool = False) -> Path:
    """Heads for `small()`, with adapters or without."""
    model = ft.attach(small(), "parallel", depth=2)
    if lora:
        options = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["q_proj"]}
        model.adapt(lambda lm: Adapters.add(lm, **options))
    small().save_pretrained(path / "base")
    model.save_pretrained(path / "heads", backbone_path=path / "base")
    return path / "heads"


def test_a_model_that_learns_goes_on_learning(tmp_path: Path) -> None:
    model = small().train()
    for drafts in (stored(tmp_path), "lookup"):
        with ft.patch(model, drafts):
            model.generate(ROW, max_new_tokens=3)
        assert all(module.training for module in model.modules())


def test_heads_with_adapters_are_refused_before_anything_changes(tmp_path: Path) -> None:
    model = small()
    before = model.state_dict().keys()
    with pytest.raises(ft.InputError, match="go with adapters, which would change"):
        ft.patch(model, stored(tmp_path, lora=True))
    assert model.state_dict().keys() == before


def test_threads_take_turns() -> None:
    texts = [families.prompt(rows, 7, seed=rows) for rows in (1, 3)]
    wanted = [lm().generate(text, max_new_tokens=NEW) for text in texts]
    with ft.patch(lm(), heads()), ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda text: lm().generate(text, max_new_tokens=NEW), texts * 3)
        assert all(map(torch.equal, found, wanted * 3))


def test_a_generate_of_its_own_is_not_replaced() -> None:
    class Short(LlamaForCausalLM):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return super().generate(*args, **{**kwargs, "max_new_tokens": 2})

    model = Short(small().config)
    with pytest.raises(ft.InputError, match="Short has a generate of its own"):
        ft.patch(model)
    model = small()
    model.generate = lambda *args, **kwargs: None
    with pytest.raises(ft.InputError, match="a generate of its own"):
        ft.patch(model)


def test_a_patch_that_was_wrapped_is_undone_too(passes: list[int]) -> None:
    patched = ft.patch(lm(), heads())
    inner = lm().generate
    patched.undo()
    passes.clear()
    inner(ROW, max_new_tokens=NEW)
    assert 4 not in passes


def test_rows_that_a_config_asks_for_count() -> None:
    """Criteria over the whole batch see other rows than a row alone."""
    config = GenerationConfig(do_sample=True, num_return_sequences=2, max_new_tokens=NEW)
    options = {"generation_config": config, "stopping_criteria": [BySum()]}
    torch.manual_seed(1)
    own = lm().generate(REPEATING, **options)
    with ft.patch(lm()):
        torch.manual_seed(1)
        assert torch.equal(lm().generate(REPEATING, **options), own)


def test_heads_that_were_left_behind_are_said(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    own = ft.attach(model, "parallel", depth=2)
    with ft.patch(model, own):
        model.double()
        model.generate(ROW, max_new_tokens=3)
    assert "decodes without drafts" in caplog.text


def test_a_copy_of_the_models_own_config_asks_for_nothing_new(passes: list[int]) -> None:
    kept = lm().generation_config
    lm().generation_config = copy.deepcopy(kept)
    lm().generation_config.cache_implementation = "dynamic"
    try:
        with ft.patch(lm(), heads()):
            passes.clear()
            config = copy.deepcopy(lm().generation_config)
            lm().generate(ROW, generation_config=config, max_new_tokens=NEW)
            assert 4 in passes
    finally:
        lm().generation_config = kept
