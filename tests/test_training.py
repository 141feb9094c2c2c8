import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

import families
import foretell as ft
from foretell.backbone import Backbone
from foretell.data import PackedBlocks
from foretell.errors import InputError
from foretell.evaluation import measure_heads
from foretell.objective import ObjectiveConfig
from foretell.training import Plan, Progress, TrainConfig, train
from foretell.training import muon as muon_module
from foretell.training.muon import Muon, orthogonalised
from foretell.training.optimizers import Chained, MasterWeights, make_optimizer, rate_factor
from foretell.training.progress import Clock
from foretell.training.roles import roles
from runs import (
    FINISHED,
    SIZE,
    VOCAB,
    Stop,
    corpus,
    equal,
    metrics,
    settings,
    small_model,
    stop_at,
    weights,
)

pytestmark = pytest.mark.usefixtures("_tried_once")

# -- what learns --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
@pytest.mark.parametrize("head", ["parallel", "sequential"])
def test_frozen_moves_every_head_parameter_and_no_other(
    tmp_path: Path, head: str, precision
) -> None:
    model = small_model(head)
    for parameter in model.parameters():  # representable in bfloat16: nothing to round
        parameter.data = parameter.data.bfloat16().float()
    backbone, heads = weights(model.lm), weights(model.head)
    fingerprint = model.backbone.fingerprint()
    logits = model.lm.eval()(torch.arange(SIZE).unsqueeze(0)).logits
    config = settings(recipe="frozen", head=head, steps=6, precision=precision)
    result = train(model, corpus(), config, tmp_path / "run")
    for name, tensor in model.lm.state_dict().items():
        assert torch.equal(tensor.to(backbone[name].dtype), backbone[name]), name
    for name, tensor in model.head.state_dict().items():
        assert not torch.equal(tensor.float(), heads[name]), name
    assert model.backbone.fingerprint() == fingerprint
    plain = AutoModelForCausalLM.from_pretrained(result.directory, dtype=torch.float32).eval()
    assert torch.equal(plain(torch.arange(SIZE).unsqueeze(0)).logits, logits)
    assert result.steps == 6


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_pretrain_moves_every_parameter(tmp_path: Path, optimizer: str) -> None:
    model = small_model()
    before = weights(model)
    train(model, corpus(), settings(steps=4, optimizer=optimizer), tmp_path / "run")
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("head", ["parallel", "sequential", "none"])
def test_the_loss_of_every_depth_falls_and_is_written_down(tmp_path: Path, head: str) -> None:
    model, seen = small_model(head), []
    config = settings(head=head, steps=60, log_every=10, learning_rate=1e-2)
    result = train(model, corpus(), config, tmp_path / "run", report=seen.append)
    depths = 1 if head == "none" else 3
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert [p.step for p in seen] == [*range(1, 11), 20, 30, 40, 50, 60]  # each of the first
    shown = [p.depth_losses for p in seen]
    assert [tuple(line["depth_losses"]) for line in lines] == shown[9:]
    assert np.mean(shown[:9], axis=0) == pytest.approx(shown[9], rel=0.5)
    first, last = lines[0], lines[-1]
    for depth in range(depths):
        assert last["depth_losses"][depth] < 0.8 * first["depth_losses"][depth]
    assert len(last["depth_losses"]) == depths
    assert result.depth_losses == tuple(last["depth_losses"])
    assert (last["fraction"], last["total_steps"]) == (1.0, 60)
    assert last["tokens_per_second"] > 0
    assert result.tokens == 60 * 4 * SIZE
    assert all(isinstance(progress, Progress) for progress in seen)


def test_a_finished_run_holds_model_settings_and_metrics(tmp_path: Path) -> None:
    model, config = small_model(), settings(save_every=5)
    result = train(model, corpus(), config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FINISHED
    assert TrainConfig.from_yaml(tmp_path / "run" / "config.yaml") == config
    again = ft.MTPModel.from_pretrained(result.directory)
    assert equal(weights(model), weights(again))
    assert not model.training


def test_frozen_heads_are_stored_alone_where_the_backbone_can_be_found(tmp_path: Path) -> None:
    model = small_model()
    model.lm.save_pretrained(tmp_path / "backbone")
    config = settings(recipe="frozen", steps=2)
    where = str(tmp_path / "backbone")
    result = train(model, corpus(), config, tmp_path / "run", backbone_path=where)
    assert not (result.directory / "model.safetensors").exists()
    assert equal(weights(model), weights(ft.MTPModel.from_pretrained(result.directory)))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    trained = []
    for run, seed in enumerate([0, 0, 1]):
        model = small_model()
        train(model, corpus(), settings(steps=3, seed=seed), tmp_path / str(run))
        trained.append(weights(model))
    assert equal(trained[0], trained[1])
    assert not equal(trained[0], trained[2])


# -- stopped and resumed ------------------------------------------------------------------------

RECIPES = {
    "adamw float32": {},
    "muon bf16": {"optimizer": "muon", "precision": "bf16", "learning_rate": 1e-2},
    "frozen": {"recipe": "frozen", "head": "sequential"},
    "no heads": {"head": "none", "schedule": "cosine"},
    "positions drawn at random": {
        "recipe": "frozen", "accumulate": 2,
        "objective": {"distill": "marginal", "marginal_width": 2},
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, recipe: str) -> None:
    config = settings(**{"log_every": 1, "save_every": 5, **RECIPES[recipe]})
    whole = small_model(config.head)
    train(whole, corpus(), config.replace(save_every=0), tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(Stop):
        train(small_model(config.head), corpus(), config, out, report=stop_at(12))
    assert (out / "checkpoint-10" / "complete.json").is_file()
    with pytest.raises(Stop):
        train(small_model(config.head), corpus(), config, out, report=stop_at(17))
    resumed, steps = small_model(config.head), []
    train(resumed, corpus(), config, out, report=lambda p: steps.append(p.step))
    assert steps == [16, 17, 18, 19, 20]
    assert equal(weights(whole), weights(resumed))
    assert not list(out.glob("checkpoint-*"))
    assert equal(
        weights(ft.MTPModel.from_pretrained(tmp_path / "whole" / "model")),
        weights(ft.MTPModel.from_pretrained(out / "model")),
    )


@pytest.mark.parametrize("survivors", [True, False])
def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path, survivors: bool) -> None:
    config = settings(log_every=1, save_every=5)
    whole = small_model()
    train(whole, corpus(), config.replace(save_every=0), tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(Stop):
        train(small_model(), corpus(), config, out, report=stop_at(17))
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-15"}
    for name in ["checkpoint-15"] if survivors else ["checkpoint-15", "checkpoint-10"]:
        (out / name / "complete.json").unlink()
        for file in [path for path in (out / name).rglob("*") if path.is_file()]:
            file.write_bytes(file.read_bytes()[:20])
    resumed, steps = small_model(), []
    train(resumed, corpus(), config, out, report=lambda p: steps.append(p.step))
    assert steps[0] == (11 if survivors else 1)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"learning_rate": 1e-4}, {"steps": 21}])
def test_the_directory_of_another_run_is_refused(tmp_path: Path, changes: dict) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train(small_model(), corpus(), settings(log_every=1, save_every=5), out, report=stop_at(6))
    before = sorted(path.name for path in out.rglob("*"))
    with pytest.raises(InputError, match="holds a run with other settings") as caught:
        train(small_model(), corpus(), settings(log_every=1, save_every=5, **changes), out)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in out.rglob("*")) == before


def test_a_run_that_wrote_its_numbers_otherwise_is_the_same_run(tmp_path: Path) -> None:
    from foretell.training.rundir import RunDirectory

    run, source = RunDirectory(tmp_path / "run"), {"backbone": "abc"}
    config = TrainConfig.parse({"steps": 10, "objective": {"schedule": "drop", "drop_at": 5000}})
    run.claim(config, source, {"seed": 0})
    written = run.path / "config.yaml"
    text = written.read_text(encoding="utf-8")
    written.write_text(text.replace("drop_at: 5000.0", "drop_at: 5000"), encoding="utf-8")
    assert written.read_text(encoding="utf-8") != text
    run.claim(config, source, {"seed": 0})
    with pytest.raises(InputError, match="other settings"):
        run.claim(config.replace(seed=1), source, {"seed": 0})


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    train(small_model(), corpus(), settings(steps=2), tmp_path / "run")
    with pytest.raises(InputError, match="holds a finished run"):
        train(small_model(), corpus(), settings(steps=2), tmp_path / "run")


def test_nobody_else_goes_on_with_a_run_that_goes_on(tmp_path: Path) -> None:
    refused = []

    def meanwhile(progress: Progress) -> None:
        with pytest.raises(InputError, match="another process is training there") as caught:
            train(small_model(), corpus(), settings(), tmp_path / "run")
        refused.append(caught)

    out = train(small_model(), corpus(), settings(), tmp_path / "run", report=meanwhile)
    assert len(refused) == 12  # every one of 10 steps, and of 5
    assert out.steps == 20
    assert len(metrics(tmp_path / "run")) == 4
    assert {path.name for path in (tmp_path / "run").iterdir()} == FINISHED


def test_time_ends_a_run_too(tmp_path: Path) -> None:
    config = settings(steps=None, minutes=0.02, learning_rate=1e-3)
    seen: list[Progress] = []
    result = train(small_model(), corpus(), config, tmp_path / "run", report=seen.append)
    assert result.steps > 1
    assert seen[-1].step == result.steps
    assert seen[-1].total_steps is None
    assert seen[-1].fraction == 1.0
    assert result.seconds < 20


@pytest.mark.parametrize(("length", "steps"), [(21.0, 2), (35.0, 1), (70.0, 1), (30.0, 2)])
def test_no_step_begins_that_would_overrun(monkeypatch, length: float, steps: int) -> None:
    """A minute, in steps of so many seconds."""
    assert steps_in_a_minute(monkeypatch, lambda done: length) == steps


def test_a_step_that_compiles_tells_nothing_of_the_next(monkeypatch) -> None:
    def slow_at_first(done: int) -> float:
        return 1.0 if done else 40.0

    assert steps_in_a_minute(monkeypatch, slow_at_first, compiles=True) == 21
    assert steps_in_a_minute(monkeypatch, slow_at_first, before=15.0, compiles=True) == 6


def steps_in_a_minute(monkeypatch, length, before: float = 0.0, **options) -> int:
    """How many steps are done where step n takes `length(n)` seconds."""
    now = 0.0
    monkeypatch.setattr("foretell.training.progress.time.monotonic", lambda: now)
    clock = Clock(1.0, before, **options)
    clock.start()
    clock.tick()
    done = 0
    while clock.fraction() < 1.0:
        now += length(done)
        done += 1
        clock.tick()
    return done


def test_the_plan_of_a_run(tmp_path: Path) -> None:
    model, plans = small_model(), []
    config = settings(steps=6, minutes=5.0, recipe="frozen", accumulate=2, save_every=3)
    with pytest.raises(Stop):
        train(model, corpus(), config, tmp_path / "run", begin=plans.append, report=stop_at(5))
    train(small_model(), corpus(), config, tmp_path / "run", begin=plans.append)
    first, second = plans
    assert second == replace(first, begun=3)
    blocks, heads = corpus(), sum(p.numel() for p in model.head.parameters())
    assert (first.documents, first.tokens) == (blocks.num_documents, blocks.num_tokens)
    assert (first.steps, first.minutes, first.begun) == (6, 5.0, 0)
    assert first.learns == {"heads": heads}
    assert first.rests == sum(p.numel() for p in model.lm.parameters())
    assert (first.device, first.precision, first.processes) == ("cpu", "float32", 1)


@pytest.mark.parametrize(
    ("seconds", "steps", "proposed"),
    [(2.4, None, None), (4.8, None, 16), (4.8, 25, None), (12.0, None, 6), (99.0, None, 2)],
)
def test_a_batch_with_which_enough_steps_fit(seconds: float, steps: int, proposed: int) -> None:
    """Two minutes, batches of 32 shared by two passes: of multiples of 2, fifty fit."""
    plan = Plan(1, 1, 1, steps, 2.0, 0, 32, 2, 8, {}, 0, "cpu", "float32", 1)
    assert plan.proposed_batch_size(seconds) == proposed
    unlimited = replace(plan, minutes=None, steps=9)
    assert unlimited.proposed_batch_size(seconds) is None


def test_a_frozen_backbones_own_loss_is_measured_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first ten steps and in every `log_every`th: elsewhere it would say nothing."""
    rows: list[int] = []
    unembed = Backbone.unembed

    def counted(self, final):
        rows.append(len(final))
        return unembed(self, final)

    config = settings(recipe="frozen", steps=25, log_every=12, head={"vocabulary": 40})
    model = small_model(config.head)
    monkeypatch.setattr(Backbone, "unembed", counted)
    train(model, corpus(), config, tmp_path / "run")
    assert len(rows) == 10 + 2  # steps 1 to 10, 12 and 24; heads read out some rows alone
    first, second, last = (line["depth_losses"][0] for line in metrics(tmp_path / "run"))
    assert last == second != first
    assert all(map(math.isfinite, (first, second, last)))


def test_epochs_count_the_corpus(tmp_path: Path) -> None:
    config = settings(steps=None, epochs=1.5)  # 24 blocks in batches of 4
    assert train(small_model(), corpus(), config, tmp_path / "run").steps == 9


# -- optimisers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_master_weights_step_in_float32(kind: str) -> None:
    """At every step the weights are the float32 run's, rounded; plain bfloat16 stands still."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if kind == "adamw":
            return torch.optim.AdamW(parameters, lr=1e-4)
        return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)

    start = torch.randn(20, 30).bfloat16()
    half, single, naive = (
        nn.Parameter(start.clone().to(t)) for t in (torch.bfloat16, torch.float32, torch.bfloat16)
    )
    master, exact, lossy = MasterWeights([half], make), make([single]), make([naive])
    for _ in range(30):
        gradient = torch.ones_like(start) + 0.1 * torch.randn_like(start)
        half.grad, single.grad, naive.grad = gradient, gradient.float(), gradient.clone()
        for optimizer in (master, exact, lossy):
            optimizer.step()
        assert torch.equal(half, single.bfloat16())
    assert torch.equal(master.masters[0], single)
    moved = (single - start.float()).abs().mean()
    assert (naive.float() - single).abs().mean() > 0.2 * moved


def test_master_weights_survive_saving() -> None:
    def run(restart: bool) -> torch.Tensor:
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(8, 8).bfloat16())
        make = lambda ps: torch.optim.AdamW(ps, lr=1e-3)  # noqa: E731
        optimizer = MasterWeights([weight], make)
        for step in range(10):
            if restart and step == 5:
                state = optimizer.state_dict()
                weight = nn.Parameter(torch.zeros(8, 8).bfloat16())
                optimizer = MasterWeights([weight], make)
                optimizer.load_state_dict(state)
            weight.grad = torch.randn(8, 8).bfloat16()
            optimizer.step()
            optimizer.zero_grad()
            assert weight.grad is None
        return weight.detach()

    assert torch.equal(run(False), run(True))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_rate_set_from_outside_reaches_every_member(precision: str) -> None:
    model = small_model()
    optimizer = make_optimizer(model, settings(optimizer="muon", precision=precision))
    inner = optimizer.inner if isinstance(optimizer, MasterWeights) else optimizer
    assert isinstance(inner, Chained)
    muon, adamw = inner.optimizers
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])
    tables = {tuple(model.backbone.embedding.weight.shape)}
    assert not tables & {tuple(p.shape) for group in muon.param_groups for p in group["params"]}
    count = sum(len(g["params"]) for o in (muon, adamw) for g in o.param_groups)
    assert count == len(list(model.parameters()))
    for restored in (False, True):
        if restored:
            optimizer.load_state_dict(optimizer.state_dict())
        for group in optimizer.param_groups:
            group["lr"] = 0.125 + restored
        assert {g["lr"] for o in (muon, adamw) for g in o.param_groups} == {0.125 + restored}


@pytest.mark.parametrize(
    ("family", "kept", "stacked"),
    [  # what has two dimensions or more and is no matrix; how many stacks of them a block has
        ("gpt_oss", {"down_proj_bias", "gate_up_proj_bias"}, 2),
        ("mamba", {"A_log", "conv1d.weight"}, 0),
        ("qwen3_next", {"conv1d.weight"}, 2),
        ("cohere_normed", {"q_norm.weight", "k_norm.weight"}, 0),
        ("jetmoe", set(), 4),
        ("gpt2", set(), 0),
    ],
)
def test_what_states_are_multiplied_by_decays_and_is_orthogonalised(
    family: str, kept: set[str], stacked: int
) -> None:
    """Not what has two dimensions: biases of experts, norms, state-space parameters."""
    model = ft.attach(families.build(family), "sequential", depth=1)
    found = roles(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    others = [n for n, p in model.named_parameters() if found[n] == "vector" and p.ndim > 1]
    assert {end for end in kept if any(n.endswith(end) for n in others)} == kept
    assert all(n.endswith(tuple(kept)) for n in others)
    tables = {n for n, role in found.items() if role == "table"}
    assert all(any(w in n for w in ("embed", "lm_head", "wte", "wpe")) for n in tables)
    optimizer = make_optimizer(model, settings(optimizer="muon", weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    where = {
        names[id(p)]: (type(member).__name__, group["weight_decay"])
        for member in optimizer.optimizers
        for group in member.param_groups
        for p in group["params"]
    }
    wanted = {"table": ("AdamW", 0.1), "vector": ("AdamW", 0.0)}
    for name in found:
        assert where[name] == wanted.get(found[name], ("Muon", 0.1)), name
    by_muon = [(n, p) for n, p in model.named_parameters() if where[n][0] == "Muon"]
    assert sum(p.ndim == 3 for n, p in by_muon if "head." in n) == stacked


@pytest.mark.parametrize("kind", ["stack", "matrices"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 12, 5), (3, 5, 12)])
def test_muon_steps_stacks_and_matrices_as_torch_does_matrices(
    shape: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon_module, "is_slow", lambda *_: False)
    whole = nn.Parameter(torch.randn(shape))
    parts = [nn.Parameter(matrix.clone()) for matrix in whole.detach()]
    own = [whole] if kind == "stack" else [nn.Parameter(part.detach().clone()) for part in parts]
    together = Muon([{"params": own, "lr": 0.05}], weight_decay=0.1)
    alone = torch.optim.Muon([{"params": parts, "lr": 0.05}], weight_decay=0.1)
    for _ in range(3):
        before, gradient = torch.stack(parts).detach(), torch.randn(shape)
        gradient[1] *= 1e3  # each is scaled by itself
        whole.grad = gradient
        for matrices in (parts, own if kind == "matrices" else []):
            for matrix, own_gradient in zip(matrices, gradient, strict=False):
                matrix.grad = own_gradient.clone()
        together.step()
        alone.step()
        found = whole if kind == "stack" else torch.stack(own)
        moved = (found - before).norm()
        assert (found - torch.stack(parts)).norm() < 0.02 * moved  # bfloat16


@pytest.mark.parametrize(("slow", "near"), [(True, 1e-5), (False, 0.02)])
def test_a_cpu_that_emulates_bfloat16_orthogonalises_in_float32(
    slow: bool, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = torch.randn(40, 24)

    def stepped(state: dict | None = None) -> tuple[torch.Tensor, dict]:
        """Where a step from 0 leads, and what is stored after it."""
        matrix = nn.Parameter(torch.zeros(40, 24))
        muon = Muon([{"params": [matrix], "lr": 1.0}], weight_decay=0.0)
        if state is not None:
            muon.load_state_dict(state)
            muon.state[matrix]["momentum_buffer"].zero_()
        matrix.grad = gradient.clone()
        muon.step()
        return matrix.detach(), muon.state_dict()

    monkeypatch.setattr(muon_module, "is_slow", lambda *_: slow)
    found, stored = stepped()
    exact = -((40 / 24) ** 0.5) * orthogonalised(gradient, torch.float64)
    assert near / 100 < float((found - exact).norm() / exact.norm()) < near
    monkeypatch.setattr(muon_module, "is_slow", lambda *_: not slow)  # it goes on elsewhere
    assert torch.equal(stepped(stored)[0], found)


def test_experts_that_no_token_went_to_are_matrices_too() -> None:
    class Apart(nn.Module):
        """Two experts; every token goes to the first one."""

        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.experts[0](hidden)

    lm = families.build("llama")
    lm.model.layers[1].mlp = Apart()
    found = roles(ft.attach(lm, depth=1))
    assert found["lm.model.layers.1.mlp.experts.1.weight"] == "matrix"
    assert found["lm.model.layers.1.mlp.experts.1.bias"] == "vector"


@given(
    done=st.floats(0, 1),
    warmup=st.sampled_from([0.0, 0.02, 0.5]),
    schedule=st.sampled_from(["linear", "cosine", "wsd", "constant"]),
)
def test_the_rate_rises_and_falls_between_zero_and_its_peak(done, warmup, schedule) -> None:
    config = settings(warmup=warmup, schedule=schedule)
    factor = rate_factor(config, done)
    assert 0 <= factor <= 1
    later = rate_factor(config, min(1.0, done + 0.01))
    assert later >= factor if done + 0.01 < warmup else later <= factor or done < warmup


def test_the_rate_at_a_few_places() -> None:
    linear = settings(warmup=0.2)
    assert [rate_factor(linear, d) for d in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert rate_factor(linear, 0.0) > 0  # the first step learns too
    cosine = settings(warmup=0.0, schedule="cosine")
    assert [rate_factor(cosine, d) for d in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    wsd = settings(warmup=0.1, schedule="wsd", cooldown=0.2)
    assert [rate_factor(wsd, d) for d in (0.1, 0.8, 0.9, 1)] == pytest.approx([1, 1, 0.5, 0])
    constant = settings(warmup=0.5, schedule="constant")
    assert [rate_factor(constant, d) for d in (0.25, 0.5, 1)] == [0.5, 1, 1]


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head": {"depth": 0}}, "depth is 0"),
        ({"head": {"depth": -2}}, "depth is -2"),
        ({"head": {"depth": "many"}}, "depth"),
        ({"head": {"tap": "middle"}}, "tap 'middle' is unknown"),
        ({"head": {"kind": "parallel", "shared": True}}, "shared"),
        ({"head": "medusa"}, "'medusa' is unknown; choose from parallel, residual, sequential"),
        ({"head": 3}, "give a kind"),
        ({"head": "none", "recipe": "frozen"}, "leaves nothing to train"),
        ({"head": "parallel", "recipe": "native"}, "model's own heads"),
        ({"colour": "red"}, "colour"),
        ({"steps": None}, "say how long to train"),
        ({"steps": 0}, "steps"),
        ({"minutes": -1}, "minutes"),
        ({"batch_size": 0}, "batch_size"),
        ({"block_size": 1}, "block_size"),
        ({"recipe": "thawed"}, "recipe"),
        ({"objective": {"scale": 0}}, "scale is 0"),
        ({"objective": {"shape": 0}}, "objective has no 'shape'"),
        ({"objective": "sum"}, "give a mapping"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"precision": "int8"}, "precision"),
        ({"precision": "bf16"}, "rounds the backbone"),
        ({"precision": "bf16", "recipe": "lora"}, "rounds the base"),
        ({"warmup": 1.0}, "warmup"),
        ({"backbone_rate": 0.0, "recipe": "joint"}, "recipe 'frozen'"),
        ({"backbone_rate": -1.0, "recipe": "joint"}, "backbone_rate"),
        ({"head_warmup": 10}, "head_warmup"),
        ({"cache_gb": 1, "recipe": "joint"}, "cache_gb"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"accumulate": 0}, "accumulate"),
        ({"head": {"kind": "sequential", "shared": "no"}}, "shared is 'no'; it is true or false"),
        ({"head": {"kind": "residual", "layers": 1.5}}, r"layers is 1\.5; it is a whole number"),
        ({"objective": {"scale": float("inf")}}, "scale is inf; it is a finite number"),
        ({"objective": {"drop_at": "late"}}, "drop_at is 'late'; it is a number"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"lora": {"alpha": float("inf")}}, "lora.alpha"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TrainConfig.parse({"steps": 5, **wrong}, "run.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("run.yaml: ")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1."),
        ({"steps": "5"}, "steps is '5'; it is a whole number."),
        ({"steps": True}, "steps is True; it is a whole number."),
        ({"minutes": True}, "minutes is True; it is a number."),
        ({"minutes": -1}, "minutes is -1; it must be more than 0."),
        ({"warmup": 1.0}, "warmup is 1.0; it must be less than 1."),
        ({"streaming": 1}, "streaming is 1; it is true or false."),
        ({"attention": 3}, "attention is 3; it is a text."),
        ({"precision": "int8"}, "precision is 'int8'; choose from float32, bf16-mixed or bf16."),
        ({"lora": {"rank": 0}}, "lora.rank is 0; it must be at least 1."),
        ({"lora": {"rate": 1}}, "lora has no 'rate'; it has rank, alpha, dropout, targets, merge."),
        ({"lora": 8}, "lora is 8; give a mapping of names to values."),
        ({"lora": {"targets": [3]}}, "lora.targets is [3]; it is a text."),
        ({"objective": {"decay": 2}}, "objective.decay is 2; it must be at most 1."),
        ({"head": {"depth": 300}}, "head.depth is 300; it must be at most 256."),
        ({"head": {"normalize": "no"}}, "head.normalize is 'no'; it is true or false."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_value(wrong: dict, line: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(**{"steps": 5, **wrong})
    assert str(caught.value) == line


def test_settings_stay_as_they_are() -> None:
    head = ft.ParallelHeads.Config(depth=2)
    with pytest.raises(ValueError, match="frozen"):
        head.depth = 3
    assert head.replace(depth=3) == ft.ParallelHeads.Config(depth=3)
    with pytest.raises(InputError, match="depth is 0"):
        head.replace(depth=0)
    # What was not told follows from what is told now.
    assert head.replace(init="copy") == ft.ParallelHeads.Config(depth=2, init="copy")
    assert TrainConfig(steps=3).replace(recipe="native") == TrainConfig(steps=3, recipe="native")


def test_settings_and_errors_go_to_other_processes() -> None:
    config = TrainConfig(steps=3, objective={"scale": 0.3}, lora={"targets": ("q_proj",)})
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(InputError) as caught:
        TrainConfig(steps=0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_numbers_without_a_point_are_numbers() -> None:
    """`1e-1` is a string to YAML 1.1."""
    values = yaml.safe_load("{steps: 5, learning_rate: 1e-4, objective: {scale: 1e-1}}")
    config = TrainConfig.parse(values)
    assert (config.learning_rate, config.objective.scale) == (1e-4, 0.1)


@pytest.mark.parametrize("where", ["blocks", "held_out"])
@pytest.mark.parametrize("token", [VOCAB, -1])
def test_tokens_that_the_model_does_not_know_are_refused(
    tmp_path: Path, where: str, token: int
) -> None:
    tokens = np.full((4, SIZE), 5, np.int32)
    tokens[2, 3] = token
    foreign = PackedBlocks(tokens, np.arange(1), num_bytes=9)
    given = {"blocks": corpus(), "held_out": None} | {where: foreign}
    with pytest.raises(InputError, match=f"token {token} and the model knows 0 to 47"):
        train(small_model(), config=settings(), out=tmp_path / "run", **given)
    with pytest.raises(InputError, match="own tokenizer"):
        measure_heads(small_model(), foreign)


def test_settings_come_from_a_file_and_are_overridden(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    head = {"kind": "parallel", "depth": 4, "tap": "final"}
    file.write_text(yaml.safe_dump({"steps": 5, "head": head, "objective": {"scale": 0.3}}))
    config = TrainConfig.from_yaml(file)
    assert config.head == ft.ParallelHeads.Config(depth=4, tap="final")
    assert config.objective == ObjectiveConfig(scale=0.3)
    shallower = TrainConfig.from_yaml(file, {"head": {"depth": 1}, "objective": {"decay": 0.5}})
    assert shallower.head == ft.ParallelHeads.Config(depth=1, tap="final")
    assert shallower.objective == ObjectiveConfig(scale=0.3, decay=0.5)
    other = TrainConfig.from_yaml(file, {"head": {"kind": "residual", "layers": 2}})
    assert other.head == ft.ResidualHeads.Config(depth=3, layers=2)
    for content, message in [
        (b"- a\n", "must be a mapping"),
        (b"a: [", "is not YAML"),
        (b"\xff\xfe\xfa", "is not YAML"),
        (b"", "say how long to train"),
        (b"steps: 5\n7: 3\n", "7"),
    ]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            TrainConfig.from_yaml(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        TrainConfig.from_yaml(tmp_path / "gone.yaml")


def test_a_config_has_a_head_where_one_is_to_be_made() -> None:
    assert TrainConfig(steps=1).head == ft.ParallelHeads.Config(depth=3)
    assert settings(head="none").head is None
    assert TrainConfig(steps=1, recipe="native").head is None
    written = settings(recipe="joint", head="sequential", objective={"scale": 0.3})
    assert TrainConfig.parse(written.to_dict()) == written
    assert [settings(recipe=r).backbone_learns for r in ("frozen", "joint")] == [False, True]
    assert not TrainConfig(steps=1, recipe="native", backbone_rate=0).backbone_learns


def test_rundir_resumes_clock_and_metrics(tmp_path: Path) -> None:
    from foretell.training.rundir import RunDirectory

    run = RunDirectory(tmp_path / "run")
    run.claim(TrainConfig.parse({"steps": 10}), {"backbone": "abc"}, {"seed": 0})
    assert run.resume_point() is None
    for step in range(1, 8):
        run.log({"step": step})
    for step in (3, 5, 7):
        (run.path / f"checkpoint-{step}").mkdir()
    run.mark_complete(3, 1.5)
    run.mark_complete(5, 2.5)
    run.clear_after_resume_point()
    point = run.resume_point()
    assert point is not None
    assert (point.step, point.seconds) == (5, 2.5)
    assert not (run.path / "checkpoint-7").exists()
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("head", ["parallel", "sequential"])
def test_heads_learn_in_float32_on_a_half_precision_backbone(head: str, tmp_path: Path) -> None:
    """As on a GPU, where a backbone is loaded as stored: small steps must not be rounded away."""
    model = small_model(head)
    model.to(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = settings(recipe="frozen", head=head, learning_rate=1e-5)
    train(model, corpus(), config, tmp_path / "run")
    heads = dict(model.head.named_parameters())
    assert all(p.dtype == torch.float32 for p in heads.values())
    matrices = {name: p for name, p in heads.items() if p.ndim == 2}
    for name, parameter in matrices.items():
        moved = (parameter != before[f"head.{name}"].float()).float().mean()
        assert moved > 0.9, name
    assert all(torch.equal(p, before[f"lm.{name}"]) for name, p in model.lm.named_parameters())
    result = model.decode(torch.tensor([[1, 2, 3]]), max_new_tokens=8, stop_tokens=())
    assert len(result.new_tokens) == 8


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        next(model.head.parameters()).fill_(float("inf"))
    with pytest.raises(ft.ForetellError, match="not finite at step"):
        train(model, corpus(), settings(), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_a_directory_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-500").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-500" / "precious").write_text("mine")
    with pytest.raises(ft.InputError, match="not empty"):
        train(small_model(), corpus(), settings(), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-500" / "precious").read_text() == "mine"


def test_a_run_goes_on_with_the_backbone_that_it_began_with(tmp_path: Path) -> None:
    def stop(progress) -> None:
        if progress.step == 10:
            raise KeyboardInterrupt

    config = settings(recipe="frozen", save_every=5)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(seed=0), corpus(), config, tmp_path / "run", report=stop)
    with pytest.raises(ft.InputError, match="other backbone or data"):
        train(small_model(seed=5), corpus(), config, tmp_path / "run")
    with pytest.raises(ft.InputError, match="other backbone or data"):
        train(small_model(seed=0), corpus(30), config, tmp_path / "run")


def test_mixture_of_experts_resumes(tmp_path: Path) -> None:
    """transformers renames experts when it saves a model; checkpoints must not."""
    import families

    def stop(progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    def build() -> ft.MTPModel:
        torch.manual_seed(0)
        return ft.attach(families.build("mixtral"), "parallel", depth=1)

    config = settings(steps=3, save_every=1, log_every=1)
    train(build(), corpus(), config.replace(save_every=0), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(build(), corpus(), config, tmp_path / "run", report=stop)
    train(build(), corpus(), config, tmp_path / "run")
    for name in ("model.safetensors", "heads.safetensors"):
        whole, resumed = (tmp_path / d / "model" / name for d in ("whole", "run"))
        assert whole.read_bytes() == resumed.read_bytes()
