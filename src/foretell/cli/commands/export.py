"""`foretell export` and `foretell import`: what they can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Export(options.Command):
    """Write heads for a serving engine.

    With a card that says how to serve them. Heads run in an engine if they were trained for its
    way of running them: `foretell train --for LAYOUT`. What a layout cannot express is refused.

    Example: foretell export runs/first/model --to mimo --out served
    """

    model: options.Model
    to: Annotated[
        str, typer.Option(metavar="LAYOUT", help=f"Layout: {', '.join(options.KNOWN['layouts'])}.")
    ]
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory to write, all of it or nothing.")
    ]
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The released checkpoint that MODEL was made from, to take from there what "
            "transformers dropped when it was loaded.",
        ),
    ] = None
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Result file (--json of eval or bench) for the card. Repeat for more.",
        ),
    ] = None
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the Hub as well.")
    ] = None
    json: options.Json = None


@dataclass(frozen=True)
class Import(options.Command):
    """Take over the heads of a released checkpoint.

    Its multi-token modules become foretell heads; the backbone stays where it is. Train them on
    with `foretell train OUT --recipe native`, and write them back with `foretell export`.

    Example: foretell import models/released --out runs/native
    """

    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory, or Hub id.")]
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory to write, all of it or nothing.")
    ]
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Put the heads on this backbone: if MODEL holds heads alone, or for a fine-tuned "
            "copy that lost them.",
        ),
    ] = None
    json: options.Json = None
