"""What the commands share: what they say while they load, tables, progress and result files."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from foretell import ready
from foretell.backbone.int8 import is_quantized
from foretell.checkpoints import base_of_adapters, resolve
from foretell.cli.options import STDOUT
from foretell.data import REFUSED, Bad, PackedBlocks
from foretell.formatting import aligned
from foretell.hardware import is_slow, slowdown
from foretell.model import MTPModel
from foretell.results import Row, write_result
from foretell.results.provenance import provenance

console = Console(highlight=False, markup=False, soft_wrap=True)


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    backbone: str | None = None,
    *,
    by_columns: bool = True,
    quantize: str | None = None,
) -> MTPModel:
    """`ready.load_model`, with what the user should know of it on stderr."""
    quiet_transformers()
    model = ready.load_model(
        name, device, dtype, backbone, by_columns=by_columns, quantized=quantize is not None
    )
    say_merged(model.backbone_path or name)
    warn_slow(model.backbone.dtype, model.backbone.device, "leave --dtype at auto")
    return model


def say_merged(name: str) -> None:
    """Where `name` is adapters alone, say on stderr what loading did with them."""
    if (base := base_of_adapters(resolve(name))) is not None and not console.quiet:
        typer.echo(f"{name} holds adapters: merged into the weights of {base}.", err=True)


def warn_slow(dtype: torch.dtype, device: torch.device, remedy: str) -> None:
    """Say on stderr where this machine emulates a type of numbers."""
    if is_slow(dtype, device.type) and not console.quiet:
        name, times = str(dtype).removeprefix("torch."), slowdown(dtype, device.type)
        typer.echo(
            f"Warning: this CPU emulates {name}: products of matrices take {times:.0f} times as "
            f"long as in float32; {remedy}.",
            err=True,
        )


def load_blocks(
    data: str,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    bad: Bad = REFUSED,
) -> PackedBlocks:
    """`ready.read_blocks`; shows that something happens."""
    with reading(data):
        return ready.read_blocks(data, model, tokenizer, block_size, bad)


def reading(data: str) -> AbstractContextManager[Any]:
    """Shows that something is read, while it is open."""
    return doing(f"Reading {data}")


PATIENCE = 5.0
"""Seconds after which `doing` says what is done where there is no terminal."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Shows what is done while it is open; if that is long, without a terminal, in a line."""
    line = threading.Timer(PATIENCE, lambda: typer.echo(f"{what} …", err=True))
    line.daemon = True
    if not console.is_terminal and not console.quiet:
        line.start()
    try:
        with console.status(Text(what)):
            yield
    finally:
        line.cancel()


def show_bad(bad: Bad, data: str) -> None:
    """Say what was left out of the data, if anything was."""
    if bad.found:
        console.print(f"{data}: {bad}")


def save_json(
    path: Path | None,
    command: str,
    model: MTPModel,
    seed: int | None,
    settings: dict[str, Any],
    rows: Sequence[Row],
) -> None:
    """Write a result file, where one was asked for; its settings tell which backbone it is."""
    if path is None:
        return
    dtype = "int8" if is_quantized(model.lm) else model.backbone.dtype
    origin = provenance(seed, model.backbone.device, dtype)
    save_result(path, command, {**settings, "backbone": model.fingerprint()}, rows, origin)


def save_result(
    path: Path,
    command: str,
    settings: dict[str, Any],
    rows: Sequence[Row],
    origin: dict[str, Any],
) -> None:
    """Write a result file, or to standard output where its path is `-`."""
    if path == STDOUT:
        write_result(sys.stdout, command, settings, rows, origin)
        return
    write_result(path, command, settings, rows, origin)
    console.print(f"Result file: {path}")


def quiet_transformers() -> None:
    """Keep transformers' bars and notices out of our output; its errors become ours."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


EVERY = 30.0
"""Seconds between the lines of `progress_bar` where there is no terminal."""


@contextmanager
def progress_bar(description: str) -> Iterator[Any]:
    """A bar, or lines on stderr; yields a function that takes the share done (0…1)."""
    if not console.is_terminal:
        yield _Lines(description)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=1.0)
        yield lambda share: progress.update(task, completed=share)


class _Lines:
    """Says now and then how far it is; nothing of what is soon done."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.began = self.told = time.monotonic()

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self.told >= EVERY and share > 0 and not console.quiet:
            self.told = now
            left = timedelta(seconds=round((now - self.began) * (1 - share) / share))
            typer.echo(f"{self.description}: {share:.0%}, about {left} to go", err=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table, never cut to the width of a terminal."""
    console.print(title, style="italic")
    header, *lines = aligned(columns, rows)
    console.print(header, style="bold")
    for line in lines:
        console.print(line)


def percent(value: float) -> str:
    """0.4567 → 45.7 %."""
    return f"{100 * value:.1f} %"
