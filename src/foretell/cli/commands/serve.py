"""`foretell serve`: what it can be told."""

from dataclasses import dataclass
from typing import Annotated

import typer

from foretell.cli import options
from foretell.cli.options import setting

API_KEY = "FORETELL_API_KEY"
"""The variable that may hold it."""


@dataclass(frozen=True)
class Serve(options.Command):
    """Serve a model with OpenAI's API and a page.

    /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics; the page, at /, shows how
    the tokens come. Requests that wait together are decoded as one batch. Every drafter is lossless
    here.

    This is for trying a model out. Production traffic belongs on vLLM: export the heads with
    `foretell export MODEL --to LAYOUT --out DIR` and serve DIR there.

    Example: foretell serve tiny-mtp --port 8000
    """

    model: options.Model
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen at; 0.0.0.0: all.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen at; 0: any free one.")] = (
        8000
    )
    model_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model's name in requests, beside MODEL as it is given here. [default: the "
            "last part of MODEL]",
        ),
    ] = None
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar=API_KEY,
            help="Requests must bring this key; better given in the variable.",
        ),
    ] = None
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages from this origin ask: https://example.org, or * for any. Repeat "
            "for more.",
        ),
    ] = None
    drafter: options.Drafter = None
    draft_length: options.DraftLength = None
    tree: options.Tree = None
    max_batch: Annotated[int | None, setting("serve.max_batch", "N")] = None
    max_queue: Annotated[int | None, setting("serve.max_queue", "N")] = None
    max_prompt_tokens: Annotated[int | None, setting("serve.max_prompt_tokens", "N")] = None
    max_tokens: Annotated[int | None, setting("serve.max_tokens", "N")] = None
    max_body_bytes: Annotated[int | None, setting("serve.max_body_bytes", "N")] = None
    grace_seconds: Annotated[int | None, setting("serve.grace_seconds", "N")] = None
    backbone: options.Backbone = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    quantize: options.Quantize = None
    json: options.Json = None
