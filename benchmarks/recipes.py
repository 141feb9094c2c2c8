"""Recipe × head × tap on `tiny`: the same tokens for all, measured on held-out code.

    python benchmarks/recipes.py                  # all rows, an hour or two of one core; resumes
    python benchmarks/recipes.py --only joint     # the rows whose name has this in it

First row: what `tiny` knows without training, by numerical marginalization. Last row: `tiny-mtp`,
trained from scratch with its heads. Columns by depth: top-1 against the text, nats per token, and
the share of drafts that would stand (`acceptance`, teacher-forced: held-out text, no loops);
`tokens_per_forward` at depth 0 is what that acceptance comes to. Every run reads the same rows in
the same order.
"""

import argparse
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from foretell.data import PackedBlocks, read_documents
from foretell.evaluation import DepthTable, measure_heads, measure_marginals
from foretell.formatting import aligned
from foretell.ready import load_model, read_blocks, tokenizer_of
from foretell.results import Row, select, write_result
from foretell.results.benchmarks import Recipe
from foretell.results.provenance import provenance
from foretell.results.rows import parse_row
from foretell.training import Progress, TrainConfig, build, reference, train

SETTINGS: dict[str, Any] = {
    "batch_size": 8, "block_size": 256, "precision": "bf16-mixed", "attention": "eager",
    "optimizer": "muon", "matrix_learning_rate": 0.05, "learning_rate": 3e-3, "save_every": 50,
}  # fmt: skip
JOINT = {"recipe": "joint", "backbone_rate": 0.05}
ROWS: dict[str, dict[str, Any]] = {
    "frozen, residual": {"head": {"kind": "residual"}},
    "frozen, parallel": {"head": {"tap": "trunk"}},
    "frozen, parallel, final": {"head": {"tap": "final"}},
    "frozen, parallel, weighted": {"head": {"tap": "weighted"}},
    "frozen, parallel, fused": {"head": {"tap": "fused"}},
    "frozen, linear": {"head": {"variant": "linear"}},
    "frozen, causal": {"head": {"variant": "causal"}},
    "frozen, anticausal": {"head": {"variant": "anticausal"}},
    "frozen, parallel, distilled": {"head": {"tap": "trunk"}, "objective": {"distill": "backbone"}},
    "frozen, parallel, marginals": {
        "head": {"tap": "trunk"}, "objective": {"distill": "marginal", "distill_share": 0.5},
    },
    "joint, parallel, one rate": {"recipe": "joint", "head": {"tap": "trunk"}},
    "joint, parallel": {**JOINT, "head": {"tap": "trunk"}},
    "joint, parallel, warm-up": {**JOINT, "head": {"tap": "trunk"}, "head_warmup": 0.25},
    "joint, parallel, weighted": {**JOINT, "head": {"tap": "weighted"}},
    "joint, parallel, weighted, warm-up": {
        **JOINT, "head": {"tap": "weighted"}, "head_warmup": 0.25,
    },
    "lora, parallel, weighted": {"recipe": "lora", "head": {"tap": "weighted"}},
    "frozen, sequential": {"head": {"kind": "sequential"}},
    "frozen, sequential, shared": {"head": {"kind": "sequential", "shared": True}},
    "joint, sequential": {**JOINT, "head": {"kind": "sequential"}},
}  # fmt: skip


def rows_of(name: str, found: DepthTable, **more: Any) -> list[Recipe]:
    first, *deeper = (Recipe(**{**vars(row), "method": name, **more}) for row in found.rows())
    return [replace(first, tokens_per_forward=found.tokens_per_forward), *deeper]


def show_step(progress: Progress) -> None:
    losses = " ".join(f"{loss:.2f}" for loss in progress.depth_losses)
    print(f"step {progress.step}, loss {losses}, {100 * progress.fraction:.0f} %", flush=True)


def run_row(
    name: str, changes: dict[str, Any], arguments: argparse.Namespace, held_out: PackedBlocks
) -> list[Row]:
    """Train one row, or go on where it was stopped, and measure it."""
    out = arguments.runs / name.replace(", ", "-").replace(" ", "-")
    done = out.with_suffix(".rows.json")
    if done.is_file():
        return [parse_row(record, str(done)) for record in json.loads(done.read_text())]
    config = TrainConfig.parse({**SETTINGS, "steps": arguments.steps, **changes})
    if not (out / "model").exists():
        model = build("tiny", config, torch.device("cpu"))
        tokenizer = tokenizer_of("tiny", model)
        blocks = read_blocks("stdlib:train", model, tokenizer, config.block_size)
        train(
            model, blocks, config, out,
            tokenizer=tokenizer, backbone_path=reference("tiny", model), report=show_step,
        )  # fmt: skip
    model = load_model(str(out / "model"), "cpu")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert config.head is not None
    rows = rows_of(
        name,
        measure_heads(model, held_out),
        recipe=config.recipe, head=config.head.kind, tap=str(config.head.tap),
        seconds=lines[-1]["seconds"],
    )  # fmt: skip
    done.write_text(json.dumps([row.flat() for row in rows]) + "\n")
    return [*rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--documents", type=int, default=8, help="held-out files to measure on")
    parser.add_argument("--positions", type=int, default=2048, help="places to marginalize at")
    parser.add_argument("--width", type=int, default=32, help="strings to marginalize over")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--out", type=Path, default=Path("results/recipes.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arguments.runs.mkdir(parents=True, exist_ok=True)

    tiny = load_model("tiny", "cpu")
    tokenizer = tokenizer_of("tiny", tiny)
    documents = islice(read_documents("stdlib:held-out"), arguments.documents)
    held_out = PackedBlocks.from_documents(documents, tokenizer, 256)
    marginals = measure_marginals(
        tiny, held_out, depth=3, width=arguments.width, positions=arguments.positions
    )
    rows: list[Row] = [*rows_of("marginalization", marginals, recipe="none")]
    for name, changes in ROWS.items():
        if arguments.only in name:
            rows += run_row(name, changes, arguments, held_out)
    scratch = load_model("tiny-mtp", "cpu")
    rows += rows_of(
        "from scratch (tiny-mtp)",
        measure_heads(scratch, held_out),
        recipe="pretrain", head="parallel", tap="trunk",
    )  # fmt: skip
    show(select(rows, Recipe))
    if not arguments.only:
        settings = {
            k: v for k, v in vars(arguments).items() if k not in ("out", "runs", "only")
        } | SETTINGS
        origin = provenance(0, torch.device("cpu"), torch.float32)
        write_result(arguments.out, "recipes", settings, rows, origin)


def show(rows: list[Recipe]) -> None:
    names = list(dict.fromkeys(row.method for row in rows))
    lines = []
    for name in names:
        first, *deeper = (row for row in rows if row.method == name)
        lines.append(
            (
                name,
                f"{first.nll.value:.3f}",
                " ".join(f"{100 * row.top1.value:.0f}" for row in deeper),
                " ".join(f"{row.nll.value:.2f}" for row in deeper),
                " ".join(f"{100 * row.acceptance.value:.0f}" for row in deeper),
                f"{first.tokens_per_forward:.2f}",
            )
        )
    columns = ("run", "nats depth 0", "top-1 %", "nats", "accepted %", "tokens/forward")
    print("Held-out standard library, by depth 1, 2, 3")
    print("\n".join(aligned(columns, lines)))


if __name__ == "__main__":
    main()
