"""What Prometheus is told."""

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foretell.decoding import Step
from foretell.serve.jobs import Job

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"foretell_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"foretell_{name}", what, registry=registry)

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"foretell_{name}", what, buckets=buckets, registry=registry)

        self.responses = counter("responses", "Answers by path and status.", "path", "status")
        self.cancelled = counter("cancelled", "Requests that ended because nobody read them.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.tokens = counter("generated_tokens", "Tokens emitted.")
        self.forwards = counter("forwards", "Forward passes, once for every row continued.")
        self.passes = counter("passes", "Forward passes, once for every batch.")
        self.tried = counter("drafts_tried", "Steps that judged a draft of this depth.", "depth")
        self.accepted = counter("drafts_accepted", "Steps that accepted this depth.", "depth")
        self.acceptance = Gauge(
            "foretell_acceptance",
            "Share of the steps that reached this depth and accepted it.",
            ("depth",),
            registry=registry,
        )
        self.tokens_per_forward = gauge(
            "tokens_per_forward", "Tokens per forward pass and row since the start; plain has 1."
        )
        self.waiting = gauge("requests_waiting", "Requests in the queue.")
        self.running = gauge("requests_running", "Requests being decoded.")
        self.rows = histogram("batch_rows", "Rows of a batch when it begins.", ROWS)
        self.queued = histogram("queue_seconds", "From a request to its first pass.", SECONDS)
        self.first = histogram("first_token_seconds", "From a request to its first token.", SECONDS)
        self.whole = histogram("request_seconds", "From a request to its last token.", SECONDS)
        self._totals = {"tokens": 0, "forwards": 0}
        self._depths: dict[int, list[int]] = {}

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

    def response(self, path: str, status: int) -> None:
        """A request was answered; `path` is one of a few."""
        self.responses.labels(path, status).inc()

    def load(self, waiting: int, running: int) -> None:
        """How much there is to do."""
        self.waiting.set(waiting)
        self.running.set(running)

    def batch(self, rows: int) -> None:
        """A batch begins."""
        self.rows.observe(rows)

    def forward(self, steps: Sequence[Step]) -> None:
        """A pass over a batch."""
        steps = [step for step in steps if step.tokens]
        self.passes.inc()
        self._count(sum(len(step.tokens) for step in steps), len(steps))
        for step in steps:
            for depth in range(1, min(step.drafted, step.accepted + 1) + 1):
                self._judged(depth, accepted=depth <= step.accepted)

    def _count(self, tokens: int, forwards: int) -> None:
        self.tokens.inc(tokens)
        self.forwards.inc(forwards)
        self._totals["tokens"] += tokens
        self._totals["forwards"] += forwards
        self.tokens_per_forward.set(self._totals["tokens"] / max(1, self._totals["forwards"]))

    def _judged(self, depth: int, *, accepted: bool) -> None:
        counts = self._depths.setdefault(depth, [0, 0])
        counts[0] += 1
        counts[1] += accepted
        self.tried.labels(depth).inc()
        self.accepted.labels(depth).inc(int(accepted))
        self.acceptance.labels(depth).set(counts[1] / counts[0])

    def finished(self, job: Job) -> None:
        """A request ended, of itself or not."""
        self.prompt_tokens.inc(len(job.prompt))
        if job.cancelled:
            self.cancelled.inc()
            return
        moments = (self.queued, job.began), (self.first, job.first), (self.whole, time.monotonic())
        for histogram, moment in moments:
            if moment is not None:
                histogram.observe(moment - job.created)
