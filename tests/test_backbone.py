import copy
import itertools
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import families
import foretell as ft
from foretell.backbone import (
    Backbone,
    Scale,
    forget_abilities,
    isolates_documents,
    rehearses,
)
from foretell.checkpoints import load_causal_lm
from foretell.decoding.cache import keeps_blocks
from foretell.decoding.drafters import drafter_for
from foretell.errors import BackboneError
from foretell.training.states import StateCache

SERVED = [name for name in families.FAMILIES if name not in families.UNFIT]
RECURRENT = {"qwen3_next", "qwen3_5_text", "mamba", "lfm2", "lfm2_conv"}
"""Families whose cache holds a state from which no token can be taken back."""
LEARNED_POSITIONS = {"gpt2", "opt"}
DOCUMENTS_LEAK = RECURRENT | {"opt", "gpt_oss"}
BY_RELEASE = {"falcon", "falcon_alibi"}
"""Families whose documents leak in older releases of transformers (5.17) and not in newer ones."""


@cache
def view(name: str) -> Backbone:
    """One view per family, for tests that change nothing."""
    return Backbone(families.build(name))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


# -- what the view finds ------------------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
def test_the_views_logits_are_the_models_own(family: str) -> None:
    backbone = view(family)
    tokens = families.prompt(2, 40, seed=1)  # past every sliding window
    output = backbone(tokens)
    assert torch.equal(backbone.unembed(output.final), backbone.model(tokens).logits)
    assert output.states == {}
    assert (backbone.num_layers, backbone.hidden_size) == (families.LAYERS, families.HIDDEN)
    assert backbone.vocab_size == families.VOCAB


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gemma3_text", "granite", "cohere", "gpt2", "deepseek_v3"]
)
def test_in_bfloat16_the_views_logits_are_exactly_the_models(family: str) -> None:
    model = families.build(family).to(torch.bfloat16)
    backbone = Backbone(model)
    tokens = families.prompt(2, 40, seed=1)
    logits = backbone.unembed(backbone(tokens).final)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, model(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "embed", "logit", "cap"),
    [
        ("llama", 1.0, 1.0, None),
        ("granite", 6.0, 1 / 3, None),
        ("cohere", 1.0, 0.25, None),
        ("gemma2", 1.0, 1.0, 30.0),
    ],
)
@pytest.mark.parametrize("loudness", [1.0, 0.05])
def test_scales_and_caps_are_found(family, embed, logit, cap, dtype, loudness: float) -> None:
    """Also for logits so small that a cap hardly bends them, and in bfloat16."""
    model = families.build(family)
    norm = Backbone(model).final_norm
    offset = 1.0 if family == "gemma2" else 0.0
    norm.weight.copy_((norm.weight + offset) * loudness - offset)
    backbone = Backbone(model.to(dtype))

    def factor(scale: Scale) -> float:
        return 1 / scale.factor if scale.divides else scale.factor

    assert factor(backbone.embed_scale) == pytest.approx(embed, rel=1e-6)
    assert factor(backbone.logit_scale) == pytest.approx(logit, rel=1e-6)
    assert backbone.softcap == cap


def test_a_cap_is_found_under_another_name() -> None:
    """RecurrentGemma's is `logits_soft_cap`, xLSTM's `output_logit_soft_cap`."""
    model = families.build("recurrent_gemma")
    backbone = Backbone(model)
    assert backbone.softcap == 2.0
    tokens = families.prompt(2, 9)
    torch.testing.assert_close(backbone.unembed(backbone(tokens).final), model(tokens).logits)


@pytest.mark.parametrize("family", SERVED)
def test_embed_is_what_the_first_block_reads(family: str) -> None:
    backbone = view(family)
    tokens = families.prompt(2, 20, seed=2)
    first = backbone(tokens, layers=(0,)).states[0]
    embedded = backbone.embed(tokens)
    if family in LEARNED_POSITIONS:
        # Less the positions, which are the same for both rows.
        torch.testing.assert_close((first - embedded)[0], (first - embedded)[1])
        assert not torch.allclose(first, embedded)
    else:
        torch.testing.assert_close(embedded, first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", SERVED)
def test_states_are_the_residual_stream(family: str) -> None:
    backbone = view(family)
    tokens = families.prompt(2, 20, seed=3)
    output = backbone(tokens, layers=range(backbone.num_layers + 1))
    assert sorted(output.states) == list(range(backbone.num_layers + 1))
    torch.testing.assert_close(
        backbone.final_norm(output.states[backbone.num_layers]), output.final
    )
    if family == "mamba":
        return  # transformers counts its hidden states otherwise
    hidden = backbone.model(tokens, output_hidden_states=True).hidden_states
    for layer in range(1, backbone.num_layers):
        torch.testing.assert_close(output.states[layer], hidden[layer])


# -- its last block, called again ---------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_of_the_last_block_reproduces_the_final_state(family: str, packed: bool) -> None:
    backbone = view(family)
    last = backbone.num_layers - 1
    tokens = families.prompt(2, 40, seed=4)
    positions = torch.cat([torch.arange(13), torch.arange(27)]).expand(2, 40) if packed else None
    output = backbone(tokens, layers=(last, last + 1), position_ids=positions)
    again = output.call(backbone.new_block("copy"), output.states[last])
    torch.testing.assert_close(again, output.states[last + 1])


@pytest.mark.parametrize("family", [name for name in SERVED if name not in RECURRENT])
@pytest.mark.parametrize("before", [0, 7, 33])
@pytest.mark.parametrize("width", [1, 6])
def test_a_rehearsed_call_is_the_real_one(family: str, before: int, width: int) -> None:
    """With and without tokens in the cache, in front of and past the sliding windows."""
    backbone = view(family)
    last = backbone.num_layers - 1
    tokens = families.prompt(1, before + width, seed=5)
    own, heads = DynamicCache(), DynamicCache()
    block = backbone.new_block("copy")
    if before:
        prefix = backbone(tokens[:, :before], layers=(last,), cache=own)
        prefix.call(block, prefix.states[last], heads)
    if before or width > 1:
        positions = torch.arange(before, before + width).unsqueeze(0)
        rehearsed = backbone.block_call(tokens[:, before:], positions, copy.deepcopy(heads))
        real = backbone(tokens[:, before:], layers=(last, last + 1), cache=own)
        twin = copy.deepcopy(heads)
        state = real.states[last]
        from_real, from_rehearsed = real.call(block, state, heads), rehearsed(block, state, twin)
        torch.testing.assert_close(from_real, real.states[last + 1])
        torch.testing.assert_close(from_rehearsed, from_real)
        assert heads.get_seq_length() == twin.get_seq_length() == before + width


@pytest.mark.parametrize("family", SERVED)
def test_a_rehearsed_call_without_a_cache_is_the_real_one(family: str) -> None:
    backbone = view(family)
    last = backbone.num_layers - 1
    tokens = families.prompt(2, 24, seed=6)
    positions = torch.arange(24).expand(2, 24)
    output = backbone(tokens, layers=(last, last + 1))
    call = backbone.block_call(tokens, positions, None)
    again = call(backbone.blocks[-1], output.states[last])
    torch.testing.assert_close(again, output.states[last + 1])


@pytest.mark.parametrize("family", ["gemma4_text", "zamba2", "gpt_neo"])
def test_a_rehearsed_call_hands_on_what_is_made_of_the_tokens(family: str) -> None:
    """Embeddings beside the hidden state, and inputs of every block's own."""
    backbone = Backbone(families.build(family))
    assert rehearses(backbone)
    last = backbone.num_layers - 1
    tokens = families.prompt(2, 24, seed=6)
    positions = torch.arange(24).expand(2, 24)
    output = backbone(tokens, layers=(last, last + 1))
    call = backbone.block_call(tokens, positions, None)
    torch.testing.assert_close(
        call(backbone.blocks[-1], output.states[last]), output.states[last + 1]
    )


class NowAndThen:
    """Drafts as with draft length auto, which sometimes asks for nothing."""

    def __init__(self, model: ft.MTPModel) -> None:
        self.inner = drafter_for(model.backbone, model.require_head())
        self.layers, self.longest, self.start = self.inner.layers, 2, self.inner.start
        self.limits, self.sizes = itertools.cycle((2, 0, 0, 1)), set()

    def draft(self, committed, limit: int):
        draft = self.inner.draft(committed, min(limit, next(self.limits)))
        self.sizes.add(draft.size)
        return draft


def test_heads_that_would_need_a_call_that_cannot_be_rehearsed_are_refused(tmp_path: Path) -> None:
    """Others work: parallel heads run with the passes of the backbone, and never later."""
    lm = families.build("gemma4_shared")
    reason = "handed more than follows from tokens and positions"
    assert reason in rehearses(Backbone(lm)).lacking
    with pytest.raises(BackboneError, match=f"cannot carry sequential heads.*{reason}"):
        ft.attach(lm, "sequential", depth=2)
    for kind in ("parallel", "residual"):
        model = ft.attach(lm, kind, depth=2).eval()
        row = families.prompt(1, 20)
        own = lm.generate(row, max_new_tokens=30, do_sample=False)
        drafter = NowAndThen(model)
        assert torch.equal(model.decode(row, max_new_tokens=30, drafter=drafter).sequences, own)
        assert drafter.sizes == {0, 1, 2}
    with pytest.raises(BackboneError, match=f"kept states.*{reason}.*cache_gb"):
        StateCache(tmp_path / "states", ft.attach(lm, depth=1), 4, 16, limit=1 << 30)
    cache = StateCache(tmp_path / "states", ft.attach(lm, "residual", depth=1), 4, 16, 1 << 30)
    blocks = families.prompt(2, 16), torch.arange(16).expand(2, 16)
    for _ in range(2):  # computed, then stored
        found = cache.read(torch.arange(2), *blocks)
        torch.testing.assert_close(found.final, cache.model.backbone(blocks[0]).final)


def test_states_are_kept_with_calls_that_are_the_real_ones(tmp_path: Path) -> None:
    model = ft.attach(families.build("gemma4_text"), "sequential", depth=2).eval()
    model.freeze_backbone()
    cache = StateCache(tmp_path / "states", model, 2, 16, limit=1 << 30)
    tokens, positions = families.prompt(2, 16), torch.arange(16).expand(2, 16)
    wanted = model(tokens, positions).depth_losses
    for _ in range(2):  # computed, then stored
        trunk = cache.read(torch.arange(2), tokens, positions)
        found = model(tokens, positions, trunk=trunk).depth_losses
        torch.testing.assert_close(found, wanted)


def test_a_block_that_is_told_its_place_cannot_have_a_past_of_its_own() -> None:
    """Zamba2's blocks are called with their number, under which they also keep what they read."""
    for head in ("sequential", "parallel"):
        with pytest.raises(BackboneError, match="knows its place in the model's own past"):
            ft.attach(families.build("zamba2"), head, depth=2)
    assert ft.attach(families.build("zamba2"), "residual", depth=2).depth == 2


@pytest.mark.parametrize("family", SERVED)
def test_a_rehearsal_leaves_model_and_cache_as_they_were(family: str) -> None:
    backbone = view(family)
    blocks = list(backbone.blocks)
    keys = list(backbone.model.state_dict())
    cache = DynamicCache(config=backbone.config) if family in RECURRENT else DynamicCache()
    backbone.block_call(families.prompt(1, 3), torch.arange(3).unsqueeze(0), cache)
    if family not in RECURRENT:
        assert cache.get_seq_length() == 0
    kept = backbone.decoder.get_submodule(backbone.blocks_name)
    assert all(a is b for a, b in zip(blocks, kept, strict=True))
    assert list(backbone.model.state_dict()) == keys


# -- new blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
def test_a_new_block_is_initialised_as_the_family_does(family: str) -> None:
    """Random where a new model is random, with its spread, and constant where it is constant."""
    backbone = view(family)
    torch.manual_seed(7)
    pristine = AutoModelForCausalLM.from_config(families.FAMILIES[family](), dtype=torch.float32)
    template = tensors_of(Backbone(pristine.eval()).blocks[-1])
    last, one, two = (
        tensors_of(block)
        for block in (backbone.blocks[-1], backbone.new_block(), backbone.new_block())
    )
    assert one.keys() == last.keys()
    random_ones = 0
    for name, drawn in one.items():
        if torch.equal(drawn, two[name]):  # not drawn but set: as in a new model
            torch.testing.assert_close(drawn, template[name], msg=name)
        else:
            random_ones += 1
            assert not torch.equal(drawn, last[name]), name
            assert not torch.equal(drawn, template[name]), name
            spread = float(drawn.std() / template[name].std())
            assert spread == pytest.approx(1, abs=4 / (2 * drawn.numel()) ** 0.5 * 1.5), name
    assert random_ones >= 3


@pytest.mark.parametrize("init", ["fresh", "copy"])
@pytest.mark.parametrize("family", SERVED)
def test_new_parts_share_nothing_with_the_model(family: str, init) -> None:
    backbone = view(family)
    before = {name: tensor.clone() for name, tensor in tensors_of(backbone.model).items()}
    own = {tensor.data_ptr() for tensor in tensors_of(backbone.model).values()}
    block, norm = backbone.new_block(init), backbone.new_norm()
    tensors = [*tensors_of(block).values(), *tensors_of(norm).values()]
    assert not own & {tensor.data_ptr() for tensor in tensors}
    assert all(parameter.requires_grad for parameter in [*block.parameters(), *norm.parameters()])
    for parameter in [*block.parameters(), *norm.parameters()]:
        parameter.add_(1.0)
    after = tensors_of(backbone.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {m.layer_idx for m in block.modules() if hasattr(m, "layer_idx")} <= {0}


@pytest.mark.parametrize("family", ["gpt_neo", "llama", "lfm2", "qwen3_next", "gpt2"])
def test_a_new_block_writes_to_layer_0_of_its_cache(family: str) -> None:
    """Whatever its family calls the number of a layer, and no other number is taken for it."""
    backbone = Backbone(families.build(family))
    last, block = backbone.num_layers - 1, backbone.new_block("copy")
    numbers = [
        [(name, value) for name, value in vars(module).items() if type(value) is int]
        for of in (block, backbone.blocks[-1])
        for module in of.modules()
    ]
    half = len(numbers) // 2
    changed = {
        (name, before, after)
        for mine, theirs in zip(numbers[:half], numbers[half:], strict=True)
        for (name, after), (_, before) in zip(mine, theirs, strict=True)
        if before != after
    }
    name = "layer_id" if family == "gpt_neo" else "layer_idx"
    assert changed == {(name, last, 0)}
    assert keeps_blocks(backbone, ahead=False)
    assert keeps_blocks(backbone, ahead=True)


def test_a_model_whose_blocks_hide_their_number_is_refused() -> None:
    lm = families.build("llama")
    for place, block in enumerate(lm.model.layers):
        block.self_attn.layer_idx = _Hidden(place)
    forget_abilities(lm)
    with pytest.raises(BackboneError, match=r"cannot carry parallel heads.*use residual heads"):
        ft.attach(lm, "parallel", depth=1)
    with pytest.raises(BackboneError, match="cannot carry sequential heads"):
        ft.attach(lm, "sequential", depth=1)
    ft.attach(lm, "residual", depth=1).decode(families.prompt(), max_new_tokens=4)


class _Hidden(int):
    """A number that does not look like one."""


def test_a_new_block_of_a_frozen_model_learns_and_the_copy_starts_equal() -> None:
    model = families.build("llama").requires_grad_(False)
    backbone = Backbone(model)
    block = backbone.new_block("copy")
    assert all(p.requires_grad for p in block.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    for mine, theirs in zip(block.parameters(), backbone.blocks[-1].parameters(), strict=True):
        assert torch.equal(mine, theirs)


# -- the model stays what it is -----------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", SERVED)
def test_attaching_leaves_the_model_as_it_was(family: str, training: bool) -> None:
    model = families.build(family).train(training)
    tensors = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    modules = list(model.named_modules())
    config = model.config.to_dict()
    logits = model.eval()(families.prompt()).logits
    model.train(training)
    mtp = ft.attach(model, "sequential", depth=2)
    mtp.backbone(families.prompt(), layers=(0, 1))
    isolates_documents(mtp.backbone)  # which is tried out
    after = tensors_of(model)
    assert after.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], after[name]) for name in tensors)
    assert [(n, id(m)) for n, m in model.named_modules()] == [(n, id(m)) for n, m in modules]
    for _, module in modules:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert module.training == training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.to_dict() == config
    assert torch.equal(model.eval()(families.prompt()).logits, logits)


# -- packed documents ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
def test_isolation_of_documents_is_found_out(family: str) -> None:
    """Isolated are those of which every document's states are what they are alone."""
    backbone = view(family)
    tokens = families.prompt(1, 40, seed=8)
    positions = torch.cat([torch.arange(15), torch.arange(25)]).unsqueeze(0)
    packed = backbone(tokens, position_ids=positions).final
    alone = torch.cat([backbone(tokens[:, :15]).final, backbone(tokens[:, 15:]).final], dim=1)
    isolated = torch.allclose(packed, alone, rtol=1.3e-6, atol=1e-5)
    assert bool(isolates_documents(backbone)) == isolated
    if family not in BY_RELEASE:
        assert isolated == (family not in DOCUMENTS_LEAK)


# -- fingerprints -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "deepseek_v3"])
def test_a_fingerprint_is_that_of_the_weights_whatever_their_type(
    family: str, tmp_path: Path
) -> None:
    families.build(family).to(torch.bfloat16).save_pretrained(tmp_path)
    half, single = (
        Backbone(load_causal_lm(tmp_path, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.dtype == torch.bfloat16
    assert single.dtype == torch.float32
    assert half.fingerprint() == single.fingerprint()
    assert len(half.fingerprint()) == 16


def test_a_fingerprint_tells_seeds_shapes_and_training_steps_apart() -> None:
    model = families.build("llama")
    backbone = Backbone(model)
    first = backbone.fingerprint()
    assert first == backbone.fingerprint() == Backbone(families.build("llama")).fingerprint()
    seen = {first, Backbone(families.build("llama", seed=1)).fingerprint()}
    seen.add(Backbone(families.build("qwen3")).fingerprint())
    with torch.enable_grad():
        logits = model(families.prompt(2, 20)).logits
        nn.functional.cross_entropy(
            logits.flatten(0, 1), families.prompt(2, 20).flatten()
        ).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    seen.add(backbone.fingerprint())
    assert len(seen) == 4


# -- what is refused ----------------------------------------------------------------------------


def refusal(model: PreTrainedModel) -> str:
    before = len(list(model.named_modules()))
    with pytest.raises(BackboneError) as caught:
        ft.attach(model, depth=1)
    assert len(list(model.named_modules())) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    message = str(caught.value)
    assert "\n" not in message
    assert type(model).__name__ in message
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_with_a_norm_behind_it_is_refused(dtype: torch.dtype) -> None:
    message = refusal(families.build("bloom").to(dtype))
    assert "what enters its first block is not the scaled embedding" in message


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(
        vocab_size=32,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    assert "encoder-decoder" in refusal(T5ForConditionalGeneration(config))


def test_a_model_whose_own_pass_fails_is_refused_with_what_it_says() -> None:
    """XMOD wants a language first; others have a config that does not fit together."""
    model = families.build("llama")
    model.lm_head = nn.Linear(families.HIDDEN + 1, families.VOCAB)
    message = refusal(model)
    assert "a forward pass raises RuntimeError (" in message
    assert "\n" not in message


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    model = families.build("llama")
    model.config.num_hidden_layers = 7
    assert "no list of 7 decoder blocks" in refusal(model)


def test_a_model_without_an_output_embedding_is_refused() -> None:
    assert "no output embedding" in refusal(families.build("llama").model)


def test_logits_that_are_no_function_of_the_output_embedding_are_refused() -> None:
    class Odd(type(families.build("llama"))):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.square()
            return output

    model = families.build("llama")
    model.__class__ = Odd
    assert "logits are neither scaled nor soft-capped" in refusal(model)


@pytest.mark.data
def test_real_weights_are_viewed_exactly(data_dir: Path) -> None:
    for name in sorted(os.listdir(data_dir / "models")):
        backbone = Backbone(load_causal_lm(data_dir / "models" / name, dtype=torch.float32))
        tokens = torch.randint(0, backbone.vocab_size, (2, 24))
        logits = backbone.model(tokens).logits
        assert torch.equal(backbone.unembed(backbone(tokens).final), logits)
