"""`foretell probe`: what it can be told."""

from dataclasses import dataclass
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Probe(options.Command):
    """Measure how far ahead a model already sees.

    Nothing is trained but small readers of its layers. Depth k is the token k places after the
    next one. Its distribution is computed by numerical marginalization: summing over the likeliest
    strings in between. Simpler ways to draft are measured at the same positions, then what each
    layer knows; from all of it follows a prediction of what heads would bring.

    With --json, a run that was stopped continues where it was.

    Example: foretell probe tiny --data stdlib:held-out --train-data stdlib:train
    """

    model: options.Model
    data: options.Data
    train_data: Annotated[
        str | None,
        typer.Option(
            metavar="TEXTS",
            help="Text that n-grams and linear probes learn from. [default: half of the documents "
            "of --data, which are then not measured on]",
        ),
    ] = None
    depth: Annotated[int, typer.Option(metavar="K", help="Deepest depth.")] = 2
    width: Annotated[
        str,
        typer.Option(
            metavar="N[,N…]",
            help="Strings summed over, per position and depth; 1024,32: by depth. With as many as "
            "the vocabulary has tokens, depth 1 is exact.",
        ),
    ] = "32"
    positions: Annotated[
        int, typer.Option(metavar="N", help="Positions sampled from the text.")
    ] = 512
    layer_positions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Positions at which layers are read, and linear probes trained on four times as "
            "many, which takes the most time; 0: skip the layers. [default: 4 for each of "
            "--positions, at most 2048]",
        ),
    ] = None
    draft_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Measure this draft model too.")
    ] = None
    block_size: options.BlockSize = 128
    skip_bad: options.SkipBad = False
    seed: options.Seed = 0
    backbone: options.Backbone = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    json: options.Json = None
