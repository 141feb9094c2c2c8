"""`foretell bench`: decoding methods side by side."""

from collections.abc import Mapping, Sequence

import torch

from foretell.cli import common, drafting
from foretell.cli.commands.bench import Bench
from foretell.cli.probe_tables import shown_share
from foretell.data import Bad, Sketch
from foretell.decoding.constraints import obeyed
from foretell.evaluation import (
    SpeedTable,
    compare,
    describe_seen,
    methods_of,
    seen_in_training,
    verdicts_of_speed,
)
from foretell.evaluation.methods import PROMPT_LOOKUP
from foretell.evaluation.speed import share_by_length
from foretell.ready import prompts_with_room, tokenizer_of
from foretell.results import of_model
from foretell.results.tables import Speed, near_ties


def bench(asked: Bench) -> None:
    """Do what `asked` says."""
    loaded = common.load_model(
        asked.model,
        asked.device,
        asked.dtype,
        asked.backbone,
        by_columns=asked.pass_width is None,
        quantize=asked.quantize,
    )
    tokenizer = tokenizer_of(asked.model, loaded)
    bad, sketch = Bad(asked.skip_bad), Sketch()
    prompts = prompts_with_room(
        asked.prompts, loaded, tokenizer, asked.prompt_tokens, asked.count, asked.seed,
        max_new_tokens=asked.max_new_tokens, bad=bad, sketch=sketch,
    )  # fmt: skip
    common.show_bad(bad, asked.prompts)
    sampling = drafting.sampling(asked.temperature, asked.seed)
    methods = methods_of(
        loaded,
        sampling=sampling,
        compiled=asked.compiled,
        draft_model=asked.draft_model,
        tree=drafting.parse_tree(asked.tree, asked.pass_width),
        draft_length=drafting.parse_length(asked.draft_length),
        pass_width=asked.pass_width,
        batch_size=asked.batch_size,
    )
    with common.progress_bar("Decoding") as progress:
        found = compare(
            methods,
            prompts,
            max_new_tokens=asked.max_new_tokens,
            repeats=asked.repeats,
            exclude_loops=not asked.include_loops,
            batch_size=asked.batch_size,
            progress=progress,
        )
    seen = seen_in_training(loaded, sketch)
    verdicts = verdicts_of_speed([(asked.model, found)])
    if warning := describe_seen(seen):
        said = (verdicts.get(asked.model), warning)
        verdicts[asked.model] = " ".join(filter(None, said))
    settings = {
        "prompts": asked.prompts,
        "count": asked.count,
        "prompt_tokens": asked.prompt_tokens,
        "max_new_tokens": asked.max_new_tokens,
        "repeats": asked.repeats,
        "batch_size": asked.batch_size,
        "temperature": asked.temperature,
        "tree": asked.tree,
        "draft_length": asked.draft_length,
        "draft_lengths": found.draft_lengths,
        "pass_width": asked.pass_width,
        "draft_model": asked.draft_model,
        "compile": asked.compiled,
        "quantize": asked.quantize,
        "prompt_lookup": PROMPT_LOOKUP,
        "loops": "included" if asked.include_loops else "excluded",
        "looped": found.looped,
        "dropped": found.dropped,
        "generation_config": obeyed(loaded.lm),
        "skip_bad": asked.skip_bad,
        "bad_records": len(bad.found),
        "seen_in_training": seen,
        "verdicts": verdicts,
    }
    rows = of_model(asked.model, found.rows)
    common.save_json(asked.json, "bench", loaded, asked.seed, settings, rows)
    what = title(f"{asked.model} on {asked.prompts}", asked.temperature, asked.batch_size)
    show_speed([(asked.model, found)], what, loaded.backbone.dtype, verdicts)
    for line in drafting.describe_config(loaded, sampling):
        common.console.print(line)


def title(what: str, temperature: float, batch_size: int) -> str:
    """The headline of a comparison."""
    chosen = f"temperature {temperature:g}" if temperature else "greedy"
    return f"{what}, {chosen}, batch {batch_size}"


def show_speed(
    found: Sequence[tuple[str, SpeedTable]],
    title: str,
    dtype: torch.dtype,
    verdicts: Mapping[str, str],
) -> None:
    """Print the one table of a comparison made in some type, and what was left out of it."""
    columns = ("model", "method", "tokens/forward", "tokens/s", "speed-up", "identical")
    rows = [_cells(model, row) for model, table in found for row in table.speeds]
    common.table(title, columns, rows)
    every = [row for _, table in found for row in table.speeds]
    if explained := near_ties(every, str(dtype).removeprefix("torch.")):
        common.console.print(explained)
    for model, table in found:
        for method, shares in _acceptance(table).items():
            common.console.print(f"{model}, {method}: accepted while decoding, {shares}")
        for method, batches in table.draft_lengths.items():
            chosen = share_by_length([length for batch in batches for length in batch])
            common.console.print(f"{model}, {method}: {drafting.describe_lengths(chosen)}")
        if table.looped:
            common.console.print(
                f"{model}: {table.looped} continuations fall into a loop and were cut where it "
                f"begins ({table.dropped} prompts left out because that is at once)."
            )
        if model in verdicts:
            common.console.print(f"{model}: {verdicts[model]}")


def _cells(model: str, row: Speed) -> tuple[str, ...]:
    return (
        model,
        row.method,
        f"{row.tokens_per_forward:.2f}",
        f"{row.tokens_per_second:.0f}",
        f"{row.speedup:.2f}×",
        "–" if row.identical is None else f"{row.identical} of {row.prompts}",
    )


def _acceptance(table: SpeedTable) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for row in table.accepted:
        share = f"depth {row.depth}: {shown_share(row.acceptance)}"
        found.setdefault(row.method, []).append(share)
    return {method: ", ".join(shares) for method, shares in found.items()}
