"""`foretell train`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Train(options.Command):
    """Train heads that predict further ahead.

    They are saved to OUT/model. Say when to stop with --epochs, --steps or --minutes. If the run is
    interrupted, give the same command again to continue it. Under torchrun or accelerate launch it
    uses all processes.

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
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="frozen: heads on unchanged weights. joint: heads and backbone. lora: heads, and "
            "adapters on the backbone. native: the heads that MODEL has. pretrain: backbone and "
            "heads from scratch. [default: frozen]",
        ),
    ] = None
    head: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help=f"{', '.join(options.HEADS)}, or none (recipe pretrain only). "
            f"[default: {options.HEADS[0]}]",
        ),
    ] = None
    depth: Annotated[
        int | None,
        typer.Option(metavar="K", help="How many tokens after the next one. [default: 3]"),
    ] = None
    tap: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Hidden state that heads read: {', '.join(options.TAPS)}, or a layer's number. "
            "[default: as the kind of head has it]",
        ),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="LAYOUT",
            help="Train heads for `foretell export --to LAYOUT`, with the kind, tap and details "
            f"that its engines run: {', '.join(options.LAYOUTS)}.",
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How depths count: sum, mean (DeepSeek's λ/D), geometric (FastMTP). "
            "[default: sum]",
        ),
    ] = None
    epochs: Annotated[
        float | None, typer.Option(metavar="N", help="Stop after N passes over the data.")
    ] = None
    steps: Annotated[int | None, typer.Option(metavar="N", help="Stop after N steps.")] = None
    minutes: Annotated[float | None, typer.Option(metavar="N", help="Stop after N minutes.")] = None
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Rows per step. [default: 16]")
    ] = None
    block_size: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens per row. [default: 256]")
    ] = None
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="adamw or muon. [default: adamw]")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Peak rate of AdamW. [default: 0.001]")
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="float32, bf16-mixed or bf16. [default: float32]"),
    ] = None
    save_every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Steps between checkpoints; 0: none. [default: 200]"),
    ] = None
    skip_bad: options.SkipBad = False
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed for everything that is random. [default: 0]"),
    ] = None
    settings: Annotated[
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
