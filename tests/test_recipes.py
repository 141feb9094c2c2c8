"""Every lever of training does what it says: the parameters that should move do, and only they."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import families
import foretell as ft
from foretell.backbone import isolates_documents
from foretell.checkpoints import Adapters
from foretell.errors import InputError
from foretell.training import train, trainer
from runs import (
    SIZE,
    Stop,
    corpus,
    equal,
    masked_corpus,
    metrics,
    settings,
    small_model,
    stop_at,
    stream,
    weights,
)

pytestmark = pytest.mark.usefixtures("_tried_once")

HEAD = {"kind": "parallel", "depth": 2}


def moved(model: ft.MTPModel, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that changed."""
    now = dict(model.named_parameters())
    return {name for name in before if name in now and not torch.equal(now[name], before[name])}


def names(model: ft.MTPModel, owner: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(owner)}


# -- recipes ------------------------------------------------------------------------------------


def test_joint_moves_the_given_backbone_and_the_heads(tmp_path: Path) -> None:
    model = small_model()
    before = weights(model)
    result = train(model, corpus(), settings(recipe="joint", steps=4), tmp_path / "run")
    assert moved(model, before) == names(model, "lm") | names(model, "head")
    assert {m.part for m in result.movements if m.change > 0} == {
        "backbone embed_tokens", "backbone block 0", "backbone block 1", "backbone norm",
        "head blocks 0", "head blocks 1", "head norms 0", "head norms 1",
    }  # fmt: skip


@pytest.mark.parametrize("merge", [True, False])
def test_lora_moves_heads_and_adapters(tmp_path: Path, merge: bool) -> None:
    model = small_model()
    base, where = weights(model.lm), tmp_path / "base"
    model.lm.save_pretrained(where)
    fingerprint = model.fingerprint()
    heads = weights(model.head)
    config = settings(recipe="lora", steps=6, lora={"rank": 4, "merge": merge})
    result = train(model, corpus(), config, tmp_path / "run", backbone_path=str(where))
    assert not moved(model.head, heads).symmetric_difference(heads)
    went = {m.part: m.change > 0 for m in result.movements if m.part.startswith("backbone")}
    assert went == {
        "backbone block 0": False, "backbone block 0 adapters": True, "backbone norm": False,
        "backbone block 1": False, "backbone block 1 adapters": True,
        "backbone embed_tokens": False,
    }  # fmt: skip
    tokens = torch.arange(SIZE).unsqueeze(0)
    again = ft.MTPModel.from_pretrained(result.directory)
    torch.testing.assert_close(again.lm(tokens).logits, model.lm(tokens).logits)
    assert equal(weights(again.head), weights(model.head))
    plain = AutoModelForCausalLM.from_pretrained(where)
    assert not torch.allclose(plain(tokens).logits, model.lm(tokens).logits, atol=1e-4)
    if merge:
        tuned = AutoModelForCausalLM.from_pretrained(result.directory)
        torch.testing.assert_close(tuned(tokens).logits, model.lm(tokens).logits)
        changed = {
            name for name, p in model.lm.named_parameters() if not torch.equal(p, base[name])
        }
        assert changed == {n for n in base if "proj" in n}
    else:
        assert not (result.directory / "model.safetensors").exists()
        assert json.loads((result.directory / "foretell.json").read_text())["backbone"] == {
            "fingerprint": fingerprint, "architecture": "LlamaForCausalLM", "path": str(where),
            "adapted": True,
        }  # fmt: skip
        (result.directory / "adapters" / "adapter_model.safetensors").unlink()
        with pytest.raises(ft.CheckpointError, match="adapters"):
            ft.MTPModel.from_pretrained(result.directory)


def test_lora_is_told_where_it_belongs(tmp_path: Path) -> None:
    config = settings(recipe="lora", steps=1, lora={"targets": ["nowhere"]})
    with pytest.raises(InputError, match="do not fit LlamaForCausalLM") as caught:
        train(small_model(), corpus(), config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    config = settings(recipe="lora", steps=1, lora={"merge": False})
    with pytest.raises(InputError, match="give backbone_path, or merge them"):
        train(small_model(), corpus(), config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"]])
def test_adapters_where_heads_would_pass_them_over_are_refused(targets: list[str]) -> None:
    model = ft.attach(families.build("llama"), depth=1)
    before = weights(model)

    def add(lm) -> Adapters:
        return Adapters.add(lm, rank=2, alpha=4.0, dropout=0.0, targets=targets)

    with pytest.raises(InputError, match="embedding or the output head"):
        model.adapt(add)
    assert model.adapters is None
    assert equal(weights(model), before)


def test_adapters_kept_apart_go_on_learning(tmp_path: Path) -> None:
    model, base = small_model(), str(tmp_path / "base")
    model.lm.save_pretrained(base)
    config = settings(recipe="lora", steps=4, lora={"rank": 4, "merge": False})
    first = train(model, corpus(), config, tmp_path / "first", backbone_path=base)
    model = ft.MTPModel.from_pretrained(first.directory)
    before = weights(model)
    config = settings(recipe="native", head="none", steps=4)
    with pytest.raises(InputError, match="give backbone_path"):
        train(model, corpus(), config, tmp_path / "nowhere")
    second = train(model, corpus(), config, tmp_path / "second", backbone_path=base)
    adapters = {name for name in names(model, "lm") if "lora_" in name}
    assert adapters
    assert moved(model, before) == names(model, "head") | adapters
    assert not any(m.suspicious for m in second.movements)
    assert equal(weights(ft.MTPModel.from_pretrained(second.directory)), weights(model))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_native_goes_on_with_the_heads_there_are(tmp_path: Path, rate: float) -> None:
    model = small_model("sequential")
    config = settings(recipe="native", head="none", steps=4, backbone_rate=rate)
    before = weights(model)
    train(model, corpus(), config, tmp_path / "run")
    expected = names(model, "head") | (names(model, "lm") if rate else set())
    assert moved(model, before) == expected


# -- levers of Mehra et al. ---------------------------------------------------------------------


def test_the_backbone_learns_at_its_own_rate(tmp_path: Path) -> None:
    """One step of AdamW moves every weight by about the rate, so the ratio can be read off."""
    steps = {}
    for rate in (1.0, 0.125):
        model = small_model()
        before = weights(model)
        config = settings(
            recipe="joint", steps=1, backbone_rate=rate, schedule="constant", warmup=0
        )
        train(model, corpus(), config, tmp_path / str(rate))
        now = weights(model)
        for owner in ("lm.model.layers.0", "head.blocks.0"):
            name = f"{owner}.mlp.up_proj.weight"
            steps[owner, rate] = (now[name] - before[name]).abs().median().item()
    assert steps["head.blocks.0", 0.125] == pytest.approx(steps["head.blocks.0", 1.0], rel=1e-3)
    ratio = steps["lm.model.layers.0", 0.125] / steps["lm.model.layers.0", 1.0]
    assert ratio == pytest.approx(0.125, rel=1e-2)


@pytest.mark.parametrize("warmup", [8, 0.4])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_heads_warm_up_alone(tmp_path: Path, warmup: float, optimizer: str) -> None:
    model = small_model()
    before, seen = weights(model), {}

    def look(progress) -> None:
        seen[progress.step] = moved(model, before)

    config = settings(
        recipe="joint", head_warmup=warmup, log_every=1, optimizer=optimizer, weight_decay=0.1
    )
    train(model, corpus(), config, tmp_path / "run", report=look)
    heads = names(model, "head")
    for step in range(1, 9):
        assert seen[step] == heads, step
    assert seen[9] == heads | names(model, "lm")


@pytest.mark.usefixtures("pictures")
def test_a_weighted_tap_learns_and_is_drawn(tmp_path: Path) -> None:
    model = small_model({"kind": "parallel", "depth": 2, "tap": "weighted"})
    config = settings(recipe="frozen", head={**HEAD, "tap": "weighted"}, learning_rate=1e-2)
    train(model, corpus(), config, tmp_path / "run")
    learned = json.loads((tmp_path / "run" / "tap_weights.json").read_text())
    assert len(learned) == 2
    assert all(len(row) == 3 and sum(row) == pytest.approx(1) for row in learned)
    assert learned[0] != learned[1]
    assert max(learned[0]) > 0.34  # it began at a third each
    assert (tmp_path / "run" / "tap_weights.png").stat().st_size > 1000


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("distill", ["backbone", "marginal"])
def test_distillation_trains_the_heads_of_a_frozen_model(
    tmp_path: Path, distill: str, share: float
) -> None:
    model = small_model()
    before = weights(model)
    objective = {"distill": distill, "distill_share": share, "marginal_width": 4}
    config = settings(recipe="frozen", steps=6, objective=objective)
    train(model, corpus(), config, tmp_path / "run")
    assert moved(model, before) == names(model, "head")


@pytest.mark.parametrize(
    ("lever", "what"),
    [({"objective": {"distill": "marginal"}}, "marginal_targets"), ({"cache_gb": 1}, "StateCache")],
)
def test_a_teacher_sees_what_training_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lever: dict, what: str
) -> None:
    """Under autocast the backbone's own passes run in bfloat16 too, as the heads' tap sees them."""
    inside, outside = getattr(trainer, what), []

    def look(*args, **kwargs):
        outside.append(torch.is_autocast_enabled("cpu"))
        return inside(*args, **kwargs)

    monkeypatch.setattr(trainer, what, look)
    config = settings(recipe="frozen", steps=2, precision="bf16-mixed", **lever)
    model = small_model()
    assert isolates_documents(model.backbone)  # tried out in float32, once
    known = trainer.roles(model)  # so are these
    monkeypatch.setattr(trainer, "roles", lambda model: known)
    products = []
    model.backbone.blocks[0].mlp.register_forward_hook(lambda *seen: products.append(seen[2].dtype))
    train(model, corpus(), config, tmp_path / "run")
    assert outside
    assert all(outside)
    assert set(products) == {torch.bfloat16}


def test_a_curriculum_trains_one_depth_after_another(tmp_path: Path) -> None:
    model = small_model()
    before, seen = weights(model), {}
    config = settings(
        recipe="frozen", log_every=1, objective={"schedule": "forward", "curriculum": 1.0}
    )
    train(
        model, corpus(), config, tmp_path / "run",
        report=lambda p: seen.update({p.step: moved(model, before)}),
    )  # fmt: skip
    first = {n for n in names(model, "head") if ".0." in n.partition("layers")[0]}
    assert seen[10] == {n for n in first if n.startswith(("head.blocks.0", "head.norms.0"))}
    assert seen[11] == names(model, "head")


# -- scale --------------------------------------------------------------------------------------


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    """Token for token, also where batches hold different numbers of targets."""
    trained, losses = [], []
    for accumulate in (1, 4):
        model = small_model()
        config = settings(batch_size=8, accumulate=accumulate, steps=6, log_every=1)
        out = tmp_path / str(accumulate)
        result = train(model, masked_corpus(), config, out)
        trained.append(weights(model))
        losses.append([line["depth_losses"] for line in metrics(out)])
        assert result.tokens == 6 * 8 * SIZE
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-5
    )


def test_accumulated_passes_share_what_is_no_sum_over_positions(tmp_path: Path) -> None:
    """The experts' loss and the marginals: two equal passes teach what one of them does."""
    trained = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = ft.attach(families.build("mixtral"), depth=1)
        objective = {"distill": "marginal", "marginal_positions": SIZE, "backbone": 0.0}
        config = settings(
            recipe="joint", head={"depth": 1}, steps=1, batch_size=2 * accumulate,
            accumulate=accumulate, objective=objective, max_grad_norm=1e9, warmup=0,
        )  # fmt: skip
        before = weights(model)
        blocks = corpus(1)  # every pass reads the same two rows
        train(model, blocks, config, tmp_path / str(accumulate))
        trained.append({n: w - before[n] for n, w in weights(model).items()})
        gradient = json.loads((tmp_path / str(accumulate) / "metrics.jsonl").read_text())
        trained[-1]["norm"] = torch.tensor(gradient["gradient_norm"])
    torch.testing.assert_close(trained[0]["norm"], trained[1]["norm"], rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # likewise
@pytest.mark.parametrize("lever", ["checkpoint_activations", "compile", "cache_gb"])
@pytest.mark.parametrize("head", ["parallel", "sequential"])
def test_what_saves_time_or_memory_changes_no_result(tmp_path: Path, head: str, lever: str) -> None:
    trained = []
    recipe = "frozen" if lever == "cache_gb" else "joint"
    for value in (0, 1) if lever == "cache_gb" else (False, True):
        model = small_model(head)
        config = settings(recipe=recipe, head=head, steps=14, **{lever: value})
        train(model, corpus(), config, tmp_path / str(value))
        trained.append(weights(model))
        assert not (tmp_path / str(value) / ".states").exists()
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=2e-3, atol=2e-4)
    result = model.decode(torch.tensor([[1, 2, 3]]), max_new_tokens=8, stop_tokens=())
    assert len(result.new_tokens) == 8


@pytest.mark.parametrize("recipe", ["joint", "frozen"])
def test_activations_are_computed_again_in_backbone_and_heads(tmp_path: Path, recipe: str) -> None:
    counts = {}
    for value in (False, True):
        model, calls = small_model(), {"backbone": 0, "head": 0}
        config = settings(recipe=recipe, steps=2, checkpoint_activations=value)
        for name, blocks in (("backbone", model.backbone.blocks), ("head", model.head.blocks)):
            for block in blocks:
                # before the network, as computing again stops before its end
                block.mlp.register_forward_pre_hook(
                    lambda *_, name=name, calls=calls: calls.update({name: calls[name] + 1})
                )
        train(model, corpus(), config, tmp_path / str(value))
        counts[value] = calls
    again = {name: counts[True][name] - counts[False][name] for name in ("backbone", "head")}
    # two steps through two blocks each; a frozen backbone keeps no activations to begin with
    assert again == {"backbone": 4 if recipe == "joint" else 0, "head": 4}


LEVERS = {
    "accumulated muon in bf16": {"accumulate": 2, "optimizer": "muon", "precision": "bf16"},
    "head warm-up": {"recipe": "joint", "head_warmup": 12, "backbone_rate": 0.5},
    "lora": {"recipe": "lora", "lora": {"rank": 2, "dropout": 0.1}},
    "marginals": {
        "recipe": "frozen", "objective": {"distill": "marginal", "marginal_positions": 2},
    },
    "curriculum": {"objective": {"schedule": "reverse"}},
}  # fmt: skip


@pytest.mark.parametrize("lever", LEVERS)
def test_a_stopped_run_ends_with_the_same_bits_whatever_it_does(tmp_path: Path, lever: str) -> None:
    config = settings(**{"log_every": 1, "save_every": 5, **LEVERS[lever]})
    whole, resumed = small_model(), small_model()
    train(whole, corpus(), config.replace(save_every=0), tmp_path / "whole")
    for step in (7, 14):
        with pytest.raises(Stop):
            train(small_model(), corpus(), config, tmp_path / "run", report=stop_at(step))
    train(resumed, corpus(), config, tmp_path / "run")
    assert equal(weights(whole), weights(resumed))


# -- what a run tells -----------------------------------------------------------------------------


def test_held_out_losses_are_measured_beside(tmp_path: Path) -> None:
    model = small_model()
    config = settings(evaluate_every=10, log_every=5)
    held_out = corpus(6)
    train(model, corpus(), config, tmp_path / "run", held_out=held_out)
    lines = metrics(tmp_path / "run")
    assert [bool(line["held_out_losses"]) for line in lines] == [False, True, False, True]
    tokens = torch.stack([held_out[i]["input_ids"] for i in range(6)])
    positions = torch.stack([held_out[i]["position_ids"] for i in range(6)])
    with torch.no_grad():
        expected = model(tokens, positions).depth_losses
    torch.testing.assert_close(
        torch.tensor(lines[-1]["held_out_losses"]), expected, rtol=1e-5, atol=0
    )


def test_a_resumed_run_measures_where_a_whole_one_does(tmp_path: Path) -> None:
    """What became due before it was stopped, and would have been measured at the next line, too."""
    config = settings(evaluate_every=5, log_every=4, save_every=6, steps=12)
    with pytest.raises(Stop):
        train(
            small_model(), corpus(), config, tmp_path / "run", held_out=corpus(6), report=stop_at(7)
        )
    train(small_model(), corpus(), config, tmp_path / "run", held_out=corpus(6))
    measured = {line["step"]: bool(line["held_out_losses"]) for line in metrics(tmp_path / "run")}
    assert measured == {4: False, 8: True, 12: True}


@pytest.mark.usefixtures("pictures")
def test_the_curves_are_drawn_while_the_run_lasts(tmp_path: Path) -> None:
    config = settings(save_every=5)
    with pytest.raises(Stop):
        train(small_model(), corpus(), config, tmp_path / "run", report=stop_at(10))
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_a_run_leaves_no_word_to_the_next_one(tmp_path: Path) -> None:
    """What accelerate is told by environment variables would be believed by the next run too."""
    before = dict(os.environ)
    train(small_model(), corpus(), settings(steps=1, precision="bf16-mixed"), tmp_path / "run")
    assert dict(os.environ) == before


def test_a_head_that_did_not_move_is_seen(tmp_path: Path) -> None:
    """In the first half of this curriculum only depth 1 learns, and the run ends in it."""
    objective = {"schedule": "forward", "curriculum": 1.0}
    config = settings(recipe="frozen", steps=1, objective=objective)
    result = train(small_model(), corpus(), config, tmp_path / "run")
    found = {m.part: m for m in result.movements}
    assert found["head blocks 0"].suspicious is None
    assert found["head blocks 1"].suspicious == "head blocks 1 was to learn and did not move"
    frozen = [m for m in result.movements if m.part.startswith("backbone")]
    assert frozen
    assert all(m.change == 0 and not m.learns and m.suspicious is None for m in frozen)
    written = json.loads((tmp_path / "run" / "movement.json").read_text())
    assert written == [vars(m) for m in result.movements]


def test_movement_is_the_relative_change(tmp_path: Path) -> None:
    from foretell.training.report import Departure

    model = small_model()
    departure = Departure(tmp_path / "start.safetensors", model)
    with torch.no_grad():
        for parameter in model.head.blocks[0].parameters():
            parameter.mul_(1.5)
    found = {m.part: m for m in departure.movements(model)}
    assert found["head blocks 0"].change == pytest.approx(0.5, rel=1e-5)
    assert found["head blocks 1"].change == 0
    assert "did not move" in found["head blocks 1"].suspicious
    assert found["head blocks 0"].parameters == sum(
        p.numel() for p in model.head.blocks[0].parameters()
    )


def test_tensorboard_gets_the_losses_of_every_depth(tmp_path: Path) -> None:
    """Once each, also of steps that a resumed run did again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings(tensorboard=True, log_every=1, save_every=5)
    with pytest.raises(Stop):
        train(small_model(), corpus(), config, tmp_path / "run", report=stop_at(8))
    train(small_model(), corpus(), config, tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    lines = metrics(tmp_path / "run")
    for depth in range(3):
        scalars = events.Scalars(f"train/loss_depth_{depth}")
        assert [s.step for s in scalars] == [line["step"] for line in lines]
        assert [s.value for s in scalars] == pytest.approx(
            [line["depth_losses"][depth] for line in lines], rel=1e-5
        )


# -- streams --------------------------------------------------------------------------------------


def test_a_stream_trains_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    def model() -> ft.MTPModel:
        return small_model(vocab=1024)

    config = settings(log_every=1, save_every=5)
    whole, resumed = model(), model()
    result = train(whole, stream(), config.replace(save_every=0), tmp_path / "whole")
    assert result.steps == 20
    with pytest.raises(Stop):
        train(model(), stream(), config, tmp_path / "run", report=stop_at(12))
    train(resumed, stream(), config, tmp_path / "run")
    assert equal(weights(whole), weights(resumed))
    with pytest.raises(InputError, match="no epochs"):
        settings(steps=None, epochs=1, streaming=True)
