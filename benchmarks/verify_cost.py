"""What a verify pass costs by its width: 1, 2, 4 and 8 tokens behind 100 others, and the heads.

    python benchmarks/verify_cost.py

Speculative decoding counts on a pass over a few tokens costing little more than a pass over one. On
a CPU that depends on the matrix library's kernels for a few rows. Rows of the result: `tokens` is
the width, `seconds` the median; method `linear` is one 1024 → 2816 product, larger than the caches.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import linear

from foretoken.cli import common
from foretoken.decoding.cache import SlottedPast
from foretoken.provenance import provenance, write_result

WIDTHS = (1, 2, 4, 8)
PAST = 100


def median(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@torch.inference_mode()
def measure(dtype: torch.dtype, name: str, repeats: int) -> list[dict[str, object]]:
    model = common.load_model(name, "cpu", str(dtype).removeprefix("torch."))
    backbone = model.backbone
    tokens = torch.randint(backbone.vocab_size, (1, PAST))
    weight, rows = torch.randn(2816, 1024).to(dtype), []
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

        x = torch.randn(width, 1024).to(dtype)
        for method, action in (
            ("backbone", verify),
            ("heads", draft),
            ("linear", lambda x=x: linear(x, weight)),
        ):
            median(action, 20)
            seconds = median(action, repeats)
            rows.append({"model": name, "method": method, "tokens": width, "seconds": seconds})
            print(f"{dtype} {method:<9} {width} tokens: {1e3 * seconds:.3f} ms", flush=True)
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
