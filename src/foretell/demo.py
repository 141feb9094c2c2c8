"""The whole way in a few minutes, with nothing to download: what `foretell demo` does.

On the bundled models and Python's standard library: probe what tiny knows already, train heads on
it, decode with them and with those of tiny-mtp, and write a report of it.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foretell import ready
from foretell.checkpoints import load_tokenizer
from foretell.data import PackedBlocks, read_prompts
from foretell.errors import ForetellError, InputError
from foretell.evaluation import (
    DepthTable,
    SpeedTable,
    compare,
    measure_heads,
    measure_marginals,
    methods_of,
    verdicts_of_speed,
)
from foretell.evaluation.methods import method_name
from foretell.files import local_path, require_replaceable
from foretell.generation.steps import counted, shown_steps
from foretell.hardware import is_slow, pick_device
from foretell.model import MTPModel
from foretell.report import is_page, write_report
from foretell.results import Row, is_result, of_model, select, write_result
from foretell.results.provenance import provenance
from foretell.results.tables import Generated, Speed
from foretell.training import Progress, TrainConfig, TrainResult, build, train
from foretell.training.rundir import RunDirectory

HELD_OUT = "stdlib:held-out"
WIDTH = 32
"""Strings that the probe follows."""
POSITIONS = 512
"""Positions that the probe measures."""
BLOCKS = 64
"""Of held-out text, that the heads are measured on."""
PROMPT_TOKENS = 64
NEW_TOKENS = 128
SHOWN_TOKENS = 64
"""Of the continuation in the report; longer ones loop."""
RESULTS = ("probe", "eval", "bench", "generate")
"""Files of the report."""
PAGE = "report.html"


class Watcher:
    """Is told how the demo goes. This one does nothing with it."""

    def begins(self, number: int, what: str) -> None:
        """Part `number`, 1…3, begins."""

    def reading(self, data: str) -> AbstractContextManager[Any]:
        """Open while text is read."""
        return nullcontext()

    def stage(self, name: str) -> AbstractContextManager[Callable[[float], None]]:
        """Open while something takes long; yields what is told the share done, 0…1."""
        return nullcontext(lambda share: None)

    def training(self, minutes: float) -> AbstractContextManager[Callable[[Progress], None]]:
        """Open while heads are trained; yields what is told how it goes."""
        return nullcontext(lambda progress: None)

    def probed(self, found: DepthTable) -> None:
        """What tiny knows without heads."""

    def trained(self, result: TrainResult) -> None:
        """The heads are trained."""

    def measured(self, found: DepthTable) -> None:
        """What they know."""

    def decoded(self, found: Sequence[tuple[str, SpeedTable]], dtype: torch.dtype) -> None:
        """How decoding compares, by model, in a type of weights."""

    def wrote(self, path: Path) -> None:
        """A result file."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it wrote it.

    Attributes:
        model: tiny with the heads that were trained on it.
        marginals: what tiny knows of each depth without heads.
        depths: what the heads know.
        speeds: how decoding compares, for tiny and for tiny-mtp.
        settings: of that comparison, for a result file.
        page: the report, beside the result files that it was made of.
        seconds: that all of it took.
    """

    model: MTPModel
    marginals: DepthTable
    depths: DepthTable
    speeds: tuple[tuple[str, SpeedTable], ...]
    settings: dict[str, Any]
    page: Path
    seconds: float

    @property
    def rows(self) -> list[Row]:
        """Of the comparison, for a result file."""
        return _rows(self.speeds)

    @property
    def outputs(self) -> int:
        """How many texts were decoded with heads."""
        return sum(row.prompts for row in self._heads)

    @property
    def identical(self) -> int:
        """How many of them are those of plain decoding."""
        return sum(row.identical or 0 for row in self._heads)

    def require_identical(self) -> None:
        """Refuse outputs of heads that are not those of plain decoding.

        Raises:
            ForetellError: there is one.
        """
        if differing := self.outputs - self.identical:
            raise ForetellError(
                f"{differing} outputs differ from plain decoding; please report it."
            )

    @property
    def _heads(self) -> list[Speed]:
        return [row for row in select(self.rows, Speed) if row.drafter == "heads"]


def run_demo(
    out: Path,
    *,
    minutes: float = 2.0,
    count: int = 6,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> DemoResult:
    """Probe, train, decode and report; everything is written to `out`.

    It begins anew each time. In `out` only what an earlier demo wrote is replaced.

    Args:
        out: a directory.
        minutes: to train for.
        count: prompts to decode with each model.
        seed: of everything that is random.
        watcher: told what was found as soon as it is.

    Raises:
        InputError: there is something else in `out`, or a number is out of its range.
    """
    began = time.monotonic()
    if count < 1:
        raise InputError(f"count is {count}; decode at least 1 prompt.")
    watcher = watcher or Watcher()
    config = training_config(minutes, seed)
    out = local_path(out)
    _clear(out)

    watcher.begins(1, "What tiny already knows, without any training")
    tiny = ready.load_model("tiny", "cpu")
    text = _read(HELD_OUT, tiny, 128, watcher)
    asked = {"width": WIDTH, "positions": POSITIONS}
    with watcher.stage("Marginalizing") as progress:
        marginals = measure_marginals(tiny, text, depth=2, seed=seed, progress=progress, **asked)
    watcher.probed(marginals)
    settings: dict[str, Any] = {"data": HELD_OUT, **asked, "block_size": 128}
    rows = of_model("tiny", marginals.rows())
    watcher.wrote(_save(out / "probe.json", tiny, seed, settings, rows))

    watcher.begins(2, f"Training heads on tiny, its own weights frozen ({minutes:g} minutes)")
    trained = _train_heads(out, config, watcher)
    depths = measure_heads(trained, _read(HELD_OUT, trained, 256, watcher), limit=BLOCKS)
    watcher.measured(depths)
    rows = of_model("tiny", depths.rows())
    watcher.wrote(_save(out / "eval.json", trained, seed, {"data": HELD_OUT}, rows))

    watcher.begins(3, "Decoding held-out prompts, every output checked against plain decoding")
    models = {"tiny": trained, "tiny-mtp": ready.load_model("tiny-mtp", "cpu")}
    speeds = tuple(
        (name, _compare(name, model, count, seed, watcher)) for name, model in models.items()
    )
    watcher.decoded(speeds, trained.backbone.dtype)
    settings = {
        "prompts": HELD_OUT,
        "count": count,
        "prompt_tokens": PROMPT_TOKENS,
        "max_new_tokens": NEW_TOKENS,
        "verdicts": verdicts_of_speed(speeds),
    }
    watcher.wrote(_save(out / "bench.json", trained, seed, settings, _rows(speeds)))
    watcher.wrote(_continue_one(out / "generate.json", "tiny", trained, seed))
    page = out / PAGE
    write_report([*(out / f"{name}.json" for name in RESULTS), out / "heads"], page)
    seconds = time.monotonic() - began
    return DemoResult(trained, marginals, depths, speeds, settings, page, seconds)


def training_config(minutes: float, seed: int) -> TrainConfig:
    """How the demo trains, in the type of numbers that this machine computes fast."""
    precision = "float32" if is_slow(torch.bfloat16) else "bf16-mixed"
    settings = {
        "recipe": "frozen", "head": {"kind": "sequential", "depth": 3}, "minutes": minutes,
        "seed": seed, "batch_size": 8, "block_size": 256, "precision": precision,
        "save_every": 0, "optimizer": "muon", "matrix_learning_rate": 0.05, "learning_rate": 3e-3,
    }  # fmt: skip
    return TrainConfig.parse(settings, "demo")


def _clear(out: Path) -> None:
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


def _read(data: str, model: MTPModel, block_size: int, watcher: Watcher) -> PackedBlocks:
    with watcher.reading(data):
        return ready.read_blocks(data, model, load_tokenizer("tiny"), block_size)


def _train_heads(out: Path, config: TrainConfig, watcher: Watcher) -> MTPModel:
    model = build("tiny", config, pick_device("cpu"))
    blocks = _read("stdlib:train", model, config.block_size, watcher)
    minutes = config.minutes or 0.0
    with watcher.training(minutes) as report:
        result = train(model, blocks, config, out / "heads", backbone_path="tiny", report=report)
    watcher.trained(result)
    return ready.load_model(str(result.directory), "cpu")


def _compare(name: str, model: MTPModel, count: int, seed: int, watcher: Watcher) -> SpeedTable:
    prompts = read_prompts(HELD_OUT, load_tokenizer(name), PROMPT_TOKENS, count, seed)
    with watcher.stage(f"Decoding with {name}") as progress:
        return compare(
            methods_of(model), prompts, max_new_tokens=NEW_TOKENS, repeats=2, progress=progress
        )


def _continue_one(path: Path, name: str, model: MTPModel, seed: int) -> Path:
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
    row = Generated(model=name, method=method_name("heads", model), **counted(steps))
    return _save(path, model, None, settings, [row])


def _rows(speeds: Sequence[tuple[str, SpeedTable]]) -> list[Row]:
    return [row for name, table in speeds for row in of_model(name, table.rows)]


def _save(
    path: Path, model: MTPModel, seed: int | None, settings: dict[str, Any], rows: Sequence[Row]
) -> Path:
    """Write a result file; named after the command that writes such a file."""
    origin = provenance(seed, model.backbone.device, model.backbone.dtype)
    write_result(path, path.stem, {**settings, "backbone": model.fingerprint()}, rows, origin)
    return path
