"""`foretell report`: result files as one page."""

from foretell.cli import common
from foretell.cli.commands.report import Report
from foretell.report import write_report


def report(asked: Report) -> None:
    """Do what `asked` says."""
    charts = write_report(asked.paths, asked.out, figures=asked.figures, mixed=asked.mixed)
    common.console.print(f"Report with {len(charts)} figures: {asked.out}")
