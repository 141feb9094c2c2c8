"""A run's directory: what is in it, whose it is, and where an interrupted run goes on.

config.yaml       the resolved settings; a run with others is refused
metrics.jsonl     one line per report
checkpoint-N/     to resume from, while the run lasts
model/            at the end
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foretoken.errors import InputError
from foretoken.training.config import TrainConfig

COMPLETE = "complete.json"
"""Written into a checkpoint last: without it the checkpoint is half-written."""


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
    def model(self) -> Path:
        """Where the trained model goes."""
        return self.path / "model"

    def claim(self, config: TrainConfig) -> None:
        """Make the directory this run's, or find it to be so already."""
        settings = self.path / "config.yaml"
        text = yaml.safe_dump(config.model_dump(), sort_keys=False)
        if settings.is_file() and settings.read_text(encoding="utf-8") != text:
            raise InputError(
                f"{self.path}: holds a run with other settings; choose another directory."
            )
        if self.model.exists():
            raise InputError(f"{self.path}: holds a finished run; choose another directory.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            settings.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written to ({error.strerror}); name another directory."
            ) from None

    def resume_point(self) -> ResumePoint | None:
        """The newest whole checkpoint; what a killed process left behind it is removed."""
        whole = {path.parent: path for path in self.path.glob(f"checkpoint-*/{COMPLETE}")}
        for pattern in ("checkpoint-*", ".checkpoint-*", ".model.*"):
            for left_over in self.path.glob(pattern):
                if left_over not in whole:
                    shutil.rmtree(left_over)
        if not whole:
            self._forget_metrics_after(0)
            return None
        newest = max(whole, key=_step_of)
        self._forget_metrics_after(_step_of(newest))
        seconds = float(json.loads(whole[newest].read_text(encoding="utf-8"))["seconds"])
        return ResumePoint(newest, _step_of(newest), seconds)

    def mark_complete(self, step: int, seconds: float) -> None:
        """Declare `checkpoint-{step}` whole."""
        marker = self.path / f"checkpoint-{step}" / COMPLETE
        marker.write_text(json.dumps({"seconds": seconds}) + "\n", encoding="utf-8")

    def log(self, line: dict[str, Any]) -> None:
        """Append to the metrics."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """The model is saved: checkpoints have served."""
        for checkpoint in self.path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

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
        self._metrics.write_text("".join(kept), encoding="utf-8")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
