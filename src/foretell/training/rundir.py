"""A run's directory: what is in it, whose it is, and where an interrupted run goes on.

config.yaml       the resolved settings; a run with others is refused
source.json       the backbone's fingerprint and the size of the data; likewise
provenance.json   versions, machine and commit of every process that took part in turn
metrics.jsonl     one line per report
checkpoint-N/     to resume from, while the run lasts
curves.png        the metrics drawn, with every checkpoint and at the end
model/            at the end, with movement.json (which parameters moved, and how far) and what a
                  weighted tap learned
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foretell.errors import InputError
from foretell.files import lock, refusing, write_whole
from foretell.training.config import TrainConfig

SOURCE = "source.json"
PROVENANCE = "provenance.json"
COMPLETE = "complete.json"
"""Written into a checkpoint last: without it the checkpoint is half-written."""
KEPT = 2
"""Checkpoints that are kept: should the newest be damaged, there is one more."""


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that was written to its end.

    Attributes:
        checkpoint: its directory.
        step: optimiser steps done.
        seconds: training time spent until then.
    """

    checkpoint: Path
    step: int
    seconds: float


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk."""

    path: Path

    @property
    def is_run(self) -> bool:
        """Whether there is a run, by the files that every run begins with."""
        return all((self.path / name).is_file() for name in ("config.yaml", SOURCE, PROVENANCE))

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        return self.path / "model"

    @property
    def curves(self) -> Path:
        """Where the losses are drawn."""
        return self.path / "curves.png"

    @property
    def departure(self) -> Path:
        """Where the parameters began."""
        return self.path / ".departure.safetensors"

    def checkpoint(self, step: int) -> Path:
        """Where what the run goes on from after `step` is kept."""
        return self.path / f"checkpoint-{step}"

    def states(self, process: int) -> Path:
        """Hidden states of a frozen backbone that a process keeps, while the run lasts."""
        return self.path / f".states-{process}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process trains here meanwhile, where the file system has locks.

        Raises:
            InputError: one does.
        """
        held = None
        with suppress(OSError):  # `claim` says where it cannot be written to
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                held = lock(self.path.resolve())
            except BlockingIOError:
                raise InputError(
                    f"{self.path}: another process is training there; let it end, or choose "
                    "another directory."
                ) from None
        try:
            yield
        finally:
            if held is not None:
                os.close(held)

    def claim(
        self, config: TrainConfig, source: dict[str, Any], process: dict[str, Any] | None = None
    ) -> None:
        """Make the directory this run's, or find it to be so already.

        `source` tells the backbone and the data: a run goes on with those it began with.
        `process` is the provenance of this one; None writes nothing.
        """
        settings, origin = self.path / "config.yaml", self.path / SOURCE
        texts = {
            settings: yaml.safe_dump(config.to_dict(), sort_keys=False),
            origin: json.dumps(source, indent=2) + "\n",
        }
        if settings.is_file():
            for path, text in texts.items():
                if path.is_file() and not _same(path.read_text(encoding="utf-8"), text):
                    other = "settings" if path == settings else "backbone or data"
                    raise InputError(
                        f"{self.path}: holds a run with other {other}, see {path.name} in it; "
                        "choose another directory."
                    )
        elif self.path.is_dir() and any(self.path.glob("[!.]*")):
            raise InputError(
                f"{self.path}: is not empty and holds no run; choose another directory."
            )
        if self.model.exists():
            raise InputError(f"{self.path}: holds a finished run; choose another directory.")
        if process is None:
            return
        with refusing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for path, text in texts.items():
                write_whole(path, text)
            self._record(process)

    def _record(self, process: dict[str, Any]) -> None:
        """Append to the provenance: a resumed run may go on elsewhere."""
        path = self.path / PROVENANCE
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        write_whole(path, json.dumps([*before, process], indent=2) + "\n")

    def resume_point(self) -> ResumePoint | None:
        """The newest whole checkpoint."""
        if not (whole := self._whole_checkpoints()):
            return None
        newest = max(whole, key=_step_of)
        seconds = float(json.loads((newest / COMPLETE).read_text(encoding="utf-8"))["seconds"])
        return ResumePoint(newest, _step_of(newest), seconds)

    def clear_after_resume_point(self) -> None:
        """Remove what a killed process left behind, and the metrics of steps to be done again."""
        whole = self._whole_checkpoints()
        for pattern in ("checkpoint-[0-9]*", ".model.*"):
            for left_over in self.path.glob(pattern):
                if left_over not in whole:
                    shutil.rmtree(left_over)
        for half_written in self.path.glob(".*.tmp"):
            half_written.unlink()
        self._forget_metrics_after(max(map(_step_of, whole), default=0))

    def _whole_checkpoints(self) -> list[Path]:
        return [path.parent for path in self.path.glob(f"checkpoint-[0-9]*/{COMPLETE}")]

    def mark_complete(self, step: int, seconds: float) -> None:
        """Declare the checkpoint of `step` whole, and remove all but the newest `KEPT`."""
        marker = self.checkpoint(step) / COMPLETE
        write_whole(marker, json.dumps({"seconds": seconds}) + "\n")
        for old in sorted(self._whole_checkpoints(), key=_step_of)[:-KEPT]:
            shutil.rmtree(old)

    def log(self, line: dict[str, Any]) -> None:
        """Append to the metrics."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of the metrics."""
        if not self._metrics.is_file():
            return []
        return [json.loads(line) for line in self._metrics.read_text("utf-8").splitlines()]

    def finish(self) -> None:
        """The model is saved: what the run kept for itself has served."""
        for checkpoint in self.path.glob("checkpoint-[0-9]*"):
            shutil.rmtree(checkpoint)
        for file in (self.departure, *self.path.glob(".states-*")):
            file.unlink(missing_ok=True)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again."""
        if not self._metrics.is_file():
            return
        kept = [
            line
            for line in self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n") and json.loads(line)["step"] <= step
        ]
        write_whole(self._metrics, "".join(kept))


def _same(text: str, other: str) -> bool:
    """Whether two files say the same, in YAML or JSON, which is YAML too: 1 is 1.0."""
    if text == other:
        return True
    try:
        return bool(yaml.safe_load(text) == yaml.safe_load(other))
    except yaml.YAMLError:
        return False


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
