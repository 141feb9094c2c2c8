"""Result files and a run of every kind that a report shows, small and made up."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretell.results import Row, of_model, write_result
from foretell.results.benchmarks import Recipe
from foretell.results.tables import (
    AcceptedByConfidence,
    AcceptedByDepth,
    Drift,
    Generated,
    PassCost,
    Predicted,
    ScoredByClass,
    ScoredByDepth,
    ScoredByLayer,
    Speed,
)
from foretell.tally import Estimate

ORIGIN = {"command": "foretell probe toy", "git_sha": "0" * 40, "device": "cpu", "seed": 0}
BACKBONE = "0123456789abcdef"


def write(
    path: Path,
    command: str,
    rows: Sequence[Row],
    *,
    model: str | None = "toy",
    **settings: Any,
) -> Path:
    named = rows if model is None else of_model(model, rows)
    write_result(path, command, settings, named, ORIGIN)
    return path


def spread(value: float) -> Estimate:
    return Estimate(value, value - 0.03, value + 0.03)


def speed(method: str = "plain", **more: Any) -> Speed:
    """A method of a comparison; all but its name is made up."""
    values = {
        "prompts": 5, "identical": 5, "tokens": 640, "forwards": 640, "tokens_per_forward": 1.0,
        "tokens_per_second": 300.0, "speedup": 1.0, "seconds": 2.1, "batch": 1,
    }  # fmt: skip
    return Speed(method=method, **{**values, **more})


def scored(method: str = "parallel", depth: int = 0, **more: Any) -> ScoredByDepth:
    return ScoredByDepth(method=method, depth=depth, positions=900, **more)


def probe_rows() -> list[Row]:
    rows: list[Row] = []
    for method, share in (("marginalization", 0.6), ("n-gram", 0.4), ("prompt-lookup", 0.3)):
        for depth in range(3):
            rows.append(
                ScoredByDepth(
                    method=method,
                    depth=depth,
                    positions=512,
                    top1=spread(share / (1 + depth)),
                    agreement=spread(share / (1 + depth)),
                    acceptance=spread(share**depth),
                    nll=Estimate(2.0 + depth, min=1.9 + depth, max=2.1 + depth),
                )
            )
    for kind, place in (("whitespace", 0.9), ("keyword", 0.7), ("identifier", 0.4)):
        for depth in range(3):
            rows.append(
                ScoredByClass(
                    method="marginalization",
                    depth=depth,
                    token_class=kind,
                    positions=90,
                    top1=spread(place / (1 + depth)),
                )
            )
    for layer in range(7):
        for depth in range(3):
            rows.append(
                ScoredByLayer(
                    method="logit-lens",
                    layer=layer,
                    depth=depth,
                    positions=90,
                    top1=spread((0.1 + 0.1 * layer) / (1 + depth)),
                    settled=Estimate(layer / 6) if depth == 0 else Estimate(),
                )
            )
        rows.append(Drift(layer=layer, cka=0.9, cka_final=layer / 6, cosine=0.8))
    for behind, more in (("text", 0.0), ("own", 0.15)):
        for length in (1, 2):
            low, high = 1 + (0.2 + more) * length, 1 + (0.6 + more) * length
            rows.append(
                Predicted(
                    method="parallel",
                    behind=behind,
                    depth=length,
                    acceptance=Estimate(),
                    tokens_per_forward=Estimate(min=low, max=high),
                    speedup=Estimate(min=1 + 0.05 * length, max=1 + 0.4 * length),
                    tap="weighted",
                    recipe="frozen",
                    chosen=length == 2,
                )
            )
    return rows


def eval_rows() -> list[Row]:
    rows: list[Row] = [
        scored(
            depth=depth,
            head="parallel",
            top1=spread(0.5 / (1 + depth)),
            acceptance=spread(0.5**depth),
            agreement=spread(0.7 / (1 + depth)),
        )
        for depth in range(3)
    ]
    for depth in (1, 2):
        for place in range(10):
            middle = place / 10 + 0.05
            rows.append(
                AcceptedByConfidence(
                    method="parallel",
                    depth=depth,
                    bin=place,
                    positions=40,
                    confidence=Estimate(middle),
                    acceptance=Estimate(middle / depth),
                )
            )
    return rows


def bench_rows() -> list[Row]:
    rows: list[Row] = [
        speed(
            method,
            forwards=round(640 / passes),
            tokens_per_forward=passes,
            tokens_per_second=300 * faster,
            speedup=faster,
            seconds=2.1 / faster,
            drafter=drafter,
        )
        for method, passes, faster, drafter in (
            ("plain", 1.0, 1.0, "none"),
            ("parallel", 1.7, 1.3, "heads"),
            ("transformers-prompt-lookup", 1.5, 1.4, "lookup"),
        )
    ]
    rows.append(replace(rows[1], method="parallel-auto", draft_length="auto"))
    return rows + [
        AcceptedByDepth(method="parallel", depth=depth, acceptance=Estimate(share))
        for depth, share in ((1, 0.5), (2, 0.4))
    ]


def recipe_rows() -> list[Row]:
    return [
        Recipe(
            method=method,
            recipe=recipe,
            depth=depth,
            positions=700,
            nll=Estimate(2.0 + depth),
            top1=Estimate(0.4),
            acceptance=Estimate(0.5**depth),
            tokens_per_forward=passes if depth == 0 else None,
            head="parallel" if recipe != "none" else None,
        )
        for method, recipe, passes in (
            ("marginalization", "none", 1.9), ("frozen, parallel", "frozen", 1.6),
            ("joint, parallel", "joint", 1.75),
        )
        for depth in range(3)
    ]  # fmt: skip


def generated(**more: Any) -> Generated:
    values = {"method": "parallel", "tokens": 7, "forwards": 4, "tokens_per_forward": 1.75}
    return Generated(**{**values, **more})


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
        [generated()],
        prompt='# "A" & <script>alert(1)</script>\n', steps=STEPS,
    )  # fmt: skip
    write(directory / "own.json", "my-benchmark", [PassCost(method="a", tokens=1, seconds=0.002)],
          model=None)  # fmt: skip
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
