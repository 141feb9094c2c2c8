"""`foretell probe`: the multi-token ability that a model already has."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from foretell.cli import common
from foretell.cli.commands.probe import Probe
from foretell.cli.options import STDOUT
from foretell.cli.probe_tables import show_probe
from foretell.data import Bad, Document, PackedBlocks, held_out_split, read_documents
from foretell.data.tokenization import Tokenized, tokenize_all
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.probe import (
    DraftModel,
    Journal,
    Marginalization,
    Method,
    NGram,
    NGrams,
    PromptLookup,
    RepeatLast,
    TokenClasses,
    measure,
)
from foretell.probe.layers import LayerTable, read_layers, spread_layers, train_probes
from foretell.probe.prediction import Prediction, measure_costs, predict
from foretell.probe.records import depth_records, expected_records, part_records
from foretell.tally import Tally

TRAINED_ON = 4
"""Positions that linear probes learn from, for each that they are measured on."""


def probe(asked: Probe) -> None:
    """Do what `asked` says."""
    if asked.depth < 1:
        raise InputError(f"depth is {asked.depth}; probe at least depth 1.")
    if asked.layer_positions < 0:
        raise InputError(f"layer-positions is {asked.layer_positions}; give 0 or more.")
    marginals = Marginalization(asked.depth, _widths(asked.width))
    loaded = common.load_model(asked.model, asked.device, asked.dtype, asked.backbone)
    tokenizer = common.tokenizer_of(asked.model, loaded)
    bad = Bad(asked.skip_bad)
    texts = _texts(
        asked.data, asked.train_data, loaded, tokenizer, asked.block_size, asked.seed, bad
    )
    common.show_bad(bad, asked.data)
    settings = {
        **asked.told("data", "train_data", "depth", "width", "positions", "layer_positions"),
        **asked.told("draft_model", "block_size", "skip_bad"),
        "bad_records": len(bad.found),
    }
    methods = [marginals, *_baselines(loaded, texts, asked.depth, asked.draft_model)]
    origin = {
        **settings,
        "model": loaded.fingerprint(),
        "seed": asked.seed,
        "dtype": str(loaded.lm.dtype),
    }
    journal = None
    if asked.json is not None and asked.json != STDOUT:
        journal = Journal(_partial(asked.json), {**origin, "text": texts.digest})
    with common.progress_bar("Marginalizing") as progress:
        found = measure(
            loaded, texts.measured, methods,
            depth=asked.depth, positions=asked.positions, seed=asked.seed,
            classes=TokenClasses(tokenizer), journal=journal, progress=progress,
        )  # fmt: skip
    layers = None
    if asked.layer_positions:
        layers = _layers(loaded, texts, asked.depth, asked.layer_positions, asked.seed)
    prediction = _predict(loaded, found, layers, texts, asked.depth)
    rows = [{"model": asked.model, **row} for row in _rows(found, layers, prediction)]
    show_probe(f"{asked.model} on {asked.data}", rows, prediction)
    common.save_json(asked.json, "probe", loaded, asked.seed, settings, rows)
    if journal is not None:
        journal.remove()


@dataclass(frozen=True)
class _Texts:
    """What is measured on, and the documents that may be learned from, maybe none.

    `digest` tells these texts from others.
    """

    measured: PackedBlocks
    learned: Sequence[Tokenized]
    blocks: PackedBlocks | None
    digest: str


def _texts(
    data: str,
    train_data: str | None,
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    seed: int,
    bad: Bad,
) -> _Texts:
    def packed(measured: Sequence[Document], learned: Sequence[Document]) -> _Texts:
        with common.console.status("Reading"):
            held_out = list(tokenize_all(measured, tokenizer, bad=bad))
            pieces = _apart(list(tokenize_all(learned, tokenizer, bad=bad)), held_out)
            blocks = common.pack(pieces, model, tokenizer, block_size) if pieces else None
            text = common.pack(held_out, model, tokenizer, block_size)
            return _Texts(text, pieces, blocks, _digest(held_out) + _digest(pieces))

    documents = list(read_documents(data, bad))
    if train_data is not None:
        texts = packed(documents, list(read_documents(train_data, bad)))
        if not texts.learned:
            raise InputError(f"every document of {train_data} is in {data} too; learn from others.")
        return texts
    with suppress(InputError):  # too little for two halves: then nothing is learned
        learned, measured = held_out_split(documents, 0.5, seed)
        return packed(measured, learned)
    return packed(documents, [])


def _digest(pieces: Sequence[Tokenized]) -> str:
    found = sha256()
    for piece in pieces:
        found.update(len(piece.ids).to_bytes(8, "little") + piece.ids.tobytes())
    return found.hexdigest()[:16]


def _apart(learned: list[Tokenized], held_out: list[Tokenized]) -> list[Tokenized]:
    """What may be learned from: nothing that is measured on."""
    measured = {piece.ids.tobytes() for piece in held_out}
    kept = [piece for piece in learned if piece.ids.tobytes() not in measured]
    if dropped := len(learned) - len(kept):
        common.console.print(f"Not learned from, since it is measured on too: {dropped} documents.")
    return kept


def _baselines(model: MTPModel, texts: _Texts, depth: int, draft_model: str | None) -> list[Method]:
    methods: list[Method] = []
    vocab_size = model.backbone.vocab_size
    if texts.learned:
        counts = NGram((piece.ids for piece in texts.learned), vocab_size, depth)
        methods.append(NGrams(counts))
    methods += [PromptLookup(), RepeatLast()]
    if draft_model is not None:
        draft = model.draft_model(draft_model)
        methods.append(DraftModel(draft.backbone, vocab_size))
    return methods


def _layers(model: MTPModel, texts: _Texts, depth: int, positions: int, seed: int) -> LayerTable:
    probes = None
    if texts.blocks is not None:
        with common.progress_bar("Training linear probes") as progress:
            probes = train_probes(
                model, texts.blocks, layers=spread_layers(model.backbone.num_layers),
                depth=depth, positions=TRAINED_ON * positions, seed=seed, progress=progress,
            )  # fmt: skip
    with common.progress_bar("Reading layers") as progress:
        return read_layers(
            model, texts.measured, depth=depth, positions=positions, probes=probes, seed=seed,
            progress=progress,
        )  # fmt: skip


def _predict(
    model: MTPModel, found: Tally, layers: LayerTable | None, texts: _Texts, depth: int
) -> Prediction:
    read = layers.tally if layers is not None and texts.blocks is not None else None
    return predict(found, read, measure_costs(model, depth), depth, model.backbone.num_layers)


def _rows(found: Tally, layers: LayerTable | None, prediction: Prediction) -> list[dict[str, Any]]:
    rows = [
        *depth_records(found),
        *part_records(found, "token_class"),
        *part_records(found, "document_kind"),
        *expected_records(found),
    ]
    if layers is not None:
        rows += [{"table": "layers", **row} for row in layers.rows()]
        rows += [{"table": "drift", **row} for row in layers.drift]
    rows += [{"table": "costs", **row} for row in prediction.costs.rows()]
    return rows + [{"table": "prediction", **row} for row in prediction.rows()]


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
