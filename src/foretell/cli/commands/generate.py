"""`foretell generate`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Generate(options.Command):
    """Continue a prompt.

    The output is the backbone's own; drafts only make it come faster. A model with a chat template
    is asked by it, and only its answer is printed. Greedy unless --temperature is given. Lossy
    rules change the output, and the last line says so.

    Example: foretell generate tiny-mtp --prompt "def main(" --show-drafts
    """

    model: options.Model
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Text to continue; - reads it from standard input."),
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the text, or with one record (.jsonl): a conversation."
        ),
    ] = None
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue the text as it is, without a chat template."),
    ] = False
    max_new_tokens: options.MaxNewTokens = 128
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Stop when this text is complete. Repeat for more."),
    ] = None
    temperature: options.Temperature = 0.0
    top_k: options.TopK = 0
    top_p: options.TopP = 1.0
    min_p: options.MinP = 0.0
    repetition_penalty: options.RepetitionPenalty = None
    seed: options.Seed = 0
    drafter: options.Drafter = None
    draft_length: options.DraftLength = None
    tree: options.Tree = None
    rule: options.Rule = None
    pass_width: options.PassWidth = None
    compiled: options.Compile = False
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Colour the tokens that were drafted.")
    ] = False
    plain: Annotated[
        bool, typer.Option("--plain", help="Decode without drafts; same as --drafter none.")
    ] = False
    backbone: options.Backbone = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    quantize: options.Quantize = None
    json: options.Json = None
