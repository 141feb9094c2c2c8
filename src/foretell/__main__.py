"""`python -m foretell`."""

from foretell.cli import run

run()
