import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import families
import foretoken as ft
from foretoken.errors import InputError
from foretoken.objective import DepthWeights, cross_entropy
from foretoken.targets import IGNORE

VOCAB, HIDDEN = 23, 8


def capped(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 5.0) * 5.0


def scaled(logits: Tensor) -> Tensor:
    return logits / 3.0


def plain(logits: Tensor) -> Tensor:
    return logits


def results(
    hidden: Tensor, weight: Tensor, targets: Tensor, after, chunk: int | None
) -> list[Tensor]:
    """Loss and both gradients; without `chunk` from torch's own loss on all logits at once."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()

    def unembed(x: Tensor) -> Tensor:
        return after(x @ weight.T)

    if chunk is None:
        flat = targets.reshape(-1)
        total = F.cross_entropy(
            unembed(hidden.reshape(-1, HIDDEN)), flat, ignore_index=IGNORE, reduction="sum"
        )
        loss = total / (flat != IGNORE).sum().clamp(min=1)
    else:
        loss = cross_entropy(hidden, targets, unembed, VOCAB, chunk_elements=chunk)
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("after", [plain, scaled, capped])
@given(
    rows=st.integers(1, 4), length=st.integers(1, 9), chunk=st.integers(1, 200), drop=st.randoms()
)
def test_chunked_loss_is_as_exact_as_torch(after, rows: int, length: int, chunk: int, drop) -> None:
    """Against float64: within the error of torch's own float32 loss, plus a few roundings."""
    generator = torch.Generator().manual_seed(length * 7 + rows)
    hidden = torch.randn(rows, length, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    targets = torch.randint(0, VOCAB, (rows, length), generator=generator)
    hide = torch.tensor([[drop.random() < 0.3 for _ in range(length)] for _ in range(rows)])
    targets = targets.masked_fill(hide, IGNORE)
    exact = results(hidden.double(), weight.double(), targets, after, None)
    reference = results(hidden, weight, targets, after, None)
    chunked = results(hidden, weight, targets, after, chunk)
    for truth, torchs, ours in zip(exact, reference, chunked, strict=True):
        budget = (torchs - truth).abs().max() + 4 * torch.finfo(torch.float32).eps * (
            1 + truth.abs().max()
        )
        assert (ours - truth).abs().max() <= budget


def test_the_loss_is_float32_in_half_precision_and_zero_without_targets() -> None:
    hidden = torch.randn(3, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    unembed = nn.Linear(HIDDEN, VOCAB, bias=False, dtype=torch.bfloat16)
    for chunk in (1, 1000):
        loss = cross_entropy(hidden, torch.full((3,), IGNORE), unembed, VOCAB, chunk)
        assert loss.dtype == torch.float32
        assert loss.item() == 0.0
        loss.backward()
        assert hidden.grad is not None
        assert not hidden.grad.any()


def test_at_most_one_chunk_of_logits_exists_at_once() -> None:
    sizes = []

    def unembed(x: Tensor) -> Tensor:
        sizes.append(x.shape[0] * VOCAB)
        return x @ torch.ones(HIDDEN, VOCAB)

    hidden = torch.randn(4, 10, HIDDEN, requires_grad=True)
    targets = torch.zeros(4, 10, dtype=torch.long)
    cross_entropy(hidden, targets, unembed, VOCAB, chunk_elements=6 * VOCAB).backward()
    assert max(sizes) == 6 * VOCAB
    assert sum(sizes) == 2 * 40 * VOCAB  # once forward, once again backward


def test_depth_weights_of_gloeckle_and_deepseek() -> None:
    assert DepthWeights().of(3) == (1.0, 1.0, 1.0, 1.0)
    assert DepthWeights("mean", 0.3).of(3) == (1.0, *[pytest.approx(0.1)] * 3)
    assert DepthWeights("sum", 0.5, backbone=0.0).of(2) == (0.0, 0.5, 0.5)
    for kind in ("sum", "mean"):
        assert DepthWeights(kind).of(0) == (1.0,)


@pytest.mark.parametrize(
    "wrong", [{"kind": "max"}, {"scale": 0.0}, {"scale": -1.0}, {"backbone": -0.1}]
)
def test_wrong_depth_weights_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError) as caught:
        DepthWeights(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize("head", ["parallel", "sequential"])
@pytest.mark.parametrize(
    "weights",
    [DepthWeights("mean", 0.3), DepthWeights("sum", 2.0, 0.5), DepthWeights("sum", 1.0, 0.0)],
)
def test_the_models_loss_equals_an_eager_loop_over_depths(family: str, head: str, weights) -> None:
    model = ft.attach(families.build(family), head, depth=2)
    tokens = families.prompt(2, 10)
    positions = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5]).expand(2, 10)
    labels = tokens.masked_fill(torch.rand(2, 10) < 0.2, IGNORE)
    output = model(tokens, position_ids=positions, labels=labels, weights=weights)

    seen = model.backbone(tokens, position_ids=positions, layers=model.layers)
    states = [seen.final, *model.depth_hidden(tokens, seen)]
    expected = []
    for depth, hidden in enumerate(states):
        logits = model.backbone.unembed(hidden)
        terms = [
            -logits[b, t].log_softmax(-1)[labels[b, t + 1 + depth]]
            for b in range(2)
            for t in range(10 - 1 - depth)
            if positions[b, t + 1 + depth] == positions[b, t] + 1 + depth
            and labels[b, t + 1 + depth] != IGNORE
        ]
        expected.append(torch.stack(terms).mean())
    torch.testing.assert_close(output.depth_losses, torch.stack(expected).detach())
    total = sum(w * loss for w, loss in zip(weights.of(2), expected, strict=True))
    torch.testing.assert_close(output.loss, total)

    # A depth of weight 0 teaches nothing: same gradients as the eager sum.
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    eager = torch.autograd.grad(total, parameters, allow_unused=True)
    for mine, theirs in zip(ours, eager, strict=True):
        mine = torch.zeros(()) if mine is None else mine
        theirs = torch.zeros(()) if theirs is None else theirs
        torch.testing.assert_close(mine + 0 * theirs, theirs + 0 * mine, rtol=1e-4, atol=1e-5)


def test_a_frozen_backbone_has_a_loss_but_does_not_learn() -> None:
    model = ft.attach(families.build("llama"), depth=2)
    model.freeze_backbone()
    output = model(families.prompt(2, 10))
    assert output.depth_losses.shape == (3,)
    torch.testing.assert_close(output.loss, output.depth_losses[1:].sum())
    output.loss.backward()
    assert all(p.grad is None for p in model.lm.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
