"""`foretell distill`: the backbone's own continuations, as training data for its heads."""

import sys
import time

from foretell.cli import common
from foretell.cli.commands.distill import Distill
from foretell.data import Bad, read_documents
from foretell.data.distill import Continuations, Sampling, prompts_of
from foretell.errors import InputError


def distill(asked: Distill) -> None:
    """Do what `asked` says."""
    if asked.prompt_tokens < 1:
        raise InputError(f"prompt_tokens is {asked.prompt_tokens}; it must be at least 1.")
    if asked.count is not None and asked.count < 1:
        raise InputError(f"count is {asked.count}; it must be at least 1.")
    sampling = Sampling(
        max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, top_p=asked.top_p,
        batch_size=asked.batch_size, seed=asked.seed,
    )  # fmt: skip
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    tokenizer = common.tokenizer_of(asked.model, loaded)
    bad = Bad(asked.skip_bad)
    documents = read_documents(asked.prompts, bad)
    found = prompts_of(documents, tokenizer, asked.prompt_tokens, asked.max_new_tokens, bad)
    room = (loaded.backbone.context or sys.maxsize) - asked.max_new_tokens
    used: list[list[int]] = []
    too_long = 0
    for prompt in found:
        if len(prompt) > room:
            too_long += 1
            continue
        used.append(prompt)
        if len(used) == asked.count:
            break
    common.show_bad(bad, asked.prompts)
    if too_long and not used:
        raise InputError(
            f"{asked.prompts}: no prompt leaves room for {asked.max_new_tokens} tokens in the "
            f"model's context of {loaded.backbone.context}; ask for fewer."
        )
    if too_long:
        common.console.print(
            f"{too_long} prompts are left out: with {asked.max_new_tokens} more tokens they do not "
            "fit into the model's context."
        )
    file = Continuations(asked.out, loaded, tokenizer, used, sampling)
    before, began = file.done, time.monotonic()
    with common.progress_bar("Continuing") as progress:
        written = file.write(progress)
    seconds = time.monotonic() - began
    again = f", {before} of them before" if before else ""
    common.console.print(
        f"{file.done} continuations{again}; {written:,} tokens in {seconds:.0f} s → {asked.out}"
    )
    rows = [
        {"model": asked.model, "prompts": file.done - before, "tokens": written, "seconds": seconds,
         "tokens_per_second": written / max(seconds, 1e-9)}
    ]  # fmt: skip
    settings = {
        **asked.told("prompts", "count", "prompt_tokens", "skip_bad"),
        "before": before,
        "bad_records": len(bad.found),
        **vars(sampling),
    }
    common.save_json(asked.json, "distill", loaded, asked.seed, settings, rows)
