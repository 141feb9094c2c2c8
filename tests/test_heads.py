from functools import cache

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import families
import foretell as ft
from foretell.errors import BackboneError, HeadError, InputError
from foretell.heads import FINAL, HEADS, WeightedTap, head_class
from foretell.heads.taps import make_tap
from foretell.targets import depth_targets
from pairing import pairs

SERVED = [name for name in families.FAMILIES if name != "bloom"]
SHAPES = {
    "parallel": {"head": "parallel", "depth": 2},
    "sequential": {"head": "sequential", "depth": 2},
    "shared": {"head": "sequential", "depth": 2, "shared": True},
}
NO_LEAK = ["llama", "qwen3", "gemma3_text", "gpt2", "deepseek_v3"]


@cache
def attached(family: str, shape: str, depth: int = 2) -> ft.MTPModel:
    """One model per family and head, for tests that change nothing."""
    torch.manual_seed(11)
    return ft.attach(families.build(family), **{**SHAPES[shape], "depth": depth}).eval()


def depth_states(
    model: ft.MTPModel, tokens: Tensor, positions: Tensor | None = None
) -> list[Tensor]:
    output = model.backbone(tokens, position_ids=positions, layers=model.layers)
    return list(model.depth_hidden(tokens, output))


# -- over every family --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, "parallel") for family in SERVED),
        *pairs(SERVED, ["sequential", "shared"]),
    ],
)
def test_forward_and_backward_reach_every_parameter(family: str, shape: str) -> None:
    """Of every family's heads, parallel and sequential; every second family shares its module."""
    model = ft.attach(families.build(family), **SHAPES[shape]).train()
    tokens = families.prompt(2, 24)
    states = depth_states(model, tokens)
    assert [tuple(state.shape) for state in states] == [(2, 24, families.HIDDEN)] * 2
    assert not torch.allclose(states[0], states[1])
    output = model(tokens)
    assert output.depth_losses.shape == (3,)
    assert output.depth_losses.isfinite().all()
    output.loss.backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    learned = [p.grad is not None for p in model.lm.parameters()]
    assert all(learned)


@pytest.mark.parametrize("family", SERVED)
def test_heads_have_the_backbones_type_and_keep_the_families_order_of_parts(family: str) -> None:
    model = (
        ft.attach(families.build(family).to(torch.bfloat16), "sequential", depth=1)
        if (
            family != "mamba"  # its scan has no bfloat16 on CPU
        )
        else attached(family, "sequential")
    )
    kinds = {p.dtype for p in model.head.parameters()}
    assert model.backbone.dtype in kinds
    assert type(model.head.module(1).block) is type(model.backbone.blocks[-1])
    assert type(model.head.module(1).norm) is type(model.backbone.final_norm)


# -- the designs --------------------------------------------------------------------------------


def test_the_chain_equals_deepseeks_equations_on_a_llama() -> None:
    """arXiv 2412.19437 equations 21-23, depth by depth on rows that get shorter by hand."""
    depth, length = 3, 12
    model = attached("llama", "sequential", depth)
    lm, tokens = model.lm, families.prompt(2, length)
    with torch.no_grad():
        previous = lm.model(tokens).last_hidden_state  # h^0
        ours = depth_states(model, tokens)
        for k in range(1, depth + 1):
            link = model.head.chain[k - 1]
            rows = length - k  # i = 0 … T-k-1 has a token k places ahead
            past = rms(previous[:, :rows], link.hidden_norm.weight)
            ahead = rms(lm.model.embed_tokens(tokens[:, k:]), link.embedding_norm.weight)
            fused = torch.cat([past, ahead], dim=-1) @ link.projection.weight.T  # (21)
            positions = torch.arange(rows).unsqueeze(0)
            mask = torch.full((rows, rows), float("-inf")).triu(1).expand(2, 1, rows, rows)
            previous = link.block(  # (22)
                fused,
                attention_mask=mask,
                position_embeddings=lm.model.rotary_emb(fused, positions),
                position_ids=positions,
            )
            logits = lm.lm_head(link.norm(previous))  # (23)
            ours_k = model.backbone.unembed(ours[k - 1])[:, :rows]
            torch.testing.assert_close(ours_k, logits, rtol=1e-4, atol=1e-4)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "cohere"])
def test_parallel_heads_equal_one_block_and_norm_each(family: str) -> None:
    """Copied from the last block on Gloeckle's trunk, every depth says what the backbone says."""
    model = ft.attach(families.build(family), depth=2, init="copy")
    tokens = families.prompt(2, 30)
    with torch.no_grad():
        output = model.backbone(tokens, layers=model.layers)
        for state in model.depth_hidden(tokens, output):
            torch.testing.assert_close(state, output.final)


def test_shared_links_are_one_module() -> None:
    def count(**options) -> int:
        model = ft.attach(families.build("llama"), "sequential", **options)
        return sum(p.numel() for p in model.head.parameters())

    one = count(depth=1)
    assert count(depth=4, shared=True) == one
    assert count(depth=4) == 4 * one
    shared = attached("llama", "shared")
    assert shared.head.module(1) is shared.head.module(2)


# -- causality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [0, 5, 18, 23])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", NO_LEAK)
def test_a_token_changes_nothing_before_it(family: str, shape: str, changed: int) -> None:
    """Depth k at t reads x_≤t, and x_{t+1…t+k} too where it is sequential; nothing further."""
    model = attached(family, shape)
    tokens = families.prompt(1, 24)
    other = tokens.clone()
    other[0, changed] = (tokens[0, changed] + 1) % families.VOCAB
    with torch.no_grad():
        pairs = zip(depth_states(model, tokens), depth_states(model, other), strict=True)
        for depth, (before, after) in enumerate(pairs, start=1):
            first = max(0, changed - (0 if shape == "parallel" else depth))
            torch.testing.assert_close(after[:, :first], before[:, :first], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(after[:, first], before[:, first], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", NO_LEAK)
def test_packed_documents_have_the_losses_they_have_alone(family: str, shape: str) -> None:
    model = attached(family, shape)
    documents = [families.prompt(1, length, seed=length) for length in (7, 19, 3, 11)]
    packed = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents]).unsqueeze(0)

    def losses(tokens: Tensor, position_ids: Tensor | None) -> list[Tensor]:
        states = depth_states(model, tokens, position_ids)
        kept = []
        for depth, state in enumerate(states, start=1):
            targets = depth_targets(tokens, depth, position_ids)
            each = nn.functional.cross_entropy(
                model.backbone.unembed(state)[0], targets[0], ignore_index=-100, reduction="none"
            )
            kept.append(each[targets[0] != -100])
        return kept

    with torch.no_grad():
        together = losses(packed, positions)
        alone = [losses(document, None) for document in documents]
    for depth in (1, 2):
        expected = torch.cat([document[depth - 1] for document in alone])
        torch.testing.assert_close(together[depth - 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", NO_LEAK)
def test_another_document_in_front_changes_no_loss_and_no_gradient(family: str, shape: str) -> None:
    model = attached(family, shape)
    first, second = families.prompt(1, 9, seed=1), families.prompt(1, 15, seed=2)
    positions = torch.cat([torch.arange(9), torch.arange(15)]).unsqueeze(0)
    labels = torch.cat([torch.full_like(first, -100), second], dim=1)
    parameters = list(model.head.parameters())

    def loss_and_gradients(front: Tensor) -> tuple[Tensor, list[Tensor]]:
        output = model(torch.cat([front, second], dim=1), positions, labels)
        return output.depth_losses, list(torch.autograd.grad(output.loss, parameters))

    losses, gradients = loss_and_gradients(first)
    others, other_gradients = loss_and_gradients((first + 1) % families.VOCAB)
    torch.testing.assert_close(losses, others)
    for one, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


# -- what a head can be told --------------------------------------------------------------------


def test_taps_are_the_states_they_are_called() -> None:
    backbone = attached("llama", "parallel").backbone
    output = backbone(families.prompt(), layers=range(families.LAYERS + 1))
    states = {FINAL: output.final, **output.states}
    read = {
        name: make_tap(name, families.LAYERS, families.HIDDEN, 1, normalize=False)(states, 1)
        for name in ("final", "trunk", "last", 0, 4)
    }
    assert read["final"] is output.final
    assert read["trunk"] is output.states[families.LAYERS - 1]
    assert read["last"] is read[4]
    assert read[0] is output.states[0]
    torch.testing.assert_close(backbone.final_norm(read[4]), output.final)


@pytest.mark.parametrize("name", ["final", "trunk", "weighted", "fused", 2])
def test_a_tap_scales_residual_states_to_one(name: str | int) -> None:
    states = {layer: 30 * (layer + 2) * torch.randn(1, 3, 4) for layer in range(FINAL, 5)}
    unit = {
        layer: state if layer == FINAL else state / state.square().mean(-1, keepdim=True).sqrt()
        for layer, state in states.items()
    }
    torch.manual_seed(0)
    scaled = make_tap(name, 4, 4, 1, normalize=True)
    plain = make_tap(name, 4, 4, 1, normalize=False)
    plain.load_state_dict(scaled.state_dict())
    torch.testing.assert_close(scaled(states, 1), plain(unit, 1))


def test_fresh_blocks_read_scaled_states_and_copies_what_the_backbone_has() -> None:
    assert ft.ParallelHeads.Config(depth=1).normalize is True
    assert ft.ParallelHeads.Config(depth=1, init="copy").normalize is False
    assert ft.ParallelHeads.Config(depth=1, init="copy", normalize=True).normalize is True


def test_the_weighted_tap_is_a_mean_at_first_and_then_what_its_weights_say() -> None:
    states = {layer: torch.randn(1, 3, 4) for layer in range(3)}
    tap = WeightedTap(num_layers=2, depths=2, normalize=False)
    torch.testing.assert_close(tap(states, 1), torch.stack([*states.values()]).mean(0))
    with torch.no_grad():
        tap.logits[1].copy_(torch.tensor([0.5, 0.2, 0.3]).log())
    torch.testing.assert_close(tap.weights(2), torch.tensor([0.5, 0.2, 0.3]))
    expected = 0.5 * states[0] + 0.2 * states[1] + 0.3 * states[2]
    torch.testing.assert_close(tap(states, 2), expected)
    torch.testing.assert_close(tap.weights(1), torch.full((3,), 1 / 3))  # depth 1 has its own


@pytest.mark.parametrize(("layers", "read"), [(32, (2, 16, 29)), (4, (1, 2)), (1, (0, 1))])
def test_the_fused_tap_projects_low_middle_and_high(layers: int, read: tuple[int, ...]) -> None:
    tap = make_tap("fused", layers, 4, 2, normalize=False)
    assert tap.layers == read
    states = {layer: torch.randn(1, 3, 4) for layer in read}
    expected = torch.cat([states[layer] for layer in read], -1) @ tap.projection.weight.T
    torch.testing.assert_close(tap(states, 1), expected)


@pytest.mark.parametrize("variant", ["causal", "anticausal"])
def test_chained_variants_read_one_another(variant: str) -> None:
    """Gloeckle's appendix, by hand: what a block reads is what the one before it gives."""
    model = ft.attach(families.build("llama"), depth=3, variant=variant, normalize=False)
    tokens = families.prompt(2, 12)
    output = model.backbone(tokens, layers=range(families.LAYERS + 1))
    order = (0, 1, 2) if variant == "causal" else (2, 1, 0)
    hidden = output.states[families.LAYERS if variant == "causal" else families.LAYERS - 1]
    expected = {}
    for index in order:
        hidden = output.call(model.head.blocks[index], hidden)
        expected[index + 1] = model.head.norms[index](hidden)
    for depths in ([1, 2, 3], [2], [1, 3]):
        found = model.depth_hidden(tokens, output, depths)
        for depth, state in zip(depths, found, strict=True):
            torch.testing.assert_close(state, expected[depth])


def test_linear_heads_are_one_matrix_each() -> None:
    model = ft.attach(families.build("llama"), depth=2, variant="linear")
    tokens = families.prompt(2, 12)
    output = model.backbone(tokens, layers=model.layers)
    for block, norm, state in zip(
        model.head.blocks, model.head.norms, model.depth_hidden(tokens, output), strict=True
    ):
        torch.testing.assert_close(state, norm(output.states[families.LAYERS - 1] @ block.weight.T))


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2", "mixtral"])
def test_residual_heads_begin_as_the_backbones_own(family: str) -> None:
    model = ft.attach(families.build(family), "residual", depth=2, layers=2)
    tokens = families.prompt(2, 12)
    output = model.backbone(tokens)
    for state in model.depth_hidden(tokens, output):
        assert torch.equal(model.backbone.unembed(state), model.lm(tokens).logits)
    model(tokens).loss.backward()
    assert all(p.grad.any() for p in model.head.parameters())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"])
def test_heads_on_a_mixture_can_be_dense(family: str) -> None:
    model = ft.attach(families.build(family), depth=1, block="dense").train()
    assert not any("expert" in name for name, _ in model.head.named_parameters())
    assert any(
        "expert" in name
        for name, _ in ft.attach(families.build(family), depth=1).head.named_parameters()
    )
    model(families.prompt(2, 12)).loss.backward()
    assert all(p.grad.any() for p in model.head.parameters())


def mixture(name: str, **sizes) -> PreTrainedModel:
    """A small mixture of experts of another family: 4 of them 8 wide, 2 at a time."""
    sizes = {
        "hidden_size": 16, "moe_intermediate_size": 8, "num_attention_heads": 2,
        "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_hidden_layers": 2,
        "vocab_size": families.VOCAB, **families.NO_TOKENS, **sizes,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(getattr(transformers, name)(**sizes))


@pytest.mark.parametrize(
    ("lm", "width"),
    [
        (lambda: mixture("Qwen2MoeConfig", shared_expert_intermediate_size=24, num_experts=4), 40),
        (
            lambda: mixture(
                "DeepseekV2Config", n_shared_experts=3, n_routed_experts=4, first_k_dense_replace=0,
                q_lora_rank=None, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
                v_head_dim=8,
            ),
            40,
        ),
        (lambda: mixture("Qwen3MoeConfig", num_experts=4, head_dim=8), 16),
    ],
)  # fmt: skip
def test_a_dense_head_is_as_wide_as_all_that_a_token_goes_through(lm, width: int) -> None:
    model = ft.attach(lm(), depth=1, block="dense")
    assert model.head.blocks[0].mlp.down_proj.weight.shape == (16, width)
    model(families.prompt(2, 8)).loss.backward()


def test_a_mixture_that_cannot_be_made_dense_says_so() -> None:
    """JetMoE routes attention to experts too; another config has numbers by layer."""
    lm = mixture("JetMoeConfig", num_local_experts=4, kv_channels=8, intermediate_size=8)
    with pytest.raises(BackboneError, match="JetMoeAttention, which reads more than a hidden"):
        ft.attach(lm, depth=1, block="dense")
    by_layer = {"num_experts": 4, "num_experts_per_tok": [2, 2]}
    lm = mixture("HunYuanMoEV1Config", intermediate_size=8, head_dim=8, **by_layer)
    with pytest.raises(BackboneError, match="does not tell in its config"):
        ft.attach(lm, depth=1, block="dense")


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("tap", ["final", "trunk", "last", 0, families.LAYERS, "weighted", "fused"])
def test_every_tap_trains(kind: str, tap) -> None:
    model = ft.attach(families.build("llama"), kind, depth=1, tap=tap)
    loss = model(families.prompt(2, 10)).loss
    loss.backward()
    assert all(p.grad.any() for p in model.head.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_config_survives_plain_values(kind: str) -> None:
    config = head_class(kind).Config(depth=3, tap=2, init="copy")
    assert head_class(kind).Config.from_dict(config.to_dict()) == config
    assert config.to_dict()["kind"] == kind


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": -1}, "depth is -1"),
        ({"depth": 1.5}, r"depth is 1\.5"),
        ({"depth": True}, "depth is True"),
        ({"depth": "2"}, "depth is '2'"),
        ({"depth": 1, "tap": "middle"}, "tap 'middle' is unknown"),
        ({"depth": 1, "tap": -1}, "tap -1 is unknown"),
        ({"depth": 1, "tap": True}, "tap True is unknown"),
        ({"depth": 1, "init": "zeros"}, "init is 'zeros'"),
        ({"depth": 1, "width": 2}, "width"),
        ({"depth": 1, "normalize": "yes"}, "normalize is 'yes'"),
        ({"depth": 1, "shared": "no"}, "shared"),
        ({"depth": 1, "layers": 1.0}, "layers"),
        ({"depth": 1, "variant": "wide"}, "variant"),
    ],
)
def test_a_head_told_nonsense_is_refused(kind: str, wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ft.attach(families.build("llama"), kind, **wrong)
    assert "\n" not in str(caught.value)


def test_a_head_that_does_not_fit_is_refused() -> None:
    model = families.build("llama")
    with pytest.raises(
        HeadError, match="tap 5 lies past the backbone's last layer: it has 4 blocks"
    ):
        ft.attach(model, depth=1, tap=5)
    with pytest.raises(InputError, match="'medusa' is unknown; choose from parallel, res"):
        ft.attach(model, "medusa", depth=1)
    with pytest.raises(InputError, match="shared"):
        ft.attach(model, "parallel", depth=1, shared=True)
    with pytest.raises(HeadError, match="give depth in the head's config"):
        ft.attach(model, ft.ParallelHeads.Config(depth=1), depth=2)


def test_a_model_without_heads_says_how_to_get_some() -> None:
    model = ft.MTPModel(families.build("llama"))
    assert model.depth == 0
    with pytest.raises(HeadError, match=r"no heads.*foretell train"):
        model.require_head()
    tokens = families.prompt(2, 10)
    output = model(tokens)
    logits = model.lm(tokens).logits[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    torch.testing.assert_close(output.depth_losses, expected.detach().reshape(1))
