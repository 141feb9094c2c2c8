"""`foretell report`: result files as one page."""

from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import common
from foretell.report import write_report


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="Directories of result files or training runs, or result files."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Write every figure as SVG and PNG into this directory too.")
    ] = None,
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Allow results of models that have nothing in common."),
    ] = False,
) -> None:
    """Make one page of result files: figures, tables and provenance. It opens from disk, anywhere.

    Result files are what --json writes. Figures appear where their data are; training runs among
    the directories add their curves and what a weighted tap learned.

    Example: foretell report foretell-demo --out report.html
    """
    charts = write_report(paths, out, figures=figures, mixed=mixed)
    common.console.print(f"Report with {len(charts)} figures: {out}")
