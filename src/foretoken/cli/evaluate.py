"""`foretoken eval`: what the heads predict on held-out text."""

from typing import Annotated

import typer

from foretoken.cli import common
from foretoken.cli.probe import show_depths
from foretoken.evaluation import measure_heads


def evaluate(
    model: common.Model,
    data: common.Data,
    block_size: common.BlockSize = 256,
    blocks: Annotated[int | None, typer.Option(help="Rows to read; all by default.")] = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = None,
) -> None:
    """Measure the heads on text they have not seen: accuracy by depth, and agreement with the
    backbone.

    Example: foretoken eval tiny-mtp --data stdlib:held-out
    """
    loaded = common.load_model(model, device, dtype)
    corpus = common.load_blocks(data, loaded, common.tokenizer_of(model, loaded), block_size)
    with common.progress_bar("Evaluating") as progress:
        found = measure_heads(loaded, corpus, limit=blocks, progress=progress)
    show_depths(found, f"{model} on {data}")
    common.console.print(f"Depth 0: {found.bits_per_byte:.3f} bits per byte")
    settings = {"data": data, "block_size": block_size, "blocks": blocks}
    rows = [{"model": model, **row} for row in found.rows()]
    rows[0]["bits_per_byte"] = found.bits_per_byte
    common.save_json(json, "eval", loaded, None, settings, rows)
