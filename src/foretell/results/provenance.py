"""Where a number comes from: what another person needs to get the same.

Torch is imported only when provenance is recorded: reports read it without.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def provenance(
    seed: int | None,
    device: torch.device | str,
    dtype: torch.dtype | str,
    command: str | None = None,
) -> dict[str, Any]:
    """Return what another person needs to get the same numbers.

    `command` is the command line as typed; None takes that of this process. Paths stay as they were
    typed, and no other path of this machine is recorded. What cannot be found out is None.
    """
    import torch

    device = torch.device(device)
    cpu = _cpu_name()
    return {
        "command": typed_command() if command is None else command,
        "foretell": _version("foretell"),
        **_own_git_state(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": _version("transformers"),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def typed_command() -> str:
    """Return this process's command line, the program by its name and the arguments as typed."""
    program = PurePath(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name]
    elif program.suffix == ".py":
        # A script is named from where it was started; outside of that, by its name.
        with suppress(ValueError):
            program = program.relative_to(Path.cwd())
        words = ["python", program.name if program.is_absolute() else program.as_posix()]
    else:
        words = [program.name]
    return shlex.join([*words, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _own_git_state() -> dict[str, Any]:
    """Of this package, looked up once: what runs was read by then, whatever is committed later."""
    return _git_state(Path(__file__).resolve().parents[1] / "__init__.py")


def _git_state(file: Path) -> dict[str, Any]:
    """Return the commit that `file` is tracked in and whether the work tree has changed since.

    Both None where git does not track the file: an installed package may well lie inside the
    checkout of something else. Result files do not count as a change, for a run of several
    benchmarks writes them one after another; a new file counts beside `file`, where code lies.
    """
    folder = file.parent
    changed = ("status", "--porcelain")
    if _git(folder, "ls-files", "--error-unmatch", "--", file.name) is None:
        return {"git_sha": None, "git_dirty": None}
    elsewhere = _git(folder, *changed, "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    beside = _git(folder, *changed, "--untracked-files=all", "--", ".")
    return {"git_sha": _git(folder, "rev-parse", "HEAD"), "git_dirty": bool(elsewhere or beside)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None if it fails or is not there."""
    # Inside a git hook these variables name another repository.
    environment = {key: text for key, text in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # looking must not disturb a git at work
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    """Return the processor's name as its maker gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.check_output(asked, text=True, timeout=30).strip()
    return platform.processor() or None
