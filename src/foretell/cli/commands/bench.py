"""`foretell bench`: what it can be told."""

from dataclasses import dataclass
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Bench(options.Command):
    """Compare decoding methods on the same prompts.

    Plain decoding, drafts of every kind, and transformers' own generate. Greedy outputs are checked
    against plain decoding; sampled ones differ by their random numbers. Every method stops where
    the plain greedy continuation begins to repeat itself, because in a loop any draft is accepted.
    transformers drafts for one prompt at a time only.

    Example: foretell bench tiny-mtp
    """

    model: options.Model
    prompts: options.Prompts = "stdlib:held-out"
    count: Annotated[int, typer.Option(metavar="N", help="Number of prompts at most.")] = 20
    prompt_tokens: options.PromptTokens = 64
    max_new_tokens: options.MaxNewTokens = 128
    repeats: Annotated[
        int, typer.Option(metavar="N", help="Time each prompt N times and take the median.")
    ] = 3
    include_loops: Annotated[
        bool,
        typer.Option(
            "--include-loops",
            help="Measure to the end even where greedy decoding repeats itself, which flatters "
            "every way of drafting.",
        ),
    ] = False
    batch_size: Annotated[int, typer.Option(metavar="N", help="Prompts decoded at once.")] = 1
    temperature: options.Temperature = 0.0
    tree: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Also draft trees from the heads: 4,2,1 (children by depth) or 12 (nodes).",
        ),
    ] = None
    draft_length: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Also draft N tokens from the heads, or auto: chosen at every step.",
        ),
    ] = None
    draft_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Compare with this draft model.")
    ] = None
    pass_width: options.PassWidth = None
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Also measure each of our methods with a compiled step."),
    ] = False
    skip_bad: options.SkipBad = False
    seed: options.Seed = 0
    backbone: options.Backbone = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    quantize: options.Quantize = None
    json: options.Json = None
