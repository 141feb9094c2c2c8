"""Everything that needs a GPU, in one command of some eight minutes.

    python benchmarks/gpu.py --model models/SmolLM2-135M-Instruct
    python benchmarks/gpu.py --gguf PART1 PART2     # the same model, from parts of its GGUF file
    python benchmarks/gpu.py --miniature            # tiny models on the CPU: what `make test` runs

Nothing is downloaded, and PyTorch 2.11 with transformers 5.17 will do (`PYTHONPATH=src` in a clone
stands for an installation). Without `--model` and `--gguf` the backbone is a random Llama of
SmolLM2's shape: speeds mean the same, acceptance and text nothing. Every stage writes its result
file as soon as it has something, so that little is lost if the command is cut off; stages that
would begin after `--minutes` are left out, and the last line says which:

    identity   six families × drafters in float32, against transformers on the same device
    heads      sequential heads, trained for `--train-seconds` on the standard library, or `--heads`
    decode     transformers, plain, heads and prompt lookup side by side; batch 1, 8, 32
    step-time  the time of a step: prompt, draft, verify, accept, host
    training   steps of n = 4 against n = 1, and the loss's memory
    near-ties  tokens changed by drafts and batches, float32 and bfloat16; with one width, none
    compiled   the same with CUDA graphs; batch 1, 8

Paths stand in the result files as they were given: give them relative to the repository.
"""

import argparse
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
import identity
import loss_memory
import near_ties
import smollm2
import step_time
import training_cost

import foretell as ft
from foretell.checkpoints import load_tokenizer
from foretell.data import PackedBlocks, read_prompts
from foretell.data.stdlib import standard_library
from foretell.decoding import LookupDrafter
from foretell.evaluation import Foretell, Transformers, compare
from foretell.evaluation.methods import Method
from foretell.model import MTPModel
from foretell.ready import load_model, tokenizer_of
from foretell.results import Row, write_result
from foretell.results.benchmarks import StepPart
from foretell.results.provenance import provenance
from foretell.results.tables import LossByDepth
from foretell.training import TrainConfig, train

FAMILIES = ["llama", "qwen3", "gemma3_text", "gpt_neox", "olmoe", "deepseek_v3"]
LOOKUP = 10
MINIATURE = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


class Run:
    """One run on one machine: its settings, its backbone, and heads on it."""

    def __init__(self, arguments: Namespace, scratch: Path) -> None:
        self.arguments, self.scratch = arguments, scratch
        self.began = time.monotonic()
        self.small: bool = arguments.miniature

    @property
    def device(self) -> str:
        return str(self.arguments.device)

    @property
    def dtype(self) -> str:
        """Of weights, where a stage takes one type."""
        return "float32" if self.small else "bfloat16"

    def write(self, name: str, settings: dict[str, Any], rows: Sequence[Row], dtype: str) -> None:
        settings = {**vars(self.arguments), "out": None, **settings}
        path = self.arguments.out / f"gpu-{name}.json"
        write_result(path, "gpu", settings, rows, provenance(0, self.device, dtype))
        print(f"{path} after {time.monotonic() - self.began:.0f} s", flush=True)

    @cached_property
    def backbone(self) -> str:
        """The name or directory of the model that heads are trained for."""
        if self.arguments.gguf:
            out = self.scratch / "backbone"
            smollm2.convert(smollm2.joined(self.arguments.gguf, self.scratch), out)
            return str(out)
        if self.arguments.model:
            return str(self.arguments.model)
        out = self.scratch / "backbone"
        torch.manual_seed(0)
        tokenizer = load_tokenizer("tiny")
        shape = {**smollm2.SHAPE, **MINIATURE} if self.small else smollm2.SHAPE
        config = LlamaConfig(**shape, eos_token_id=None, bos_token_id=None)
        LlamaForCausalLM(config).to(getattr(torch, self.dtype)).save_pretrained(out)
        tokenizer.save_pretrained(out)
        return str(out)

    @cached_property
    def trained(self) -> Path:
        """A directory of heads on the backbone: those given, or trained here (writes how)."""
        if self.arguments.heads:
            return Path(self.arguments.heads)
        tokenizer = load_tokenizer(self.backbone)
        torch.manual_seed(0)
        model = MTPModel.from_pretrained(self.backbone, dtype=torch.float32, device=self.device)
        model = ft.attach(model.lm, "sequential", depth=3)
        blocks = PackedBlocks.from_documents(
            list(standard_library("train"))[: 40 if self.small else None], tokenizer, 128
        )
        config = TrainConfig.parse(
            {
                "recipe": "frozen",
                "steps": 3 if self.small else None,
                "minutes": None if self.small else self.arguments.train_seconds / 60,
                "batch_size": 4 if self.small else 32,
                "block_size": 128,
                "precision": "float32" if self.small else "bf16-mixed",
            }
        )
        result = train(
            model,
            blocks,
            config,
            self.scratch / "heads",
            tokenizer=tokenizer,
            backbone_path=self.backbone,  # saved as an absolute path
        )
        rows = [
            LossByDepth(
                method="sequential",
                recipe="frozen",
                depth=depth,
                nll=nll,
                tokens=result.tokens,
                seconds=result.seconds,
                tokens_per_second=result.tokens / result.seconds,
            )
            for depth, nll in enumerate(result.depth_losses)
        ]
        self.write("heads", {"steps": result.steps}, rows, config.precision)
        return result.directory

    def load(self, dtype: str) -> tuple[MTPModel, list[torch.Tensor]]:
        """The model with its heads, and prompts on its device."""
        name = str(self.trained)
        model = load_model(name, self.device, dtype)
        tokenizer = tokenizer_of(name, model)
        count, length = (4, 16) if self.small else (32, 64)
        prompts = read_prompts(self.arguments.prompts, tokenizer, length, count, seed=0)
        return model, [prompt.to(model.backbone.device) for prompt in prompts]


def identities(run: Run) -> None:
    """Greedy output in float32 against transformers' on the same device."""
    families = FAMILIES[:2] if run.small else FAMILIES
    prompts, tokens, steps = (2, 8, 5) if run.small else (6, 32, 40)
    rows = [
        row for family in families
        for row in identity.measure(family, prompts, tokens, steps, run.device)
    ]  # fmt: skip
    wrong = [row for row in rows if row.identical != row.prompts]
    print(f"{len(rows)} rows, {len(wrong)} of them not identical: {wrong}")
    run.write("identity", {"new_tokens": tokens, "fit_steps": steps}, rows, "float32")


def heads(run: Run) -> None:
    """Train them now, so that no other stage waits for it."""
    if not run.trained.is_dir():
        raise SystemExit(f"{run.trained} is not a directory.")


def ties(run: Run) -> None:
    """How often rounding changes a token, and that passes of one width remove it."""
    asked = Namespace(
        model=str(run.trained),
        device=run.device,
        prompt_tokens=16 if run.small else 64,
        max_new_tokens=8 if run.small else 48,
        count=2 if run.small else 8,
        batch_size=2 if run.small else 8,
        pass_width=4,
        seed=0,
    )
    rows: list[Row] = []
    gaps: dict[str, dict[str, Any]] = {}
    for dtype in ("float32",) if run.small else ("float32", "bfloat16"):
        ways, changes, gaps[dtype] = near_ties.by_type(asked, dtype)
        rows += [*ways, *changes]
    run.write("near-ties", {**vars(asked), "model": run.backbone, "gaps": gaps}, rows, "see rows")


def decoding(run: Run) -> None:
    """Everything uncompiled, side by side."""
    model, prompts = run.load(run.dtype)
    new_tokens = 8 if run.small else 48
    rows: list[Row] = []
    for batch in (1, 2) if run.small else (1, 8, 32):
        methods: list[Method] = [
            Foretell(model, plain=True),
            Foretell(model),
            Foretell(model, "prompt-lookup", drafter=LookupDrafter(LOOKUP), source="lookup"),
            Transformers(model),
        ]
        if batch == 1:
            methods.append(Transformers(model, lookup=LOOKUP))
        some = prompts[: max(batch, 4)]
        rows += side_by_side(methods, some, new_tokens, batch, repeats=1 if run.small else 2)
        run.write("decode", {"backbone": run.backbone, "lookup": LOOKUP}, rows, run.dtype)


def side_by_side(
    methods: list[Method], prompts: list[torch.Tensor], new_tokens: int, batch: int, repeats: int
) -> list[Row]:
    """One comparison to the end of every text: a row per method, then acceptance by depth."""
    found = compare(
        methods,
        prompts,
        max_new_tokens=new_tokens,
        repeats=repeats,
        exclude_loops=False,
        batch_size=batch,
    )
    for row in found.speeds:
        print(
            f"batch {batch}, {row.method}: {row.tokens_per_forward:.2f} tokens/forward, "
            f"{row.tokens_per_second:.0f} tokens/s, {row.speedup:.2f}x, "
            f"{row.identical} of {row.prompts} identical",
            flush=True,
        )
    return [replace(row, batch=batch) for row in found.rows]


def parts(run: Run) -> None:
    """The time of a step by its parts."""
    model, prompts = run.load(run.dtype)
    rows: list[StepPart] = []
    for batch in (1,) if run.small else (1, 8, 32):
        some = prompts[: max(batch, 4)]
        rows += step_time.measure(model, some, 8 if run.small else 48, batch)
        run.write("step-time", {"backbone": run.backbone}, rows, run.dtype)
    step_time.show(rows)


def training(run: Run) -> None:
    """Steps of n = 4 against n = 1, and the memory of the loss."""
    asked = Namespace(
        size=64 if run.small else 768,
        layers=4 if run.small else 16,
        vocab=256 if run.small else 49_152,
        batch=2 if run.small else 8,
        length=32 if run.small else 512,
        repeats=1 if run.small else 7,
        threads=1,
        device=run.device,
        dtype=run.dtype,
        out=run.arguments.out / "gpu-training-cost.json",
    )
    training_cost.measure(asked)
    out = run.arguments.out / "gpu-loss-memory.json"
    small = ["--vocab", "256", "--size", "32", "--runs", "1"]
    shape = small if run.small else ["--size", "1024"]
    loss_memory.main(["--device", run.device, "--out", str(out), *shape])


def compiled(run: Run) -> None:
    """A compiled step: on a GPU a CUDA graph of each part, recorded anew for every text."""
    model, prompts = run.load(run.dtype)
    rows: list[Row] = []
    for batch in (1,) if run.small else (1, 8):
        torch.compiler.reset()
        plain, heads = Foretell(model, plain=True), Foretell(model)
        lookup = Foretell(model, "prompt-lookup", drafter=LookupDrafter(LOOKUP), source="lookup")
        ours = [heads] if run.small else [plain, heads, lookup]
        methods: list[Method] = [plain, *(method.compile() for method in ours)]
        methods += [] if run.small else [Transformers(model)]
        some = prompts[: max(batch, 4)]
        with quick_compiler(run.small):
            rows += side_by_side(methods, some, 8 if run.small else 128, batch, repeats=2)
        run.write("compiled", {"backbone": run.backbone}, rows, run.dtype)


@contextmanager
def quick_compiler(wanted: bool) -> Iterator[None]:
    """Compiled steps as torch traces them, without the minutes of C++ that follow."""
    traced = partial(torch.compile, backend="eager")
    with patch.object(torch, "compile", traced) if wanted else nullcontext():
        yield


STAGES = {
    "identity": identities,
    "heads": heads,
    "decode": decoding,
    "step-time": parts,
    "training": training,
    "near-ties": ties,
    "compiled": compiled,
}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a directory, or a bundled model; it must have no heads")
    parser.add_argument("--gguf", type=Path, nargs="+", help="SmolLM2's GGUF file, or its parts")
    parser.add_argument("--heads", help="their directory, in place of those trained here")
    parser.add_argument(
        "--prompts", default="stdlib:held-out", help="for decode, step-time and compiled"
    )
    parser.add_argument("--device", help="cuda by default, cpu in miniature")
    parser.add_argument("--miniature", action="store_true", help="everything as small as can be")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=8.0, help="no stage begins after these")
    parser.add_argument("--train-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args(words)
    arguments.device = arguments.device or ("cpu" if arguments.miniature else "cuda")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed, left_out = [], []
    with tempfile.TemporaryDirectory() as place:
        run = Run(arguments, Path(place))
        for name in arguments.stages:
            if time.monotonic() - run.began > 60 * arguments.minutes:
                left_out.append(name)
                continue
            print(f"-- {name}, after {time.monotonic() - run.began:.0f} s", flush=True)
            try:
                STAGES[name](run)
            except Exception as error:  # the other stages are worth having
                if arguments.miniature:
                    raise
                failed.append(f"{name} ({type(error).__name__}: {error})")
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    print(
        f"Done in {time.monotonic() - run.began:.0f} s. Failed: {'; '.join(failed) or 'none'}. "
        f"Left out for want of time: {', '.join(left_out) or 'none'}."
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
