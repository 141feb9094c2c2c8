"""`foretell report`: what it can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import options


@dataclass(frozen=True)
class Report(options.Command):
    """Make one page of result files.

    Figures, tables and provenance, in a file that opens from disk anywhere. Result files are what
    --json writes. Figures appear where there are data for them; training runs among the directories
    add their curves and what a weighted tap learned.

    Example: foretell report foretell-demo --out report.html
    """

    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATHS", help="Directories of result files or training runs, or result files."
        ),
    ]
    out: Annotated[Path, typer.Option(metavar="FILE", help="Page to write.")] = Path("report.html")
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write every figure as SVG and PNG into this directory."
        ),
    ] = None
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Allow results of models that have nothing in common."),
    ] = False
