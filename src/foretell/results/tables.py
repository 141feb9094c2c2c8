"""The tables that commands write.

What is said here of a field holds wherever its name stands:

    method              who drafts or predicts: plain, parallel, sequential, draft-model,
                        prompt-lookup, transformers, marginalization, n-gram, …
    depth               k, which predicts x_{t+1+k}; of drafts, how many tokens long
    positions           how many a mean is over
    prompts, tokens     how many were continued; new ones in all
    forwards            passes of the backbone
    tokens_per_forward  new tokens per pass, counted for every row that a pass continued
    tokens_per_second   new tokens per second
    seconds             of everything that was counted, where nothing else is said
    speedup             over `plain` in the same run
    identical           how many outputs equal plain greedy decoding; None where tokens are drawn
    peak_memory_bytes   at most, weights included; None where it is not counted
    batch               rows decoded at once
    temperature         0: greedy
    compiled            whether the decoding step was
    drafter             heads, none, lookup, or the draft model's name; None where it is not said
    tree                the draft's shape, as typed; None for a chain
    pass_width          tokens of every pass, where that was asked for
    draft_length        tokens of a draft as asked for, or auto: chosen while decoding
    acceptance          share of drafted tokens of a depth that stand
    recipe, tap         how heads are trained, and which hidden state they read
    parameters          how many numbers the weights are
"""

from collections.abc import Iterable
from dataclasses import dataclass

from foretell.results.rows import Row
from foretell.tally import Estimate

UNKNOWN = Estimate()


# -- decoding -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speed(Row, table="speed", title="by method"):
    """How fast one method continues prompts, beside the others of the same run."""

    method: str
    prompts: int
    identical: int | None = None
    tokens: int
    forwards: int
    tokens_per_forward: float
    tokens_per_second: float
    speedup: float
    seconds: float
    peak_memory_bytes: int | None = None
    batch: int
    temperature: float = 0.0
    compiled: bool = False
    drafter: str | None = None
    tree: str | None = None
    pass_width: int | None = None
    draft_length: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class AcceptedByDepth(Row, table="accepted-by-depth", title="by method and depth"):
    """How often drafts of one method stand at one depth, while decoding.

    Attributes:
        acceptance: of the steps that reached this depth, the share that accepted it.
    """

    method: str
    depth: int
    acceptance: Estimate
    batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class DraftLength(Row, table="draft-lengths", title="by method and draft length"):
    """How often one length was drafted, where it is chosen while decoding.

    Attributes:
        draft_length: what was drafted, in tokens.
        share: of the passes.
    """

    method: str
    batch: int | None = None
    draft_length: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Generated(Row, table="generated", title="by method"):
    """One continuation of one prompt."""

    method: str
    tokens: int
    forwards: int
    tokens_per_forward: float
    batch: int | None = None
    temperature: float | None = None
    compiled: bool | None = None
    drafter: str | None = None
    tree: str | None = None
    pass_width: int | None = None
    draft_length: int | str | None = None


# -- prediction, teacher-forced -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScoredByDepth(Row, table="depths", title="By depth"):
    """What one method predicts at one depth of held-out text, see `foretell.probe.scores`.

    Attributes:
        top1: share of positions where the likeliest token is the one in the text.
        top5: where that is among the five likeliest.
        nll: nats per token.
        covered_mass: probability that the strings summed over have together.
        acceptance: share of positions where greedy verification would accept all of depths 1…k.
        agreement: where the prediction is the backbone's own choice.
        head: the kind of the heads that predict; None of other methods.
        coverage: share of targets that heads with a draft vocabulary can draft; `nll` is of these.
        bits_per_byte: of depth 0.
        entropy: of the prediction, in nats.
        speculative: probability that tokens drawn up to this depth all stand.
        own_agreement: as `agreement`, after the backbone's own greedy continuation.
        own_acceptance: as `acceptance`, likewise.
        own_speculative: as `speculative`, after what the backbone would draw.
    """

    method: str
    depth: int
    top1: Estimate = UNKNOWN
    top5: Estimate = UNKNOWN
    nll: Estimate = UNKNOWN
    covered_mass: Estimate = UNKNOWN
    acceptance: Estimate = UNKNOWN
    agreement: Estimate = UNKNOWN
    positions: int
    head: str | None = None
    coverage: Estimate = UNKNOWN
    bits_per_byte: float | None = None
    entropy: Estimate = UNKNOWN
    speculative: Estimate = UNKNOWN
    own_agreement: Estimate = UNKNOWN
    own_acceptance: Estimate = UNKNOWN
    own_speculative: Estimate = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Coverage(Row, table="draft-vocabulary", title="Draft vocabulary"):
    """How much of a text the most frequent tokens of other text are.

    Attributes:
        vocabulary: how many tokens.
        coverage: share of the targets that are among them.
    """

    vocabulary: int
    coverage: float


@dataclass(frozen=True, kw_only=True)
class Baseline(ScoredByDepth, table="baselines", title="Baselines, from the probe"):
    """The same of a simpler method, from a probe of the same text."""


@dataclass(frozen=True, kw_only=True)
class ScoredByClass(ScoredByDepth, table="token-classes", title="By class of token"):
    """The same of the positions whose token is of one class.

    Attributes:
        token_class: of the predicted token, see `foretell.probe.classes`.
    """

    token_class: str


@dataclass(frozen=True, kw_only=True)
class ScoredByKind(ScoredByDepth, table="document-kinds", title="By kind of document"):
    """The same of the positions in one kind of document.

    Attributes:
        document_kind: python, markdown, text, conversation, or the name of a file of records.
    """

    document_kind: str


@dataclass(frozen=True, kw_only=True)
class ScoredByLayer(ScoredByDepth, table="layers", title="By layer and depth"):
    """The same of the states of one layer, as the method reads them.

    Attributes:
        layer: the state that enters it; L: what leaves the last block.
        settled: share of positions whose next-token decision no later layer changes.
    """

    layer: int
    settled: Estimate = UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Drift(Row, table="drift", title="From layer to layer"):
    """How far the states of one layer are from others.

    Attributes:
        layer: as in `ScoredByLayer`.
        cka: linear centred kernel alignment with the layer before.
        cka_final: with the last state.
        cosine: with the layer before, mean over positions.
    """

    layer: int
    cka: float
    cka_final: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Expected(Row, table="expected", title="Tokens per forward to expect, by draft length"):
    """Tokens per forward to expect of drafts of one length.

    Attributes:
        rule: of acceptance.
        behind: what is drafted after: the text, or the backbone's own continuation.
    """

    method: str
    depth: int
    tokens_per_forward: Estimate
    rule: str
    behind: str


@dataclass(frozen=True, kw_only=True)
class AcceptedByRule(Row, table="rules", title="What each acceptance rule would accept"):
    """What one acceptance rule would accept of drafts of one length.

    Attributes:
        rule: as `--rule` has it.
        lossless: whether it leaves the distribution of outputs as it is.
    """

    method: str
    depth: int
    tokens_per_forward: Estimate
    acceptance: Estimate
    rule: str
    lossless: bool


@dataclass(frozen=True, kw_only=True)
class CalibrationError(Row, table="calibration-errors", title="Calibration error"):
    """How far the confidence of heads is off, at one depth.

    Attributes:
        ece: expected calibration error, 0…1.
    """

    method: str
    depth: int
    ece: Estimate


@dataclass(frozen=True, kw_only=True)
class AcceptedByConfidence(Row, table="calibration", title="Calibration of the head's confidence"):
    """How often drafted tokens of about one confidence stand.

    Attributes:
        bin: of confidences, from 0.
        confidence: mean probability of the drafted token.
    """

    method: str
    depth: int
    acceptance: Estimate
    positions: int
    bin: int
    confidence: Estimate


# -- models, costs, and what would come of heads --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quality(Row, table="quality", title="Next-token quality"):
    """Bits per byte that a backbone needs for the text."""

    depth: int = 0
    bits_per_byte: Estimate


@dataclass(frozen=True, kw_only=True)
class Difference(Row, table="difference", title="Difference in next-token quality"):
    """By how many bits per byte one model needs more than another.

    Attributes:
        source: the other one, as the user named it.
    """

    bits_per_byte: Estimate
    source: str


@dataclass(frozen=True, kw_only=True)
class HarnessScore(Row, table="lm-eval", title="lm-eval"):
    """One metric of one task of lm-eval.

    Attributes:
        task: its name there.
        metric: likewise.
        value: in the metric's unit.
    """

    task: str
    metric: str
    value: Estimate


@dataclass(frozen=True, kw_only=True)
class PassCost(Row, table="costs", title="Cost of a pass"):
    """What a pass of one width costs, or drafting a token.

    Attributes:
        method: verify, draft; of `benchmarks/verify_cost.py` more.
        tokens: its width.
        seconds: of one pass.
    """

    method: str
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Predicted(Row, table="prediction", title="Predicted"):
    """What heads would bring with drafts of one length, as a range.

    Attributes:
        behind: as in `Expected`.
        chosen: whether this length is what is recommended.
    """

    method: str
    depth: int
    tokens_per_forward: Estimate
    speedup: Estimate
    acceptance: Estimate
    recipe: str
    tap: str
    behind: str
    chosen: bool


# -- what else commands say -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Row, table="models", title="Models"):
    """One model and its heads.

    Attributes:
        depth: K; 0 without heads.
        family: the backbone's model_type.
        head: kind of the heads.
    """

    depth: int
    family: str
    head: str | None = None


@dataclass(frozen=True, kw_only=True)
class LossByDepth(Row, table="losses", title="Loss by depth"):
    """The loss of one depth at the end of training.

    Attributes:
        tokens: that were trained on.
        nll: nats per token.
        seconds: of training.
    """

    method: str
    depth: int
    tokens: int
    tokens_per_second: float | None = None
    nll: float | None = None
    seconds: float
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Distilled(Row, table="distilled", title="Continuations written"):
    """What one call of `foretell distill` wrote."""

    prompts: int
    tokens: int
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ConvertedHeads(Row, table="converted-heads", title="Heads converted"):
    """Heads exported to an external layout, or imported from one.

    Attributes:
        method: their kind.
        depth: K; of an import the modules.
    """

    method: str | None = None
    depth: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Served(Row, table="served", title="Served"):
    """What a server was started with."""

    method: str
    depth: int
    draft_length: int | str | None = None


def near_ties(rows: Iterable[Speed], dtype: str) -> str:
    """What readers have to know of outputs that are not `identical`; empty where all are.

    Args:
        rows: of one comparison.
        dtype: that was decoded in, as provenance has it. Only of half precision something is said.
    """
    checked = [row for row in rows if row.identical is not None]
    differ = any(row.identical != row.prompts for row in checked)
    if not differ or dtype not in ("bfloat16", "float16"):
        return ""
    even = any(row.pass_width for row in checked)
    remedy = "" if even else "; --pass-width N, one more than the longest draft, removes that"
    return (
        f"In {dtype} passes of different widths round differently, and near-ties can fall the "
        f"other way: hence outputs that are not identical{remedy}."
    )
