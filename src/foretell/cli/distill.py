"""`foretell distill`: the backbone's own continuations, as training data for its heads."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import common
from foretell.data import Bad, read_documents
from foretell.data.distill import Continuations, Sampling, prompts_of
from foretell.errors import InputError


def distill(
    model: common.Model,
    prompts: common.Prompts,
    out: Annotated[Path, typer.Option(help="File of JSON lines; an unfinished one goes on.")],
    prompt_tokens: common.PromptTokens = 64,
    max_new_tokens: common.MaxNewTokens = 128,
    count: Annotated[int | None, typer.Option(help="Use so many prompts. [all]")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus to draw from.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Prompts continued at once.")] = 16,
    skip_bad: common.SkipBad = False,
    seed: common.Seed = 0,
    backbone: common.BackboneAt = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = None,
) -> None:
    """Let MODEL continue prompts, and write what it says as training data.

    Heads trained on their backbone's own words predict them better than they predict other
    people's. Only the continuations are learned. A command that was interrupted goes on when it is
    given again.

    Example: foretell distill tiny --prompts stdlib:train --count 256 --out runs/own.jsonl
    then: foretell train tiny --data runs/own.jsonl --minutes 2 --out runs/own
    """
    if prompt_tokens < 1:
        raise InputError(f"prompt_tokens is {prompt_tokens}; it must be at least 1.")
    if count is not None and count < 1:
        raise InputError(f"count is {count}; it must be at least 1.")
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    loaded = common.load_model(model, device, dtype, backbone)
    tokenizer = common.tokenizer_of(model, loaded)
    bad = Bad(skip_bad)
    documents = read_documents(prompts, bad)
    found = prompts_of(documents, tokenizer, prompt_tokens, max_new_tokens, bad)
    room = (loaded.backbone.context or sys.maxsize) - max_new_tokens
    used: list[list[int]] = []
    too_long = 0
    for prompt in found:
        if len(prompt) > room:
            too_long += 1
            continue
        used.append(prompt)
        if len(used) == count:
            break
    common.show_bad(bad, prompts)
    if too_long and not used:
        raise InputError(
            f"{prompts}: no prompt leaves room for {max_new_tokens} tokens in the model's context "
            f"of {loaded.backbone.context}; ask for fewer."
        )
    if too_long:
        common.console.print(
            f"{too_long} prompts are left out: with {max_new_tokens} tokens more they do not fit "
            "into the model's context."
        )
    file = Continuations(out, loaded, tokenizer, used, sampling)
    before, began = file.done, time.monotonic()
    with common.progress_bar("Continuing") as progress:
        written = file.write(progress)
    seconds = time.monotonic() - began
    again = f", {before} of them before" if before else ""
    common.console.print(
        f"{file.done} continuations{again}; {written:,} tokens in {seconds:.0f} s → {out}"
    )
    rows = [
        {"model": model, "prompts": file.done - before, "tokens": written, "seconds": seconds,
         "tokens_per_second": written / max(seconds, 1e-9)}
    ]  # fmt: skip
    settings = {
        "prompts": prompts, "count": count, "prompt_tokens": prompt_tokens, "before": before,
        "skip_bad": skip_bad, "bad_records": len(bad.found), **vars(sampling),
    }  # fmt: skip
    common.save_json(json, "distill", loaded, seed, settings, rows)
