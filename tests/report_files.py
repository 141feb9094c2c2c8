"""Result files and a run of every kind that a report shows, small and made up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretell.provenance import write_result

ORIGIN = {"command": "foretell probe toy", "git_sha": "0" * 40, "device": "cpu", "seed": 0}
BACKBONE = "0123456789abcdef"


def write(
    path: Path,
    command: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    model: str | None = "toy",
    **settings: Any,
) -> Path:
    named = rows if model is None else [{"model": model, **row} for row in rows]
    write_result(path, command, settings, named, ORIGIN)
    return path


def spread(name: str, value: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - 0.03, f"{name}_high": value + 0.03}


def probe_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for method, share in (("marginalization", 0.6), ("n-gram", 0.4), ("prompt-lookup", 0.3)):
        for depth in range(3):
            row = {"table": "depths", "method": method, "depth": depth, "positions": 512}
            for name in ("top1", "agreement", "acceptance"):
                row |= spread(name, share**depth if name == "acceptance" else share / (1 + depth))
            rows.append(row | {"nll": 2.0 + depth, "nll_min": 1.9 + depth, "nll_max": 2.1 + depth})
    for kind, place in (("whitespace", 0.9), ("keyword", 0.7), ("identifier", 0.4)):
        for depth in range(3):
            rows.append(
                {"table": "token-classes", "method": "marginalization", "depth": depth,
                 "token_class": kind, "positions": 90, **spread("top1", place / (1 + depth))}
            )  # fmt: skip
    for layer in range(7):
        for depth in range(3):
            share = (0.1 + 0.1 * layer) / (1 + depth)
            rows.append(
                {"table": "layers", "method": "logit-lens", "layer": layer, "depth": depth,
                 **spread("top1", share), **({"settled": layer / 6} if depth == 0 else {})}
            )  # fmt: skip
        drift = {"cka": 0.9, "cka_final": layer / 6, "cosine": 0.8}
        rows.append({"table": "drift", "layer": layer, **drift})
    for behind, more in (("text", 0.0), ("own", 0.15)):
        for length in (1, 2):
            low, high = 1 + (0.2 + more) * length, 1 + (0.6 + more) * length
            rows.append(
                {"table": "prediction", "method": "parallel", "behind": behind, "depth": length,
                 "tokens_per_forward_min": low, "tokens_per_forward_max": high,
                 "speedup_min": 1 + 0.05 * length, "speedup_max": 1 + 0.4 * length,
                 "tap": "weighted", "recipe": "frozen", "chosen": length == 2}
            )  # fmt: skip
    return rows


def eval_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"table": "depths", "method": "parallel", "depth": depth, "positions": 900,
         **spread("top1", 0.5 / (1 + depth)), **spread("acceptance", 0.5**depth),
         **spread("agreement", 0.7 / (1 + depth))}
        for depth in range(3)
    ]  # fmt: skip
    for depth in (1, 2):
        for place in range(10):
            rows.append(
                {"table": "calibration", "depth": depth, "bin": place, "positions": 40,
                 "confidence": place / 10 + 0.05, "acceptance": (place / 10 + 0.05) / depth}
            )  # fmt: skip
    return rows


def bench_rows() -> list[dict[str, Any]]:
    speeds = (("plain", 1.0, 1.0), ("parallel", 1.7, 1.3), ("transformers-prompt-lookup", 1.5, 1.4))
    rows: list[dict[str, Any]] = [
        {"method": method, "tokens": 640, "forwards": round(640 / passes), "prompts": 5,
         "identical": 5, "tokens_per_forward": passes, "tokens_per_second": 300 * speed,
         "speedup": speed, "seconds": 2.1 / speed}
        for method, passes, speed in speeds
    ]  # fmt: skip
    rows.append({**rows[1], "method": "parallel-auto", "draft_length": "auto"})
    shares = enumerate((0.5, 0.4), start=1)
    return rows + [{"method": "parallel", "depth": k, "acceptance": share} for k, share in shares]


def recipe_rows() -> list[dict[str, Any]]:
    return [
        {"method": method, "recipe": recipe, "depth": depth, "nll": 2.0 + depth, "top1": 0.4,
         "acceptance": 0.5**depth, "positions": 700,
         **({"tokens_per_forward": passes} if depth == 0 else {}),
         **({"head": "parallel"} if recipe != "none" else {})}
        for method, recipe, passes in (
            ("marginalization", "none", 1.9), ("frozen, parallel", "frozen", 1.6),
            ("joint, parallel", "joint", 1.75),
        )
        for depth in range(3)
    ]  # fmt: skip


STEPS = [
    {"drafted": 0, "accepted": 0, "pieces": ["def"]},
    {"drafted": 2, "accepted": 2, "pieces": [" <b>", "é(", "x"]},
    {"drafted": 2, "accepted": 1, "pieces": ["", "日):\n\treturn"]},
    {"drafted": 1, "accepted": 0, "pieces": [" x"]},
]


CHOSEN = {"parallel-auto": [[0, 0, 2, 2], [0, 1]]}


def write_all(directory: Path) -> Path:
    """Everything that a report can show, of one model."""
    write(directory / "probe.json", "probe", probe_rows(), data="held-out.txt", backbone=BACKBONE)
    write(directory / "eval.json", "eval", eval_rows(), data="held-out.txt")
    write(directory / "bench.json", "bench", bench_rows(), prompts="prompts.jsonl",
          draft_lengths=CHOSEN)  # fmt: skip
    write(directory / "recipes.json", "recipes", recipe_rows(), model=None, steps=200)
    write(
        directory / "generate.json", "generate",
        [{"method": "parallel", "tokens": 7, "forwards": 4, "tokens_per_forward": 1.75}],
        prompt='# "A" & <script>alert(1)</script>\n', steps=STEPS,
    )  # fmt: skip
    write(directory / "own.json", "my-benchmark", [{"method": "a", "seconds": 0.002}], model=None)
    write_run(directory / "heads")
    return directory


def write_run(directory: Path, backbone: str = BACKBONE) -> Path:
    directory.mkdir(parents=True)
    lines = [
        {"step": step, "depth_losses": [2 + 1 / step, 3 + 2 / step], "seconds": 3.0 * step,
         "held_out_losses": [2.2 + 1 / step, 3.3] if step % 20 == 0 else []}
        for step in range(10, 101, 10)
    ]  # fmt: skip
    texts = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(texts)
    (directory / "tap_weights.json").write_text(json.dumps([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]]))
    (directory / "source.json").write_text(json.dumps({"backbone": backbone}))
    (directory / "movement.json").write_text("[]")
    return directory
