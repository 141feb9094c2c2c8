"""A whole probe: methods side by side, what each layer knows, and what heads would bring."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from foretell.data.vocabulary import coverage_by_size
from foretell.errors import InputError
from foretell.model import MTPModel
from foretell.probe.classes import TokenClasses
from foretell.probe.layers import LayerTable, read_layers, spread_layers, train_probes
from foretell.probe.marginal import check_widths
from foretell.probe.methods import (
    DraftModel,
    Marginalization,
    NGrams,
    Predictor,
    PromptLookup,
    RepeatLast,
)
from foretell.probe.ngram import NGram
from foretell.probe.prediction import Prediction, measure_costs, predict
from foretell.probe.rows import depth_rows, expected_rows, part_rows
from foretell.probe.run import Journal, measure
from foretell.probe.texts import Texts
from foretell.results import Row
from foretell.results.tables import Coverage
from foretell.tally import Tally

TRAINED_ON = 4
"""Positions that linear probes learn from, for each that they are measured on."""

PER_POSITION, MOST_LAYERS = 4, 2048
"""Positions at which layers are read for each that is sampled, and at most: what takes a probe its
time grows with them."""

Stage = Callable[[str], AbstractContextManager[Callable[[float], None] | None]]
"""Entered with the name of a part of the work; what it gives is told the share done, 0…1."""


def _unseen(name: str) -> AbstractContextManager[None]:
    """A stage that nobody is shown."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What is probed.

    Attributes:
        depth: K.
        width: strings summed over, per position; several numbers: by depth.
        positions: how many are sampled from the text.
        layer_positions: positions at which layers are read; 0: none are. None is `PER_POSITION` for
            each that is sampled, and at most `MOST_LAYERS`.
        draft_model: the name of one that is measured too.
        seed: of the positions.

    Raises:
        InputError: a number is too small.
    """

    depth: int = 2
    width: int | Sequence[int] = 32
    positions: int = 512
    layer_positions: int | None = None
    draft_model: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise InputError(f"depth is {self.depth}; probe at least depth 1.")
        if self.layer_positions is not None and self.layer_positions < 0:
            raise InputError(f"layer-positions is {self.layer_positions}; give 0 or more.")
        check_widths(self.depth, self.width)

    @property
    def read_at(self) -> int:
        """Positions at which layers are read."""
        if self.layer_positions is None:
            return min(PER_POSITION * self.positions, MOST_LAYERS)
        return self.layer_positions


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        tally: means by method, depth, kind of document and class of token, see `measure`.
        layers: by layer; None where none were read.
        prediction: of heads on this machine.
        coverage: of the text by its most frequent tokens, by how many, see `coverage_by_size`.
    """

    tally: Tally
    layers: LayerTable | None
    prediction: Prediction
    coverage: Mapping[int, float]

    def rows(self) -> list[Row]:
        """Those of all tables."""
        return [
            *depth_rows(self.tally),
            *part_rows(self.tally, "token_class"),
            *part_rows(self.tally, "document_kind"),
            *expected_rows(self.tally),
            *([] if self.layers is None else [*self.layers.rows(), *self.layers.drift]),
            *self.prediction.costs.rows(),
            *self.prediction.rows(),
            *(Coverage(vocabulary=size, coverage=share) for size, share in self.coverage.items()),
        ]


def journal_of(path: Path, model: MTPModel, texts: Texts, options: ProbeOptions) -> Journal:
    """What is done of this very probe, in a file; remove it when the result is kept.

    Raises:
        InputError: another file is there.
    """
    return Journal(
        path,
        {
            **asdict(options),
            "layer_positions": options.read_at,
            "model": model.fingerprint(),
            "dtype": str(model.lm.dtype),
            "text": texts.digest,
            "block_size": texts.measured.block_size,
        },
    )


def probe_model(
    model: MTPModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    options: ProbeOptions,
    *,
    journal: Journal | None = None,
    stage: Stage = _unseen,
) -> ProbeResult:
    """Measure what a model already knows about its future tokens: all that `foretell probe` does.

    Args:
        model: its backbone is probed.
        tokenizer: of the model.
        texts: of `read_texts`.
        options: what is probed.
        journal: of `journal_of`, keeps what is done, so that a run that was stopped goes on.
        stage: shows progress, see `Stage`; by default nothing does.

    Raises:
        InputError: no position has a target at every depth, or there is no such draft model.
    """
    methods = [Marginalization(options.depth, options.width), *_simpler(model, texts, options)]
    with stage("Marginalizing") as progress:
        tally = measure(
            model, texts.measured, methods,
            depth=options.depth, positions=options.positions, seed=options.seed,
            classes=TokenClasses(tokenizer), journal=journal, progress=progress,
        )  # fmt: skip
    layers = _layers(model, texts, options, stage) if options.read_at else None
    read = None if layers is None or texts.blocks is None else layers.tally
    costs = measure_costs(model, options.depth)
    prediction = predict(tally, read, costs, options.depth, model.backbone.num_layers)
    covered = coverage_by_size(texts.measured, model.backbone.vocab_size)
    return ProbeResult(tally, layers, prediction, covered)


def _simpler(model: MTPModel, texts: Texts, options: ProbeOptions) -> list[Predictor]:
    """Simpler ways to draft."""
    methods: list[Predictor] = []
    vocab_size = model.backbone.vocab_size
    if texts.learned:
        counts = NGram((piece.ids for piece in texts.learned), vocab_size, options.depth)
        methods.append(NGrams(counts))
    methods += [PromptLookup(), RepeatLast()]
    if options.draft_model is not None:
        draft = model.draft_model(options.draft_model)
        methods.append(DraftModel(draft.backbone, vocab_size))
    return methods


def _layers(model: MTPModel, texts: Texts, options: ProbeOptions, stage: Stage) -> LayerTable:
    probes, positions = None, options.read_at
    if texts.blocks is not None:
        with stage("Training linear probes") as progress:
            probes = train_probes(
                model, texts.blocks, layers=spread_layers(model.backbone.num_layers),
                depth=options.depth, positions=TRAINED_ON * positions, seed=options.seed,
                progress=progress,
            )  # fmt: skip
    with stage("Reading layers") as progress:
        return read_layers(
            model, texts.measured, depth=options.depth, positions=positions, probes=probes,
            seed=options.seed, progress=progress,
        )  # fmt: skip
