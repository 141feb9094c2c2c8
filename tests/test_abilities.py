"""What a model can do is tried on it, once, and said at the start."""

import logging

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    MoshiConfig,
    MoshiForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    xLSTMConfig,
    xLSTMForCausalLM,
)

import families
import foretell as ft
from command_line import fine
from foretell.backbone import Backbone, ability, forget_abilities, isolates_documents
from foretell.backbone.masks import last_threshold
from foretell.data import PackedBlocks
from foretell.decoding import LookupDrafter, ModelDrafter
from foretell.decoding.cache import decodes, takes_masks
from foretell.decoding.drafters.none import NoDrafter
from foretell.decoding.tree import TreeShape
from foretell.errors import BackboneError, InputError
from foretell.serve.engine import Engine
from foretell.serve.limits import Limits
from foretell.serve.metrics import Metrics
from foretell.training import train
from runs import settings

# -- trials -------------------------------------------------------------------------------------


def test_a_trial_is_made_once_for_each_model_attention_and_argument() -> None:
    made = []

    @ability
    def trial(backbone: Backbone, number: int) -> str | None:
        made.append((number, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return "it is odd" if number % 2 else None

    backbone = Backbone(families.build("llama").train())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert trial(backbone, 2)
        assert trial(Backbone(backbone.model), 1).lacking == "it is odd"
    assert made == [(2, False, False), (1, False, False)]
    assert backbone.model.training
    assert trial(Backbone(families.build("llama")), 2)
    backbone.model.set_attn_implementation("eager")
    assert trial(backbone, 2)
    forget_abilities(backbone.model)
    assert trial(backbone, 2)
    assert len(made) == 5


def test_an_error_in_a_trial_is_the_reason_and_ours_is_ours() -> None:
    @ability
    def trial(backbone: Backbone, error: type[Exception]) -> str | None:
        raise error("what is\nmissing")

    backbone = Backbone(families.build("llama"))
    assert trial(backbone, AttributeError).lacking == "it raises AttributeError (what is missing)"
    with pytest.raises(InputError):
        trial(backbone, InputError)


def test_thresholds_are_read_off_the_config() -> None:
    config = families.FAMILIES["mistral"]()
    assert last_threshold(config) == last_threshold(config, 100) == families.WINDOW
    assert last_threshold(config, families.WINDOW) == 0
    assert last_threshold(families.OTHERS["glm_moe_dsa"]()) == 64


# -- documents ----------------------------------------------------------------------------------


def packed(size: int, starts: list[int]) -> PackedBlocks:
    tokens = np.arange(size, dtype=np.int32)[None] % families.VOCAB
    return PackedBlocks(tokens, np.array(starts), num_bytes=size)


def test_documents_are_tried_behind_what_changes_attention() -> None:
    """A temperature that goes by slots finds a second document further on than it is."""
    backbone = Backbone(families.build("llama4_tempered"))
    assert isolates_documents(backbone, 16)
    assert not isolates_documents(backbone, 64)
    assert isolates_documents(Backbone(families.build("mistral")), 64)


def test_blocks_longer_than_a_threshold_are_refused(tmp_path) -> None:
    model = ft.attach(families.build("llama4_tempered"), depth=1)
    with pytest.raises(BackboneError, match="attend to each other"):
        train(model, packed(64, [0, 10]), settings(block_size=64), tmp_path)


# -- decoding -----------------------------------------------------------------------------------


@torch.no_grad()
def greedy(lm, row: torch.Tensor, count: int) -> list[int]:
    """Whole passes, without a cache."""
    for _ in range(count):
        row = torch.cat([row, lm(row, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return row[0, -count:].tolist()


@pytest.mark.parametrize("family", ["glm_moe_dsa", "lfm3", "falcon_h1"])
def test_caches_of_other_kinds_take_drafts_back(family: str) -> None:
    """They decoded nothing: an index beside keys, windows or keys beside a recurrent state."""
    try:
        lm = families.build(family)
    except AttributeError as error:
        pytest.skip(str(error))  # not in this release of transformers
    model = ft.attach(lm, "parallel", depth=2)
    rows = families.prompt(2, 8).repeat(1, 2)
    mask = torch.ones_like(rows)
    mask[1, :3] = 0
    expected = [greedy(lm, rows[:1], 8), greedy(lm, rows[1:, 3:], 8)]
    drafters = [None, LookupDrafter(3, 1)]
    if takes_masks(model.backbone, 63):
        draft_model = Backbone(families.moved(families.build(family), 0.02))
        shape = TreeShape(widths=(2, 2))
        drafters.append(ModelDrafter(model.backbone, draft_model, 2, shape))
    assert (len(drafters) == 3) == (family == "glm_moe_dsa")
    for drafter in drafters:
        found = model.decode(rows, mask, max_new_tokens=8, drafter=drafter)
        assert found.continuations == expected


def test_what_trains_and_does_not_decode_is_told_when_attached(caplog) -> None:
    with caplog.at_level(logging.WARNING, "foretell"):
        ft.attach(families.build("llama"), depth=1)
        assert not caplog.records
        model = ft.attach(families.build("mamba"), depth=1)
    (record,) = [one for one in caplog.records if one.name.startswith("foretell")]
    reason = decodes(model.backbone).lacking
    assert reason.startswith("its cache has linear_attention, which cannot be restored")
    said = "MambaForCausalLM can be trained with heads, but not decoded in drafts: "
    assert record.getMessage() == said + reason
    with pytest.raises(BackboneError, match="cannot be decoded in drafts"):
        model.decode(families.prompt(), max_new_tokens=2)


def test_a_model_without_a_cache_is_told_from_one_that_cannot_be_restored() -> None:
    """The first GPT has none: nothing of what is said of caches and masks is so."""
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = ft.MTPModel(OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=101, **sizes)))
    reason = "it keeps nothing of what it has read in the cache that it is given"
    assert decodes(model.backbone).lacking == reason
    assert takes_masks(model.backbone).lacking == reason
    with pytest.raises(BackboneError, match=rf"^OpenAIGPTLMHeadModel cannot be .*: {reason}; use"):
        model.decode(families.prompt(), max_new_tokens=2)


def test_a_model_that_wants_a_cache_of_its_own_is_named_so() -> None:
    config = xLSTMConfig(vocab_size=101, hidden_size=32, num_hidden_layers=2, num_heads=2)
    lacking = decodes(Backbone(xLSTMForCausalLM(config).eval())).lacking
    assert lacking.startswith("it does not take transformers' common cache: AttributeError")


def test_behind_a_window_that_its_passes_do_not_have_a_model_is_not_decoded() -> None:
    """Moshi's cache drops what its masks let it see: `generate` says what no wider pass says."""
    sizes = {**families.DENSE, "num_key_value_heads": 4, "ffn_dim": 96, "head_dim": 16}
    torch.manual_seed(0)
    model = ft.MTPModel(MoshiForCausalLM(MoshiConfig(**sizes, sliding_window=96)).eval())
    tokens = families.prompt(1, 6)
    if Version(transformers.__version__) < Version("5.24"):  # its cache gives no draft back
        with pytest.raises(BackboneError, match=r"keys and values, which cannot be restored"):
            model.decode(tokens, max_new_tokens=90)
        return
    for new in (8, 90):  # to the end of the window
        expected = model.lm.generate(tokens, max_new_tokens=new, do_sample=False, pad_token_id=0)
        found = model.decode(tokens, max_new_tokens=new, drafter=LookupDrafter(2))
        assert torch.equal(found.sequences, expected)
    with pytest.raises(BackboneError, match=r"that far: behind 96 tokens .* token by token"):
        model.decode(tokens, max_new_tokens=100)


@pytest.mark.parametrize("heads", [2, 16])
def test_exact_ties_of_a_sparse_attention_are_told(heads: int) -> None:
    """With 2 heads that score, a third of all tokens tie for the last place; with 16, none."""
    model = ft.MTPModel(families.build("glm_moe_dsa", index_topk=8, index_n_heads=heads))
    tokens = families.prompt(1, 12)
    if heads == 2:
        with pytest.raises(BackboneError, match=r"that far: behind 8 tokens .* token by token"):
            model.decode(tokens, max_new_tokens=20)
        return
    expected = model.lm.generate(tokens, max_new_tokens=20, do_sample=False, pad_token_id=0)
    found = model.decode(tokens, max_new_tokens=20, drafter=LookupDrafter(3, 1))
    assert torch.equal(found.sequences, expected)


def test_what_is_not_decoded_is_not_served() -> None:
    model = ft.MTPModel(families.build("mamba"))
    with pytest.raises(BackboneError, match="MambaForCausalLM cannot be decoded in drafts"):
        Engine(model, NoDrafter(), Limits(), Metrics())


def test_the_command_line_tells_it_too(tmp_path) -> None:
    families.build("mamba").save_pretrained(tmp_path / "mamba")
    out = " ".join(fine("info", tmp_path / "mamba").split())
    assert "drafts refused: its cache has linear_attention, which cannot be restored" in out
    assert "batches and trees refused, as drafts are" in out


def test_marginals_that_there_are_not_are_refused_before_training(tmp_path) -> None:
    model = ft.attach(families.build("gpt_neo"), "residual", depth=1)
    config = settings(recipe="frozen", block_size=32, objective={"distill": "marginal"})
    with pytest.raises(BackboneError, match="GPTNeoForCausalLM cannot be marginalized"):
        train(model, packed(32, [0]), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
