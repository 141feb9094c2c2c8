"""`foretell probe`: the multi-token ability that a model already has."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedTokenizerBase

from foretell.cli import common
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


def probe(
    model: common.Model,
    data: common.Data,
    train_data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Text that n-grams and linear probes learn from; by default half of the "
            "documents of --data, which are then not measured on.",
        ),
    ] = None,
    depth: Annotated[int, typer.Option(help="Deepest depth K.")] = 2,
    width: Annotated[
        str,
        typer.Option(
            help="Strings summed over, per position and depth; 1024,32: by depth. As many as the "
            "vocabulary has tokens make depth 1 exact."
        ),
    ] = "32",
    positions: Annotated[int, typer.Option(help="Positions sampled from the text.")] = 512,
    layer_positions: Annotated[
        int, typer.Option(help="Positions at which layers are read; 0: leave the layers out.")
    ] = 2048,
    draft_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Measure this draft model too.")
    ] = None,
    block_size: common.BlockSize = 128,
    skip_bad: common.SkipBad = False,
    seed: common.Seed = 0,
    backbone: common.BackboneAt = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    json: common.Json = None,
) -> None:
    """Measure what the model already knows about its future tokens, without any training.

    Depth k is the token k places after the next one. Its distribution is found by numerical
    marginalization: summing over the likeliest strings in between. Simpler ways to draft are
    measured at the same positions, then what each layer knows, and from all that is predicted what
    heads would bring. With --json, a run that was stopped goes on where it was.

    Example: foretell probe tiny --data stdlib:held-out --train-data stdlib:train
    """
    if depth < 1:
        raise InputError(f"depth is {depth}; probe at least depth 1.")
    if layer_positions < 0:
        raise InputError(f"layer-positions is {layer_positions}; give 0 or more.")
    marginals = Marginalization(depth, _widths(width))
    loaded = common.load_model(model, device, dtype, backbone)
    tokenizer = common.tokenizer_of(model, loaded)
    bad = Bad(skip_bad)
    texts = _texts(data, train_data, loaded, tokenizer, block_size, seed, bad)
    common.show_bad(bad, data)
    settings = {
        "data": data, "train_data": train_data, "depth": depth, "width": width,
        "positions": positions, "layer_positions": layer_positions, "draft_model": draft_model,
        "block_size": block_size, "skip_bad": skip_bad, "bad_records": len(bad.found),
    }  # fmt: skip
    methods = [marginals, *_baselines(loaded, texts, depth, draft_model)]
    origin = {
        **settings,
        "model": loaded.fingerprint(),
        "seed": seed,
        "dtype": str(loaded.lm.dtype),
    }
    journal = None if json is None else Journal(_partial(json), {**origin, "text": texts.digest})
    with common.progress_bar("Marginalizing") as progress:
        found = measure(
            loaded, texts.measured, methods, depth=depth, positions=positions, seed=seed,
            classes=TokenClasses(tokenizer), journal=journal, progress=progress,
        )  # fmt: skip
    layers = None
    if layer_positions:
        layers = _layers(loaded, texts, depth, layer_positions, seed)
    prediction = _predict(loaded, found, layers, texts, depth)
    rows = [{"model": model, **row} for row in _rows(found, layers, prediction)]
    show_probe(f"{model} on {data}", rows, prediction)
    common.save_json(json, "probe", loaded, seed, settings, rows)
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
