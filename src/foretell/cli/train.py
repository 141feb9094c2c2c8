"""`foretell train`: heads on a model, or a model with heads from scratch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import typer
import yaml
from accelerate import PartialState

from foretell.cli import common
from foretell.cli.commands.train import Train
from foretell.cli.watching import Watch, describe_interruption, describe_overrun, training_bar
from foretell.data import Bad
from foretell.decoding.cache import decodes
from foretell.errors import InputError
from foretell.formats import head_for, require_layout
from foretell.hardware import pick_device
from foretell.ready import tokenizer_of
from foretell.results.tables import LossByDepth
from foretell.training import TrainConfig, TrainResult, build, read_training_text, reference
from foretell.training import train as run_training
from foretell.training.config import merged


def train(asked: Train) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    given = asked.settings()
    if asked.head == "none":
        given["head"] = "none"
    chosen = merged(given, _parse_settings(asked.others or []))
    if asked.target is not None:
        chosen["head"] = head_for(asked.target, chosen.get("head", {}))
    run = (
        TrainConfig.from_yaml(asked.config, chosen)
        if asked.config
        else TrainConfig.parse(chosen, "train")
    )
    with _processes(pick_device(asked.device)) as where:
        if run.precision != "float32":
            common.warn_slow(torch.bfloat16, where, "use --precision float32")
        built = build(asked.model, run, where, asked.backbone)
        common.say_merged(asked.model)
        if asked.target is not None:
            require_layout(asked.target, built)
        if not (decoded := decodes(built.backbone)):
            common.console.print(
                f"Warning: {type(built.lm).__name__} can be trained with heads, but not decoded in "
                f"drafts: {decoded.lacking}",
                style="bold red",
            )
        tokenizer = tokenizer_of(asked.model, built)
        bad = Bad(asked.skip_bad)
        with common.reading(asked.data):
            blocks, held_out = read_training_text(asked.data, built, tokenizer, run, bad)
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
        LossByDepth(
            model=asked.model,
            method=kind,
            recipe=run.recipe,
            depth=depth,
            nll=loss,
            tokens=result.tokens,
            seconds=result.seconds,
        )
        for depth, loss in enumerate(result.depth_losses)
    ]
    left_out = {"skip_bad": asked.skip_bad, "bad_records": len(bad.found)}
    common.save_json(asked.json, "train", built, run.seed, {**run.to_dict(), **left_out}, rows)


@contextmanager
def _processes(device: torch.device) -> Iterator[torch.device]:
    """Yield this process's device; of several processes only the main one prints."""
    processes = PartialState(cpu=device.type == "cpu")
    common.console.quiet = not processes.is_main_process
    try:
        yield device if processes.num_processes == 1 else processes.device
    finally:
        processes.destroy_process_group()


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
