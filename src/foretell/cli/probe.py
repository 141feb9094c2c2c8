"""`foretell probe`: the multi-token ability that a model already has."""

from pathlib import Path

from foretell.cli import common
from foretell.cli.commands.probe import Probe
from foretell.cli.options import STDOUT
from foretell.cli.probe_tables import show_probe
from foretell.data import Bad
from foretell.errors import InputError
from foretell.probe import ProbeOptions, journal_of, probe_model, read_texts
from foretell.ready import tokenizer_of
from foretell.results import of_model


def probe(asked: Probe) -> None:
    """Do what `asked` says."""
    options = ProbeOptions(
        width=_widths(asked.width),
        **asked.told("depth", "positions", "layer_positions", "draft_model", "seed"),
    )
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    tokenizer = tokenizer_of(asked.model, loaded)
    bad = Bad(asked.skip_bad)
    with common.reading(asked.data):
        texts = read_texts(
            asked.data, loaded, tokenizer, asked.block_size,
            train_data=asked.train_data, seed=asked.seed, bad=bad,
        )  # fmt: skip
        if texts.dropped:
            common.console.print(
                f"Not learned from, since it is measured on too: {texts.dropped} documents."
            )
    common.show_bad(bad, asked.data)
    journal = None
    if asked.json is not None and asked.json != STDOUT:
        journal = journal_of(_partial(asked.json), loaded, texts, options)
    found = probe_model(
        loaded, tokenizer, texts, options, journal=journal, stage=common.progress_bar
    )
    rows = of_model(asked.model, found.rows())
    show_probe(f"{asked.model} on {asked.data}", rows, found.prediction)
    settings = {
        **asked.told("data", "train_data", "depth", "width", "positions"),
        "layer_positions": options.read_at,
        **asked.told("draft_model", "block_size", "skip_bad"),
        "bad_records": len(bad.found),
    }
    common.save_json(asked.json, "probe", loaded, asked.seed, settings, rows)
    if journal is not None:
        journal.remove()


def _widths(text: str) -> list[int]:
    """`1024,32` → [1024, 32]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--width {text}: give a number of strings, such as 32, or several by depth, such as "
            "1024,32."
        ) from None


def _partial(json: Path) -> Path:
    """Where a run keeps what it has done so far."""
    return json.with_name(f"{json.name}.partial")
