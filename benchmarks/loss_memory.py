"""Peak memory of the loss by the number of depths, in Gloeckle's order and without it.

    python benchmarks/loss_memory.py

Every line runs in a process of its own: hidden states of T positions, an output head of V tokens,
n heads (a residual layer each), forward and backward. `peak_memory_bytes` is what the process grew
by over the weights and hidden states. Methods: `in-order` is what training runs, `autograd` the
same loss by autograd in chunks, `linear-cross-entropy` PyTorch's chunked loss once per depth,
(from 2.12 on), `naive` all logits of all depths at once. The naive loss of 8 depths does not fit at
the full length, so it is compared with `in-order` at a quarter of it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from foretell.formatting import aligned
from foretell.heads.residual import ResidualLayer
from foretell.objective import Objective, Readout, Target, depth_by_depth, depth_loss
from foretell.results import write_result
from foretell.results.benchmarks import LossMemory
from foretell.results.provenance import provenance

RUNS = [
    ("in-order", 4096, 1), ("in-order", 4096, 8), ("autograd", 4096, 8),
    ("linear-cross-entropy", 4096, 1), ("linear-cross-entropy", 4096, 8),
    ("naive", 1024, 1), ("naive", 1024, 8), ("in-order", 1024, 8),
]  # fmt: skip


def measure(
    method: str, length: int, n: int, vocab: int, size: int, device: str = "cpu"
) -> dict[str, float]:
    """One forward and backward; bytes by which the process grew, and seconds."""
    torch.manual_seed(0)
    torch.set_default_device(device)
    output = nn.Linear(size, vocab, bias=False)
    heads = nn.ModuleList(ResidualLayer(size) for _ in range(n))
    hidden = torch.randn(length, size, requires_grad=True)
    labels = [torch.randint(vocab, (length,)) for _ in range(n)]
    parameters = [*output.parameters(), *heads.parameters()]
    resident = _resident(device)
    began = time.perf_counter()
    targets = [Target.of(each) for each in labels]
    if method == "in-order":
        work = Objective(
            lambda states, depths: [heads[k](states[0]) for k in depths],
            [[k] for k in range(n)], targets, [1.0] * n,
            [Readout(output, vocab)] * n,
        )  # fmt: skip
        loss, _ = depth_by_depth(work, [hidden], parameters)
    elif method == "autograd":
        losses = [
            depth_loss(head(hidden), target, Readout(output, vocab))[0]
            for head, target in zip(heads, targets, strict=True)
        ]
        loss = torch.stack(losses).sum()
    elif method == "linear-cross-entropy":
        options = nn.LinearCrossEntropyOptions()
        losses = [
            F.linear_cross_entropy(head(hidden), output.weight, each, options=options)
            for head, each in zip(heads, labels, strict=True)
        ]
        loss = torch.stack(losses).sum()
    else:
        losses = [
            F.cross_entropy(output(head(hidden)), each)
            for head, each in zip(heads, labels, strict=True)
        ]
        loss = torch.stack(losses).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    nll = loss.item() / n  # waits for the device
    seconds = time.perf_counter() - began
    return {"peak_memory_bytes": _peak(device) - resident, "seconds": seconds, "nll": nll}


def _resident(device: str) -> int:
    """Bytes that this process, or torch on a GPU, holds now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak(device: str) -> int:
    """Bytes that it held at most."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=len(RUNS), help="only the first so many")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a run for a child process
    parser.add_argument("--out", type=Path, default=Path("results/loss-memory.json"))
    arguments = parser.parse_args(words)
    if arguments.only:
        torch.set_num_threads(arguments.threads)
        method, length, n = json.loads(arguments.only)
        size, device = arguments.size, arguments.device
        print(json.dumps(measure(method, length, n, arguments.vocab, size, device)))
        return

    rows = []
    for run in RUNS[: arguments.runs]:
        if run[0] == "linear-cross-entropy" and not hasattr(nn, "LinearCrossEntropyOptions"):
            print(f"{run[0]} is left out: PyTorch {torch.__version__} does not have it.")
            continue
        child = [sys.executable, __file__, *words, "--only", json.dumps(run)]
        answer = subprocess.run(child, check=True, capture_output=True, text=True).stdout
        method, length, n = run
        rows.append(LossMemory(method=method, positions=length, n=n, **json.loads(answer)))
        print(f"{method} T={length} n={n}: {rows[-1].flat()}")
    print(f"Peak memory of the loss, V = {arguments.vocab:,}, D = {arguments.size}")
    lines = aligned(
        ("method", "T", "n", "MiB", "seconds"),
        [
            (
                row.method,
                str(row.positions),
                str(row.n),
                f"{row.peak_memory_bytes / 2**20:,.0f}",
                f"{row.seconds:.1f}",
            )
            for row in rows
        ],
    )
    print("\n".join(lines))
    settings = {"vocab": arguments.vocab, "size": arguments.size, "threads": arguments.threads}
    origin = provenance(0, arguments.device, torch.float32)
    write_result(arguments.out, "loss-memory", settings, rows, origin)


if __name__ == "__main__":
    main()
