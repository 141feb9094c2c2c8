"""`foretell eval`: what the heads predict on held-out text."""

from collections.abc import Sequence
from dataclasses import replace

from foretell.cli import common
from foretell.cli.commands.evaluate import Evaluate
from foretell.cli.probe_tables import show_depths, shown, shown_share
from foretell.data import Bad
from foretell.decoding.cache import decodes
from foretell.evaluation import (
    DepthTable,
    describe_seen,
    measure_heads,
    probed_baselines,
    seen_in_training,
    verdict_of_heads,
)
from foretell.evaluation.harness import require_harness, run_harness
from foretell.model import MTPModel
from foretell.ready import tokenizer_of
from foretell.results import Row, of_model, select
from foretell.results.tables import Baseline, CalibrationError, Difference, HarnessScore


def evaluate(asked: Evaluate) -> None:
    """Do what `asked` says."""
    if asked.lm_eval is not None:
        require_harness()
    beside = [] if asked.baselines is None else probed_baselines(asked.baselines, asked.data)
    loaded = common.load_model(
        asked.model, asked.device, asked.dtype, asked.backbone, quantize=asked.quantize
    )
    bad = Bad(asked.skip_bad)
    found = _measure(asked.model, loaded, asked.data, asked.block_size, asked.blocks, bad)
    common.show_bad(bad, asked.data)
    rows = [*of_model(asked.model, found.all_rows()), *beside]
    show_depths(found, f"{asked.model} on {asked.data}")
    _show_rules(found)
    _show_calibration(found)
    _show_baselines(beside)
    common.console.print(f"Depth 0: {shown(found.quality_row().bits_per_byte)} bits per byte")
    if asked.against is not None:
        rows += _compare(asked, found)
    if asked.lm_eval is not None:
        rows += _harness(asked.model, loaded, asked.lm_eval, asked.lm_eval_limit)
    seen = seen_in_training(loaded, found.blocks.sketch)
    said = [describe_seen(seen)]
    if loaded.head is not None and decodes(loaded.backbone):
        said.insert(0, str(verdict_of_heads(loaded, found)))
    verdict = " ".join(filter(None, said))
    settings = {
        **asked.told("data", "block_size", "blocks", "against", "baselines"),
        **asked.told("lm_eval", "lm_eval_limit", "skip_bad", "quantize"),
        "bad_records": len(bad.found),
        "seen_in_training": seen,
        "verdicts": {asked.model: verdict} if verdict else {},
    }
    common.save_json(asked.json, "eval", loaded, None, settings, rows)
    if verdict:
        common.console.print(f"{asked.model}: {verdict}")


def _measure(
    name: str, model: MTPModel, data: str, block_size: int, limit: int | None, bad: Bad
) -> DepthTable:
    tokenizer = tokenizer_of(name, model)
    corpus = common.load_blocks(data, model, tokenizer, block_size, bad)
    with common.progress_bar("Evaluating") as progress:
        return measure_heads(model, corpus, limit=limit, progress=progress)


def _compare(asked: Evaluate, found: DepthTable) -> list[Row]:
    """Bits per byte of the other model, and by how much this one's are more."""
    against = str(asked.against)
    plain = common.load_model(against, asked.device, asked.dtype)
    plain.head = None
    other = _measure(
        against, plain, asked.data, asked.block_size, asked.blocks, Bad(asked.skip_bad)
    )
    quality = replace(other.quality_row(), model=against)
    rows: list[Row] = [quality]
    text = f"{against}: {shown(quality.bits_per_byte)} bits per byte"
    if (more := found.more_bits_than(other)) is not None:
        rows.append(Difference(model=asked.model, source=against, bits_per_byte=more))
        text += f"; {asked.model} has {shown(more, signed=True)} more"
    common.console.print(text)
    return rows


def _harness(name: str, model: MTPModel, tasks: str, limit: int | None) -> list[HarnessScore]:
    tokenizer = tokenizer_of(name, model)
    rows = run_harness(model, tokenizer, tasks.split(","), limit=limit)
    lines = [(row.task, row.metric, shown(row.value)) for row in rows]
    common.table("lm-eval", ("task", "metric", "value"), lines)
    return of_model(name, rows)


def _show_rules(found: DepthTable) -> None:
    rows = [row for row in found.rule_rows() if row.depth == found.depth]
    if rows:
        columns = ("rule", "lossless", f"accepted at depth {found.depth}", "tokens/forward")
        lines = [
            (
                row.rule,
                "yes" if row.lossless else "no",
                shown_share(row.acceptance),
                shown(row.tokens_per_forward, 2),
            )
            for row in rows
        ]
        common.table("Expected of each acceptance rule", columns, lines)


def _show_calibration(found: DepthTable) -> None:
    if errors := select(found.calibration_rows(), CalibrationError):
        parts = ", ".join(f"depth {row.depth}: {shown(row.ece)}" for row in errors)
        common.console.print(f"Calibration error of the heads' confidence, {parts}")


def _show_baselines(rows: Sequence[Baseline]) -> None:
    if rows:
        columns = ("method", "depth", "top-1", "agrees", "accepted")
        lines = [
            (
                row.method,
                str(row.depth),
                *map(shown_share, (row.top1, row.agreement, row.acceptance)),
            )
            for row in rows
            if row.depth
        ]
        common.table(f"Beside it, from the probe of {rows[0].model}", columns, lines)
