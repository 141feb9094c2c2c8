"""`foretell demo`: the whole way in a few minutes, with nothing to download."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from foretell.cli import common
from foretell.cli.bench import show_speed
from foretell.cli.commands.demo import Demo
from foretell.cli.probe_tables import show_depths
from foretell.cli.train import show_result
from foretell.cli.watching import training_bar
from foretell.demo import WIDTH, Watcher, run_demo
from foretell.evaluation import DepthTable, SpeedTable, verdicts_of_speed
from foretell.training import TrainResult


def demo(asked: Demo) -> None:
    """Do what `asked` says."""
    common.quiet_transformers()
    told = asked.told("out", "minutes", "count", "seed")
    done = run_demo(**told, watcher=_Shown(asked.count))
    common.save_json(asked.json, "demo", done.model, asked.seed, done.settings, done.rows)
    common.console.print(
        f"With heads, {done.identical} of {done.outputs} outputs are identical to plain decoding."
    )
    done.require_identical()
    common.console.print(f"Done in {done.seconds:.0f} s. Everything is in {done.page.parent}/.")
    common.console.print(f"Report: {done.page}")


class _Shown(Watcher):
    """Prints what it is told."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts

    def begins(self, number: int, what: str) -> None:
        common.console.print(f"\n{number}. {what}", style="bold")

    def reading(self, data: str) -> AbstractContextManager[Any]:
        return common.reading(data)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        return common.progress_bar(name)

    def training(self, minutes: float) -> AbstractContextManager[Any]:
        return training_bar(minutes)

    def probed(self, found: DepthTable) -> None:
        show_depths(found, f"Marginalization over {WIDTH} strings, held-out code")

    def trained(self, result: TrainResult) -> None:
        show_result(result)

    def measured(self, found: DepthTable) -> None:
        show_depths(found, "The new heads, held-out code")

    def decoded(self, found: Sequence[tuple[str, SpeedTable]], dtype: torch.dtype) -> None:
        held_out = "Python's standard library, held-out files"
        what = f"{held_out}, {self.prompts} prompts, greedy, batch 1"
        show_speed(found, what, dtype, verdicts_of_speed(found))

    def wrote(self, path: Path) -> None:
        common.console.print(f"Result file: {path}")
