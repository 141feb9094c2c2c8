"""`foretoken train`: heads on a model, or a model with heads from scratch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from foretoken.checkpoint import is_foretoken_directory
from foretoken.cli import common
from foretoken.errors import InputError
from foretoken.loading import (
    BUNDLED,
    load_causal_lm,
    new_causal_lm,
    resolve,
)
from foretoken.model import MTPModel
from foretoken.training import Progress, TrainConfig, TrainResult
from foretoken.training import train as run_training


def train(
    model: common.Model,
    data: common.Data,
    out: Annotated[Path, typer.Option(help="Run directory; an unfinished run in it goes on.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; options given here win over it.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="frozen: heads on the given weights (default). "
            "pretrain: backbone and heads from scratch."
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="parallel (default), sequential, or none (with pretrain).")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Tokens beyond the next one. [3]")] = None,
    tap: Annotated[
        str | None, typer.Option(help="Hidden state read: final, trunk, or a layer number.")
    ] = None,
    shared: Annotated[
        bool | None, typer.Option("--shared", help="One sequential module for all depths.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="New blocks: fresh (default) or copy.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="sum over depths (default), or mean (DeepSeek's λ/D).")
    ] = None,
    loss_scale: Annotated[float | None, typer.Option(help="λ. [1]")] = None,
    epochs: Annotated[float | None, typer.Option(help="Stop after so many passes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step. [16]")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens per row. [256]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw (default) or muon.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of AdamW. [1e-3]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 (default), bf16-mixed or bf16.")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. [200]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. [0]")] = None,
    device: common.Device = "auto",
    json: common.Json = None,
) -> None:
    """Train heads that predict further ahead, and save them to OUT/model.

    Say when to stop with --epochs, --steps or --minutes. A run that was interrupted goes on when
    the same command is given again.

    Example: foretoken train tiny --data stdlib:train --head sequential --minutes 2 --out runs/first
    """
    common.quiet_transformers()
    given = {
        "recipe": recipe, "head": head, "depth": depth, "tap": _tap(tap), "shared": shared,
        "init": init, "loss": loss, "loss_scale": loss_scale, "epochs": epochs, "steps": steps,
        "minutes": minutes, "batch_size": batch_size, "block_size": block_size,
        "optimizer": optimizer, "learning_rate": learning_rate, "precision": precision,
        "save_every": save_every, "seed": seed,
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = (
        TrainConfig.from_yaml(config, **chosen) if config else TrainConfig.parse(chosen, "train")
    )
    built = build(model, settings, common.pick_device(device))
    tokenizer = common.tokenizer_of(model, built)
    blocks = common.load_blocks(data, built, tokenizer, settings.block_size)
    with training_bar() as report:
        result = run_training(
            built,
            blocks,
            settings,
            out,
            tokenizer=tokenizer,
            backbone_path=reference(model),
            report=report,
        )
    show_result(result)
    rows = [
        {"model": model, "method": settings.head, "depth": depth_, "nll": loss_,
         "tokens": result.tokens, "seconds": result.seconds}
        for depth_, loss_ in enumerate(result.depth_losses)
    ]  # fmt: skip
    common.save_json(json, "train", built, settings.seed, settings.model_dump(), rows)


def build(name: str, config: TrainConfig, device: torch.device) -> MTPModel:
    """The model to train: given weights under `frozen`, random ones under `pretrain`."""
    torch.manual_seed(config.seed)
    if config.recipe == "pretrain":
        backbone = new_causal_lm(name, config.seed)
    else:
        if is_foretoken_directory(Path(resolve(name))):
            raise InputError(
                f"{name}: has heads already; name the backbone that new ones are to be trained on."
            )
        backbone = load_causal_lm(name, torch.float32 if device.type == "cpu" else None)
    backbone.to(device)  # type: ignore[arg-type]
    return MTPModel(backbone, config.head_config())


def reference(name: str) -> str:
    """How heads that are stored alone name their backbone."""
    if name in BUNDLED:
        return name
    return str(Path(name).resolve()) if Path(resolve(name)).is_dir() else name


def show_result(result: TrainResult) -> None:
    """One line at the end of a run."""
    losses = ", ".join(f"{loss:.3f}" for loss in result.depth_losses)
    common.console.print(
        f"{result.steps} steps, {result.tokens:,} tokens, {result.seconds:.0f} s; "
        f"loss by depth {losses} nats → {result.directory}"
    )


@contextmanager
def training_bar() -> Iterator[Any]:
    """A bar with the loss of every depth; yields what `train` reports to."""
    columns = (
        TextColumn("Training"),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=common.console) as bar:
        task = bar.add_task("train", total=1.0, numbers="")

        def report(progress: Progress) -> None:
            losses = " ".join(f"{loss:.2f}" for loss in progress.depth_losses)
            bar.update(
                task,
                completed=progress.fraction,
                numbers=f"step {progress.step}, loss {losses}, "
                f"{progress.tokens_per_second:,.0f} tokens/s",
            )

        yield report


def _tap(name: str | None) -> str | int | None:
    return int(name) if name is not None and name.isdigit() else name
