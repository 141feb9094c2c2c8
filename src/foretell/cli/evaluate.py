"""`foretell eval`: what the heads predict on held-out text."""

from pathlib import Path
from typing import Any

from foretell.cli import common
from foretell.cli.commands.evaluate import Evaluate
from foretell.cli.probe_tables import show_depths, shown
from foretell.data import Bad
from foretell.decoding.cache import decodes
from foretell.errors import InputError
from foretell.evaluation import DepthTable, Verdict, measure_heads, verdict_of_depths
from foretell.evaluation.harness import require_harness, run_harness
from foretell.model import MTPModel
from foretell.probe.prediction import measure_costs
from foretell.provenance import read_result
from foretell.tally import Means, estimate

BASELINE_FIELDS = (
    "model", "method", "depth", "positions", "top1", "top5", "nll", "agreement", "acceptance",
)  # fmt: skip


def evaluate(asked: Evaluate) -> None:
    """Do what `asked` says."""
    if asked.lm_eval is not None:
        require_harness()
    beside = [] if asked.baselines is None else _baselines(asked.baselines, asked.data)
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    bad = Bad(asked.skip_bad)
    found = _measure(asked.model, loaded, asked.data, asked.block_size, asked.blocks, bad)
    common.show_bad(bad, asked.data)
    rows = [*_rows(found), {"table": "quality", "depth": 0, **_bits(found.bits())}, *beside]
    rows = [{"model": asked.model, **row} for row in rows]
    rows[0]["bits_per_byte"] = found.bits_per_byte
    show_depths(found, f"{asked.model} on {asked.data}")
    _show_rules(found)
    _show_calibration(found)
    _show_baselines(beside)
    common.console.print(f"Depth 0: {shown(_bits(found.bits()), 'bits_per_byte')} bits per byte")
    if asked.against is not None:
        rows += _compare(asked, found)
    if asked.lm_eval is not None:
        rows += _harness(asked.model, loaded, asked.lm_eval, asked.lm_eval_limit)
    settings = {
        **asked.told("data", "block_size", "blocks", "against", "baselines"),
        **asked.told("lm_eval", "lm_eval_limit", "skip_bad"),
        "bad_records": len(bad.found),
    }
    common.save_json(asked.json, "eval", loaded, None, settings, rows)
    if loaded.head is not None and decodes(loaded.backbone):
        common.console.print(f"{asked.model}: {_verdict(loaded, found)}")


def _measure(
    name: str, model: MTPModel, data: str, block_size: int, limit: int | None, bad: Bad
) -> DepthTable:
    tokenizer = common.tokenizer_of(name, model)
    corpus = common.load_blocks(data, model, tokenizer, block_size, bad)
    with common.progress_bar("Evaluating") as progress:
        return measure_heads(model, corpus, limit=limit, progress=progress)


def _rows(found: DepthTable) -> list[dict[str, Any]]:
    rules = [{"table": "rules", **row} for row in found.rule_rows()]
    calibration = [{"table": "calibration", **row} for row in found.calibration_rows()]
    return found.rows() + rules + calibration


def _bits(means: Means) -> dict[str, float | None]:
    return estimate("bits_per_byte", means)


def _baselines(path: Path, data: str) -> list[dict[str, Any]]:
    """The depths of a probe of the same text."""
    result = read_result(path)
    if result.command != "probe":
        raise InputError(f"{path} is of `foretell {result.command}`; give one of `foretell probe`.")
    if (other := result.settings.get("data")) != data:
        raise InputError(f"{path} was measured on {other}, not on {data}; probe the same data.")
    return [
        {"table": "baselines", **{name: row.get(name) for name in BASELINE_FIELDS}}
        for row in result.rows
        if row.get("table") == "depths"
    ]


def _compare(asked: Evaluate, found: DepthTable) -> list[dict[str, Any]]:
    """Bits per byte of the other model, and by how much this one's are more.

    Documents are drawn for both together, so that the interval is that of the difference.
    """
    against = str(asked.against)
    plain = common.load_model(against, asked.device, asked.dtype)
    plain.head = None
    other = _measure(
        against, plain, asked.data, asked.block_size, asked.blocks, Bad(asked.skip_bad)
    )
    rows = [{"model": against, "table": "quality", "depth": 0, **_bits(other.bits())}]
    text = f"{against}: {shown(rows[0], 'bits_per_byte')} bits per byte"
    if other.tally.groups == found.tally.groups:
        more = _bits(found.bits() - other.bits())
        rows.append({"model": asked.model, "table": "difference", "source": against, **more})
        text += f"; {asked.model} has {shown(more, 'bits_per_byte', signed=True)} more"
    common.console.print(text)
    return rows


def _verdict(model: MTPModel, found: DepthTable) -> Verdict:
    """What these heads should bring here; timed now, with a block like theirs."""
    acceptance = [
        float(found.tally.means("acceptance", method=found.method, depth=depth)[0])
        for depth in range(1, found.depth + 1)
    ]
    return verdict_of_depths(acceptance, measure_costs(model, found.depth))


def _harness(name: str, model: MTPModel, tasks: str, limit: int | None) -> list[dict[str, Any]]:
    tokenizer = common.tokenizer_of(name, model)
    rows = run_harness(model, tokenizer, tasks.split(","), limit=limit)
    lines = [(row["task"], row["metric"], shown(row, "value")) for row in rows]
    common.table("lm-eval", ("task", "metric", "value"), lines)
    return [{"model": name, "table": "lm-eval", **row} for row in rows]


def _show_rules(found: DepthTable) -> None:
    rows = [row for row in found.rule_rows() if row["depth"] == found.depth]
    if rows:
        columns = ("rule", "lossless", f"accepted at depth {found.depth}", "tokens/forward")
        lines = [
            (
                row["rule"],
                "yes" if row["lossless"] else "no",
                shown(row, "acceptance", 1, 100, " %"),
                shown(row, "tokens_per_forward", 2),
            )
            for row in rows
        ]
        common.table("Expected of each acceptance rule", columns, lines)


def _show_calibration(found: DepthTable) -> None:
    errors = [row for row in found.calibration_rows() if "ece" in row]
    if errors:
        parts = ", ".join(f"depth {row['depth']}: {shown(row, 'ece')}" for row in errors)
        common.console.print(f"Calibration error of the heads' confidence, {parts}")


def _show_baselines(rows: list[dict[str, Any]]) -> None:
    if rows:
        columns = ("method", "depth", "top-1", "agrees", "accepted")
        names = ("top1", "agreement", "acceptance")
        lines = [
            (row["method"], str(row["depth"]), *(shown(row, name, 1, 100, " %") for name in names))
            for row in rows
            if row["depth"]
        ]
        common.table(f"Beside it, from the probe of {rows[0]['model']}", columns, lines)
