"""Rotary embeddings that depend on how far a pass reaches, and where texts end.

The oracle is transformers' own `generate`, for each row alone, on a model that has read nothing
else: some rotary embeddings remember. For Phi-3 it is asked to go without a cache, which is what it
does behind the switch in any case; transformers 5.17 loses the row there otherwise.
"""

import logging
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, PreTrainedModel

import families
import foretell as ft
from foretell.backbone import Ability, Backbone
from foretell.backbone.rotary import document_extent
from foretell.decoding import (
    Batch,
    DecodeOptions,
    Drafter,
    Exact,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    Sampling,
    TreeShape,
    decode,
)
from foretell.decoding.loop import Generation
from foretell.errors import InputError
from foretell.probe.branches import ReadRow
from rotating import SWITCH, SWITCHING, build

NEW, DEPTH = 12, 3
LENGTHS = (5, 20, SWITCH, SWITCH + 1, 30)
"""Of prompts: never behind the switch, over it, up to it, just behind it, far behind."""


@cache
def model(name: str, kind: str = "none") -> ft.MTPModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "none":
            return ft.MTPModel(build(name))
        options = {"shared": True, "rollout": "token"} if kind == "rollout" else {}
        head = "sequential" if kind == "rollout" else kind
        return ft.attach(build(name), head, depth=DEPTH, init="copy", **options).eval()


@cache
def rows() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randint(families.VOCAB, (1, n), generator=generator) for n in LENGTHS)


@cache
def expected(name: str) -> list[list[int]]:
    """What transformers says, row by row."""
    found = []
    for row in rows():
        fresh, cached = build(name), not name.startswith("phi3")
        said = fresh.generate(
            row, max_new_tokens=NEW, do_sample=False, use_cache=cached, pad_token_id=0,
            attention_mask=torch.ones_like(row),
        )  # fmt: skip
        found.append(said[0, row.shape[1] :].tolist())
    return found


def padded() -> tuple[Tensor, Tensor]:
    longest = max(LENGTHS)
    fillings = [(longest - row.shape[1], 0) for row in rows()]
    pairs = list(zip(rows(), fillings, strict=True))
    masks = [pad(torch.ones_like(row), filling) for row, filling in pairs]
    return torch.cat([pad(row, filling) for row, filling in pairs]), torch.cat(masks)


@cache
def draft_model(name: str) -> Backbone:
    """Often right, sometimes wrong."""
    return Backbone(families.moved(build(name), 0.02))


def drafter(name: str, kind: str) -> Drafter | None:
    shape = TreeShape(nodes=6) if kind == "tree" else None
    if kind in ("model", "tree"):
        return ModelDrafter(model(name).backbone, draft_model(name), DEPTH, shape)
    return {"none": NoDrafter(), "lookup": LookupDrafter(4, 1)}.get(kind)


def generate(name: str, kind: str, ids: Tensor, mask: Tensor | None, **options: Any) -> Generation:
    heads = kind if kind in ("parallel", "sequential", "rollout") else "none"
    return model(name, heads).decode(
        ids, mask, max_new_tokens=NEW, stop_tokens=(), drafter=drafter(name, kind), **options
    )


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Both transformers and we say that these texts are longer than models were built for."""
    transformers.utils.logging.set_verbosity_error()


KINDS = ("none", "parallel", "sequential", "rollout", "lookup", "model", "tree")
CASES = [
    (name, kind)
    for name in SWITCHING
    for kind in (KINDS if name in ("phi3", "llama dynamic") else ("none", "model"))
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_batch_says_what_generate_says_of_each_row_alone(name: str, kind: str) -> None:
    found = generate(name, kind, *padded())
    assert found.continuations == expected(name)
    if kind in ("model", "tree"):
        assert found.tokens_per_forward > 1.5  # drafts do reach over the switch, or up to it


@pytest.mark.parametrize("name", ["phi3", "llama dynamic"])
def test_a_row_by_itself_says_it_too(name: str) -> None:
    for row, said in zip(rows()[:3], expected(name), strict=False):
        for kind in ("none", "model"):
            assert generate(name, kind, row, None).new_tokens == said


def test_rows_read_anew_can_be_ended_from_outside() -> None:
    """As a server does; another row goes on."""
    ids, mask = padded()
    batch = Batch(model("phi3").backbone, ids, mask, NEW)
    assert batch.rereads
    backbone, found = model("phi3").backbone, [[] for _ in LENGTHS]
    for steps in decode(backbone, batch, DecodeOptions(rule=Exact())):
        for row, step in enumerate(steps):
            found[row] += step.tokens
        if len(found[1]) == 3:
            batch.rows[1].active = False
            batch.rows[2].active = False
    cut = [NEW, 3, 0, NEW, NEW]
    assert found == [said[:end] for said, end in zip(expected("phi3"), cut, strict=True)]
    assert batch.over


@pytest.mark.parametrize("name", ["phi3", "llama dynamic"])
def test_passes_of_one_width_say_it_too(name: str) -> None:
    for kind in ("none", "model"):
        found = generate(name, kind, *padded(), pass_width=4)
        assert found.continuations == expected(name)


@pytest.mark.parametrize("name", ["phi3", "llama dynamic"])
def test_a_cache_without_masks_of_ours_says_it_too(name: str, monkeypatch) -> None:
    for module in ("loop", "cache.past", "drafters.model"):
        monkeypatch.setattr(f"foretell.decoding.{module}.takes_masks", lambda *_: Ability("no"))
    found = generate(name, "model", *padded())
    assert found.continuations == expected(name)


@pytest.mark.parametrize("name", ["phi3", "llama dynamic"])
def test_what_is_drawn_does_not_depend_on_the_other_rows(name: str) -> None:
    seeds = list(range(len(LENGTHS)))
    together = generate(
        name, "model", *padded(), sampling=Sampling(temperature=0.7, seeds=seeds)
    ).continuations
    for number, row in enumerate(rows()):
        sampling = Sampling(temperature=0.7, seeds=[number])
        assert generate(name, "model", row, None, sampling=sampling).new_tokens == together[number]


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("phi3", marks=pytest.mark.long), "llama dynamic"])
def test_a_compiled_step_says_it_too(name: str) -> None:
    found = generate(name, "none", *padded(), compiled=True)
    assert found.continuations == expected(name)


@pytest.mark.parametrize("name", SWITCHING)
def test_the_switch_is_found_by_trying(name: str) -> None:
    backbone = Backbone(build(name))
    assert backbone.rotary is not None
    assert backbone.rotary.switch == SWITCH
    assert {call.grows for call in backbone.rotary.calls} == {"dynamic" in name}
    assert backbone.reread_behind == (SWITCH if name == "phi3" else None)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "gpt2", "gpt_oss", "lfm2"])
def test_other_families_are_left_alone(family: str) -> None:
    backbone = Backbone(families.build(family))
    assert backbone.rotary is None
    assert backbone.reread_behind is None
    assert backbone.max_length == (families.POSITIONS if family == "gpt2" else None)


def test_the_models_own_embeddings_see_nothing_of_it() -> None:
    """A long text of ours does not change what the model itself says of a shorter one later."""
    ours = ft.MTPModel(build("llama dynamic"))
    ours.decode(rows()[-1], max_new_tokens=40, stop_tokens=())
    row = rows()[2]
    said = ours.lm.generate(
        row, max_new_tokens=NEW, do_sample=False, pad_token_id=0,
        attention_mask=torch.ones_like(row),
    )  # fmt: skip
    assert said[0, row.shape[1] :].tolist() == expected("llama dynamic")[2]
    assert "forward" not in vars(ours.lm.model.rotary_emb)


@pytest.mark.parametrize("name", SWITCHING)
def test_packed_documents_are_read_as_by_themselves(name: str) -> None:
    """Short ones beside one that is longer than the switch, in one row or another one."""
    texts = [rows()[0][0], rows()[-1][0], rows()[1][0]]
    block = torch.cat(texts)
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    blocks = torch.stack([block, block.roll(1)])
    apart = torch.stack([positions, torch.arange(len(block))])
    backbone = Backbone(build(name))
    with torch.no_grad():
        found = backbone.unembed(backbone(blocks, position_ids=apart).final)
        own = [build(name)(text.unsqueeze(0)).logits[0] for text in texts]
        torch.testing.assert_close(found[0], torch.cat(own), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found[1], build(name)(blocks[1:]).logits[0], rtol=1e-4, atol=1e-4
        )
        # A block's call that is rehearsed, as for stored states, is the one that was recorded.
        output = backbone(blocks, position_ids=apart, layers=(backbone.num_layers - 1,))
        entering = output.states[backbone.num_layers - 1]
        call = backbone.block_call(blocks, apart, None)
        block_ = backbone.blocks[-1]
        torch.testing.assert_close(call(block_, entering), output.call(block_, entering))


def test_where_documents_end() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [4, 5, 6, 7, 8, 9]])
    assert document_extent(positions).tolist() == [[3, 3, 3, 2, 2, 1], [10] * 6]


@pytest.mark.parametrize("name", ["phi3", "llama longrope"])
def test_continuations_that_are_probed_are_read_as_the_row_is(name: str) -> None:
    row, follows = rows()[-1], torch.tensor([[7], [9]])
    places = torch.tensor([3, 28])
    backbone = Backbone(build(name))
    with torch.no_grad():
        found = (
            ReadRow(backbone, row, 1).branches(places).extend(follows, torch.zeros_like(follows))
        )
        for place, token, distribution in zip(places, follows, found, strict=True):
            text = row.clone()
            text[0, place + 1] = token
            expected = build(name)(text).logits[0, place + 1].softmax(-1)
            torch.testing.assert_close(distribution[0], expected, rtol=1e-4, atol=1e-5)


# -- where texts end ----------------------------------------------------------------------------

SMALL: dict[str, Any] = {"vocab_size": families.VOCAB, **families.NO_TOKENS}
WIDTHS = {"n_embd": 32, "n_layer": 2, "n_head": 2}
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "learned": ("GPT2Config", {"n_positions": 40, **WIDTHS}),
    "with an offset": (
        "OPTConfig",
        {
            "max_position_embeddings": 40, "hidden_size": 32, "word_embed_proj_dim": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 40,
        },
    ),
    "rotary, in a table": ("GPTJConfig", {"n_positions": 40, "rotary_dim": 8, **WIDTHS}),
    "biases by distance": (
        "MptConfig",
        {"max_seq_len": 40, "d_model": 32, "n_layers": 2, "n_heads": 2},
    ),
}  # fmt: skip


def table(name: str) -> PreTrainedModel:
    cls, options = TABLES[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(families._config(cls, SMALL, **options)).eval()


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_positions_end(name: str) -> None:
    lm = table(name)
    assert Backbone(lm).max_length == 40
    lm(torch.zeros(1, 40, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        lm(torch.zeros(1, 41, dtype=torch.long))


@pytest.mark.parametrize("name", TABLES)
def test_a_text_ends_with_the_last_position_and_says_so(name: str) -> None:
    end = ft.MTPModel(table(name))
    ids = torch.randint(1, families.VOCAB, (2, 36))
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    found = end.decode(ids, mask, max_new_tokens=10, stop_tokens=())
    assert [len(new) for new in found.continuations] == [4, 10]
    assert found.full == [True, False]
    end.lm.generation_config.pad_token_id = 0
    ids[1, :20] = 0  # transformers infers the mask from it
    assert end.decode(ids, max_new_tokens=10, stop_tokens=()).full[1] is False
    with pytest.raises(InputError, match="context 40; shorten"):
        end.decode(ids.new_ones(1, 40), max_new_tokens=1)


ENDLESS: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({"rope_type": "default"}, SWITCH),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 4 * SWITCH),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 4 * SWITCH),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SWITCH},
        4 * SWITCH,
    ),
}


def scaled(name: str) -> PreTrainedModel:
    rope, _ = ENDLESS[name]
    torch.manual_seed(0)
    config = families._config(
        "Qwen3Config", families.DENSE, head_dim=families.HEAD_DIM, max_position_embeddings=SWITCH,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ENDLESS)
def test_rotary_embeddings_do_not_end(name: str) -> None:
    row = rows()[1]
    said = scaled(name).generate(
        row, max_new_tokens=90, do_sample=False, pad_token_id=0,
        attention_mask=torch.ones_like(row),
    )  # fmt: skip
    backbone = Backbone(scaled(name))
    assert (backbone.max_length, backbone.context) == (None, ENDLESS[name][1])
    found = ft.MTPModel(scaled(name)).decode(row, max_new_tokens=90, stop_tokens=())
    assert found.sequences.tolist() == said.tolist()
    assert found.full == [False]


def test_a_text_longer_than_a_model_was_built_for_is_logged_once(caplog) -> None:
    ft.backbone.warn_longer.cache_clear()
    endless = ft.MTPModel(scaled("default"))
    with caplog.at_level(logging.WARNING, "foretell"):
        endless.decode(rows()[0], max_new_tokens=4, stop_tokens=())
        assert not caplog.messages
        for _ in range(2):
            endless.decode(rows()[0], max_new_tokens=NEW + SWITCH, stop_tokens=())
    (message,) = caplog.messages
    assert f"longer than the {SWITCH} tokens that Qwen3ForCausalLM was built for" in message
