"""`foretell distill`: the backbone's own continuations, as training data for its heads."""

import time

from foretell.cli import common
from foretell.cli.commands.distill import Distill
from foretell.data import Bad, read_documents
from foretell.data.distill import Continuations, DistillOptions, prompts_that_fit
from foretell.errors import InputError
from foretell.ready import tokenizer_of
from foretell.results.tables import Distilled


def distill(asked: Distill) -> None:
    """Do what `asked` says."""
    sampling = DistillOptions(
        max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, top_p=asked.top_p,
        batch_size=asked.batch_size, seed=asked.seed,
    )  # fmt: skip
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    tokenizer = tokenizer_of(asked.model, loaded)
    bad = Bad(asked.skip_bad)
    used, too_long = prompts_that_fit(
        read_documents(asked.prompts, bad), loaded, tokenizer,
        **asked.told("prompt_tokens", "max_new_tokens", "count"), bad=bad,
    )  # fmt: skip
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
    row = Distilled(
        model=asked.model,
        prompts=file.done - before,
        tokens=written,
        seconds=seconds,
        tokens_per_second=written / max(seconds, 1e-9),
    )
    settings = {
        **asked.told("prompts", "count", "prompt_tokens", "skip_bad"),
        "before": before,
        "bad_records": len(bad.found),
        **vars(sampling),
    }
    common.save_json(asked.json, "distill", loaded, asked.seed, settings, [row])
