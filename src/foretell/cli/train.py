"""`foretell train`: heads on a model, or a model with heads from scratch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
import yaml
from accelerate import PartialState

from foretell.checkpoints import (
    BUNDLED,
    is_foretell_directory,
    load_causal_lm,
    new_causal_lm,
    resolve,
)
from foretell.cli import common
from foretell.cli.commands.train import Train
from foretell.cli.watching import Watch, describe_interruption, describe_overrun, training_bar
from foretell.data import Bad
from foretell.decoding.cache import decodes
from foretell.errors import HeadError, InputError
from foretell.formats import layout
from foretell.model import MTPModel
from foretell.training import TrainConfig, TrainResult
from foretell.training import train as run_training
from foretell.training.config import merged

DEPTH = 3
"""Of heads, where none is given."""


def train(asked: Train) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    given = {
        **asked.told("recipe", "epochs", "steps", "minutes", "batch_size", "block_size"),
        **asked.told("optimizer", "learning_rate", "precision", "save_every", "seed"),
        "head": _given(kind=asked.head, depth=asked.depth, tap=_tap(asked.tap)),
        "objective": _given(weights=asked.loss),
    }
    if asked.head == "none":
        given["head"] = "none"
    chosen = merged(_given(**given), _parse_settings(asked.settings or []))
    if asked.target is not None:
        chosen["head"] = head_for(asked.target, chosen.get("head", {}))
    run = (
        TrainConfig.from_yaml(asked.config, chosen)
        if asked.config
        else TrainConfig.parse(chosen, "train")
    )
    with _processes(common.pick_device(asked.device)) as where:
        if run.precision != "float32":
            common.warn_slow(torch.bfloat16, where, "use --precision float32")
        built = build(asked.model, run, where, asked.backbone)
        if asked.target is not None:
            require_layout(asked.target, built)
        if not (decoded := decodes(built.backbone)):
            common.console.print(
                f"Warning: {type(built.lm).__name__} can be trained with heads, but not decoded in "
                f"drafts: {decoded.lacking}",
                style="bold red",
            )
        tokenizer = common.tokenizer_of(asked.model, built)
        bad = Bad(asked.skip_bad)
        blocks, held_out = common.load_corpus(asked.data, built, tokenizer, run, bad)
        common.show_bad(bad, asked.data)
        known = len(bad.found)
        try:
            with training_bar(run.minutes) as show:
                watch = Watch(built, show)
                result = run_training(
                    built,
                    blocks,
                    run,
                    asked.out,
                    held_out=held_out,
                    tokenizer=tokenizer,
                    backbone_path=reference(asked.model, built),
                    begin=watch.begin,
                    report=watch.report,
                )
        except KeyboardInterrupt:
            if not common.console.quiet:
                typer.echo(describe_interruption(asked.out), err=True)
            raise
    if common.console.quiet:
        return
    if len(bad.found) > known:  # a stream is read while it is learned from
        common.show_bad(bad, asked.data)
    show_result(result)
    if overrun := describe_overrun(run.minutes, result.seconds):
        common.console.print(overrun)
    kind = built.head.config.kind if built.head is not None else "plain"
    rows = [
        {"model": asked.model, "method": kind, "recipe": run.recipe, "depth": depth_, "nll": loss_,
         "tokens": result.tokens, "seconds": result.seconds}
        for depth_, loss_ in enumerate(result.depth_losses)
    ]  # fmt: skip
    left_out = {"skip_bad": asked.skip_bad, "bad_records": len(bad.found)}
    common.save_json(asked.json, "train", built, run.seed, {**run.model_dump(), **left_out}, rows)


@contextmanager
def _processes(device: torch.device) -> Iterator[torch.device]:
    """Yield this process's device; of several processes only the main one prints."""
    processes = PartialState(cpu=device.type == "cpu")
    common.console.quiet = not processes.is_main_process
    try:
        yield device if processes.num_processes == 1 else processes.device
    finally:
        processes.destroy_process_group()


def head_for(target: str, given: Any) -> dict[str, Any]:
    """The settings of heads that a layout can hold, with those given that it leaves open."""
    given = given if isinstance(given, dict) else {"kind": given}
    wanted = layout(target).head(given.get("depth", DEPTH), given.get("kind")).to_dict()
    for name, value in given.items():
        if name not in wanted:
            raise InputError(f"head.{name}: heads for {target} ({wanted['kind']}) have no such.")
        if value != wanted[name] and name not in ("depth", "init", "layers"):
            raise InputError(
                f"head.{name} is {value!r}, and --for {target} makes it {wanted[name]!r}; "
                "leave one of them out."
            )
    return {**wanted, **given}


def require_layout(target: str, model: MTPModel) -> None:
    """Refuse a backbone that the layout cannot hold, before anything is trained."""
    reasons = layout(target).refusals(model, model.backbone.config.to_dict())
    if reasons:
        raise HeadError(f"{target} cannot hold this model: {reasons[0]}.")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value not in (None, {})}


def _parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`a.b=value` as nested mappings; values are YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not (path and equals):
            raise InputError(f"--set {pair}: give NAME=VALUE, such as backbone_rate=0.1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: the value is not YAML.") from None
        for name in reversed(path.split(".")):
            value = {name: value}
        result = merged(result, value)
    return result


def build(
    name: str, config: TrainConfig, device: torch.device, backbone_at: str | None = None
) -> MTPModel:
    """The model to train: random weights under `pretrain`, given ones under all other recipes.

    `backbone_at` is where the backbone of heads lies that are trained on, if not where they say.
    """
    if backbone_at is not None and config.recipe != "native":
        raise InputError("--backbone goes with recipe native; else MODEL is the backbone.")
    torch.manual_seed(config.seed)
    dtype = _dtype(config, device)
    if config.recipe == "native":
        model = MTPModel.from_pretrained(
            name, backbone=backbone_at, dtype=dtype or "auto", device=device
        )
        if model.head is None:
            raise InputError(f"{name}: has no heads to train on; recipe frozen or joint adds some.")
        return model
    if config.recipe == "pretrain":
        backbone = new_causal_lm(name, config.seed, dtype or torch.float32)
    else:
        if is_foretell_directory(Path(resolve(name))):
            raise InputError(
                f"{name}: has heads already; train on with recipe native, or name the backbone "
                "that new ones are to be trained on."
            )
        backbone = load_causal_lm(name, dtype)
        common.say_merged(name)
    backbone.to(device)  # type: ignore[arg-type]
    return MTPModel(backbone, config.head)


def _dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """What the backbone is loaded in: the type it is to train in; None where it stays as stored."""
    if config.precision == "bf16":
        return torch.bfloat16
    learns = config.backbone_learns and config.recipe != "lora"
    return torch.float32 if learns or device.type == "cpu" else None


def reference(name: str, model: MTPModel) -> str:
    """How heads that are stored alone name their backbone."""
    if name in BUNDLED:
        return name
    name = model.tokenizer_path or name  # heads may be stored apart from it
    where = Path(resolve(name))
    return str(where.resolve()) if where.is_dir() else name


def show_result(result: TrainResult) -> None:
    """What a run did: its losses, and how far the parts of the model moved."""
    losses = ", ".join(f"{loss:.3f}" for loss in result.depth_losses)
    common.console.print(
        f"{result.steps} steps, {result.tokens:,} tokens, {result.seconds:.0f} s; "
        f"loss by depth {losses} nats → {result.directory}"
    )
    learned = [f"{m.part} {common.percent(m.change)}" for m in result.movements if m.learns]
    if learned:
        common.console.print(f"Moved, against where it began: {', '.join(learned)}")
    for movement in result.movements:
        if movement.suspicious:
            common.console.print(f"Warning: {movement.suspicious}.", style="bold red")


def _tap(name: str | None) -> str | int | None:
    return int(name) if name is not None and name.isdigit() else name
