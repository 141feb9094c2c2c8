"""Where the time of decoding goes: prompts, draft, verify, accept, host.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --model DIR --device cuda --dtype bfloat16 --batch-sizes 1 8

Each part is timed with the device waited for before and after it, so that a part's time is its own;
`host` is what is left of the whole: committing tokens, preparing windows, Python. Waiting costs
time that real decoding overlaps, so rows with the part `whole` tell the seconds without any of it.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from foretell.data import read_prompts
from foretell.decoding import Drafter, LookupDrafter, NoDrafter, SpeculativeSampling, drafter_for
from foretell.decoding.passes import Passes
from foretell.decoding.sampling import Sampler
from foretell.formatting import text
from foretell.hardware import DTYPES
from foretell.model import MTPModel
from foretell.ready import load_model, tokenizer_of
from foretell.results import write_result
from foretell.results.benchmarks import StepPart
from foretell.results.provenance import provenance

PARTS = ("prompt", "draft", "verify", "accept", "host")


def drafters(model: MTPModel) -> dict[str, Drafter]:
    """Those to look at, by method; new ones, since they keep a state."""
    found: dict[str, Drafter] = {"plain": NoDrafter(), "prompt-lookup": LookupDrafter(10)}
    if model.head is not None:
        found[model.head.config.kind] = drafter_for(model.backbone, model.head)
    return found


@contextmanager
def watched(drafter: Drafter, device: torch.device) -> Iterator[dict[str, float]]:
    """While it is open, decoding with `drafter` adds up its seconds by part."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(function: Callable[..., Any], part: Callable[..., str]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            name = part(*args)
            _wait(device)
            began = time.perf_counter()
            result = function(*args, **kwargs)
            _wait(device)
            seconds[name] += time.perf_counter() - began
            return result

        return run

    def passing(passes: Passes, *_: Any) -> str:
        return "verify" if any(passes.past.read) else "prompt"

    places = (
        (Passes, "verify", passing),
        (Sampler, "scores", lambda *_: "accept"),
        (SpeculativeSampling, "__call__", lambda *_: "accept"),
        (type(drafter), "draft", lambda *_: "draft"),
    )
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), part)))
        yield seconds


def measure(
    model: MTPModel, prompts: Sequence[Tensor], new_tokens: int, batch: int
) -> list[StepPart]:
    """Rows of seconds by method and part, over all prompts, `batch` at once (equally long)."""
    device = model.backbone.device
    width = min(prompt.shape[1] for prompt in prompts)
    together = torch.cat([prompt[:, :width] for prompt in prompts]).split(batch)

    def decode(drafter: Drafter) -> tuple[int, float]:
        tokens, began = 0, time.perf_counter()
        for rows in together:
            result = model.decode(rows, max_new_tokens=new_tokens, stop_tokens=(), drafter=drafter)
            tokens += sum(map(len, result.continuations))
        _wait(device)
        return tokens, time.perf_counter() - began

    found: list[StepPart] = []
    for method, drafter in drafters(model).items():
        decode(drafter)  # whatever the first call allocates
        tokens, whole = decode(drafter)
        with watched(drafter, device) as seconds:
            _, waited = decode(drafter)
        seconds["host"] = waited - sum(seconds.values())
        facts: dict[str, Any] = {"method": method, "batch": batch, "tokens": tokens}
        found.append(StepPart(**facts, part="whole", seconds=whole))
        found += [
            StepPart(**facts, part=part, seconds=seconds[part], share=seconds[part] / waited)
            for part in PARTS
        ]
    return found


def show(rows: Sequence[StepPart]) -> None:
    """Print a line per method."""
    for row in rows:
        if row.part == "whole":
            own = [r for r in rows if (r.method, r.batch) == (row.method, row.batch)]
            parts = [f"{r.part} {text('share', r.share)}" for r in own if r.share is not None]
            print(f"{row.method}, batch {row.batch}: {row.seconds:.2f} s; {', '.join(parts)}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--data", default="stdlib:held-out")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/step-time.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, arguments.device, arguments.dtype)
    tokenizer = tokenizer_of(arguments.model, model)
    prompts = read_prompts(
        arguments.data, tokenizer, arguments.prompt_tokens, arguments.count, arguments.seed
    )
    prompts = [prompt.to(model.backbone.device) for prompt in prompts]
    rows = [
        row
        for batch in arguments.batch_sizes
        for row in measure(model, prompts, arguments.max_new_tokens, batch)
    ]
    show(rows)
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    settings["backbone"] = model.fingerprint()
    origin = provenance(arguments.seed, model.device, model.dtype)
    write_result(arguments.out, "step-time", settings, rows, origin)


if __name__ == "__main__":
    main()
