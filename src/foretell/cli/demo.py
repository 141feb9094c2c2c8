"""`foretell demo`: the whole way in a few minutes, with nothing to download."""

import shutil
import time
from pathlib import Path

import torch

from foretell.checkpoints import load_tokenizer
from foretell.cli import common
from foretell.cli.bench import show_speed, verdicts
from foretell.cli.commands.demo import Demo
from foretell.cli.probe_tables import show_depths
from foretell.cli.train import show_result
from foretell.cli.watching import training_bar
from foretell.data import read_prompts
from foretell.errors import ForetellError, InputError
from foretell.evaluation import (
    SpeedTable,
    compare,
    measure_heads,
    measure_marginals,
    methods_of,
)
from foretell.evaluation.methods import method_name
from foretell.files import local_path, require_replaceable
from foretell.generation.steps import counted, shown_steps
from foretell.hardware import is_slow, pick_device
from foretell.model import MTPModel
from foretell.provenance import is_result
from foretell.report import is_page, write_report
from foretell.training import TrainConfig, build
from foretell.training import train as run_training
from foretell.training.rundir import RunDirectory

HELD_OUT = "stdlib:held-out"
PROMPT_TOKENS = 64
SHOWN_TOKENS = 64
"""Of the continuation in the report; longer ones loop."""
RESULTS = ("probe", "eval", "bench", "generate")
"""Files of the report."""
PAGE = "report.html"


def demo(asked: Demo) -> None:
    """Do what `asked` says."""
    began = time.monotonic()
    common.quiet_transformers()
    if asked.count < 1:
        raise InputError(f"count is {asked.count}; decode at least 1 prompt.")
    config = _training(asked.minutes, asked.seed)
    out = local_path(asked.out)
    _fresh(out)
    tokenizer = load_tokenizer("tiny")

    _headline(1, "What tiny already knows, without any training")
    tiny = common.load_model("tiny", "cpu")
    rows_of_text = common.load_blocks(HELD_OUT, tiny, tokenizer, 128)
    with common.progress_bar("Marginalizing") as progress:
        marginals = measure_marginals(
            tiny, rows_of_text, depth=2, width=32, positions=512, seed=asked.seed, progress=progress
        )
    show_depths(marginals, "Marginalization over 32 strings, held-out code")
    settings = {"data": HELD_OUT, "width": 32, "positions": 512, "block_size": 128}
    rows = [{"model": "tiny", **row} for row in marginals.rows()]
    common.save_json(out / "probe.json", "probe", tiny, asked.seed, settings, rows)

    _headline(2, f"Training heads on tiny, its own weights frozen ({asked.minutes:g} minutes)")
    trained = _train_heads(out, config)
    blocks = common.load_blocks(HELD_OUT, trained, tokenizer, 256)
    depths = measure_heads(trained, blocks, limit=64)
    show_depths(depths, "The new heads, held-out code")
    rows = [{"model": "tiny", **row} for row in depths.rows()]
    common.save_json(out / "eval.json", "eval", trained, asked.seed, {"data": HELD_OUT}, rows)

    _headline(3, "Decoding held-out prompts, every output checked against plain decoding")
    found = []
    for name, model in (("tiny", trained), ("tiny-mtp", common.load_model("tiny-mtp", "cpu"))):
        found.append((name, _compare(name, model, asked.count, asked.seed)))
    what = f"Python's standard library, held-out files, {asked.count} prompts, greedy, batch 1"
    show_speed(found, what, trained.backbone.dtype)
    rows = [{"model": name, **row} for name, table in found for row in table.rows]
    settings = {
        "prompts": HELD_OUT,
        "count": asked.count,
        "prompt_tokens": PROMPT_TOKENS,
        "max_new_tokens": 128,
        "verdicts": verdicts(found),
    }
    common.save_json(out / "bench.json", "bench", trained, asked.seed, settings, rows)
    common.save_json(asked.json, "demo", trained, asked.seed, settings, rows)
    _continue_one(out / "generate.json", "tiny", trained, asked.seed)
    page = out / PAGE
    write_report([*(out / f"{name}.json" for name in RESULTS), out / "heads"], page)
    _verdict(found)
    common.console.print(f"Done in {time.monotonic() - began:.0f} s. Everything is in {out}/.")
    common.console.print(f"Report: {page}")


def _training(minutes: float, seed: int) -> TrainConfig:
    precision = "float32" if is_slow(torch.bfloat16) else "bf16-mixed"
    settings = {
        "recipe": "frozen", "head": {"kind": "sequential", "depth": 3}, "minutes": minutes,
        "seed": seed, "batch_size": 8, "block_size": 256, "precision": precision,
        "save_every": 0, "optimizer": "muon", "matrix_learning_rate": 0.05, "learning_rate": 3e-3,
    }  # fmt: skip
    return TrainConfig.parse(settings, "demo")


def _train_heads(out: Path, config: TrainConfig) -> MTPModel:
    model = build("tiny", config, pick_device("cpu"))
    blocks = common.load_blocks("stdlib:train", model, load_tokenizer("tiny"), config.block_size)
    with training_bar(config.minutes) as report:
        result = run_training(
            model, blocks, config, out / "heads", backbone_path="tiny", report=report
        )
    show_result(result)
    return common.load_model(str(result.directory), "cpu")


def _compare(name: str, model: MTPModel, count: int, seed: int) -> SpeedTable:
    prompts = read_prompts(HELD_OUT, load_tokenizer(name), PROMPT_TOKENS, count, seed)
    with common.progress_bar(f"Decoding with {name}") as progress:
        return compare(methods_of(model), prompts, max_new_tokens=128, repeats=2, progress=progress)


def _continue_one(path: Path, name: str, model: MTPModel, seed: int) -> None:
    """One continuation of the first prompt, for the report to show what was drafted in it."""
    tokenizer = load_tokenizer(name)
    (prompt,) = read_prompts(HELD_OUT, tokenizer, PROMPT_TOKENS, 1, seed)
    shown = model.stream(prompt, torch.ones_like(prompt), max_new_tokens=SHOWN_TOKENS)
    steps = [step for (step,) in shown]
    ids = prompt[0].tolist()
    settings = {
        "prompt": tokenizer.decode(ids),
        "max_new_tokens": SHOWN_TOKENS,
        "steps": shown_steps(steps, tokenizer, ids),
    }
    row = {"model": name, "method": method_name("heads", model), **counted(steps)}
    common.save_json(path, "generate", model, None, settings, [row])


def _verdict(found: list[tuple[str, SpeedTable]]) -> None:
    """Count the outputs of the heads; one that differs is an error."""
    measured = [row for _, table in found for row in table.rows if row.get("drafter") == "heads"]
    same = sum(row.get("identical", 0) for row in measured)
    total = sum(row.get("prompts", 0) for row in measured)
    common.console.print(f"With heads, {same} of {total} outputs are identical to plain decoding.")
    if same != total:
        raise ForetellError(f"{total - same} outputs differ from plain decoding; please report it.")


def _headline(number: int, text: str) -> None:
    common.console.print(f"\n{number}. {text}", style="bold")


def _fresh(out: Path) -> None:
    """Start over, touching only what an earlier demo wrote; refuse where something else is."""
    for name in RESULTS:
        require_replaceable(out / f"{name}.json", "result file", is_result)
    require_replaceable(out / PAGE, "report", is_page)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written to ({error.strerror}); name another directory."
        ) from None
    if RunDirectory(out / "heads").is_run:  # anything else there is refused by the next one
        shutil.rmtree(out / "heads")
