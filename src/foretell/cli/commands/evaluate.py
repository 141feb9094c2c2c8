"""`foretell eval`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Evaluate(options.Command):
    """Measure heads on text they have not seen.

    Their accuracy by depth, their agreement with the backbone, what each acceptance rule would
    accept, whether their confidence can be trusted, and whether they pay on this machine. Every
    figure has a confidence interval over documents.

    Example: foretell eval tiny-mtp --data stdlib:held-out
    """

    model: options.Model
    data: options.Data
    block_size: options.BlockSize = 256
    blocks: Annotated[int | None, typer.Option(metavar="N", help="Read N rows. [default: all]")] = (
        None
    )
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare next-token quality with this model, such as the one before training.",
        ),
    ] = None
    baselines: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Result file of `foretell probe` on the same data, to show beside the heads.",
        ),
    ] = None
    lm_eval: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Also run these tasks of lm-eval, as in arc_easy,piqa."),
    ] = None
    lm_eval_limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Questions per task of lm-eval. [default: all]"),
    ] = None
    skip_bad: options.SkipBad = False
    backbone: options.Backbone = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    quantize: options.Quantize = None
    json: options.Json = None
