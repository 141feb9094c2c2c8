"""`foretell distill`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Distill(options.Command):
    """Let a model write the training data for its heads.

    Heads trained on their backbone's own words predict them better than they predict other
    people's. Only the continuations are learned, not the prompts. If the command is interrupted,
    give it again to continue.

    Example: foretell distill tiny --prompts stdlib:train --count 256 --out runs/own.jsonl
    then:    foretell train tiny --data runs/own.jsonl --minutes 2 --out runs/own
    """

    model: options.Model
    prompts: options.Prompts
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSON lines to write; an unfinished one continues."),
    ]
    prompt_tokens: options.PromptTokens = 64
    max_new_tokens: options.MaxNewTokens = 128
    count: Annotated[
        int | None, typer.Option(metavar="N", help="Use N prompts. [default: all]")
    ] = None
    temperature: options.Temperature = 0.0
    top_p: options.TopP = 1.0
    batch_size: Annotated[int, typer.Option(metavar="N", help="Prompts continued at once.")] = 16
    skip_bad: options.SkipBad = False
    seed: options.Seed = 0
    backbone: options.Backbone = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    json: options.Json = None
