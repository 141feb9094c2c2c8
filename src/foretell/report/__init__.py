"""Reports: result files as one page that opens from disk. Reads files only, imports no torch."""

from foretell.report.page import write_report

__all__ = ["write_report"]
