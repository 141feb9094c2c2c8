"""`foretoken probe`: the multi-token ability that a model already has."""

from typing import Annotated

import typer

from foretoken.cli import common
from foretoken.errors import InputError
from foretoken.evaluation import DepthTable, measure_marginals


def probe(
    model: common.Model,
    data: common.Data,
    depth: Annotated[int, typer.Option(help="Deepest depth K.")] = 2,
    width: Annotated[int, typer.Option(help="Strings summed over, per position and depth.")] = 32,
    positions: Annotated[int, typer.Option(help="Positions sampled from the text.")] = 512,
    block_size: common.BlockSize = 128,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = None,
) -> None:
    """Measure what the model already knows about its future tokens, without any training.

    Depth k is the token k places after the next one. Its distribution is found by numerical
    marginalization: summing over the likeliest strings in between.

    Example: foretoken probe tiny --data stdlib:held-out
    """
    if depth < 1:
        raise InputError(f"depth is {depth}; probe at least depth 1.")
    loaded = common.load_model(model, device, dtype)
    blocks = common.load_blocks(data, loaded, common.tokenizer_of(model, loaded), block_size)
    with common.progress_bar("Marginalizing") as progress:
        found = measure_marginals(
            loaded,
            blocks,
            depth=depth,
            width=width,
            positions=positions,
            seed=seed,
            progress=progress,
        )
    show_depths(found, f"{model} on {data}: marginalization over {width} strings")
    settings = {"data": data, "width": width, "positions": positions, "block_size": block_size}
    rows = [{"model": model, **row} for row in found.rows()]
    common.save_json(json, "probe", loaded, seed, settings, rows)


def show_depths(found: DepthTable, title: str) -> None:
    """Print a table of depths."""
    columns = ("depth", "top-1", "top-5", "nats/token", "agrees", "accepted", "covered mass")
    rows = [
        (
            str(row["depth"]),
            common.percent(row["top1"]),
            common.percent(row["top5"]),
            f"{row['nll']:.3f}",
            common.percent(row["agreement"]),
            common.percent(row["acceptance"]),
            common.percent(row["covered_mass"]),
        )
        for row in found.rows()
    ]
    common.table(f"{title} ({found.positions} positions)", columns, rows)
    if len(rows) > 1:
        common.console.print(
            "agrees: with what the backbone would choose there; accepted: at every depth so far.\n"
            f"Tokens per forward to expect of greedy decoding: {found.tokens_per_forward:.2f}"
        )
