"""`foretell bench`: decoding methods side by side."""

from typing import Any, Literal

import torch

from foretell.cli import common, drafting
from foretell.cli.commands.bench import Bench
from foretell.data import Bad
from foretell.decoding import Drafter, LookupDrafter, ModelDrafter, Sampling
from foretell.decoding.constraints import obeyed
from foretell.errors import InputError
from foretell.evaluation import Foretell, SpeedTable, Transformers, compare
from foretell.evaluation.methods import Method
from foretell.evaluation.speed import share_by_length
from foretell.evaluation.verdict import verdict_of_speed
from foretell.model import MTPModel
from foretell.provenance import near_ties

PROMPT_LOOKUP = 10
"""Tokens that prompt lookup drafts, ours and transformers'; its documentation uses 10."""


def bench(asked: Bench) -> None:
    """Do what `asked` says."""
    loaded = common.load_model(
        asked.model, asked.device, asked.dtype, asked.backbone, by_columns=asked.pass_width is None
    )
    tokenizer = common.tokenizer_of(asked.model, loaded)
    context = loaded.backbone.context
    room = None if context is None else context - asked.max_new_tokens
    bad = Bad(asked.skip_bad)
    texts = common.load_prompts(
        asked.prompts, tokenizer, asked.prompt_tokens, asked.count, asked.seed, room=room, bad=bad
    )
    common.show_bad(bad, asked.prompts)
    longest = max(text.shape[1] for text in texts)
    loaded.backbone.require_room(longest + asked.max_new_tokens, "prompts and their continuations")
    draft = None
    if asked.draft_model is not None:
        draft = loaded.draft_model(asked.draft_model), asked.draft_model
    sampling = drafting.sampling(asked.temperature, asked.seed)
    methods = methods_of(
        loaded,
        sampling=sampling,
        compiled=asked.compiled,
        draft=draft,
        tree=asked.tree,
        draft_length=drafting.parse_length(asked.draft_length),
        pass_width=asked.pass_width,
        batch_size=asked.batch_size,
    )
    with common.progress_bar("Decoding") as progress:
        found = compare(
            methods,
            [text.to(loaded.backbone.device) for text in texts],
            max_new_tokens=asked.max_new_tokens,
            repeats=asked.repeats,
            exclude_loops=not asked.include_loops,
            batch_size=asked.batch_size,
            progress=progress,
        )
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
        "prompt_lookup": PROMPT_LOOKUP,
        "loops": "included" if asked.include_loops else "excluded",
        "looped": found.looped,
        "dropped": found.dropped,
        "generation_config": obeyed(loaded.lm),
        "skip_bad": asked.skip_bad,
        "bad_records": len(bad.found),
    }
    rows = [{"model": asked.model, **row} for row in found.rows]
    common.save_json(asked.json, "bench", loaded, asked.seed, settings, rows)
    what = title(f"{asked.model} on {asked.prompts}", asked.temperature, asked.batch_size)
    show_speed([(asked.model, found)], what, loaded.backbone.dtype)
    for line in drafting.describe_config(loaded, sampling):
        common.console.print(line)


def methods_of(
    model: MTPModel,
    *,
    sampling: Sampling | None = None,
    compiled: bool = False,
    draft: tuple[MTPModel, str] | None = None,
    tree: str | None = None,
    draft_length: int | Literal["auto"] | None = None,
    pass_width: int | None = None,
    batch_size: int = 1,
) -> list[Method]:
    """Everything that can decode with this model, plain first.

    Args:
        model: that decodes.
        sampling: greedy by default.
        compiled: show ours with a compiled step too.
        draft: a draft model, and its name.
        tree: a shape, to draft trees from the heads too.
        draft_length: to draft so many tokens from the heads too, or `"auto"`.
        pass_width: of every pass of ours, whatever is drafted.
        batch_size: with more than 1, transformers drafts nothing.
    """
    for asked, name in ((tree, "--tree"), (draft_length, "--draft-length")):
        if asked is not None and model.head is None:
            raise InputError(f"{name} is for heads, and the model has none; leave it out.")
    ours = [Foretell(model, plain=True, sampling=sampling, pass_width=pass_width)]

    def add(name: str, drafter: Drafter, **facts: Any) -> None:
        ours.append(
            Foretell(
                model, name, drafter=drafter, sampling=sampling, pass_width=pass_width, **facts
            )
        )

    if model.head is not None:
        kind = drafting.method_name("heads", model)
        add(kind, drafting.drafter("heads", model))
        if tree is not None:
            shape = drafting.parse_tree(tree, pass_width)
            add(f"{kind}-tree", drafting.drafter("heads", model, shape=shape), tree=tree)
        if draft_length is not None:
            drafter = drafting.drafter("heads", model, draft_length)
            add(f"{kind}-{draft_length}", drafter, draft_length=draft_length)
    add("prompt-lookup", LookupDrafter(PROMPT_LOOKUP), source="lookup")
    theirs = [Transformers(model, sampling=sampling)]
    if batch_size == 1:
        theirs.append(Transformers(model, lookup=PROMPT_LOOKUP, sampling=sampling))
    if draft is not None:
        small = ModelDrafter(model.backbone, draft[0].backbone)
        add("draft-model", small, source=draft[1])
        if batch_size == 1:
            theirs.append(Transformers(model, draft=(*draft, small.length), sampling=sampling))
    if compiled:
        ours += [method.compile() for method in ours]
    return [*ours, *theirs]


def title(what: str, temperature: float, batch_size: int) -> str:
    """The headline of a comparison."""
    chosen = f"temperature {temperature:g}" if temperature else "greedy"
    return f"{what}, {chosen}, batch {batch_size}"


def show_speed(found: list[tuple[str, SpeedTable]], title: str, dtype: torch.dtype) -> None:
    """Print the one table of a comparison made in some type, and what was left out of it."""
    columns = ("model", "method", "tokens/forward", "tokens/s", "speed-up", "identical")
    rows = [_cells(model, row) for model, table in found for row in table.rows if "tokens" in row]
    common.table(title, columns, rows)
    every = [row for _, table in found for row in table.rows]
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
        if verdict := verdict_of_speed(table.rows):
            common.console.print(f"{model}: {verdict}")


def _cells(model: str, row: dict[str, Any]) -> tuple[str, ...]:
    return (
        model,
        row["method"],
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['speedup']:.2f}×",
        "–" if row["identical"] is None else f"{row['identical']} of {row['prompts']}",
    )


def _acceptance(table: SpeedTable) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for row in table.rows:
        if "acceptance" in row:
            share = f"depth {row['depth']}: {common.percent(row['acceptance'])}"
            found.setdefault(row["method"], []).append(share)
    return {method: ", ".join(shares) for method, shares in found.items()}
