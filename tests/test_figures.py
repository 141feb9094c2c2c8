import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_figures_in_the_pages_are_those_of_the_result_files() -> None:
    command = [sys.executable, "docs/fill_figures.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
