"""`foretell train`: heads on a model, or a model with heads from scratch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from accelerate import PartialState
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from foretell.checkpoint import is_foretell_directory
from foretell.cli import common
from foretell.data import Bad
from foretell.decoding.cache import decodes
from foretell.errors import HeadError, InputError
from foretell.formats import LAYOUTS, layout
from foretell.heads import HEADS
from foretell.heads.taps import TAPS
from foretell.loading import (
    BUNDLED,
    load_causal_lm,
    new_causal_lm,
    resolve,
)
from foretell.model import MTPModel
from foretell.training import Progress, TrainConfig, TrainResult
from foretell.training import train as run_training
from foretell.training.config import merged

DEPTH = 3
"""Of heads, where none is given."""

FEW = 50
"""Steps: in fewer the rate has hardly risen before it falls again."""


def train(
    model: common.Model,
    data: common.Data,
    out: Annotated[Path, typer.Option(help="Run directory; an unfinished run in it goes on.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; options given here win over it.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="frozen: heads on the given weights (default). joint: heads and backbone. "
            "lora: heads, and adapters on the backbone. native: the heads MODEL has. "
            "pretrain: backbone and heads from scratch."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(HEADS)} [parallel], or none (with pretrain)."),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Tokens beyond the next one. [3]")] = None,
    tap: Annotated[
        str | None, typer.Option(help=f"Hidden state read: {', '.join(TAPS)}, or a layer number.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="LAYOUT",
            help="Train heads for `foretell export --to LAYOUT`: the kind, tap and details that "
            f"its engines run: {', '.join(LAYOUTS)}.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="sum over depths [default], mean (DeepSeek's λ/D), geometric (FastMTP)."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Stop after so many passes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per step. [16]")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens per row. [256]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw (default) or muon.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of AdamW. [1e-3]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 (default), bf16-mixed or bf16.")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. [200]")] = None,
    skip_bad: common.SkipBad = False,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. [0]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other setting, as in the YAML file: backbone_rate=0.1, head_warmup=100, "
            "head.shared=true, objective.distill=backbone, lora.rank=8. Repeat for more; "
            "docs/training.md has them all.",
        ),
    ] = None,
    backbone: common.BackboneAt = None,
    device: common.Device = "auto",
    json: common.Json = None,
) -> None:
    """Train heads that predict further ahead, and save them to OUT/model.

    Say when to stop with --epochs, --steps or --minutes. A run that was interrupted goes on when
    the same command is given again. Under torchrun or accelerate launch it uses all processes.

    Example: foretell train tiny --data stdlib:train --head sequential --minutes 2 --out runs/first
    """
    common.quiet_transformers()
    given = {
        "recipe": recipe, "epochs": epochs, "steps": steps, "minutes": minutes,
        "batch_size": batch_size, "block_size": block_size, "optimizer": optimizer,
        "learning_rate": learning_rate, "precision": precision, "save_every": save_every,
        "seed": seed, "head": _given(kind=head, depth=depth, tap=_tap(tap)),
        "objective": _given(weights=loss),
    }  # fmt: skip
    if head == "none":
        given["head"] = "none"
    chosen = merged(_given(**given), _parse_settings(settings or []))
    if target is not None:
        chosen["head"] = head_for(target, chosen.get("head", {}))
    run = TrainConfig.from_yaml(config, chosen) if config else TrainConfig.parse(chosen, "train")
    with _processes(common.pick_device(device)) as where:
        if run.precision != "float32":
            common.warn_slow(torch.bfloat16, where, "use --precision float32")
        built = build(model, run, where, backbone)
        if target is not None:
            require_layout(target, built)
        if not (decoded := decodes(built.backbone)):
            common.console.print(
                f"Warning: {type(built.lm).__name__} can be trained with heads, but not decoded in "
                f"drafts: {decoded.lacking}",
                style="bold red",
            )
        tokenizer = common.tokenizer_of(model, built)
        bad = Bad(skip_bad)
        blocks, held_out = common.load_corpus(data, built, tokenizer, run, bad)
        common.show_bad(bad, data)
        known = len(bad.found)
        with training_bar() as report:
            result = run_training(
                built,
                blocks,
                run,
                out,
                held_out=held_out,
                tokenizer=tokenizer,
                backbone_path=reference(model, built),
                report=report,
            )
    if common.console.quiet:
        return
    if len(bad.found) > known:  # a stream is read while it is learned from
        common.show_bad(bad, data)
    show_result(result)
    warn_if_few(result.steps, run)
    kind = built.head.config.kind if built.head is not None else "plain"
    rows = [
        {"model": model, "method": kind, "recipe": run.recipe, "depth": depth_, "nll": loss_,
         "tokens": result.tokens, "seconds": result.seconds}
        for depth_, loss_ in enumerate(result.depth_losses)
    ]  # fmt: skip
    left_out = {"skip_bad": skip_bad, "bad_records": len(bad.found)}
    common.save_json(json, "train", built, run.seed, {**run.model_dump(), **left_out}, rows)


@contextmanager
def _processes(device: torch.device) -> Iterator[torch.device]:
    """Yield this process's device; of several processes only the main one prints."""
    processes = PartialState(cpu=device.type == "cpu")
    common.console.quiet = not processes.is_main_process
    try:
        yield device if processes.num_processes == 1 else processes.device
    finally:
        processes.destroy_process_group()


def head_for(target: str, given: Any) -> dict[str, Any]:
    """The settings of heads that a layout can hold, with those given that it leaves open."""
    given = given if isinstance(given, dict) else {"kind": given}
    wanted = layout(target).head(given.get("depth", DEPTH), given.get("kind")).to_dict()
    for name, value in given.items():
        if name not in wanted:
            raise InputError(f"head.{name}: heads for {target} ({wanted['kind']}) have no such.")
        if value != wanted[name] and name not in ("depth", "init", "layers"):
            raise InputError(
                f"head.{name} is {value!r}, and --for {target} makes it {wanted[name]!r}; "
                "leave one of them out."
            )
    return {**wanted, **given}


def require_layout(target: str, model: MTPModel) -> None:
    """Refuse a backbone that the layout cannot hold, before anything is trained."""
    reasons = layout(target).refusals(model, model.backbone.config.to_dict())
    if reasons:
        raise HeadError(f"{target} cannot hold this model: {reasons[0]}.")


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value not in (None, {})}


def _parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`a.b=value` as nested mappings; values are YAML."""
    result: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not (path and equals):
            raise InputError(f"--set {pair}: give NAME=VALUE, such as backbone_rate=0.1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: the value is not YAML.") from None
        for name in reversed(path.split(".")):
            value = {name: value}
        result = merged(result, value)
    return result


def build(
    name: str, config: TrainConfig, device: torch.device, backbone_at: str | None = None
) -> MTPModel:
    """The model to train: random weights under `pretrain`, given ones under all other recipes.

    `backbone_at` is where the backbone of heads lies that are trained on, if not where they say.
    """
    if backbone_at is not None and config.recipe != "native":
        raise InputError("--backbone goes with recipe native; else MODEL is the backbone.")
    torch.manual_seed(config.seed)
    dtype = _dtype(config, device)
    if config.recipe == "native":
        model = MTPModel.from_pretrained(
            name, backbone=backbone_at, dtype=dtype or "auto", device=device
        )
        if model.head is None:
            raise InputError(f"{name}: has no heads to train on; recipe frozen or joint adds some.")
        return model
    if config.recipe == "pretrain":
        backbone = new_causal_lm(name, config.seed, dtype or torch.float32)
    else:
        if is_foretell_directory(Path(resolve(name))):
            raise InputError(
                f"{name}: has heads already; train on with recipe native, or name the backbone "
                "that new ones are to be trained on."
            )
        backbone = load_causal_lm(name, dtype)
        common.say_merged(name)
    backbone.to(device)  # type: ignore[arg-type]
    return MTPModel(backbone, config.head)


def _dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """What the backbone is loaded in: the type it is to train in; None where it stays as stored."""
    if config.precision == "bf16":
        return torch.bfloat16
    learns = config.backbone_learns and config.recipe != "lora"
    return torch.float32 if learns or device.type == "cpu" else None


def reference(name: str, model: MTPModel) -> str:
    """How heads that are stored alone name their backbone."""
    if name in BUNDLED:
        return name
    name = model.tokenizer_path or name  # heads may be stored apart from it
    where = Path(resolve(name))
    return str(where.resolve()) if where.is_dir() else name


def show_result(result: TrainResult) -> None:
    """What a run did: its losses, and how far the parts of the model moved."""
    losses = ", ".join(f"{loss:.3f}" for loss in result.depth_losses)
    common.console.print(
        f"{result.steps} steps, {result.tokens:,} tokens, {result.seconds:.0f} s; "
        f"loss by depth {losses} nats → {result.directory}"
    )
    learned = [f"{m.part} {common.percent(m.change)}" for m in result.movements if m.learns]
    if learned:
        common.console.print(f"Moved, against where it began: {', '.join(learned)}")
    for movement in result.movements:
        if movement.suspicious:
            common.console.print(f"Warning: {movement.suspicious}.", style="bold red")


def warn_if_few(steps: int, run: TrainConfig) -> None:
    """Say so where the time allowed was too short to learn much in."""
    if run.minutes is not None and steps < FEW:
        common.console.print(
            f"Warning: {steps} steps went into {run.minutes:g} minutes; heads need hundreds. Give "
            "more --minutes, or make steps smaller: --batch-size, --block-size.",
            style="bold red",
        )


@contextmanager
def training_bar() -> Iterator[Any]:
    """A bar with the loss of every depth; yields what `train` reports to."""
    columns = (
        TextColumn("Training"),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=common.console) as bar:
        task = bar.add_task("train", total=1.0, numbers="")

        def report(progress: Progress) -> None:
            losses = " ".join(f"{loss:.2f}" for loss in progress.depth_losses)
            if progress.held_out_losses:
                measured = " ".join(f"{loss:.3f}" for loss in progress.held_out_losses)
                bar.console.print(f"step {progress.step}: held-out loss by depth {measured} nats")
            bar.update(
                task,
                completed=progress.fraction,
                numbers=f"step {progress.step}, loss {losses}, "
                f"{progress.tokens_per_second:,.0f} tokens/s",
            )

        yield report


def _tap(name: str | None) -> str | int | None:
    return int(name) if name is not None and name.isdigit() else name
