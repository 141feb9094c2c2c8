"""What training costs: n = 4 against n = 1 at equal parameters, and frozen heads against it all.

    python benchmarks/training_cost.py

A Llama trained from scratch for the next token (method `n=1`), one with the same number of
parameters, three of its layers being parallel heads (`n=4`, Gloeckle et al. 2024), the same with
the losses by autograd instead of depth by depth, and heads on the first, frozen: one sequential
module (DeepSeek's D = 1), three parallel heads, and these again with the backbone's hidden states
read from disk as in later epochs. Steps of all methods take turns; `seconds` is the median step,
`speedup` tokens per second against `n=1`, which is a forward and backward of the whole model.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import foretell as ft
from foretell.formatting import aligned
from foretell.hardware import DTYPES
from foretell.results import write_result
from foretell.results.benchmarks import TrainingCost
from foretell.results.provenance import provenance
from foretell.training import TrainConfig
from foretell.training.optimizers import make_optimizer
from foretell.training.states import StateCache


def backbone(arguments: argparse.Namespace, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=arguments.vocab, hidden_size=arguments.size,
        intermediate_size=3 * arguments.size, num_hidden_layers=layers,
        num_attention_heads=arguments.size // 64, num_key_value_heads=arguments.size // 64,
        head_dim=64, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).to(arguments.device, DTYPES[arguments.dtype])


def step(model: ft.MTPModel, tokens: torch.Tensor, cache: StateCache | None) -> Callable[[], None]:
    recipe = "pretrain" if model.backbone_trains else "frozen"
    optimizer = make_optimizer(model, TrainConfig.parse({"recipe": recipe, "steps": 1}))
    model.train()
    index = torch.arange(len(tokens))
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)

    def run() -> None:
        optimizer.zero_grad()
        trunk = None if cache is None else cache.read(index, tokens, positions)
        model(tokens, positions, trunk=trunk).loss.backward()
        optimizer.step()
        if tokens.is_cuda:
            torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--out", type=Path, default=Path("results/training-cost.json"))
    measure(parser.parse_args())


def measure(arguments: argparse.Namespace) -> None:
    """All methods; writes the result."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    def whole() -> LlamaForCausalLM:
        return backbone(arguments, arguments.layers)

    def shorter() -> LlamaForCausalLM:
        return backbone(arguments, arguments.layers - 3)

    models = {
        "n=1": ft.MTPModel(whole()),
        "n=4": ft.attach(shorter(), "parallel", depth=3),
        "n=4, by autograd": ft.attach(shorter(), "parallel", depth=3),
        "frozen, 1 sequential": ft.attach(whole(), "sequential", depth=1),
        "frozen, 3 parallel": ft.attach(whole(), "parallel", depth=3),
        "frozen, 3 parallel, cached": ft.attach(whole(), "parallel", depth=3),
    }
    models["n=4, by autograd"].depth_by_depth = False
    for name, model in models.items():
        if name.startswith("frozen"):
            model.freeze_backbone()
    shape = arguments.batch, arguments.length
    tokens = torch.randint(arguments.vocab, shape, device=arguments.device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as directory:
        cached = StateCache(
            Path(directory, "states"),
            models["frozen, 3 parallel, cached"],
            *tokens.shape,
            limit=1 << 30,
        )
        steps = {
            name: step(model, tokens, cached if name.endswith("cached") else None)
            for name, model in models.items()
        }
        for repeat in range(arguments.repeats + 1):
            for name, run in steps.items():
                began = time.perf_counter()
                run()
                if repeat:  # the first makes optimiser states
                    seconds[name].append(time.perf_counter() - began)

    rows = []
    for name, model in models.items():
        median = statistics.median(seconds[name])
        pairs = zip(seconds["n=1"], seconds[name], strict=True)
        rows.append(
            TrainingCost(
                method=name,
                seconds=median,
                tokens_per_second=tokens.numel() / median,
                speedup=statistics.median(one / own for one, own in pairs),
                parameters=sum(p.numel() for p in model.parameters()),
            )
        )
    print("Training steps, taking turns")
    lines = aligned(
        ("method", "parameters", "s per step", "tokens/s", "against n=1"),
        [
            (
                row.method,
                f"{row.parameters:,}",
                f"{row.seconds:.3f}",
                f"{row.tokens_per_second:,.0f}",
                f"{row.speedup:.2f}×",
            )
            for row in rows
        ],
    )
    print("\n".join(lines))
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    origin = provenance(0, arguments.device, arguments.dtype)
    write_result(arguments.out, "training-cost", settings, rows, origin)


if __name__ == "__main__":
    main()
