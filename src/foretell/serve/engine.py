"""The engine: requests that wait together are decoded as one batch, in one thread.

A batch has one `Settings`, the next one those of the request that has waited longest. Rows end on
their own. While requests wait that could join a batch, it is taken apart and begun anew with them,
once it has written half as many tokens as its rows then read again; so no request waits for a much
longer one. What is drawn depends on where drafts begin, so only greedy batches are begun anew.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from typing import cast

import torch

from foretell.decoding import Batch, DecodeOptions, Drafter, NoDrafter, Step
from foretell.decoding.cache import require_decoding, takes_masks
from foretell.model import MTPModel
from foretell.serve.jobs import Closed, Event, Job, QueueFull, RowStep, Settings
from foretell.serve.limits import Limits
from foretell.serve.metrics import Metrics

log = logging.getLogger(__name__)
REREAD = 0.5
"""So many tokens have been written for each that is read again."""
STOPPING = "the server is shutting down."


class Engine:
    """Decodes jobs until it is closed.

    Args:
        model: that decodes them; put into evaluation mode.
        drafter: that proposes tokens for jobs that want drafts.
        limits: of batch and queue.
        metrics: where is counted what happens.
        auto_length: have every step draft as far as brings most tokens per second.
    """

    def __init__(
        self,
        model: MTPModel,
        drafter: Drafter,
        limits: Limits,
        metrics: Metrics,
        *,
        auto_length: bool = False,
    ) -> None:
        self.model, self.drafter, self.limits, self.metrics = model.eval(), drafter, limits, metrics
        self.auto_length = auto_length
        require_decoding(model.backbone)
        self.batch_size = limits.max_batch if takes_masks(model.backbone) else 1
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="foretell-engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether it takes requests and answers them."""
        return self._thread.is_alive() and not self._closed

    def submit(self, *jobs: Job) -> None:
        """Put jobs at the end of the queue, all or none.

        Raises:
            QueueFull: as many wait as may, or would then.
            Closed: the server is stopping.
        """
        with self._changed:
            if self._closed:
                raise Closed(STOPPING)
            self._drop_cancelled()
            if len(self._waiting) + len(jobs) > self.limits.max_queue:
                raise QueueFull(f"{len(self._waiting)} requests wait already; try again later.")
            self._waiting += jobs
            self._count()
            self._changed.notify()

    def close(self, seconds: float = 10.0) -> None:
        """Fail what is left, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    # -- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._decode(jobs)
            except Exception as error:  # whatever it was, it must not take the server down
                if not isinstance(error, Closed):
                    log.exception("a batch of %d failed", len(jobs))
                self._fail(jobs, error.with_traceback(None))  # its frames hold the batch's memory
        self._fail(self._waiting, Closed(STOPPING))

    def _next(self) -> list[Job]:
        """What to decode next, the rows of a batch taken apart first; nothing at the end."""
        with self._changed:
            jobs = [job for job in self._running if not job.finished]
            while not jobs and not self._closed:
                jobs = self._joining([])
                if not jobs:
                    self._running = []
                    self._count()
                    self._changed.wait()
            self._running = [*jobs, *self._joining(jobs)] if jobs else []
            self._count()
            return list(self._running)

    def _joining(self, jobs: list[Job]) -> list[Job]:
        """Take those from the queue that go with `jobs`, the longest waiting first."""
        self._drop_cancelled()
        found: list[Job] = []
        while self._waiting and len(jobs) + len(found) < self.batch_size:
            if [*jobs, *found, self._waiting[0]][0].settings != self._waiting[0].settings:
                break
            found.append(self._waiting.popleft())
        return found

    def _drop_cancelled(self) -> None:
        for job in self._waiting:
            if job.cancelled:
                self._finish(job)
        self._waiting = deque(job for job in self._waiting if not job.finished)

    def _decode(self, jobs: list[Job]) -> None:
        """Continue some rows until all have ended, or others should join them."""
        batch, settings = _batch(self.model, jobs), jobs[0].settings
        sampling = replace(settings.sampling, seeds=[job.seed for job in jobs])
        options = DecodeOptions(
            sampling=sampling,
            drafter=self.drafter if settings.drafted else NoDrafter(),
            auto_length=self.auto_length and settings.drafted,
        )
        self.metrics.batch(len(jobs))
        for job in jobs:
            job.began_now()
        written = 0
        stream = self.model.run(batch, options)
        with closing(cast("Generator[tuple[Step, ...]]", stream)):
            for steps in stream:
                self.metrics.forward(steps)
                for row, (job, step) in enumerate(zip(jobs, steps, strict=True)):
                    self._deliver(job, step, ended=not batch.rows[row].active)
                    if job.cancelled:
                        batch.rows[row].active = False
                        self._finish(job)
                written += sum(len(step.tokens) for step in steps)
                if self._closed:
                    raise Closed(STOPPING)
                if self._worth_joining(settings, jobs, written):
                    return

    def _worth_joining(self, settings: Settings, jobs: Iterable[Job], written: int) -> bool:
        """Whether somebody waits who could be decoded with those still running."""
        running = [job for job in jobs if not job.finished]
        again = sum(len(job.prompt) + len(job.written) for job in running)
        if not 0 < len(running) < self.batch_size or written < REREAD * again:
            return False
        if not settings.sampling.greedy:
            return False
        with self._changed:
            self._drop_cancelled()
            return bool(self._waiting) and self._waiting[0].settings == settings

    def _deliver(self, job: Job, step: Step, ended: bool) -> None:
        if job.finished or not step.tokens:
            return
        job.written += step.tokens
        now = time.monotonic()
        job.first = job.first or now
        self._send(job, RowStep(step, now - (job.began or now), ended))
        if ended:
            self._finish(job)

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        for job in jobs:
            if not job.finished:
                self._send(job, error)
                self._finish(job)

    def _send(self, job: Job, event: Event) -> None:
        try:
            job.deliver(event)
        except Exception:  # the other side is gone: its loop is closed
            job.cancelled = True

    def _finish(self, job: Job) -> None:
        if not job.finished:
            job.finished = True
            self.metrics.finished(job)
            self._count()

    def _count(self) -> None:
        running = sum(not job.finished for job in self._running)
        self.metrics.load(len(self._waiting), running)


def _batch(model: MTPModel, jobs: list[Job]) -> Batch:
    """Their rows, each after what it has written so far."""
    rows = [job.tokens for job in jobs]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    limits = [job.room for job in jobs]
    stops = [job.remaining_stops for job in jobs]
    prompts = [len(job.prompt) for job in jobs]
    return Batch(model.backbone, tokens, mask, limits, row_stops=stops, prompt_lengths=prompts)
