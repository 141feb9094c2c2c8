"""`foretell demo`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Demo(options.Command):
    """Show the whole way in about five minutes.

    On the bundled models and Python's standard library, with nothing to download: probe what tiny
    already knows, train heads on it, prove that decoding with them changes nothing, and measure
    what they save; then the same with tiny-mtp, which was trained with its heads. At the end there
    is a page with figures.

    Example: foretell demo --minutes 2
    """

    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where to write heads and results; replaced if there."),
    ] = Path("foretell-demo")
    minutes: Annotated[float, typer.Option(metavar="N", help="Train the heads for N minutes.")] = (
        2.0
    )
    count: Annotated[int, typer.Option(metavar="N", help="Number of prompts to decode.")] = 6
    seed: options.Seed = 0
    json: options.Json = None
