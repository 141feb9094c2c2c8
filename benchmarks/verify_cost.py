"""What a verify pass costs by its width: 1 to 32 tokens behind 100 others, and the heads.

    python benchmarks/verify_cost.py

Speculative decoding counts on a pass over a few tokens costing little more than a pass over one. On
a CPU that depends on the kernels for a few rows, and on how weights are stored (see
`foretell.decoding.columns`). Rows of the result: `tokens` is the width, `seconds` the median.
Methods `rows-N×M` and `columns-N×M` are products with N × M matrices stored so, several of them in
turn, as many as a small model has, so that each has left the nearest cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import linear

from foretell.decoding.cache import SlottedPast
from foretell.ready import load_model
from foretell.results import write_result
from foretell.results.provenance import provenance
from foretell.results.tables import PassCost

WIDTHS = (1, 2, 4, 8, 16, 32)
MATRICES = {(384, 128): 60, (1376, 512): 12, (2816, 1024): 4}
PAST = 100


def median(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matrices(out: int, into: int, dtype: torch.dtype) -> dict[str, list[torch.Tensor]]:
    """The same matrices (out, into), stored by rows and by columns."""
    rows = [torch.randn(out, into).to(dtype) for _ in range(MATRICES[out, into])]
    return {"rows": rows, "columns": [weight.t().contiguous().t() for weight in rows]}


def products(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    for weight in weights:
        linear(x, weight)


@torch.inference_mode()
def measure(dtype: torch.dtype, name: str, repeats: int) -> list[PassCost]:
    model = load_model(name, "cpu", str(dtype).removeprefix("torch."))
    backbone = model.backbone
    tokens = torch.randint(backbone.vocab_size, (1, PAST))
    rows = []
    stored = {shape: matrices(*shape, dtype) for shape in MATRICES}
    for width in WIDTHS:
        past = SlottedPast(backbone, 1, 2 * PAST)
        backbone(tokens, **past.enter(PAST))
        past.keep([PAST])
        window = tokens[:, :width]

        def verify(window: torch.Tensor = window, past: SlottedPast = past) -> None:
            backbone(window, layers=model.layers, **past.enter(window.shape[1]))

        output = backbone(window, layers=model.layers)

        def draft(window: torch.Tensor = window, output: object = output) -> None:
            for final in model.depth_hidden(window, output):  # type: ignore[arg-type]
                backbone.unembed(final[:, -1]).argmax(-1)

        actions: dict[str, Callable[[], object]] = {"backbone": verify, "heads": draft}
        for (out, into), orders in stored.items():
            x = torch.randn(width, into).to(dtype)
            for order, weights in orders.items():
                actions[f"{order}-{out}×{into}"] = partial(products, x, weights)
        for method, action in actions.items():
            median(action, 20)
            seconds = median(action, repeats)
            rows.append(PassCost(model=name, method=method, tokens=width, seconds=seconds))
            print(f"{dtype} {method:<18} {width} tokens: {1e3 * seconds:.3f} ms", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for dtype in (torch.float32, torch.bfloat16):
        rows = measure(dtype, arguments.model, arguments.repeats)
        name = str(dtype).removeprefix("torch.")
        settings = {**vars(arguments), "past": PAST, "out": None}
        path = arguments.out / f"verify-cost-{name}.json"
        write_result(path, "verify-cost", settings, rows, provenance(0, "cpu", dtype))


if __name__ == "__main__":
    main()
