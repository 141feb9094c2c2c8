"""`foretell train`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options
from foretell.cli.options import setting


def _number_or_name(tap: str | None) -> str | int | None:
    return int(tap) if tap is not None and tap.isdigit() else tap


@dataclass(frozen=True)
class Train(options.Command):
    """Train heads that predict further ahead.

    They are saved to OUT/model. Say how long to train with --epochs, --steps or --minutes. If the
    run is interrupted, give the same command again to continue it. Under torchrun or accelerate
    launch it uses all processes.

    Example: foretell train tiny --data stdlib:train --minutes 2 --out runs/first
    """

    model: options.Model
    data: options.Data
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Run directory; an unfinished run in it continues."),
    ]
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of settings; options given here override it."),
    ] = None
    recipe: Annotated[str | None, setting("train.recipe", "NAME")] = None
    head: Annotated[str | None, setting("train.head.kind", "KIND")] = None
    depth: Annotated[int | None, setting("train.head.depth", "K")] = None
    tap: Annotated[str | None, setting("train.head.tap", "NAME", callback=_number_or_name)] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="LAYOUT",
            help="Train heads for `foretell export --to LAYOUT`, with the kind, tap and details "
            f"that its engines run: {', '.join(options.KNOWN['layouts'])}.",
        ),
    ] = None
    loss: Annotated[str | None, setting("train.objective.weights", "NAME")] = None
    epochs: Annotated[float | None, setting("train.epochs", "N")] = None
    steps: Annotated[int | None, setting("train.steps", "N")] = None
    minutes: Annotated[float | None, setting("train.minutes", "N")] = None
    batch_size: Annotated[int | None, setting("train.batch_size", "N")] = None
    block_size: Annotated[int | None, setting("train.block_size", "N")] = None
    optimizer: Annotated[str | None, setting("train.optimizer", "NAME")] = None
    learning_rate: Annotated[float | None, setting("train.learning_rate", "X")] = None
    precision: Annotated[str | None, setting("train.precision", "TYPE")] = None
    save_every: Annotated[int | None, setting("train.save_every", "N")] = None
    skip_bad: options.SkipBad = False
    seed: Annotated[int | None, setting("train.seed", "N")] = None
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting, as in the YAML file: backbone_rate=0.1, head_warmup=100, "
            "head.shared=true, objective.distill=backbone, lora.rank=8. Repeat for more; "
            "docs/training.md lists them all.",
        ),
    ] = None
    backbone: options.Backbone = None
    device: options.Device = "auto"
    json: options.Json = None
