"""The engine alone: which rows share a batch, how they end, and what they say."""

import gc
import queue
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import families
import foretell as ft
from foretell.decoding import Batch, DecodeOptions, NoDrafter, Sampling, StopTokens, drafter_for
from foretell.errors import InputError
from foretell.serve import Engine, Job, Limits, Metrics, RowStep, Settings
from foretell.serve.jobs import Closed, QueueFull

GREEDY = Settings(Sampling())


class Waiting(NoDrafter):
    """Proposes nothing, and only when it is told to go on."""

    def __init__(self) -> None:
        self.drafting, self.go = threading.Event(), threading.Semaphore(0)

    def draft(self, committed: Any, limit: int) -> Any:
        self.drafting.set()
        assert self.go.acquire(timeout=30)
        return super().draft(committed, limit)


class Failing(NoDrafter):
    def draft(self, committed: Any, limit: int) -> Any:
        raise RuntimeError("out of memory, say")


@dataclass
class Row:
    """A job, and what it was told."""

    prompt: list[int]
    tokens: int = 12
    settings: Settings = GREEDY
    seed: int = 0
    stops: tuple[Any, ...] = ()
    events: "queue.Queue[Any]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.job = Job(
            self.prompt, self.settings, self.tokens, self.stops, self.seed, self.events.put
        )

    def all(self) -> list[int]:
        """Its tokens, when it has ended."""
        found: list[int] = []
        while True:
            event = self.events.get(timeout=30)
            if isinstance(event, Exception):
                raise event
            assert isinstance(event, RowStep)
            found += event.step.tokens
            if event.ended:
                return found


@pytest.fixture(scope="module")
def model() -> ft.MTPModel:
    return ft.attach(families.build("llama"), "parallel", depth=3)


@contextmanager
def engine_of(
    model: ft.MTPModel, drafter: Any = None, *, auto_length: bool = False, **limits: int
) -> Iterator[Engine]:
    drafter = drafter or drafter_for(model.backbone, model.require_head())
    engine = Engine(model, drafter, Limits(**limits), Metrics(), auto_length=auto_length)
    try:
        yield engine
    finally:
        if isinstance(drafter, Waiting):
            drafter.go.release(10_000)
        engine.close()
        assert not engine.healthy


def prompt(seed: int, length: int = 7) -> list[int]:
    return [int(token) for token in families.prompt(1, length, seed)[0]]


def alone(model: ft.MTPModel, row: Row) -> list[int]:
    """The same by itself, without drafts."""
    ids = torch.tensor([row.prompt])
    return model.decode(ids, max_new_tokens=row.tokens, drafter=NoDrafter()).new_tokens


def test_rows_of_any_length_say_what_each_says_alone(model: ft.MTPModel) -> None:
    rows = [Row(prompt(n, 3 + 2 * n), tokens=4 + 3 * n) for n in range(6)]
    with engine_of(model, max_batch=4) as engine:
        for row in rows:
            engine.submit(row.job)
        assert [row.all() for row in rows] == [alone(model, row) for row in rows]


def test_lengths_are_chosen_by_what_earlier_batches_measured() -> None:
    model = ft.attach(families.build("llama"), "parallel", depth=3)
    rows = [Row(prompt(n), tokens=60) for n in range(8)]
    with engine_of(model, auto_length=True, max_batch=2) as engine:
        for row in rows:
            engine.submit(row.job)
        assert [row.all() for row in rows] == [alone(model, row) for row in rows]
    two = Batch(model.backbone, torch.tensor([prompt(0), prompt(1)]), None, 60)
    greedily, warm = (
        DecodeOptions(
            sampling=Sampling(temperature=temperature), drafter=engine.drafter, auto_length=True
        )
        .lengths(model.backbone, two)
        .measured
        for temperature in (0.0, 0.5)
    )
    assert greedily.worth is not None
    assert set(greedily.costs) <= {1, 2, 3}
    assert warm.worth is None
    assert not warm.waited


def test_requests_that_wait_together_share_a_batch(model: ft.MTPModel) -> None:
    drafter = Waiting()
    plain = Settings(Sampling(), drafted=False)
    first, same, other, later = (
        Row(prompt(1), 40),
        [Row(prompt(n), 3) for n in (2, 3)],
        Row(prompt(4), 3, plain),
        Row(prompt(5), 3),
    )
    with engine_of(model, drafter) as engine:
        engine.submit(first.job)
        assert drafter.drafting.wait(30)
        for row in (*same, other, later):
            engine.submit(row.job)
        rows = engine.metrics.rows
        drafter.go.release(100)
        for row in (first, *same, other, later):
            assert row.all() == alone(model, row)
        # The first alone, then with those that joined it, the plain one by itself, the last.
        assert rows._sum.get() == 1 + 3 + 1 + 1
        assert same[0].job.began < first.job.created + 30


def test_a_short_request_does_not_wait_for_a_long_one(model: ft.MTPModel) -> None:
    drafter = Waiting()
    long, short = Row(prompt(1), 300), Row(prompt(2), 2)
    with engine_of(model, drafter) as engine:
        engine.submit(long.job)
        assert drafter.drafting.wait(30)
        engine.submit(short.job)
        drafter.go.release(20)
        assert short.all() == alone(model, short)
        assert len(long.job.written) < 40
        drafter.go.release(1000)
        assert long.all() == alone(model, long)


def test_stops_reach_back_over_a_new_beginning(model: ft.MTPModel) -> None:
    """A row that was taken up again still knows what it wrote before."""
    seen: list[list[int]] = []

    class Recording:
        def __call__(self, before: Any, new: Any) -> None:
            seen.append([*before, *new])

    drafter = Waiting()
    long, short = Row(prompt(1), 24, stops=(Recording(),)), Row(prompt(2), 2)
    with engine_of(model, drafter) as engine:
        engine.submit(long.job)
        assert drafter.drafting.wait(30)
        engine.submit(short.job)
        drafter.go.release(100)
        expected = long.all()
    assert seen == [expected[:n] for n in range(1, 25)]


def test_rows_have_stops_of_their_own(model: ft.MTPModel) -> None:
    free = alone(model, Row(prompt(1)))
    end = free[5]
    stopping = Row(prompt(1), stops=(StopTokens([end]),))
    going = Row(prompt(1))
    with engine_of(model) as engine:
        engine.submit(stopping.job)
        engine.submit(going.job)
        assert stopping.all() == free[: free.index(end) + 1]
        assert going.all() == free


def test_a_seed_gives_the_same_text_whatever_the_neighbours(model: ft.MTPModel) -> None:
    drawn = Settings(Sampling(temperature=1.0, top_p=0.95))
    rows = [Row(prompt(1), settings=drawn, seed=n % 3) for n in range(6)]
    with engine_of(model) as engine:
        engine.submit(rows[0].job)
        first = rows[0].all()
        for row in rows[1:]:
            engine.submit(row.job)
        others = [row.all() for row in rows[1:]]
    assert others[2] == first
    assert others[0] == others[3]
    assert len({tuple(text) for text in (first, *others)}) == 3
    sampling = Sampling(temperature=1.0, top_p=0.95, seeds=0)
    ids = torch.tensor([prompt(1)])
    assert model.decode(ids, max_new_tokens=12, sampling=sampling).new_tokens == first


def test_cancelled_rows_end_and_their_neighbours_go_on(model: ft.MTPModel) -> None:
    drafter = Waiting()
    rows = [Row(prompt(n), 50) for n in range(3)]
    with engine_of(model, drafter, max_batch=2) as engine:
        with engine._changed:  # so that the first two share a batch
            for row in rows:
                engine.submit(row.job)
        assert drafter.drafting.wait(30)
        rows[0].job.cancelled = rows[2].job.cancelled = True  # one runs, one waits
        drafter.go.release(200)
        assert rows[1].all() == alone(model, rows[1])
        for _ in range(2):
            last = Row(prompt(5), 1)  # so that the queue has been looked at
            engine.submit(last.job)
            last.all()
        assert len(rows[0].job.written) < 4
        assert rows[2].job.written == []
        assert rows[0].job.finished
        assert rows[2].job.finished
        assert engine.metrics.cancelled._value.get() == 2


def test_the_queue_is_bounded(model: ft.MTPModel) -> None:
    drafter = Waiting()
    rows = [Row(prompt(n), 5) for n in range(4)]
    with engine_of(model, drafter, max_queue=2, max_batch=1) as engine:
        engine.submit(rows[0].job)
        assert drafter.drafting.wait(30)
        engine.submit(rows[1].job)
        engine.submit(rows[2].job)
        with pytest.raises(QueueFull, match="2 requests wait already"):
            engine.submit(rows[3].job)
        rows[1].job.cancelled = True
        engine.submit(rows[3].job)
        drafter.go.release(100)
        assert rows[3].all() == alone(model, rows[3])


def test_a_batch_that_fails_takes_only_its_rows_along(
    model: ft.MTPModel, caplog: pytest.LogCaptureFixture
) -> None:
    with engine_of(model, Failing()) as engine:
        failing = Row(prompt(1))
        engine.submit(failing.job)
        with pytest.raises(RuntimeError, match="out of memory"):
            failing.all()
        fine = Row(prompt(1), settings=Settings(Sampling(), drafted=False))
        engine.submit(fine.job)
        assert fine.all() == alone(model, fine)
        assert engine.healthy
    assert "a batch of 1 failed" in caplog.text


def test_a_batch_that_fails_leaves_nothing_in_memory(model: ft.MTPModel) -> None:
    """After an out-of-memory, the frames of a traceback would keep the memory that is lacking."""
    with engine_of(model, Failing()) as engine:
        failing = Row(prompt(1))
        engine.submit(failing.job)
        while isinstance(event := failing.events.get(timeout=30), RowStep):
            pass
    assert isinstance(event, RuntimeError)
    assert event.__traceback__ is None


def test_closing_fails_what_runs_and_what_waits(model: ft.MTPModel) -> None:
    drafter = Waiting()
    rows = [Row(prompt(n), 50) for n in range(2)]
    with engine_of(model, drafter, max_batch=1) as engine:
        for row in rows:
            engine.submit(row.job)
        assert drafter.drafting.wait(30)
        drafter.go.release(1)
        engine.close(0)
        drafter.go.release(1)
        for row in rows:
            with pytest.raises(Closed):
                row.all()
        with pytest.raises(Closed):
            engine.submit(Row(prompt(3)).job)


def test_a_backbone_without_masks_decodes_one_row_at_a_time() -> None:
    model = ft.attach(families.build("qwen3_next"), "parallel", depth=2)
    rows = [Row(prompt(n), 5) for n in range(2)]
    with engine_of(model) as engine:
        assert engine.batch_size == 1
        for row in rows:
            engine.submit(row.job)
        assert [row.all() for row in rows] == [alone(model, row) for row in rows]


def test_nothing_is_kept_of_requests_that_are_done(model: ft.MTPModel) -> None:
    with engine_of(model) as engine:
        kept = []
        for number in range(4):
            row = Row(prompt(number), 3)
            engine.submit(row.job)
            row.all()
            kept.append(weakref.ref(row.job))
        row = Row(prompt(9), 1)
        engine.submit(row.job)
        row.all()
        gc.collect()
        assert [reference() for reference in kept] == [None] * 4


def test_limits_are_at_least_one() -> None:
    with pytest.raises(InputError, match="max_queue is 0; it must be at least 1"):
        Limits(max_queue=0)
