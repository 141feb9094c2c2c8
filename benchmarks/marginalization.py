"""Marginalizing all positions of a row behind one pass, against separate batched forwards.

    python benchmarks/marginalization.py

Depth 2 over m strings of every position, on held-out code. Methods: `branches` is
`foretell.probe.marginalize`; `separate` runs, for every position, its strings as rows of a batch
that each hold the prefix too, without a cache, as one would with nothing but the model. Both find
the same strings; `gap` is the largest difference between their probabilities. `separate` is slow,
so that it runs at `--baseline-positions`, a random part of the positions, and its `seconds` are for
those; `speedup` compares seconds per position. They take turns in rounds, so that a slow minute
hits both. `peak_memory_bytes` is what a process grew by over the loaded model and text: `branches`
on one row with its 64 positions, `separate` on one position, each in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.model import MTPModel
from foretell.probe import marginalize
from foretell.ready import load_model, read_blocks, tokenizer_of
from foretell.results import write_result
from foretell.results.benchmarks import Marginalized
from foretell.results.provenance import provenance

DEPTH = 2
ROW = 128
PER_ROW = 64
"""Positions of a row: the later ones, which have something to read."""

Method = Callable[[MTPModel, Tensor, Tensor, int], Tensor]


def branches(model: MTPModel, row: Tensor, positions: Tensor, width: int) -> Tensor:
    """(P, V), of the deepest depth."""
    *_, deepest = marginalize(model.backbone, row, positions, DEPTH, width)
    return deepest.covered


@torch.inference_mode()
def separate(model: MTPModel, row: Tensor, positions: Tensor, width: int) -> Tensor:
    """(P, V): one position after the other, strings as rows of a batch, no cache."""
    found = []
    for t in positions.tolist():
        prefix = row[:, : t + 1]
        strings = torch.empty(1, 0, dtype=torch.long)
        chances = torch.ones(1)
        for _ in range(DEPTH + 1):
            rows = torch.cat([prefix.expand(len(strings), -1), strings], dim=1)
            following = model.lm(rows, use_cache=False).logits[:, -1].float().softmax(-1)
            if strings.shape[1] == DEPTH:
                found.append(chances @ following)
                break
            joint = (chances.unsqueeze(1) * following).flatten()
            chances, picked = joint.topk(min(width, len(joint)))
            parents, leaves = picked // following.shape[1], picked % following.shape[1]
            strings = torch.cat([strings[parents], leaves.unsqueeze(1)], dim=1)
    return torch.stack(found)


METHODS: dict[str, Method] = {"branches": branches, "separate": separate}


def rows_of(arguments: argparse.Namespace) -> tuple[MTPModel, list[Tensor], list[Tensor]]:
    """The model, rows of held-out code, and the positions in each."""
    model = load_model(arguments.model, "cpu")
    tokenizer = tokenizer_of(arguments.model, model)
    blocks = read_blocks("stdlib:held-out", model, tokenizer, ROW)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(blocks), generator=random)
    count = -(-arguments.positions // PER_ROW)
    rows = [blocks[index]["input_ids"].unsqueeze(0) for index in order[:count].tolist()]
    where = [torch.arange(ROW - PER_ROW - DEPTH - 1, ROW - DEPTH - 1)] * count
    return model, rows, where


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds and positions of each method, and how far apart they are."""
    model, rows, where = rows_of(arguments)
    random = torch.Generator().manual_seed(1)
    of_each = max(1, arguments.baseline_positions // len(rows))
    found = {name: {"positions": 0, "seconds": 0.0, "gap": 0.0} for name in METHODS}
    branches(model, rows[0], where[0], arguments.width)  # warms up
    for number, (row, positions) in enumerate(zip(rows, where, strict=True)):
        part = torch.randperm(len(positions), generator=random)[:of_each].sort().values
        results = {}
        for name, asked in (("branches", positions), ("separate", positions[part])):
            began = time.perf_counter()
            results[name] = METHODS[name](model, row, asked, arguments.width)
            found[name]["seconds"] += time.perf_counter() - began
            found[name]["positions"] += len(asked)
        gap = float((results["branches"][part] - results["separate"]).abs().max())
        for values in found.values():
            values["gap"] = max(values["gap"], gap)
        print(f"row {number + 1} of {len(rows)}: gap {gap:.1e}", flush=True)
    return found


def memory(arguments: argparse.Namespace, method: str) -> int:
    """What a process of its own grows by, on one row."""
    command = [sys.executable, __file__, "--model", arguments.model, "--memory-of", method]
    command += ["--width", str(arguments.width), "--positions", str(PER_ROW)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def grown(arguments: argparse.Namespace) -> int:
    model, rows, where = rows_of(arguments)
    positions = where[0] if arguments.memory_of == "branches" else where[0][-1:]
    with torch.inference_mode():
        model.lm(rows[0], use_cache=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading, is forgotten
    before = resident("VmRSS")
    METHODS[arguments.memory_of](model, rows[0], positions, arguments.width)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes, from Linux's own accounts: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--baseline-positions", type=int, default=64)
    parser.add_argument("--width", type=int, default=64, help="m, strings of each position")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("results/marginalization.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(grown(arguments)))
        return
    found = compare(arguments)
    rates = {name: values["positions"] / values["seconds"] for name, values in found.items()}
    rows = []
    for name, values in found.items():
        row = Marginalized(
            model=arguments.model,
            method=name,
            depth=DEPTH,
            speedup=rates[name] / rates["separate"],
            peak_memory_bytes=memory(arguments, name),
            **values,
        )
        rows.append(row)
        print(f"{name}: {rates[name]:.2f} positions/s, {row.peak_memory_bytes / 1e6:.0f} MB")
    print(f"{rows[0].speedup:.1f} times as fast")
    hidden = ("out", "memory_of")
    settings = {k: v for k, v in vars(arguments).items() if k not in hidden} | {"block_size": ROW}
    write_result(
        arguments.out, "marginalization", settings, rows, provenance(0, "cpu", torch.float32)
    )


if __name__ == "__main__":
    main()
