import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import Tensor, nn
from torch.nn import functional as F

import families
import foretell as ft
from foretell.errors import BackboneError, InputError
from foretell.objective import (
    BackboneTarget,
    JointLoss,
    MarginalTarget,
    Objective,
    ObjectiveConfig,
    Readout,
    Target,
    depth_by_depth,
    depth_loss,
)
from foretell.objective.divergences import DIVERGENCES, Divergence, divergence
from foretell.objective.loss import chunks
from foretell.targets import IGNORE

VOCAB, HIDDEN = 23, 8


def capped(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 5.0) * 5.0


def scaled(logits: Tensor) -> Tensor:
    return logits / 3.0


def plain(logits: Tensor) -> Tensor:
    return logits


def results(hidden: Tensor, weight: Tensor, target: Target, after, way: str, chunk: int = 0):
    """Loss and both gradients, computed in one of three ways."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()

    def unembed(x: Tensor) -> Tensor:
        return after(x @ weight.T)

    match way:
        case "torch":
            total = F.cross_entropy(unembed(hidden[target.places]), target.labels, reduction="sum")
            loss = total / max(1, len(target.labels))
        case "autograd":
            loss, _ = depth_loss(hidden, target, Readout(unembed, VOCAB), chunk)
        case "in order":
            work = Objective(
                lambda s, _: [s[0]], [[0]], [target], [1.0], [Readout(unembed, VOCAB)], chunk
            )
            loss, _ = depth_by_depth(work, [hidden], [weight])
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("way", ["autograd", "in order"])
@pytest.mark.parametrize("after", [plain, scaled, capped])
@settings(max_examples=40)
@given(length=st.integers(1, 36), chunk=st.integers(1, 200), drop=st.randoms())
def test_chunked_losses_are_as_exact_as_torch(
    after, way: str, length: int, chunk: int, drop
) -> None:
    """Against float64: within the error of torch's own float32 loss, plus a few roundings."""
    generator = torch.Generator().manual_seed(length)
    hidden = torch.randn(length, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCAB, (length,), generator=generator)
    labels = labels.masked_fill(torch.tensor([drop.random() < 0.3 for _ in labels]), IGNORE)
    target = Target.of(labels)
    exact = results(hidden.double(), weight.double(), target, after, "torch")
    reference = results(hidden, weight, target, after, "torch")
    chunked = results(hidden, weight, target, after, way, chunk)
    for truth, torchs, ours in zip(exact, reference, chunked, strict=True):
        budget = (torchs - truth).abs().max() + 4 * torch.finfo(torch.float32).eps * (
            1 + truth.abs().max()
        )
        assert (ours - truth).abs().max() <= budget


def test_the_loss_is_float32_in_half_precision_and_zero_without_targets() -> None:
    hidden = torch.randn(3, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    unembed = nn.Linear(HIDDEN, VOCAB, bias=False, dtype=torch.bfloat16)
    for chunk in (1, 1000):
        loss, _ = depth_loss(
            hidden, Target.of(torch.full((3,), IGNORE)), Readout(unembed, VOCAB), chunk
        )
        assert loss.dtype == torch.float32
        assert loss.item() == 0.0
        loss.backward()
        assert hidden.grad is not None
        assert not hidden.grad.any()


@pytest.mark.parametrize(("way", "passes"), [("autograd", 2), ("in order", 1)])
def test_at_most_one_chunk_of_logits_exists_at_once(way: str, passes: int) -> None:
    sizes = []

    def counted(logits: Tensor) -> Tensor:
        sizes.append(logits.numel())
        return logits

    labels = torch.zeros(40, dtype=torch.long)
    hidden, weight = torch.randn(40, HIDDEN), torch.randn(VOCAB, HIDDEN)
    results(hidden, weight, Target.of(labels), counted, way, 6 * VOCAB)
    assert max(sizes) == 6 * VOCAB
    assert sum(sizes) == passes * 40 * VOCAB  # autograd computes them again for the gradient


def test_gradients_in_order_add_up_in_float32_and_can_be_taken_once() -> None:
    """1,024 chunks of one position: in bfloat16 sums such small gradients would be lost."""
    torch.manual_seed(0)
    hidden, labels = torch.randn(1024, HIDDEN), torch.randint(0, VOCAB, (1024,))
    weight = torch.randn(VOCAB, HIDDEN).bfloat16().requires_grad_()
    work = Objective(
        lambda s, _: [s[0]], [[0]], [Target.of(labels)], [1.0],
        [Readout(lambda x: x.bfloat16() @ weight.T, VOCAB)], VOCAB,
    )  # fmt: skip
    loss, _ = depth_by_depth(work, [hidden], [weight])
    loss.backward(retain_graph=True)
    exact = weight.detach().double().requires_grad_()
    F.cross_entropy(hidden.double() @ exact.T, labels).backward()
    error = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 2**-8  # one rounding to bfloat16, and the products' own
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


# -- teachers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [VOCAB, 3 * VOCAB, 1000 * VOCAB])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_is_the_divergence_from_the_teacher(chunk: int, share: float) -> None:
    torch.manual_seed(1)
    weight, rows = torch.randn(VOCAB, HIDDEN), torch.randn(2, 6, HIDDEN)
    labels = torch.tensor([3, IGNORE, 5, 1, IGNORE, IGNORE, 0, 4, 4, 22, IGNORE, IGNORE])
    hidden = torch.randn(12, HIDDEN, requires_grad=True)
    soft = BackboneTarget(rows, 2, lambda x: x @ weight.T, temperature=2.0)
    teacher = torch.cat([rows[:, 2:], rows[:, -1:], rows[:, -1:]], 1).flatten(0, 1)
    target = Target.of(labels, soft=soft, soft_share=share)
    loss, nll = depth_loss(hidden, target, Readout(lambda x: x @ weight.T, VOCAB), chunk)
    logs = (hidden @ weight.T).log_softmax(-1)
    text = -torch.stack([logs[t, label] for t, label in enumerate(labels) if label >= 0]).mean()
    torch.testing.assert_close(nll, text.detach())
    p = (teacher @ weight.T / 2).softmax(-1)
    q = (hidden @ weight.T / 2).softmax(-1)
    each = (p * (p.log() - q.log())).sum(-1)[labels >= 0]
    torch.testing.assert_close(loss, (1 - share) * text + share * 4 * each.mean())


P, Q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.6, 0.2, 0.1])
M = (P + Q) / 2
ALPHA = 0.1 + 0.3 + 0.2
KL = (P[:3] * (P[:3] / Q[:3]).log()).sum()
LAMBDA = torch.tensor(-3 * ALPHA).exp()
DEFINED = {
    "kl": KL,
    "jsd": ((P[:3] * (P[:3] / M[:3]).log()).sum() + (Q * (Q / M).log()).sum()) / 2,
    "tv": torch.tensor(1 - ALPHA),
    "nla": -torch.tensor(ALPHA).log(),
    "lk_hybrid": LAMBDA * KL + (1 - LAMBDA) * (1 - ALPHA),
}


@pytest.mark.parametrize("kind", DEFINED)
def test_divergences_are_what_they_are_called(kind: str) -> None:
    """Also of a teacher that rules a token out."""
    found = divergence(kind, P.log().unsqueeze(0), Q.log().unsqueeze(0))
    torch.testing.assert_close(found, DEFINED[kind].unsqueeze(0))
    turned = divergence("rkl", Q.log().unsqueeze(0), P.log().unsqueeze(0))
    torch.testing.assert_close(turned, DEFINED["kl"].unsqueeze(0))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_tokens_that_both_rule_out_count_nothing(kind: Divergence) -> None:
    """As where a model masks a part of its vocabulary: its heads read the same output head."""
    found = []
    for width in (4, 6):
        logits = torch.full((2, width), -torch.inf)
        logits[0, :4], logits[1, :4] = Q.flip(0).log(), Q.log()
        teacher, student = logits.requires_grad_().log_softmax(-1)
        divergence(kind, teacher.unsqueeze(0), student.unsqueeze(0)).sum().backward()
        assert logits.grad is not None
        found.append(logits.grad)
    narrow, wide = found
    torch.testing.assert_close(wide, torch.nn.functional.pad(narrow, (0, 2)))


@pytest.mark.parametrize("chunk", [VOCAB, 1000 * VOCAB])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_each_is_learned_exactly_and_falls_to_nothing(kind: str, chunk: int) -> None:
    """Loss and gradient against the whole at once; and none is left where the two are alike."""
    torch.manual_seed(3)
    weight, rows = torch.randn(VOCAB, HIDDEN), torch.randn(2, 5, HIDDEN)
    labels = torch.tensor([3, IGNORE, 5, 1, 2, 0, 4, 4, 22, IGNORE])

    def unembed(x: Tensor) -> Tensor:
        return x @ weight.T

    soft = BackboneTarget(rows, 0, unembed, kind=kind)
    target = Target.of(labels, soft=soft, soft_share=1.0)
    hidden = torch.randn(10, HIDDEN, requires_grad=True)
    loss, _ = depth_loss(hidden, target, Readout(unembed, VOCAB), chunk)
    (gradient,) = torch.autograd.grad(loss, hidden)
    learned = labels >= 0
    p, q = (unembed(x[learned]).log_softmax(-1) for x in (rows.flatten(0, 1), hidden))
    wanted = divergence(kind, p, q).mean()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, hidden)[0])
    alike, _ = depth_loss(rows.flatten(0, 1), target, Readout(unembed, VOCAB), chunk)
    assert abs(alike.item()) < 1e-5 < loss.item()


def test_a_divergence_needs_a_teacher() -> None:
    with pytest.raises(InputError, match="divergence 'tv' is one from a teacher"):
        ObjectiveConfig(divergence="tv")
    with pytest.raises(InputError, match="divergence"):
        ObjectiveConfig(distill="marginal", divergence="nla")


def test_all_depths_learn_from_the_same_states() -> None:
    model, tokens = ft.attach(families.build("llama"), depth=3), families.prompt(2, 10)
    trunk, objective = model.backbone(tokens), ObjectiveConfig(distill="backbone")
    for depth in (1, 2, 3):
        loss = JointLoss(model.backbone, model.head)
        soft = loss._teacher(objective, depth, trunk, None, loss._readouts()[depth])
        assert soft.final.data_ptr() == trunk.final.data_ptr()


def test_states_count_where_they_are_wider_than_the_vocabulary() -> None:
    assert list(chunks(5, vocab_size=2, hidden_size=10, chunk_elements=20)) == [
        (0, 2), (2, 4), (4, 5),
    ]  # fmt: skip
    assert list(chunks(5, vocab_size=10, hidden_size=2, chunk_elements=1)) == [
        (n, n + 1) for n in range(5)
    ]


@pytest.mark.parametrize("chunk", [VOCAB, 3 * VOCAB, 1000 * VOCAB])
def test_marginals_teach_where_they_were_computed(chunk: int) -> None:
    torch.manual_seed(2)
    weight = torch.randn(VOCAB, HIDDEN)
    hidden = torch.randn(7, HIDDEN, requires_grad=True)
    labels = torch.randint(0, VOCAB, (7,))
    teacher = torch.randn(3, VOCAB).softmax(-1)
    positions = torch.tensor([0, 3, 6])
    target = Target.of(labels, soft=MarginalTarget(positions, teacher, 3), soft_share=1.0)
    loss, _ = depth_loss(hidden, target, Readout(lambda x: x @ weight.T, VOCAB), chunk)
    q = (hidden[positions] @ weight.T).softmax(-1)
    torch.testing.assert_close(loss, (teacher * (teacher.log() - q.log())).sum(-1).mean())
    loss.backward()
    assert not hidden.grad[[1, 2, 4, 5]].any()


def test_the_backbone_teaches_what_it_says_at_the_place_itself() -> None:
    """Depth k at t learns from depth 0 at t + k, where the tokens in between have been read."""
    model = ft.attach(families.build("llama"), "residual", depth=2).eval()
    tokens = families.prompt(2, 10)
    objective = ObjectiveConfig(distill="backbone", backbone=0.0)
    output = model(tokens, objective=objective)
    logs = model.lm(tokens).logits.log_softmax(-1)  # also what a residual head says at first
    expected = 0.0
    for depth in (1, 2):
        p, q = logs[:, depth:-1], logs[:, : -1 - depth]
        expected += (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(output.loss, expected)


# -- weights and schedules ------------------------------------------------------------------------


def test_depth_weights_of_the_papers() -> None:
    assert ObjectiveConfig().at(3) == (1.0, 1.0, 1.0, 1.0)
    assert ObjectiveConfig(weights="mean", scale=0.3).at(3) == (1.0, *[pytest.approx(0.1)] * 3)
    assert ObjectiveConfig(scale=0.5, backbone=0.0).at(2) == (0.0, 0.5, 0.5)
    fast = ObjectiveConfig(weights="geometric", decay=0.6).at(3)
    assert fast == (1.0, *[pytest.approx(w, abs=0.005) for w in (0.51, 0.31, 0.18)])
    for weights in ("sum", "mean", "geometric"):
        assert ObjectiveConfig(weights=weights).at(0) == (1.0,)


def test_lambda_drops_at_a_share_or_at_a_step() -> None:
    share = ObjectiveConfig(weights="mean", scale=0.3, schedule="drop", drop_at=0.67, drop_to=0.1)
    assert share.at(1, done=0.66) == (1.0, 0.3)
    assert share.at(1, done=0.67) == (1.0, 0.1)
    step = ObjectiveConfig(scale=0.3, schedule="drop", drop_at=100, drop_to=0.1)
    assert step.at(1, done=0.9, step=99) == (1.0, 0.3)
    assert step.at(1, done=0.0, step=100) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("schedule", "backbone", "active"),
    [
        ("forward", 1.0, [0, 1, 2, 3, 3, 3]),
        ("reverse", 1.0, [3, 2, 1, 0, 0, 0]),
        ("forward", 0.0, [1, 1, 2, 3, 3, 3]),
        ("reverse", 0.0, [3, 3, 2, 1, 1, 1]),
    ],
)
def test_curricula_move_through_the_depths(schedule: str, backbone: float, active: list) -> None:
    config = ObjectiveConfig(schedule=schedule, curriculum=0.4, backbone=backbone)
    for done, expected in zip((0.0, 0.11, 0.21, 0.31, 0.5, 1.0), active, strict=True):
        weights = config.at(3, done)
        assert weights == (backbone, *[1.0] * expected, *[0.0] * (3 - expected)), done


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": "max"}, {"scale": 0.0}, {"scale": -1.0}, {"backbone": -0.1}, {"decay": 1.5},
        {"schedule": "sometimes"}, {"distill": "soft"}, {"distill_share": 1.1}, {"curriculum": 0.0},
        {"temperature": 0.0}, {"marginal_width": 0}, {"lambda": 0.3}, {"scale": float("nan")},
        {"scale": float("inf")}, {"backbone": float("nan")}, {"scale": "much"}, {"scale": None},
        {"scale": True}, {"scale": [1.0]}, {"decay": "nan"}, {"marginal_width": 2.5},
        {"marginal_positions": "16"}, {"marginal_positions": True}, {"weights": ["sum"]},
    ],
)  # fmt: skip
def test_wrong_objectives_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError) as caught:
        ObjectiveConfig.from_dict(wrong)
    assert "\n" not in str(caught.value)
    assert next(iter(wrong)) in str(caught.value)


def test_a_number_that_yaml_takes_for_a_string_is_one() -> None:
    assert ObjectiveConfig.from_dict({"scale": "1e-1"}) == ObjectiveConfig(scale=0.1)
    assert ObjectiveConfig(scale=2).to_dict() == ObjectiveConfig(scale=2.0).to_dict()


# -- the model's loss ----------------------------------------------------------------------------


LOSS_FAMILIES = ["llama", "gemma2", "granite", "gpt2"]
LOSS_HEADS = [
    {"head": "parallel"}, {"head": "parallel", "tap": "weighted"},
    {"head": "parallel", "variant": "causal"}, {"head": "sequential"},
    {"head": "sequential", "shared": True, "tap": "fused"}, {"head": "residual"},
]  # fmt: skip
LOSS_WEIGHTS = [(1.0, 0.15, 0.15), (0.5, 2.0, 2.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0)]


@pytest.mark.parametrize(
    ("family", "head", "weights", "in_order"),
    [
        pytest.param(
            family,
            head,
            weights,
            in_order,
            marks=[] if (row + column + in_order) % 4 == number else pytest.mark.long,
        )
        for row, family in enumerate(LOSS_FAMILIES)
        for column, head in enumerate(LOSS_HEADS)
        for number, weights in enumerate(LOSS_WEIGHTS)
        for in_order in (True, False)
    ],
    ids=str,
)
def test_the_models_loss_equals_an_eager_loop_over_depths(
    family: str, head: dict, weights: tuple, in_order: bool
) -> None:
    """Every family with every head, in both orders; of the weights one of four, each with all."""
    model = ft.attach(families.build(family), **head, depth=2)
    model.depth_by_depth = in_order
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
    total = sum(w * loss for w, loss in zip(weights, expected, strict=True))
    torch.testing.assert_close(output.loss, total)

    # A depth of weight 0 teaches nothing: same gradients as the eager sum.
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    eager = torch.autograd.grad(total, parameters, allow_unused=True)
    for mine, theirs in zip(ours, eager, strict=True):
        mine = torch.zeros(()) if mine is None else mine
        theirs = torch.zeros(()) if theirs is None else theirs
        torch.testing.assert_close(mine + 0 * theirs, theirs + 0 * mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0,) * 4])
def test_every_depth_has_a_weight(weights: tuple) -> None:
    model = ft.attach(families.build("llama"), depth=2)
    with pytest.raises(InputError, match="depths 0 to 2 take one each"):
        model(families.prompt(2, 10), weights=weights)


def test_a_frozen_backbone_has_a_loss_but_does_not_learn() -> None:
    model = ft.attach(families.build("llama"), depth=2)
    model.freeze_backbone()
    output = model(families.prompt(2, 10))
    assert output.depth_losses.shape == (3,)
    torch.testing.assert_close(output.loss, output.depth_losses[1:].sum())
    output.loss.backward()
    assert all(p.grad is None for p in model.lm.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


@pytest.mark.parametrize("head", ["parallel", "sequential", "residual"])
def test_a_backbone_that_rests_costs_no_gradient(head: str) -> None:
    """Until heads are warm it keeps learning parameters, and none of them gets a gradient."""
    model = ft.attach(families.build("llama"), head, depth=2)
    tokens, found = families.prompt(2, 10), []
    for trains in (True, False):
        model.backbone_trains = trains
        model.zero_grad()
        model(tokens, objective=ObjectiveConfig(backbone=0.0)).loss.backward()
        found.append([p.grad for p in model.head.parameters()])
        assert all(p.grad is None for p in model.lm.parameters()) == (not trains)
        assert all(p.requires_grad for p in model.lm.parameters())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("head", ["parallel", "sequential", "residual"])
def test_the_order_changes_no_gradient_under_autocast(head: str) -> None:
    """A depth that only is measured comes first, so that autocast's cached casts could be stale."""
    model = ft.attach(families.build("llama"), head, depth=2)
    tokens, found = families.prompt(2, 10), []
    for in_order in (True, False):
        model.depth_by_depth = in_order
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, weights=(0.0, 1.0, 1.0)).loss
        loss.backward()
        found.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).norm() <= 0.02 * theirs.norm() + 1e-6


def test_counts_stand_for_the_targets_of_a_whole_step() -> None:
    """Two half batches with the counts of both add up to the whole batch."""
    model = ft.attach(families.build("llama"), depth=2)
    tokens = families.prompt(4, 10)
    labels = tokens.clone()
    labels[0, :7] = IGNORE  # so that the halves have different numbers of targets
    counts = torch.stack([(labels[:, 1 + k :] != IGNORE).sum() for k in range(3)])
    whole = model(tokens, labels=labels).loss
    halves = [model(tokens[i : i + 2], labels=labels[i : i + 2], counts=counts) for i in (0, 2)]
    torch.testing.assert_close(halves[0].loss + halves[1].loss, whole)


MIXTURES = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "jetmoe", "dbrx", "granite_hybrid"]


@pytest.mark.parametrize("family", [*MIXTURES, "bamba"])
def test_what_a_model_adds_to_its_cross_entropy_is_kept(family: str) -> None:
    """Balancing experts, by whatever name, and Bamba's penalty on large logits."""
    lm = families.build(family)
    model = ft.attach(lm, depth=1)
    tokens = families.prompt(2, 10)
    routing = {"output_router_logits": True} if family in MIXTURES else {}
    try:
        own = lm(tokens, labels=tokens, **routing).loss
    except AttributeError as error:
        if Version(transformers.__version__) >= Version("5.24"):
            raise
        pytest.skip(f"transformers {transformers.__version__} itself fails here: {error}")
    wanted = torch.autograd.grad(own, list(lm.parameters()), allow_unused=True)
    output = model(tokens, weights=(1.0, 0.0))
    assert own - output.depth_losses[0] > 1e-3
    torch.testing.assert_close(output.loss, own)
    found = torch.autograd.grad(output.loss, list(lm.parameters()), allow_unused=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    model.freeze_backbone()  # its routers do not learn
    output = model(tokens)
    torch.testing.assert_close(output.loss, output.depth_losses[1])


@pytest.mark.parametrize(
    "family", ["granite_hybrid_dense", "doge", "llama", "marian", "deepseek_v3"]
)
def test_a_model_that_adds_nothing_learns_by_its_cross_entropy(family: str) -> None:
    """Classes for experts may be used without any, and then cannot compute what balances them."""
    model = ft.attach(families.build(family), depth=1)
    assert model.backbone.auxiliary is None
    output = model(families.prompt(2, 10))
    torch.testing.assert_close(output.loss, output.depth_losses.sum())


def test_a_loss_that_is_not_a_cross_entropy_and_something_beside_it_is_refused() -> None:
    """Whether it is of the model's own making, or its own loss fails though tokens are routed."""

    class Smoothed(type(families.build("llama"))):
        def forward(self, *args, labels=None, **kwargs):
            output = super().forward(*args, **kwargs)
            if labels is not None:
                logits = output.logits[:, :-1].flatten(0, 1)
                target = labels[:, 1:].flatten()
                output.loss = F.cross_entropy(logits, target, label_smoothing=0.1)
            return output

    class Broken(type(families.build("mixtral"))):
        def forward(self, *args, labels=None, **kwargs):
            output = super().forward(*args, **kwargs)
            if labels is not None and output.router_logits is not None:
                raise ValueError("no loss today")
            return output

    for family, wrong, reason in (
        ("llama", Smoothed, "not the cross-entropy and something beside it"),
        ("mixtral", Broken, r"raises ValueError \(no loss today\)"),
    ):
        lm = families.build(family)
        lm.__class__ = wrong
        model = ft.attach(lm, depth=1)
        with pytest.raises(BackboneError, match=f"{wrong.__name__} cannot learn here.*{reason}"):
            model(families.prompt(2, 10))
        model.freeze_backbone()
        model(families.prompt(2, 10)).loss.backward()


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_what_is_not_learned_need_not_be_measured(kind: str, in_order: bool) -> None:
    model = ft.attach(families.build("llama"), kind, depth=3)
    model.depth_by_depth = in_order
    tokens, weights = families.prompt(2, 10), (0.0, 1.0, 0.0, 0.5)
    found = []
    for measures_all in (True, False):
        model.zero_grad()
        output = model(tokens, weights=weights, measures_all=measures_all)
        output.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((output, gradients))
    (whole, expected), (part, gradients) = found
    assert torch.equal(whole.loss, part.loss)
    assert part.depth_losses.isnan().tolist() == [True, False, True, False]
    assert torch.equal(part.depth_losses[1::2], whole.depth_losses[1::2])
    assert all(torch.equal(gradients[name], expected[name]) for name in gradients)
    assert all(not expected[name].any() for name in expected.keys() - gradients.keys())


class Deaf(nn.Linear):
    """As an output head that quantises its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach()).detach()


@pytest.mark.parametrize("depth_by_depth", [True, False])
def test_heads_do_not_learn_through_an_output_head_without_gradients(depth_by_depth: bool) -> None:
    model = ft.attach(families.build("llama"), "residual", depth=2)
    model.lm.lm_head.__class__ = Deaf
    model.freeze_backbone()
    model.depth_by_depth = depth_by_depth
    tokens = families.prompt(2, 9)
    with torch.no_grad():
        assert model(tokens).loss > 0
    with pytest.raises(ft.BackboneError, match="output head passes no gradients on"):
        model(tokens).loss.backward()


ROWS = families.prompt(2, 9)
APART: dict[str, tuple[dict[str, object], str]] = {
    "labels of shorter rows": ({"labels": ROWS[:, :5]}, r"labels has the shape \(2, 5\)"),
    "labels of one row": ({"labels": ROWS[0]}, r"labels has the shape \(9,\)"),
    "labels that are no tokens": ({"labels": ROWS.float()}, "labels are torch.float32; give token"),
    "labels behind the vocabulary": (
        {"labels": ROWS + 1000},
        "outside the model's vocabulary of 101",
    ),
    "labels below it": ({"labels": ROWS - 200}, "outside the model's vocabulary of 101"),
    "a row alone": ({"input_ids": ROWS[0]}, r"input_ids have the shape \(9,\)"),
    "no tokens": ({"input_ids": ROWS[:, :0]}, r"input_ids have the shape \(2, 0\)"),
    "no rows": ({"input_ids": ROWS[:0]}, r"input_ids have the shape \(0, 9\)"),
    "positions of one row": ({"position_ids": torch.arange(9)}, r"position_ids has the shape"),
    "a mask of shorter rows": (
        {"attention_mask": ROWS[:, 1:] > 0},
        r"attention_mask has the shape",
    ),
    "too few counts": ({"counts": torch.ones(2)}, "2 counts were given; depths 0 to 2 take one"),
}


@pytest.mark.parametrize("case", APART)
def test_what_is_not_of_the_same_rows_is_refused(case: str) -> None:
    """Labels of rows of another length gave a loss, and a wrong one."""
    told, problem = APART[case]
    model = ft.attach(families.build("llama"), "residual", depth=2)
    with pytest.raises(InputError, match=problem) as caught:
        model(**{"input_ids": ROWS, **told})
    assert "\n" not in str(caught.value)


def test_labels_may_be_of_any_whole_type() -> None:
    model = ft.attach(families.build("llama"), "residual", depth=2)
    assert torch.equal(model(ROWS, labels=ROWS.int()).loss, model(ROWS).loss)
