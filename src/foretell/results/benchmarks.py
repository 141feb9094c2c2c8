"""The tables of `benchmarks/`, `tests/engines/` and `tests/compatibility.py`.

Fields that are not explained mean what they mean in `foretell.results.tables`.
"""

from dataclasses import dataclass

from foretell.results.rows import Row
from foretell.results.tables import ScoredByDepth


@dataclass(frozen=True, kw_only=True)
class Recipe(ScoredByDepth, table="recipes", title="by recipe and depth"):
    """One run of `recipes.py`, at one depth of held-out text.

    Attributes:
        method: the run's name.
        recipe: none: what the backbone knows without training.
        seconds: of training.
        tokens_per_forward: to expect; stands at depth 0.
    """

    recipe: str
    tap: str | None = None
    seconds: float | None = None
    tokens_per_forward: float | None = None


@dataclass(frozen=True, kw_only=True)
class Identity(Row, table="identity", title="by family and method"):
    """Greedy outputs of one family and method, beside those of transformers.

    Attributes:
        depth: K.
        family: the backbone's model_type.
    """

    method: str
    depth: int | None = None
    prompts: int
    identical: int
    tokens: int
    forwards: int
    tokens_per_forward: float
    family: str


@dataclass(frozen=True, kw_only=True)
class DropIn(Row, table="drop-in", title="by method"):
    """One run of somebody else's trainer, patched or not.

    Attributes:
        seconds: of CPU time, within `generate`.
    """

    method: str
    prompts: int
    identical: int
    tokens: int
    forwards: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NearTies(Row, table="near-ties", title="by type and method"):
    """How one way to decode differs from one-token passes, in one type of numbers.

    Attributes:
        prompts: that were decoded.
        identical: prompts in which no token changed.
        tokens: compared.
        changed: of these.
    """

    method: str
    prompts: int
    identical: int
    tokens: int
    batch: int
    dtype: str
    pass_width: int | None = None
    changed: int


@dataclass(frozen=True, kw_only=True)
class TokenChange(Row, table="token-changes", title="changed tokens"):
    """One token that differs from that of one-token passes.

    Attributes:
        gap: between the two largest logits of the one-token pass there.
    """

    method: str
    batch: int
    dtype: str
    pass_width: int | None = None
    gap: float


@dataclass(frozen=True, kw_only=True)
class StepPart(Row, table="step-time", title="by part of a step"):
    """The time that one part of decoding takes.

    Attributes:
        tokens: decoded.
        part: prompt, draft, verify, accept, host; whole: all, without waiting in between.
        share: of the seconds of all parts.
    """

    method: str
    tokens: int
    seconds: float
    batch: int
    share: float | None = None
    part: str


@dataclass(frozen=True, kw_only=True)
class Draws(Row, table="draws", title="by drafter and rule"):
    """Continuations drawn by one drafter and rule, beside exact enumeration.

    Attributes:
        identical: draws that are those of large batches.
        drafter: as `tests/test_sampling.py` names it.
        rule: of acceptance.
        draws: how many.
        p_value: of a chi-square test.
    """

    identical: int
    batch: int
    drafter: str
    rule: str
    draws: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class LossMemory(Row, table="loss-memory", title="by method"):
    """Memory and time of one way to compute the loss, forward and backward.

    Attributes:
        nll: nats per token, mean over the heads.
        peak_memory_bytes: beyond weights and hidden states.
        n: heads.
    """

    method: str
    nll: float | None = None
    positions: int
    seconds: float
    peak_memory_bytes: int
    n: int


@dataclass(frozen=True, kw_only=True)
class TrainingCost(Row, table="training-cost", title="by method"):
    """What a step of training costs, one way.

    Attributes:
        speedup: over next-token training.
        seconds: of a step.
    """

    method: str
    tokens_per_second: float
    speedup: float
    seconds: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Marginalized(Row, table="marginalization", title="by method"):
    """Time and memory of one way to marginalize.

    Attributes:
        speedup: per position, over separate forwards.
        peak_memory_bytes: beyond the model.
        gap: largest difference of the methods' probabilities.
    """

    method: str
    depth: int
    speedup: float
    positions: int
    seconds: float
    peak_memory_bytes: int
    gap: float


@dataclass(frozen=True, kw_only=True)
class ClientLoad(Row, table="client-load", title="as clients see it"):
    """How requests of one kind to a server went.

    Attributes:
        prompts: that were answered.
        identical: answers that are what the model says alone.
        request: what clients do: stream, whole, malformed, aborted.
        requests: how many.
        errors: answers that should not have been, or that never came.
        median_seconds: from a request to the end of its answer.
        p90_seconds: likewise.
        p99_seconds: likewise.
        first_token_seconds: median, from a request to its first text.
    """

    prompts: int | None = None
    identical: int | None = None
    tokens: int | None = None
    tokens_per_forward: float | None = None
    tokens_per_second: float | None = None
    request: str
    requests: int
    errors: int
    median_seconds: float | None = None
    p90_seconds: float | None = None
    p99_seconds: float | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ServerLoad(Row, table="server-load", title="as the server counts"):
    """All requests, as the server counts them.

    Attributes:
        peak_memory_bytes: of its process.
        batch: mean over passes.
        request: says that it is all of them.
    """

    tokens: int
    forwards: int
    tokens_per_forward: float
    tokens_per_second: float
    seconds: float
    peak_memory_bytes: int
    batch: float
    request: str


@dataclass(frozen=True, kw_only=True)
class Engine(Row, table="engines", title="by layout"):
    """Heads in a serving engine, beside the same heads here.

    Attributes:
        model: the case's name.
        depth: tokens of a draft.
        family: the backbone's model_type.
        layout: of the exported checkpoint.
        drafts: rounds in which something was drafted.
        accepted: drafted tokens that stand.
        accepted_by_place: the same by place in the draft, as text.
        engine_drafts: as the engine counts, and so on.
        equal: whether its counts are ours.
        error: why there is no figure.
    """

    depth: int
    prompts: int | None = None
    identical: int | None = None
    tokens_per_second: float | None = None
    family: str
    layout: str
    drafts: int | None = None
    accepted: int | None = None
    accepted_by_place: str | None = None
    engine_drafts: int | None = None
    engine_accepted: int | None = None
    engine_accepted_by_place: str | None = None
    engine_tokens_per_second: float | None = None
    equal: bool | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class EngineSpeed(Row, table="engine-speed", title="by method"):
    """How fast heads decode, here or in a serving engine."""

    method: str
    prompts: int
    identical: int
    tokens: int
    forwards: int
    tokens_per_forward: float
    tokens_per_second: float
    seconds: float
    batch: int


@dataclass(frozen=True, kw_only=True)
class Compatibility(Row, table="compatibility", title="by environment"):
    """How the tests went in one environment.

    Attributes:
        environment: oldest, pinned, newest.
        passed: tests.
        failed: likewise.
        skipped: likewise.
    """

    seconds: int
    environment: str
    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class DraftVocabularySize(
    Row, table="draft-vocabulary-sizes", title="by tokens that can be drafted"
):
    """The same heads, drafting from more or fewer of the model's tokens.

    Attributes:
        size: V', how many can be drafted; 0: none is, plain decoding.
        coverage: the share of what the model says that is among them.
    """

    size: int
    coverage: float
    prompts: int
    identical: int
    tokens: int
    forwards: int
    tokens_per_forward: float
    tokens_per_second: float
    speedup: float
