"""Every layout in a real vLLM on a CPU: the same tokens, and the same counts of accepted drafts.

    make test-engines                      # all cases; writes results/engines.json
    python tests/engines/run.py mimo       # those whose name begins with mimo; writes nothing

Runs in an environment of its own, `.venv-engines/`, which has vLLM and foretoken.
"""

import contextlib
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from models import ENOUGH, NEW, Case, counts, head_config, other_contracts, plain, prompts, trained

import foretoken as ft
from foretoken.formats import export, import_heads
from foretoken.formats.exporting import BACKBONE
from foretoken.loading import load_causal_lm
from foretoken.provenance import provenance, write_result

RESULT = Path(__file__).parents[2] / "results" / "engines.json"

CASES = {
    "mimo-qwen2": Case("mimo", "qwen2"),
    "mimo-llama": Case("mimo", "llama", length=2),
    "medusa-llama": Case("medusa", "llama", method="medusa", apart=True),
    "eagle-llama": Case("eagle", "llama", method="eagle", apart=True),
    "eagle-qwen2": Case("eagle", "qwen2", method="eagle", apart=True, length=2),
    "eagle3-llama": Case("eagle3", "llama", method="eagle3", apart=True),
    "eagle3-qwen3": Case("eagle3", "qwen3", method="eagle3", apart=True),
    "plugin-sequential-qwen3": Case("vllm", "qwen3", "sequential", apart=True),
    "plugin-parallel-llama": Case("vllm", "llama", "parallel", apart=True),
    "plugin-linear-llama": Case("vllm", "llama", "linear", apart=True),
    "plugin-residual-gemma3": Case("vllm", "gemma3", "residual", apart=True),
    "glm4_moe": Case("glm4_moe", "glm4_moe"),
    "deepseek_v3": Case("deepseek_v3", "deepseek_v3"),
    "qwen3_5": Case("qwen3_5", "qwen3_5", length=2),
    "qwen3_next": Case("qwen3_next", "qwen3_next", length=2),
}


def serve(target: Path, speculative: dict[str, Any]) -> tuple[list[list[int]], list[int], float]:
    """Tokens, counts and seconds of a stock vLLM."""
    from vllm import LLM, SamplingParams

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


def run(name: str, case: Case, work: Path) -> dict[str, Any]:
    """One case's row."""
    model_path, exported = work / name / "model", work / name / "exported"
    continuations = trained(case, model_path)
    export(model_path, case.layout, exported)
    model = ft.MTPModel.from_pretrained(model_path)
    if case.layout != "vllm":  # what was written is what is compared
        again = work / name / "again"
        import_heads(exported, again, backbone=model_path if case.apart else None)
        model = ft.MTPModel.from_pretrained(again)
    own = sum(counts(model, prompt, case.length) for prompt in prompts())
    speculative = {"method": case.method, "num_speculative_tokens": case.length}
    target = exported
    if case.apart:
        target, speculative["model"] = exported / BACKBONE, str(exported)
    tokens, counted, seconds = serve(target, speculative)
    began = time.perf_counter()
    expected = [plain(model, prompt, NEW) for prompt in prompts()]
    plain_seconds = time.perf_counter() - began
    assert expected == [c[:NEW] for c in continuations]
    row = {
        "case": name, "layout": case.layout, "backbone": case.backbone, "length": case.length,
        "prompts": len(prompts()),
        "identical": sum(a == b for a, b in zip(tokens, expected, strict=True)),
        "drafts": own[0].item(), "accepted": own[1].item(), "by_place": own[2:].tolist(),
        "engine_drafts": counted[0], "engine_accepted": counted[1],
        "engine_by_place": counted[2:], "equal": counted == own.tolist(),
        "seconds": seconds, "plain_seconds": plain_seconds,
    }  # fmt: skip
    config = head_config(case)
    for way, other in other_contracts(config).items():
        wrong = ft.MTPModel(load_causal_lm(model_path), other).eval()
        wrong.head.load_state_dict(ft.MTPModel.from_pretrained(model_path).head.state_dict())
        row[f"with_another_{way}"] = sum(
            counts(wrong, prompt, case.length) for prompt in prompts()
        ).tolist()
    return row


def main(wanted: list[str]) -> int:
    torch.set_num_threads(1)
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as work:
        for name, case in CASES.items():
            if wanted and not any(name.startswith(prefix) for prefix in wanted):
                continue
            try:
                row = run(name, case, Path(work))
            except Exception as error:  # an engine can fail anywhere; the others go on
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                row = {"case": name, "layout": case.layout, "backbone": case.backbone}
                row["error"] = why
                with contextlib.suppress(Exception):
                    from vllm.distributed import cleanup_dist_env_and_memory

                    cleanup_dist_env_and_memory()
            good = row.get("equal") and row.get("identical") == row.get("prompts")
            failed += not good
            print("ok  " if good else "FAIL", row, flush=True)
            rows.append(row)
    return save(rows, wanted) or failed


def save(rows: list[dict[str, Any]], wanted: list[str]) -> int:
    if wanted:
        return 0
    flat = [
        {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}
        for row in rows
    ]
    settings = {"new_tokens": NEW, "head_loss": ENOUGH, "dtype": "float32", "sampling": "greedy"}
    origin = provenance(7, torch.device("cpu"), torch.float32)
    write_result(RESULT, "engines", settings, flat, origin)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
