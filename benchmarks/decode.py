"""`tiny-mtp` decoding side by side: plain, heads, transformers; loops excluded, and included.

    python benchmarks/decode.py

Held-out standard library, greedy, batch 1, float32. Every method continues every prompt in turn,
three times, and the median counts. Writes `results/decode-tiny-mtp.json` (stopped where the plain
continuation begins to loop, see `foretoken.evaluation.loops`) and
`results/decode-tiny-mtp-loops.json` (all tokens, for comparison: loops flatter every drafter).
"""

import argparse
from pathlib import Path

import torch

from foretoken.cli import common
from foretoken.cli.bench import methods_of, show_speed
from foretoken.evaluation import compare

DATA = "stdlib:held-out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model = common.load_model(arguments.model, "cpu")
    tokenizer = common.tokenizer_of(arguments.model, model)
    prompts = common.load_prompts(
        DATA, tokenizer, arguments.prompt_tokens, arguments.count, arguments.seed
    )
    for exclude, suffix in ((True, ""), (False, "-loops")):
        with common.progress_bar("Decoding") as progress:
            found = compare(
                methods_of(model),
                prompts,
                max_new_tokens=arguments.max_new_tokens,
                repeats=arguments.repeats,
                exclude_loops=exclude,
                progress=progress,
            )
        loops = "excluded" if exclude else "included"
        show_speed([(arguments.model, found)], f"{DATA}, greedy, batch 1, loops {loops}")
        settings = {
            **{k: v for k, v in vars(arguments).items() if k != "out"},
            "prompts": DATA,
            "loops": loops,
            "looped": found.looped,
            "dropped": found.dropped,
        }
        rows = [{"model": arguments.model, **row} for row in found.rows]
        path = arguments.out / f"decode-{arguments.model}{suffix}.json"
        common.save_json(path, "decode", model, arguments.seed, settings, rows)


if __name__ == "__main__":
    main()
