"""Where a number comes from, and the files that keep the two together.

A *result file* is one JSON object:

    {
      "command":    which command made it, as "bench"
      "provenance": command line, versions, git sha, device, dtype, seed, time: see `provenance`
      "settings":   what the numbers depend on; free in form
      "rows":       a list of flat records, their field names taken from FIELDS
    }

Nothing here imports torch until provenance is recorded: reports read result files without it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeAlias

import numpy as np

from foretell.errors import InputError
from foretell.files import local_path, replace_file

if TYPE_CHECKING:
    import torch

Scalar: TypeAlias = str | int | float | bool | None
Row: TypeAlias = dict[str, Scalar]

_FIELDS: tuple[str, ...] = (
    "model",  # as the user named it
    "method",  # plain, parallel, sequential, draft-model, prompt-lookup, transformers, …
    "depth",
    "prompts",
    "identical",  # how many outputs equal plain greedy decoding
    "tokens",
    "forwards",
    "tokens_per_forward",
    "tokens_per_second",
    "speedup",  # over `plain` in the same run
    "top1",
    "top5",
    "nll",  # nats per token
    "covered_mass",
    "acceptance",  # share of drafted tokens that stand
    "agreement",  # share of predictions that are the backbone's own choice, teacher-forced
    "positions",  # how many a mean is over
    "seconds",
    "peak_memory_bytes",
    "family",  # the backbone's model_type
    "head",  # parallel, sequential, …, where `method` names what is compared with it
    "bits_per_byte",
    "parameters",  # how many numbers the model has
    "n",  # tokens predicted per position: depths 0…K
    "recipe",  # how it was trained
    "tap",  # which hidden state its heads read
    "batch",  # rows decoded at once
    "temperature",  # 0: greedy
    "compiled",  # whether the decoding step was
    "cuda_graphs",  # whether a compiled step was captured in one
    "drafter",  # heads, none, lookup, or the draft model's name
    "tree",  # the draft's shape, as typed; none for a chain
    "dtype",  # of the weights, where a result has several
    "pass_width",  # tokens of every pass, where that was asked for
    "draft_length",  # as asked for (a number, auto); or, beside `share`, what was drafted
    "share",  # of the passes
    "changed",  # tokens that differ from those of one-token passes
    "gap",  # between the two largest logits
    "layout",  # of an exported checkpoint
    "drafts",  # rounds in which something was drafted
    "accepted",  # drafted tokens that stand
    "accepted_by_place",  # the same by place in the draft, as text
    "engine_drafts",  # `drafts`, as a serving engine counts them
    "engine_accepted",
    "engine_accepted_by_place",
    "engine_tokens_per_second",
    "equal",  # whether the engine's counts are ours
    "error",  # why there is no figure
    "table",  # which of a command's tables the row belongs to, where it has several
    "source",  # the file or model that a method learned from
    "entropy",  # of the prediction, nats
    "speculative",  # probability that all drawn tokens up to this depth stand, teacher-forced
    "own_agreement",  # as agreement, behind the backbone's own greedy continuation
    "own_acceptance",  # as acceptance, behind the backbone's own greedy continuation
    "own_speculative",  # as speculative, behind what the backbone would draw
    "token_class",  # of the predicted token: whitespace, identifier, …
    "document_kind",  # python, markdown, text, conversation, or the name of a file of records
    "rule",  # of acceptance, as --rule has it
    "behind",  # what a draft follows: text, or the backbone's own continuation
    "lossless",  # whether a rule is
    "chosen",  # whether a line is what is recommended
    "bin",  # of confidences, from 0
    "confidence",  # probability of the drafted token
    "ece",  # expected calibration error
    "layer",  # residual state entering it; L: leaving the last block
    "settled",  # share of positions whose next-token decision no later layer changes
    "cka",  # linear, with the layer before
    "cka_final",  # linear, with the last state
    "cosine",  # with the layer before, mean over positions
    "task",  # of lm-eval
    "metric",
    "value",
    "request",  # what clients of a server did: stream, whole, malformed, aborted
    "requests",  # how many of them
    "errors",  # answers that should not have been, or that never came
    "median_seconds",  # from a request to the end of its answer
    "p90_seconds",
    "p99_seconds",
    "first_token_seconds",  # median, from a request to its first text
    "environment",  # of the tests: oldest, pinned, newest
    "passed",  # tests
    "failed",
    "skipped",
    "part",  # of a decoding step: prompt, draft, verify, accept, host
    "draws",  # sampled continuations
    "p_value",  # of a chi-square test of them
)
_ENDINGS = ("", "_low", "_high", "_min", "_max")
"""A confidence interval over documents; bounds on what is only known in part."""

FIELDS: tuple[str, ...] = tuple(name + ending for name in _FIELDS for ending in _ENDINGS)
"""Every field name that a row may have. A new one is registered above, and used by all commands."""

_PARTS = ("command", "provenance", "settings", "rows")


@dataclass(frozen=True, slots=True)
class Result:
    """A result file as read back."""

    command: str
    provenance: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]


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


def near_ties(rows: Iterable[Mapping[str, Any]], dtype: str) -> str:
    """What readers have to know of outputs that are not `identical`; empty where all are.

    Args:
        rows: of decoding methods.
        dtype: that they decoded in, as provenance has it. Only of half precision something is said.
    """
    checked = [row for row in rows if None not in (row.get("identical"), row.get("prompts"))]
    differ = any(row["identical"] != row["prompts"] for row in checked)
    if not differ or dtype not in ("bfloat16", "float16"):
        return ""
    even = any(row.get("pass_width") for row in checked)
    remedy = "" if even else "; --pass-width N, one more than the longest draft, removes that"
    return (
        f"In {dtype} passes of different widths round differently, and near-ties can fall the "
        f"other way: hence outputs that are not identical{remedy}."
    )


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


def write_result(
    path: str | Path | TextIO,
    command: str,
    settings: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> None:
    """Write a result file, all of it or nothing: `path` is replaced when the new file is complete.

    `path` may be an open file too, such as standard output.

    Numbers that are not finite become null, numpy's become Python's, and paths text. Folders that
    lack are made.

    Raises:
        InputError: a row has a field that is not in `FIELDS` or is not a single value, something is
            not JSON, or `path` cannot be written or is another file than a result.
    """
    result = {
        "command": command,
        "provenance": _plain(provenance, "provenance"),
        "settings": _plain(settings, "settings"),
        "rows": [_checked_row(row, f"row {number}") for number, row in enumerate(rows, start=1)],
    }
    text = json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if isinstance(path, str | Path):
        replace_file(Path(path), text.encode("utf-8"), "result file", is_result)
    else:
        path.write(text)


def read_result(path: str | Path) -> Result:
    """Read a result file and check that it is one.

    Raises:
        InputError: it does not exist, is not JSON, lacks a part, or has a row with a field that is
            not in `FIELDS` or is not a single value.
    """
    path = local_path(path)
    try:
        content = _parsed(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such result file; check the path") from None
    except OSError as error:
        raise InputError(f"cannot read the result file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise InputError(f"{path} is not a result file: {error}") from None
    if not isinstance(content, dict) or set(content) != set(_PARTS):
        raise InputError(
            f"{path} is not a result file: expected an object of {', '.join(_PARTS)}; "
            "write one with --json"
        )
    for name, kind in zip(_PARTS, (str, dict, dict, list), strict=True):
        if not isinstance(content[name], kind):
            raise InputError(f"{path} is not a result file: {name!r} is not a {kind.__name__}")
    rows = [
        _checked_row(row, f"{path}, row {number}")
        for number, row in enumerate(content["rows"], start=1)
    ]
    return Result(content["command"], content["provenance"], content["settings"], rows)


def is_result(content: bytes) -> bool:
    """Whether a file with this content is a result file."""
    try:
        return set(_parsed(content)) == set(_PARTS)
    except (ValueError, RecursionError, TypeError):
        return False


def _parsed(content: bytes) -> Any:
    return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; an unknown number is written null")


def _checked_row(row: object, where: str) -> Row:
    """Return `row` in plain types; every field must be known and hold a single value."""
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is not a record of fields")
    if unknown := [name for name in row if name not in FIELDS]:
        raise InputError(
            f"{where} has the unknown field {unknown[0]!r}: "
            "field names are registered in foretell.provenance.FIELDS"
        )
    checked: Row = {}
    for name, value in row.items():
        plain = _plain(value, f"{where}, field {name!r}")
        if isinstance(plain, dict | list):
            raise InputError(f"{where}, field {name!r} holds more than a single value")
        checked[name] = plain
    return checked


def _plain(value: Any, where: str) -> Any:
    """Return `value` in the types of JSON, null for numbers that are not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise InputError(f"{where}: the name {wrong[0]!r} must be a string")
        return {key: _plain(item, f"{where}, {key!r}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise InputError(f"{where}: a {type(value).__name__} cannot be written as JSON")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _own_git_state() -> dict[str, Any]:
    """Of this package, looked up once: what runs was read by then, whatever is committed later."""
    return _git_state(Path(__file__).resolve())


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
