"""`foretoken bench`: decoding methods side by side."""

from typing import Annotated, Any

import typer

from foretoken.cli import common
from foretoken.errors import InputError
from foretoken.evaluation import Foretoken, SpeedTable, Transformers, compare
from foretoken.evaluation.speed import Method
from foretoken.model import MTPModel

PROMPT_LOOKUP = 10
"""Tokens that transformers' prompt lookup drafts; 10 is what its documentation uses."""


def bench(
    model: common.Model,
    prompts: common.Prompts = "stdlib:held-out",
    count: Annotated[int, typer.Option(help="How many prompts.")] = 20,
    prompt_tokens: common.PromptTokens = 64,
    max_new_tokens: common.MaxNewTokens = 128,
    repeats: Annotated[int, typer.Option(help="Timings of each prompt; the median counts.")] = 3,
    include_loops: Annotated[
        bool,
        typer.Option(
            "--include-loops",
            help="Measure to the end even where greedy decoding repeats itself, "
            "which flatters every drafting method.",
        ),
    ] = False,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = None,
) -> None:
    """Compare plain decoding, the model's heads and transformers' generate on the same prompts.

    All outputs are greedy and are checked against plain decoding. Unless told otherwise every
    method stops where the plain continuation begins to loop, since in a loop any draft is accepted.

    Example: foretoken bench tiny-mtp
    """
    loaded = common.load_model(model, device, dtype)
    tokenizer = common.tokenizer_of(model, loaded)
    context = loaded.backbone.max_length
    room = None if context is None else context - max_new_tokens
    texts = common.load_prompts(prompts, tokenizer, prompt_tokens, count, seed, room=room)
    longest = max(text.shape[1] for text in texts)
    if context is not None and longest + max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit into the "
            f"model's context of {context}; ask for fewer."
        )
    with common.progress_bar("Decoding") as progress:
        found = compare(
            methods_of(loaded),
            [text.to(loaded.backbone.device) for text in texts],
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            exclude_loops=not include_loops,
            progress=progress,
        )
    show_speed([(model, found)], f"{model} on {prompts}, greedy, batch 1")
    settings = {
        "prompts": prompts,
        "count": count,
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
        "prompt_lookup": PROMPT_LOOKUP,
        "loops": "included" if include_loops else "excluded",
        "looped": found.looped,
        "dropped": found.dropped,
    }
    rows = [{"model": model, **row} for row in found.rows]
    common.save_json(json, "bench", loaded, seed, settings, rows)


def methods_of(model: MTPModel) -> list[Method]:
    """Everything that can decode with this model, plain first."""
    heads: list[Method] = [Foretoken(model)] if model.head is not None else []
    return [
        Foretoken(model, plain=True),
        *heads,
        Transformers(model),
        Transformers(model, lookup=PROMPT_LOOKUP),
    ]


def show_speed(found: list[tuple[str, SpeedTable]], title: str) -> None:
    """Print the one table of a comparison, and what was left out of it."""
    columns = ("model", "method", "tokens/forward", "tokens/s", "speed-up", "identical")
    rows = [_cells(model, row) for model, table in found for row in table.rows if "tokens" in row]
    common.table(title, columns, rows)
    for model, table in found:
        shares = _acceptance(table)
        if shares:
            common.console.print(f"{model}: accepted while decoding, {shares}")
        if table.looped:
            common.console.print(
                f"{model}: {table.looped} continuations fall into a loop and were cut where it "
                f"begins ({table.dropped} prompts left out because that is at once)."
            )


def _cells(model: str, row: dict[str, Any]) -> tuple[str, ...]:
    return (
        model,
        row["method"],
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['speedup']:.2f}×",
        f"{row['identical']} of {row['prompts']}",
    )


def _acceptance(table: SpeedTable) -> str:
    shares = [
        f"depth {row['depth']}: {common.percent(row['acceptance'])}"
        for row in table.rows
        if "acceptance" in row
    ]
    return ", ".join(shares)
