"""What the commands share: loading, tables, progress and result files."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from foretell.backbone import isolates_documents
from foretell.checkpoints import base_of_adapters, load_tokenizer, resolve
from foretell.cli.options import STDOUT
from foretell.data import (
    REFUSED,
    Bad,
    Document,
    PackedBlocks,
    StreamedBlocks,
    read_corpus,
    read_documents,
)
from foretell.data.tokenization import Tokenized, given_prompt, opening, tokenize_all
from foretell.decoding import store_by_columns
from foretell.errors import InputError
from foretell.hardware import is_slow, slowdown
from foretell.model import MTPModel
from foretell.provenance import provenance, write_result
from foretell.training import TrainConfig

console = Console(highlight=False, markup=False, soft_wrap=True)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is the first accelerator, or the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator()
        return (
            found if found is not None and torch.accelerator.is_available() else torch.device("cpu")
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        device = torch.device("meta")
    if device.type == "meta":  # nothing can be computed there
        raise InputError(f"device {name!r} is not available here; use auto or cpu.")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """`auto` is float32 on a CPU, and the stored type elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    backbone: str | None = None,
    *,
    by_columns: bool = True,
) -> MTPModel:
    """A model on its device, ready to decode.

    `by_columns` stores weights as is fastest for a few rows; passes of one width want them by rows,
    where what is computed for a row does not depend on its place.
    """
    quiet_transformers()
    where = pick_device(device)
    weights = pick_dtype(dtype, where)
    model = MTPModel.from_pretrained(name, backbone=backbone, dtype=weights, device=where)
    say_merged(model.tokenizer_path or name)
    warn_slow(model.backbone.dtype, where, "leave --dtype at auto")
    if by_columns:
        store_by_columns(model)
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


def tokenizer_of(name: str, model: MTPModel) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, checked against its vocabulary.

    Special tokens that the model does not know (Gemma 3 1B: one for images) may be there; a text
    that has them is refused.
    """
    tokenizer, size = load_tokenizer(model.tokenizer_path or name), model.backbone.vocab_size
    added = tokenizer.added_tokens_decoder.items()
    beyond = sum(token.special for number, token in added if number >= size)
    if len(tokenizer) - beyond > size:
        raise InputError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {size}; they do not "
            "belong together."
        )
    return tokenizer


def load_blocks(
    data: str,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    bad: Bad = REFUSED,
) -> PackedBlocks:
    """Read a corpus; show that something happens."""
    with console.status(Text(f"Reading {data}")):
        pieces = tokenize_all(read_documents(data, bad), tokenizer, bad=bad)
        return pack(pieces, model, tokenizer, block_size)


def show_bad(bad: Bad, data: str) -> None:
    """Say what was left out of the data, if anything was."""
    if bad.found:
        console.print(f"{data}: {bad}")


def pack(
    pieces: Iterable[Tokenized],
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
) -> PackedBlocks:
    """Documents in blocks, packed if the model keeps them apart."""
    model.backbone.require_room(block_size, "blocks")
    return PackedBlocks.from_pieces(
        list(pieces),
        tokenizer,
        block_size,
        one_document_per_block=not isolates_documents(model.backbone, block_size),
    )


def load_corpus(
    data: str,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    bad: Bad = REFUSED,
) -> tuple[PackedBlocks | StreamedBlocks, PackedBlocks | None]:
    """What to train on, and what to measure on where some documents are held out."""
    model.backbone.require_room(config.block_size, "blocks")
    with console.status(Text(f"Reading {data}")):
        return read_corpus(
            data,
            tokenizer,
            config.block_size,
            held_out=config.held_out,
            seed=config.seed,
            streaming=config.streaming,
            one_document_per_block=not isolates_documents(model.backbone, config.block_size),
            bad=bad,
        )


def load_prompts(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    *,
    room: int | None = None,
    bad: Bad = REFUSED,
) -> list[torch.Tensor]:
    """Up to `count` prompts, (1, T) each, spread over the documents.

    A text longer than `length` tokens gives a stretch from a random place, a shorter one is used
    whole. A conversation, or what is marked as the prompt of token ids, is used whole; one longer
    than `room`, where that is given, is passed over.
    """
    if length < 1 or count < 1:
        raise InputError(
            f"{count} prompts of {length} tokens were asked for; ask for at least 1 of at least 1 "
            "token."
        )
    documents: list[Document] = list(read_documents(path, bad))
    order = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(documents), generator=order)
    prefix = opening(tokenizer)
    prompts: list[torch.Tensor] = []
    too_long = 0
    for index in chosen.tolist() * max(1, -(-count // max(1, len(documents)))):
        try:
            ids = given_prompt(documents[index], tokenizer, length)
        except InputError as error:
            bad(error)
            continue
        if ids is not None and room is not None and len(ids) > room:
            too_long += 1
            continue
        if ids is None:
            text = tokenizer(documents[index].text, add_special_tokens=False, verbose=False)
            tokens = text["input_ids"]
            start = int(torch.randint(max(1, len(tokens) - length + 1), (1,), generator=order))
            ids = prefix + tokens[start : start + length] if tokens else []
        if not ids:
            continue
        prompts.append(torch.tensor([ids]))
        if len(prompts) == count:
            break
    if not prompts:
        what = f"leaves room to answer (at most {room} tokens)" if too_long else "has a token"
        raise InputError(f"{path}: no prompt in it {what}.")
    return prompts


def save_json(
    path: Path | None,
    command: str,
    model: MTPModel,
    seed: int | None,
    settings: dict[str, Any],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Write a result file, where one was asked for; its settings tell which backbone it is."""
    if path is None:
        return
    origin = provenance(seed, model.backbone.device, model.backbone.dtype)
    save_result(path, command, {**settings, "backbone": model.fingerprint()}, rows, origin)


def save_result(
    path: Path,
    command: str,
    settings: dict[str, Any],
    rows: Sequence[dict[str, Any]],
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


@contextmanager
def progress_bar(description: str) -> Iterator[Any]:
    """A bar; yields a function that takes the share done (0…1)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table, numbers to the right, never cut to the width of a terminal."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    console.print(title, style="italic")
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        console.print("  ".join(cells), style="bold" if line is lines[0] else "")


def percent(value: float) -> str:
    """0.4567 → 45.7 %."""
    return f"{100 * value:.1f} %"
