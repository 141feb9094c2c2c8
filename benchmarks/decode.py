"""`tiny-mtp` decoding side by side: plain, heads, transformers; loops excluded, and included.

    python benchmarks/decode.py
    python benchmarks/decode.py --batch-sizes 1 8 --temperatures 0 1 --tree 12 --compile

Held-out standard library; greedy, batch 1 and float32 unless asked for otherwise. Every method
continues every prompt in turn, three times, and the median counts. Writes
`results/decode-tiny-mtp.json` (stopped where the plain continuation begins to loop, see
`foretell.evaluation.loops`) and `results/decode-tiny-mtp-loops.json` (all tokens, for comparison:
loops flatter every drafter). Whatever is asked for beyond that is in the file's name, as in
`decode-tiny-mtp-tree-compiled-batch8-t1.json`; what is drawn at a temperature is measured to the
end, in one file.
"""

import argparse
from pathlib import Path

import torch

from foretell.data import read_prompts
from foretell.decoding import Sampling, TreeShape
from foretell.evaluation import compare, methods_of, verdict_of_speed
from foretell.evaluation.methods import PROMPT_LOOKUP
from foretell.formatting import aligned, text, title
from foretell.model import MTPModel
from foretell.ready import load_model, tokenizer_of
from foretell.results import of_model, write_result
from foretell.results.provenance import provenance


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--data", default="stdlib:held-out", help="where prompts are taken from")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0])
    parser.add_argument("--tree", help="4,2,1 or 12: draft trees from the heads too")
    parser.add_argument("--draft-length", type=int, help="drafts of so many tokens too")
    parser.add_argument("--draft-model", help="compare with this draft model")
    parser.add_argument("--compile", action="store_true", help="a compiled step too")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-loops", action="store_true", help="leave out the second file")
    parser.add_argument("--out", type=Path, default=Path("results"))
    return parser.parse_args()


def file_name(arguments: argparse.Namespace, batch: int, temperature: float, exclude: bool) -> str:
    """Of a result: the model's, and all that is not the default."""
    parts = {
        f"-{Path(arguments.data).name.partition('.')[0].lower()}": ":" not in arguments.data,
        "-tree": arguments.tree,
        f"-length{arguments.draft_length}": arguments.draft_length,
        "-draft-model": arguments.draft_model,
        "-compiled": arguments.compile,
        f"-{arguments.dtype}": arguments.dtype != "float32",
        f"-{arguments.device}": arguments.device != "cpu",
        f"-batch{batch}": batch > 1,
        f"-threads{arguments.threads}": arguments.threads != 1,
        f"-t{temperature:g}": temperature,
        "-loops": not exclude,
    }
    return f"decode-{Path(arguments.model).name}{''.join(p for p, asked in parts.items() if asked)}"


def measure(
    arguments: argparse.Namespace,
    model: MTPModel,
    prompts: list[torch.Tensor],
    batch: int,
    temperature: float,
    exclude: bool,
) -> None:
    """Compare all methods once, and write the result."""
    torch.compiler.reset()  # torch compiles only so many shapes before it gives up
    methods = methods_of(
        model,
        sampling=Sampling(temperature=temperature, seeds=arguments.seed),
        compiled=arguments.compile,
        draft_model=arguments.draft_model,
        tree=None if arguments.tree is None else TreeShape.parse(arguments.tree),
        draft_length=arguments.draft_length,
        batch_size=batch,
    )
    found = compare(
        methods,
        prompts,
        max_new_tokens=arguments.max_new_tokens,
        repeats=arguments.repeats,
        exclude_loops=exclude,
        batch_size=batch,
    )
    loops = "excluded" if exclude else "included"
    print(
        f"{arguments.model} on {arguments.data}, temperature {temperature:g}, batch {batch}, "
        f"loops {loops}"
    )
    shown = ("method", "tokens_per_forward", "tokens_per_second", "speedup", "identical")
    lines = [[text(name, getattr(row, name)) for name in shown] for row in found.speeds]
    print("\n".join(aligned([*map(title, shown)], lines)))
    if verdict := verdict_of_speed(found.rows):
        print(verdict)
    asked = ("out", "data", "batch_sizes", "temperatures", "skip_loops")
    settings = {
        **{name: value for name, value in vars(arguments).items() if name not in asked},
        "batch_size": batch,
        "temperature": temperature,
        "prompts": Path(arguments.data).name,
        "prompt_lookup": PROMPT_LOOKUP,
        "loops": loops,
        "looped": found.looped,
        "dropped": found.dropped,
        "backbone": model.fingerprint(),
    }
    rows = of_model(arguments.model, found.rows)
    path = arguments.out / f"{file_name(arguments, batch, temperature, exclude)}.json"
    origin = provenance(arguments.seed, model.device, model.dtype)
    write_result(path, "decode", settings, rows, origin)
    print(f"Result file: {path}", flush=True)


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, arguments.device, arguments.dtype)
    tokenizer = tokenizer_of(arguments.model, model)
    prompts = read_prompts(
        arguments.data, tokenizer, arguments.prompt_tokens, arguments.count, arguments.seed
    )
    prompts = [prompt.to(model.backbone.device) for prompt in prompts]
    for batch in arguments.batch_sizes:
        for temperature in arguments.temperatures:
            for exclude in (True,) if temperature or arguments.skip_loops else (True, False):
                measure(arguments, model, prompts, batch, temperature, exclude)


if __name__ == "__main__":
    main()
