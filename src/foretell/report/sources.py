"""What a report is made of: result files, and the directories of training runs.

Directories are read one level deep. In a run's directory its own files (see
`foretell.training.rundir`) are the run; every other `.json` file is a result file or an error, so
that nothing is left out unsaid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretell.errors import InputError
from foretell.files import local_path
from foretell.results import Result, Row, read_result
from foretell.results.rows import Kind

METRICS = "metrics.jsonl"
LOSSES = ("depth_losses", "held_out_losses")
TAP_WEIGHTS = "tap_weights.json"
SOURCE = "source.json"
RUN_FILES = frozenset({SOURCE, "provenance.json", "movement.json", TAP_WEIGHTS})


@dataclass(frozen=True)
class Source:
    """One result file.

    Attributes:
        name: the path as it is shown.
        result: its content.
    """

    name: str
    result: Result

    @property
    def rows(self) -> list[Row]:
        """All its rows."""
        return self.result.rows

    def table(self, kind: type[Kind]) -> list[Kind]:
        """Those of one table."""
        return self.result.table(kind)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that its rows name, in order."""
        return tuple(dict.fromkeys(row.model for row in self.rows if row.model is not None))

    @property
    def identities(self) -> frozenset[str]:
        """Whose numbers these are: models by name, and the backbone by fingerprint."""
        backbone = self.result.settings.get("backbone")
        return frozenset(self.models) | ({str(backbone)} if backbone else set())


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: its directory as it is shown.
        metrics: what was reported along the way, in order.
        tap_weights: by depth and layer, of a weighted tap; else empty.
        backbone: the fingerprint of the backbone that it began with, if it is known.
    """

    name: str
    metrics: list[dict[str, Any]]
    tap_weights: list[list[float]] = field(default_factory=list)
    backbone: str | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """A run names none."""
        return ()

    @property
    def identities(self) -> frozenset[str]:
        """Whose run it is."""
        return frozenset({self.backbone} if self.backbone else ())


@dataclass(frozen=True)
class Sources:
    """Everything that one report shows."""

    results: list[Source]
    runs: list[Run]

    @property
    def models(self) -> tuple[str, ...]:
        """All models that are named."""
        return tuple(dict.fromkeys(name for source in self.results for name in source.models))


def collect(paths: Sequence[Path], *, mixed: bool = False) -> Sources:
    """Read result files and runs.

    Args:
        paths: files, or directories of them.
        mixed: allow results of models that have nothing to do with each other.

    Raises:
        InputError: there is nothing, something is no result file, or models are mixed.
    """
    files, directories = _find(paths)
    sources = Sources(
        [Source(str(path), read_result(path)) for path in files], list(map(_run, directories))
    )
    if not sources.results and not sources.runs:
        raise InputError(
            f"no result file in {', '.join(map(str, paths))}: write some there with --json."
        )
    if not mixed:
        _check_one_model(sources)
    return sources


def _find(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Result files and directories of runs, each once."""
    files: dict[Path, Path] = {}
    runs: dict[Path, Path] = {}
    for path in map(local_path, paths):
        if path.is_dir():
            inside = _entries(path)
            for directory in (path, *(entry for entry in inside if entry.is_dir())):
                if (directory / METRICS).is_file():
                    runs.setdefault(directory.resolve(), directory)
            own = RUN_FILES if (path / METRICS).is_file() else frozenset()
            found = [e for e in inside if e.suffix == ".json" and e.is_file() and e.name not in own]
        else:
            found = [path]  # one that is not there is an error when it is read
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values()), list(runs.values())


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(e for e in directory.iterdir() if not e.name.startswith("."))
    except OSError as error:
        raise InputError(f"{directory}: cannot be read ({error.strerror}).") from None


def _run(directory: Path) -> Run:
    lines = _text(directory / METRICS).splitlines()
    metrics = [_json(line, directory / METRICS) for line in lines]
    if not all(map(_is_report, metrics)):
        raise InputError(
            f"{directory / METRICS} is not what a training run writes: no steps with losses."
        )
    weights = directory / TAP_WEIGHTS
    origin = directory / SOURCE
    return Run(
        str(directory),
        metrics,
        _weights(weights) if weights.is_file() else [],
        _backbone(origin) if origin.is_file() else None,
    )


def _is_report(line: object) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("step"), int)
        and all(_is_numbers(line.get(field) or []) for field in LOSSES)
    )


def _weights(path: Path) -> list[list[float]]:
    content = _json(_text(path), path)
    rows = content if isinstance(content, list) else [content]
    if not all(row and _is_numbers(row) for row in rows) or len(set(map(len, rows))) > 1:
        raise InputError(f"{path} is not what a training run writes: no weights by layer.")
    return rows


def _is_numbers(values: object) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )


def _backbone(path: Path) -> str | None:
    content = _json(_text(path), path)
    found = content.get("backbone") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text.") from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}).") from None


def _check_one_model(sources: Sources) -> None:
    """Results belong together where they share a model; one file may compare several."""
    everything: list[Source | Run] = [*sources.results, *sources.runs]
    named = [source for source in everything if source.identities]
    if not named:
        return
    together, apart = named[0].identities, named[1:]
    while joined := [source for source in apart if source.identities & together]:
        together = together.union(*(source.identities for source in joined))
        apart = [source for source in apart if source not in joined]
    if apart:
        raise InputError(
            f"{named[0].name} and {apart[0].name} are of different models ({_who(named[0])}; "
            f"{_who(apart[0])}): make a report of each, or set them side by side with --mixed."
        )


def _who(source: Source | Run) -> str:
    return ", ".join(source.models or sorted(source.identities))
