"""Reports: result files as one page that opens from disk. Reads files only, imports no torch."""

from foretell.report.page import is_page, write_report

__all__ = ["is_page", "write_report"]
