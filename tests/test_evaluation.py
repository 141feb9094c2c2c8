import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import families
import foretell as ft
import report_files
from foretell.data import PackedBlocks
from foretell.decoding import (
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    Sampling,
    Step,
    TreeShape,
    drafter_for,
)
from foretell.errors import InputError
from foretell.evaluation import (
    DepthTable,
    Foretell,
    Transformers,
    acceptance_by_depth,
    compare,
    loop_start,
    measure_heads,
    measure_marginals,
    speed,
)
from foretell.evaluation.calibration import calibrate, calibration_rows
from foretell.evaluation.harness import run_harness
from foretell.evaluation.loops import LOOK_AHEAD, MAX_PERIOD, MIN_LENGTH, MIN_REPEATS
from foretell.evaluation.methods import Continuation
from foretell.evaluation.rules import accepted_by_rule, reported
from foretell.evaluation.verdict import Verdict, verdict_of_depths, verdict_of_speed
from foretell.probe.prediction import Costs
from foretell.results.tables import AcceptedByDepth, Speed
from foretell.tally import Estimate, Tally

# -- loops --------------------------------------------------------------------------------------


def naive_loop_start(tokens: list[int]) -> int | None:
    """By the definition: the earliest second cycle over all periods and starts."""
    found = [
        start + period
        for period in range(1, MAX_PERIOD + 1)
        for start in range(len(tokens) - max(MIN_REPEATS * period, MIN_LENGTH) + 1)
        if all(tokens[i] == tokens[i + period] for i in range(start, len(tokens) - period))
    ]
    return min(found, default=None)


@given(
    prefix=st.integers(0, 30),
    period=st.integers(1, 70),
    repeats=st.integers(1, 5),
    extra=st.integers(0, 69),
)
@example(prefix=0, period=1, repeats=3, extra=0)
@example(prefix=5, period=64, repeats=3, extra=0)
def test_a_loop_starts_where_its_cycle_comes_again(prefix, period, repeats, extra) -> None:
    length = repeats * period + extra % period
    tokens = [*range(-prefix, 0), *(i % period for i in range(length))]
    loops = period <= MAX_PERIOD and length >= max(MIN_REPEATS * period, MIN_LENGTH)
    assert loop_start(tokens) == (prefix + period if loops else None)


@given(st.lists(st.integers(0, 2), max_size=40))
def test_loops_are_those_of_the_definition(tokens: list[int]) -> None:
    assert loop_start(tokens) == naive_loop_start(tokens)


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ([], None),
        ([7], None),
        ([7] * (MIN_LENGTH - 1), None),
        ([7] * MIN_LENGTH, 1),
        ([1, 2] * 5 + [1], None),
        ([1, 2] * 6, 2),
        ([9, 1, 2] + [1, 2] * 5, 3),
        ([2, 1, 2] + [1, 2] * 5, 2),  # what stands before belongs to the cycle
        (list(range(5)) * 2 + list(range(4)), None),
        (list(range(5)) * 3, 5),
        (list(range(MAX_PERIOD)) * 3, MAX_PERIOD),
        (list(range(MAX_PERIOD + 1)) * 4, None),
        ([7] * 30 + [8], None),  # it must last to the end
        (list(range(100)), None),
    ],
)
def test_boundary_cases_of_loops(tokens: list[int], start: int | None) -> None:
    assert loop_start(tokens) == start


# -- by depth -----------------------------------------------------------------------------------

SIZE = 12
STARTS = (0, 5, 17, 18, 30)


def packed(blocks: int = 4, vocab: int = families.VOCAB) -> PackedBlocks:
    """Four blocks; documents begin at `STARTS`, one in the middle of every block but the last."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, vocab, (blocks, SIZE), generator=generator).numpy().astype(np.int32)
    return PackedBlocks(tokens, np.array(STARTS), num_bytes=120)


def filled(vocab: int = families.VOCAB) -> PackedBlocks:
    """Three blocks of one document each; the first and last are filled up with zeros."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, vocab, (3, SIZE), generator=generator).numpy().astype(np.int32)
    lengths = np.array([7, SIZE, 9])
    for block, length in zip(tokens, lengths, strict=True):
        block[length:] = 0
    return PackedBlocks(tokens, np.array([0, 12, 24]), num_bytes=80, lengths=lengths)


def documents(blocks: PackedBlocks, indices: Iterable[int]) -> list[Tensor]:
    """The stretches of documents in the blocks, each a row of its own."""
    rows = []
    for index in indices:
        block = blocks[index]
        tokens = block["input_ids"][block.get("labels", block["input_ids"]) >= 0]
        starts = (block["position_ids"][: len(tokens)] == 0).nonzero().flatten().tolist()
        rows += [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    return rows


@torch.inference_mode()
def naive(model: ft.MTPModel, rows: list[Tensor]) -> list[dict[str, float]]:
    """Every document alone, every position by hand."""
    names = ("n", "top1", "top5", "nll", "agreement", "acceptance")
    sums = [dict.fromkeys(names, 0.0) for _ in range(4)]
    for row in rows:
        tokens = row.unsqueeze(0)
        own = model.lm(tokens, use_cache=False).logits[0]
        predictions = [own]
        if model.head is not None:
            output = model.backbone(tokens, layers=model.layers)
            for hidden in model.depth_hidden(tokens, output):
                predictions.append(model.lm.lm_head(hidden)[0])
        for total, logits, k in zip(sums, predictions, range(4), strict=False):
            for t in range(len(row) - 1 - k):
                target, chances = int(row[t + 1 + k]), logits[t].double().log_softmax(-1)
                ranked = chances.argsort(descending=True).tolist()
                total["n"] += 1
                total["top1"] += ranked[0] == target
                total["top5"] += target in ranked[:5]
                total["nll"] -= float(chances[target])
                total["agreement"] += ranked[0] == int(own[t + k].argmax())
                total["acceptance"] += all(
                    int(predictions[depth][t].argmax()) == int(own[t + depth].argmax())
                    for depth in range(k + 1)
                )
    sums = sums[: model.depth + 1]
    means = [{name: total[name] / total["n"] for name in total} for total in sums]
    return [{**mean, "n": total["n"]} for mean, total in zip(means, sums, strict=True)]


def check(table: DepthTable, expected: list[dict[str, float]]) -> None:
    rows = table.rows()
    assert [row.depth for row in rows] == list(range(len(expected)))
    assert table.positions == expected[0]["n"]
    for row, mean in zip(rows, expected, strict=True):
        assert row.positions == mean["n"]
        for name in ("top1", "top5", "nll", "agreement", "acceptance"):
            assert getattr(row, name).value == pytest.approx(mean[name], abs=1e-5), (
                row.depth,
                name,
            )


@pytest.mark.parametrize("corpus", [packed, filled])
@pytest.mark.parametrize("head", ["parallel", "sequential"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_heads_are_measured_as_a_naive_loop_would(family: str, head: str, corpus) -> None:
    # Copies of a block, with a final norm before the shared output, predict more than nothing.
    model = ft.attach(families.build(family), head, depth=2, tap="final", init="copy").eval()
    model.lm.lm_head = model.lm.get_output_embeddings()  # the same name in both families
    blocks = corpus()
    table = measure_heads(model, blocks)
    expected = naive(model, documents(blocks, range(len(blocks))))
    check(table, expected)
    assert table.method == head
    assert all(row.covered_mass.value == 1 for row in table.rows())
    nats = expected[0]["nll"] / (blocks.num_bytes / blocks.num_tokens)
    assert table.bits_per_byte == pytest.approx(nats / math.log(2), rel=1e-5)


def test_a_limit_reads_the_first_blocks() -> None:
    model, blocks, seen = ft.MTPModel(families.build("llama")).eval(), packed(), []
    model.lm.lm_head = model.lm.get_output_embeddings()
    table = measure_heads(model, blocks, limit=2, progress=seen.append)
    check(table, naive(model, documents(blocks, range(2))))
    assert table.method == "plain"
    assert seen == [0.5, 1.0]
    assert (
        measure_heads(model, blocks, limit=99).positions == measure_heads(model, blocks).positions
    )


def test_the_loss_is_that_of_training() -> None:
    model, blocks = ft.attach(families.build("llama"), depth=2).eval(), packed()
    batch = [blocks[index] for index in range(len(blocks))]
    output = model(
        torch.stack([block["input_ids"] for block in batch]),
        position_ids=torch.stack([block["position_ids"] for block in batch]),
    )
    found = [row.nll.value for row in measure_heads(model, blocks).rows()]
    torch.testing.assert_close(torch.tensor(found), output.depth_losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_blocks_are_no_measurement(limit: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        measure_heads(ft.MTPModel(families.build("llama")), packed(), limit=limit)


def test_documents_that_end_before_the_last_depth_are_refused() -> None:
    """Depths 0 and 1 have targets; of the others nothing could be said, nor whether heads pay."""
    torch.manual_seed(0)
    model = ft.attach(families.build("llama"), "parallel", depth=3)
    short = PackedBlocks(np.ones((4, 3), np.int32), np.arange(4) * 3, num_bytes=12)
    with pytest.raises(InputError, match="target at every depth"):
        measure_heads(model, short)


def test_a_depth_that_one_document_reaches_has_no_interval() -> None:
    torch.manual_seed(0)
    model = ft.attach(families.build("llama"), "parallel", depth=3)
    starts = np.array([0, 3, 6, 9])  # three of 3 tokens, and one of 11
    mixed = PackedBlocks(families.prompt(1, 20).numpy().astype(np.int32), starts, num_bytes=20)
    table = measure_heads(model, mixed)
    assert [row.top1.low is None for row in table.rows()] == [False, False, True, True]
    for row in table.all_rows():
        if row.depth >= 2:
            assert not any(name.endswith(("_low", "_high")) for name in row.flat())


def whole_rows(depth: int) -> PackedBlocks:
    """Blocks of one document with 16 positions that have a target at every depth."""
    generator = torch.Generator().manual_seed(1)
    size = 17 + depth
    tokens = torch.randint(0, 13, (3, size), generator=generator).numpy().astype(np.int32)
    return PackedBlocks(tokens, np.arange(3) * size, num_bytes=3 * size)


def test_marginals_read_prompts_and_predict_none() -> None:
    """Answers in the middle and at the end of a conversation; a block without any is left out."""
    size = 2 * SIZE
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, families.VOCAB, (2, size), generator=generator)
    learned = np.zeros((2, size), bool)
    learned[0, 5:9] = learned[0, -6:-1] = True
    blocks = PackedBlocks(
        tokens.numpy().astype(np.int32), np.array([0, size]), num_bytes=1, learned=learned
    )
    model = ft.MTPModel(families.build("llama")).eval()
    table = measure_marginals(model, blocks, depth=1, width=families.VOCAB, positions=32)
    with torch.inference_mode():
        logits = model.lm(tokens[:1]).logits[0]
    # From where the token after next is learned too: depth 0 of each answer but its last token.
    places = [t for t in range(size - 2) if learned[0, t + 1] and learned[0, t + 2]]
    assert len(places) == 3 + 4
    nll = torch.nn.functional.cross_entropy(logits[places], tokens[0, [t + 1 for t in places]])
    assert [row.positions for row in table.rows()] == [7, 7]
    assert table.rows()[0].nll.value == pytest.approx(float(nll), rel=1e-5)


def test_marginals_over_every_token_are_the_naive_ones() -> None:
    model, blocks, seen = ft.MTPModel(families.build("llama")).eval(), whole_rows(1), []
    width = families.VOCAB
    table = measure_marginals(
        model, blocks, depth=1, width=width, positions=48, progress=seen.append
    )
    sums = np.zeros((2, 5))
    with torch.inference_mode():
        for row in documents(blocks, range(3)):
            own = model.lm(row.unsqueeze(0)).logits[0].double().softmax(-1)
            for t in range(16):
                prefix = row[: t + 1].expand(width, -1)
                rows = torch.cat([prefix, torch.arange(width).unsqueeze(1)], dim=1)
                after = model.lm(rows).logits[:, -1].double().softmax(-1)
                stands = True
                for k, chances in enumerate((own[t], own[t] @ after)):
                    ranked, target = chances.argsort(descending=True), row[t + 1 + k]
                    stands = stands and bool(ranked[0] == own[t + k].argmax())
                    sums[k] += (
                        float(ranked[0] == target),
                        float((ranked[:5] == target).any()),
                        -float(chances[target].log()),
                        float(ranked[0] == own[t + k].argmax()),
                        float(stands),
                    )
    names = ("top1", "top5", "nll", "agreement", "acceptance")
    expected = [{"n": 48, **dict(zip(names, total / 48, strict=True))} for total in sums]
    check(table, expected)
    assert table.method == "marginalization"
    assert [row.covered_mass.value for row in table.rows()] == pytest.approx([1, 1], abs=1e-5)
    assert seen == [pytest.approx(share) for share in (1 / 3, 2 / 3, 1)]


def test_positions_are_drawn_by_the_seed() -> None:
    model, blocks = ft.MTPModel(families.build("llama")), packed()

    def rows(seed: int, positions: int = 3):
        return measure_marginals(
            model, blocks, depth=1, width=4, positions=positions, seed=seed
        ).rows()

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)
    assert rows(0)[0].positions == rows(0)[1].positions == 3
    assert measure_marginals(model, filled(), depth=2, width=2, positions=99).positions == 4 + 6 + 9


@pytest.mark.parametrize(
    "wrong", [{"positions": 0}, {"depth": -1}, {"depth": -9}, {"width": 0}, {"positions": -4}]
)
def test_a_measurement_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    options = {"depth": 1, "width": 2, "positions": 4, **wrong}
    with pytest.raises(InputError):
        measure_marginals(ft.MTPModel(families.build("llama")), packed(), **options)


# -- speed --------------------------------------------------------------------------------------


def steps(*pairs: tuple[int, int]) -> list[Step]:
    return [Step(drafted, accepted, tuple(range(accepted + 1))) for drafted, accepted in pairs]


@pytest.mark.parametrize(
    ("pairs", "shares"),
    [
        ([], {}),
        ([(0, 0), (0, 0)], {}),
        ([(0, 0), (2, 2), (2, 1), (2, 0), (2, 0)], {1: 0.5, 2: 0.5}),
        ([(3, 3), (1, 1), (1, 0)], {1: 2 / 3, 2: 1.0, 3: 1.0}),
        ([(3, 0), (3, 0)], {1: 0.0}),  # depth 2 was never reached
        ([(2, 1), (2, 1)], {1: 1.0, 2: 0.0}),
    ],
)
def test_acceptance_counts_the_steps_that_reached_a_depth(pairs, shares) -> None:
    assert acceptance_by_depth(steps(*pairs)) == pytest.approx(shares)


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Fake:
    """Continues a prompt that ends with token p by `texts[p]`, at a known cost per call."""

    facts: ClassVar = {"compiled": False}

    def __init__(self, name: str, clock: Clock, texts, costs, forwards: int, taken=()) -> None:
        self.name, self.clock, self.texts, self.taken = name, clock, texts, tuple(taken)
        self.costs, self.forwards = iter(costs), forwards
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, prompts: Tensor, count: int, mask: Tensor | None = None) -> Continuation:
        last = prompts[:, -1].tolist()
        self.calls.append((*last, count))
        self.clock.now += next(self.costs)
        return Continuation([self.texts[p][:count] for p in last], self.forwards, self.taken)


TREE = TreeShape(widths=(2, 1))
NEWS = list(range(29))
LOOPS_AT_17 = [*range(15), 50, 51, *[50, 51] * 6]
LOOPS_AT_ONCE = [7] * 40


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def prompts(count: int) -> list[Tensor]:
    return [torch.tensor([[index]]) for index in range(count)]


def test_a_comparison_adds_up(clock: Clock) -> None:
    texts = [NEWS, LOOPS_AT_17, LOOPS_AT_ONCE]
    wrong = [[*NEWS[:-1], 99], *texts[1:]]
    untimed, first, second = [1000.0] * 3, [4.0, 2.0, 900.0], [3.0, 800.0, 1.0]
    plain = Fake("plain", clock, texts, [*untimed, *first, *second], 10)
    fast = Fake("fast", clock, texts, [2.0, 1.0, 700.0, 0.5, 1.5, 600.0], 2, steps((2, 1), (2, 2)))
    bad = Fake("bad", clock, wrong, [7.0] * 6, 4)
    seen: list[float] = []
    table = compare(
        [plain, fast, bad], prompts(3), max_new_tokens=29, repeats=3, progress=seen.append
    )
    assert (table.prompts, table.looped, table.dropped) == (2, 2, 1)
    # All 29 tokens of the first prompt, and 17 of the second, before it begins to loop.
    asked = [(0, 29)] * 3 + [(1, 17)] * 3
    assert plain.calls == [*((p, 29 + LOOK_AHEAD) for p in range(3)), *asked]
    assert fast.calls == bad.calls == asked
    common = {"prompts": 2, "tokens": 46, "batch": 1, "compiled": False}
    expected = [
        {"method": "plain", "identical": 2, "forwards": 20, "seconds": 7.0, "speedup": 1.0},
        {"method": "fast", "identical": 2, "forwards": 4, "seconds": 3.5, "speedup": 2.0},
        {"method": "bad", "identical": 1, "forwards": 8, "seconds": 14.0, "speedup": 0.5},
    ]
    for row, facts in zip(table.rows[:3], expected, strict=True):
        rates = {
            "tokens_per_forward": 46 / facts["forwards"],
            "tokens_per_second": 46 / facts["seconds"],
        }
        assert vars(row) == pytest.approx({**vars(row), **facts, **common, **rates})
    assert table.rows[3:] == [
        AcceptedByDepth(method="fast", depth=1, acceptance=Estimate(1.0)),
        AcceptedByDepth(method="fast", depth=2, acceptance=Estimate(0.5)),
    ]
    assert seen == [0.5, 1.0]


def test_who_begins_changes_from_turn_to_turn(clock: Clock) -> None:
    order: list[str] = []

    def follow(name: str):
        def method(prompts: Tensor, count: int, mask: Tensor | None = None) -> Continuation:
            order.append(name)
            clock.now += 1
            return Continuation([NEWS], 20)

        method.name, method.facts = name, {}
        return method

    compare([follow("p"), follow("q")], prompts(2), max_new_tokens=20, repeats=2)
    assert "".join(order) == "pp" + "pq" + "qp" + "qp" + "pq"


def test_loops_can_be_included(clock: Clock) -> None:
    texts = [LOOPS_AT_17, LOOPS_AT_ONCE]
    plain = Fake("plain", clock, texts, [1.0] * 4, 20)
    table = compare([plain], prompts(2), max_new_tokens=29, repeats=1, exclude_loops=False)
    assert (table.prompts, table.looped, table.dropped) == (2, 2, 0)
    assert table.rows[0].tokens == 58


def test_a_loop_counts_where_it_begins_among_what_is_measured(clock: Clock) -> None:
    """It may show only behind that; one that begins behind it does not matter."""
    late = [*range(18), *[50, 51] * 40]
    plain = Fake("plain", clock, [late], [1.0] * 4, 20)
    found = [compare([plain], prompts(1), max_new_tokens=n, repeats=1) for n in (20, 21)]
    assert [(table.looped, table.rows[0].tokens) for table in found] == [(0, 20), (1, 20)]


def test_short_requests_are_long_enough(clock: Clock) -> None:
    """Fewer tokens asked for than `min_tokens` is no reason to drop a prompt."""
    plain = Fake("plain", clock, [NEWS], [1.0] * 2, 4)
    table = compare([plain], prompts(1), max_new_tokens=4, repeats=1)
    assert (table.prompts, table.dropped) == (1, 0)


def test_nothing_but_loops_is_refused(clock: Clock) -> None:
    plain = Fake("plain", clock, [LOOPS_AT_ONCE] * 2, [1.0] * 2, 20)
    with pytest.raises(InputError, match="none of the 2 prompts is left"):
        compare([plain], prompts(2), max_new_tokens=20, repeats=1)
    with pytest.raises(InputError, match="none of the 0 prompts is left"):
        compare([plain], [], max_new_tokens=20)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("number", ["repeats", "batch_size", "max_new_tokens"])
def test_nothing_timed_is_refused(clock: Clock, number: str, value: int) -> None:
    """Before anything is decoded."""
    silent = Fake("plain", clock, [], [], 1)
    with pytest.raises(InputError, match=f"{number} is {value}"):
        compare([silent], prompts(1), **{"max_new_tokens": 4, number: value})


def test_the_real_methods_agree_and_count_their_passes() -> None:
    model = ft.attach(families.build("llama"), depth=2).eval()
    prompt = families.prompt()
    plain = Foretell(model, plain=True)(prompt, 12)
    heads = Foretell(model)(prompt, 12)
    own = Transformers(model)(prompt, 12)
    lookup = Transformers(model, lookup=3)(prompt, 12)
    assert list(map(len, plain.rows)) == [12]
    assert plain.rows == heads.rows == own.rows == lookup.rows
    assert plain.forwards == own.forwards == 12
    assert heads.forwards == len(heads.steps) <= 12
    assert lookup.forwards <= 12
    names = [Foretell(model, plain=True).name, Foretell(model).name, Foretell(model, "x").name]
    assert names == ["plain", "parallel", "x"]
    assert Transformers(model).name == "transformers"
    assert Transformers(model, lookup=3).name == "transformers-prompt-lookup"
    expected = model.decode(prompt, max_new_tokens=12, drafter=NoDrafter())
    assert plain.rows == expected.continuations


@pytest.mark.parametrize("lookup", [None, 3])
def test_transformers_goes_on_after_an_end_of_sequence_token(lookup: int | None) -> None:
    """Every method makes as many tokens as asked for, and the same, whatever the model's says."""
    model = ft.MTPModel(families.build("llama")).eval()
    prompt = families.prompt()
    bare = Foretell(model, plain=True)(prompt, 12).rows
    own = model.lm.generation_config
    own.update(eos_token_id=bare[0][3], repetition_penalty=3.0, do_sample=True, stop_strings=["a"])
    before = own.to_dict()
    expected = Foretell(model, plain=True)(prompt, 12).rows
    assert expected != bare
    assert Transformers(model, lookup=lookup)(prompt, 12).rows == expected
    assert model.lm.generation_config is own
    assert own.to_dict() == before


def test_similar_lengths_go_together(clock: Clock) -> None:
    """Padded in front; the shortest continuation of a batch counts for all of it."""
    texts = [LOOPS_AT_17, NEWS, LOOPS_AT_ONCE, NEWS, LOOPS_AT_17]
    plain = Fake("plain", clock, texts, [1.0] * 9, 10)
    given = [torch.tensor([[9] * index + [index]]) for index in range(5)]
    table = compare([plain], given, max_new_tokens=29, repeats=1, batch_size=2)
    assert plain.calls[5:] == [(1, 3, 29), (0, 4, 17)]
    (row,) = table.rows
    assert (row.batch, row.prompts, row.identical) == (2, 4, 4)
    assert (row.tokens, row.forwards) == (2 * 29 + 2 * 17, 20)
    assert row.tokens_per_forward == row.tokens / 40  # per row


def test_batches_of_real_methods_agree() -> None:
    model = ft.attach(families.build("llama"), depth=2).eval()
    texts = [families.prompt(seed=s)[:, s:] for s in range(3)]
    methods = [
        Foretell(model, plain=True),
        Foretell(model),
        Foretell(model, "tree", drafter=drafter_for(model.backbone, model.head, None, TREE)),
        Foretell(model, "lookup", drafter=LookupDrafter(), source="lookup"),
        Transformers(model),
    ]
    table = compare(methods, texts, max_new_tokens=8, repeats=1, batch_size=2, exclude_loops=False)
    rows = table.speeds
    assert [row.identical for row in rows] == [3] * 5
    assert [row.tokens for row in rows] == [24] * 5
    assert [row.drafter for row in rows] == ["none", "heads", "heads", "lookup", "none"]
    assert rows[0].tokens_per_forward == rows[4].tokens_per_forward == 1


def test_draft_models_in_both_loops() -> None:
    model, draft = (ft.MTPModel(families.build("llama", seed=seed)).eval() for seed in (0, 1))
    prompt = families.prompt()
    expected = Foretell(model, plain=True)(prompt, 12).rows
    ours = ModelDrafter(model.backbone, draft.backbone)
    assert Foretell(model, "draft-model", drafter=ours, source="x")(prompt, 12).rows == expected
    theirs = Transformers(model, draft=(draft, "x", ours.length))
    assert (theirs.name, theirs.facts["drafter"]) == ("transformers-draft-model", "x")
    found = theirs(prompt, 12)
    assert found.rows == expected
    assert found.forwards <= 12  # of the model, not of the draft model


def test_both_loops_are_given_the_same_drafts() -> None:
    model = ft.MTPModel(families.build("llama")).eval()
    draft = ft.MTPModel(families.moved(families.build("llama"), 0.05)).eval()
    prompt, config = families.prompt(), draft.lm.generation_config
    ours = Foretell(model, drafter=ModelDrafter(model.backbone, draft.backbone, 3), name="ours")
    passes = ours(prompt, 40).forwards
    assert 10 < passes < 40
    theirs = Transformers(model, draft=(draft, "x", 3))(prompt, 40).forwards
    assert abs(theirs - passes) <= 1  # it drafts behind the prompt already
    assert draft.lm.generation_config is config
    itself = Transformers(model, draft=(model, "x", 3))(prompt, 40)
    assert len(itself.rows[0]) == itself.forwards == 40  # 10 of them to verify, 30 to draft
    lookup = Transformers(model, lookup=2)._config(1)
    assert lookup.max_matching_ngram_size == LookupDrafter(2).match


def test_sampled_methods_repeat_themselves_and_are_not_compared() -> None:
    model = ft.attach(families.build("llama"), depth=2).eval()
    prompt, drawn = families.prompt(), Sampling(temperature=1.0, seeds=7)
    methods = [
        Foretell(model, plain=True, sampling=drawn),
        Foretell(model, sampling=drawn),
        Transformers(model, sampling=drawn),
    ]
    before = torch.get_rng_state()
    for method in methods:
        assert method(prompt, 12).rows == method(prompt, 12).rows
    assert torch.equal(torch.get_rng_state(), before)
    assert methods[2](prompt, 12).rows != Transformers(model)(prompt, 12).rows
    table = compare(methods, [prompt], max_new_tokens=8, repeats=1)
    rows = table.speeds
    assert [(row.identical, row.temperature, row.tokens) for row in rows] == [(None, 1.0, 8)] * 3


def test_compiling_is_not_timed(clock: Clock) -> None:
    plain = Fake("plain", clock, [NEWS], [1.0] * 2, 20)
    other = Fake("compiled", clock, [NEWS], [500.0, 0.5], 20)
    other.facts = {"compiled": True}
    table = compare([plain, other], prompts(1), max_new_tokens=20, repeats=1)
    assert table.rows[1].seconds == 0.5


def test_what_compiles_while_it_is_timed_is_timed_again(clock: Clock, monkeypatch) -> None:
    compilations = []

    class Compiling(Fake):
        def __call__(self, *given):
            began, said = clock.now, super().__call__(*given)
            if clock.now - began > 100:
                compilations.append(clock.now)
            return said

    monkeypatch.setattr(speed, "compilations", lambda: len(compilations))
    plain = Fake("plain", clock, [NEWS], [1.0] * 2, 20)
    other = Compiling("auto", clock, [NEWS], [200.0, 300.0, 0.5], 20)
    table = compare([plain, other], prompts(1), max_new_tokens=20, repeats=1)
    assert table.rows[1].seconds == 0.5


def test_without_heads_there_is_only_plain_decoding() -> None:
    with pytest.raises(ft.HeadError, match="no heads"):
        Foretell(ft.MTPModel(families.build("llama")))


def test_a_comparison_of_real_methods() -> None:
    model = ft.attach(families.build("llama"), depth=2).eval()
    methods = [Foretell(model, plain=True), Foretell(model), Transformers(model)]
    table = compare(
        methods, [families.prompt(seed=s) for s in range(2)], max_new_tokens=8, repeats=1
    )
    rows = table.speeds
    assert [row.identical for row in rows] == [2, 2, 2]
    assert [row.tokens for row in rows] == [16, 16, 16]
    assert rows[0].tokens_per_forward == rows[0].speedup == 1


# -- rules, calibration, quality ------------------------------------------------------------------


def test_rules_are_asked_as_in_decoding() -> None:
    """Against the definitions, position by position."""
    random = torch.Generator().manual_seed(0)
    own = [(2 * torch.randn(50, 6, generator=random)).softmax(-1) for _ in range(3)]
    drafts = torch.stack([chances.argsort(-1)[:, -1 - k % 2] for k, chances in enumerate(own)], 1)
    found = accepted_by_rule(drafts, own)

    def stands(rule: str, depth: int, row: int) -> bool:
        chances, token = own[depth][row], int(drafts[row, depth])
        best = int(chances.argmax())
        if rule == "exact":
            return token == best
        if rule == "top-k:2":
            return token in chances.argsort(descending=True)[:2].tolist()
        if rule == "distance:1":
            return abs(token - best) <= 1
        if rule == "minimum-block:1":
            return depth == 0 or token == best
        entropy = -float((chances * chances.log()).sum())
        return float(chances[token]) > min(0.09, 0.3 * math.exp(-entropy))

    assert set(found) == {name for name in reported() if name != "speculative"}
    for rule, accepted in found.items():
        for row in range(50):
            expected = next((k for k in range(3) if not stands(rule, k, row)), 3)
            assert int(accepted[row]) == expected, rule
    assert accepted_by_rule(drafts[:, :0], []) == {}


def test_expected_tokens_of_the_exact_rule_are_the_acceptance() -> None:
    model, blocks = ft.attach(families.build("llama"), depth=3, init="copy").eval(), packed()
    table = measure_heads(model, blocks)
    rows = [row for row in table.rule_rows() if row.rule == "exact"]
    total = 1.0
    for row, depth in zip(rows, table.rows()[1:], strict=True):
        assert row.acceptance == depth.acceptance
        total += row.acceptance.value
        assert row.tokens_per_forward.value == pytest.approx(total)
    assert table.tokens_per_forward == pytest.approx(total)
    assert {row.rule for row in table.rule_rows()} == set(reported())


def test_the_calibration_error_is_guos() -> None:
    random = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=random)
    stands = torch.rand(500, generator=random) < confidence**2
    judged = torch.rand(500, generator=random) < 0.7
    tally = Tally("depth", "bin")
    calibrate(tally, 1, np.arange(500) % 20, confidence, stands, judged)
    error = 0.0
    for number in range(10):
        inside = judged & (confidence >= number / 10) & (confidence < (number + 1) / 10)
        gap = confidence[inside].mean() - stands[inside].float().mean()
        error += abs(float(gap)) * int(inside.sum()) / int(judged.sum())
    first, *bins = calibration_rows(tally, "parallel")
    assert first.ece.value == pytest.approx(error, abs=1e-6)
    assert first.ece.low < first.ece.value < first.ece.high
    assert sum(row.positions for row in bins) == int(judged.sum())
    assert all(row.bin / 10 <= row.confidence.value <= (row.bin + 1) / 10 for row in bins)


def test_only_drafts_that_are_seen_are_calibrated() -> None:
    model, blocks = ft.attach(families.build("llama"), depth=2, init="copy").eval(), packed()
    table = measure_heads(model, blocks)
    assert table.confidences is not None
    first, second = (table.confidences.count("acceptance", depth=k) for k in (1, 2))
    by_depth = table.rows()
    assert first == by_depth[1].positions
    # Of depth 2 those that have a target and whose first token stood.
    assert second <= by_depth[1].acceptance.value * by_depth[1].positions + 1e-6


def test_intervals_of_bits_are_about_the_documents() -> None:
    model, blocks = ft.MTPModel(families.build("llama")).eval(), packed()
    table = measure_heads(model, blocks)
    bits = table.bits()
    assert bits[0] == table.bits_per_byte
    low, high = np.quantile(bits[1:], [0.025, 0.975])
    assert low < bits[0] < high


def test_lm_eval_is_asked_about_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = ft.MTPModel(families.build("llama")), {}

    class HFLM:
        def __init__(self, **options: object) -> None:
            asked.update(options)

    def simple_evaluate(model: HFLM, tasks: list[str], limit: int | None) -> dict:
        values = {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "a", "f1,none": 0.25}
        return {"results": dict.fromkeys(tasks, values)}

    huggingface = SimpleNamespace(HFLM=HFLM)
    lm_eval = SimpleNamespace(simple_evaluate=simple_evaluate)
    monkeypatch.setitem(sys.modules, "lm_eval", lm_eval)
    monkeypatch.setitem(sys.modules, "lm_eval.models", SimpleNamespace(huggingface=huggingface))
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", huggingface)
    rows = run_harness(model, "tokenizer", ["a", "b"])
    assert asked["pretrained"] is model.lm
    assert [(row.task, row.metric) for row in rows] == [
        ("a", "acc"), ("a", "f1"), ("b", "acc"), ("b", "f1"),
    ]  # fmt: skip
    assert rows[0].value.low == pytest.approx(0.5 - 0.196)
    assert rows[1].value == Estimate(0.25)


# -- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.75, 1.0])
def test_the_break_even_of_a_verdict(acceptance: float) -> None:
    """Where steps cost what they give at that acceptance, by the sum written out."""
    given = 1 + acceptance + acceptance**2 + acceptance**3
    verdict = Verdict(3, 2.0, given, measured=True)
    assert verdict.break_even == pytest.approx(acceptance, abs=1e-6)
    assert Verdict(3, given, 9.0, measured=True).acceptance == pytest.approx(acceptance, abs=1e-6)
    assert Verdict(3, 3.9, 4.01, measured=True).break_even is None


@pytest.mark.parametrize(
    ("tokens", "cost", "measured", "outcome", "advice"),
    [
        (2.5, 1.25, True, "pay on this machine (2.00×", "use `--draft-length 2`, and try `--d"),
        (2.5, 1.25, False, "should pay", "`foretell bench` and `--draft-length 2`"),
        (1.5, 1.49, True, "break even", "train longer"),
        (1.2, 1.75, True, "do not pay", "be at 50 % accepted per depth, and these are worth 17 %"),
        (1.2, 1.75, False, "would not pay", "foretell distill"),
        (2.9, 3.5, True, "do not pay", "not even drafts that are always accepted would pay"),
        (2.9, 3.5, True, "do not pay", "`--draft-length auto`"),
    ],
)
def test_a_verdict_in_words(tokens, cost, measured, outcome, advice) -> None:
    said = str(Verdict(2, tokens, cost, measured))
    assert outcome in said
    assert advice in said


def test_verdicts_of_what_was_measured() -> None:
    def row(method: str, drafter: str, tokens: float, speedup: float, **more) -> Speed:
        facts = {"drafter": drafter, "tokens_per_forward": tokens, "speedup": speedup}
        return report_files.speed(method, **facts, **more)

    rows = [
        row("plain", "none", 1.0, 1.0),
        row("parallel", "heads", 2.0, 0.8),
        row("parallel-1", "heads", 1.5, 1.2),
        row("prompt-lookup", "lookup", 3.0, 2.0),
        AcceptedByDepth(method="parallel", depth=3, acceptance=Estimate(0.1)),
        AcceptedByDepth(method="parallel-1", depth=1, acceptance=Estimate(0.5)),
    ]
    verdict = verdict_of_speed(rows)
    assert verdict == Verdict(1, 1.5, pytest.approx(1.25), measured=True)
    assert verdict_of_speed(rows[:1] + rows[3:4]) is None
    # A compiled step is held against a compiled one; trees and chosen lengths have no one length.
    compiled = [row("plain-compiled", "none", 1.0, 2.0, compiled=True)]
    compiled += [row("parallel-compiled", "heads", 2.0, 1.8, compiled=True)]
    others = [row("parallel-auto", "heads", 1.9, 3.0, draft_length="auto")]
    others += [row("parallel-tree", "heads", 2.9, 3.0, tree="4,2")]
    best = verdict_of_speed(rows + compiled + others)
    assert best == replace(verdict, auto=3.0)
    assert str(best).endswith("use `--draft-length auto`, which is faster (3.00×).")
    others[0] = replace(others[0], speedup=1.1)
    assert str(verdict_of_speed(rows + others)).endswith("use `--draft-length 1`.")
    slow = verdict_of_speed(rows[:1] + compiled)
    assert slow.speedup == pytest.approx(0.9)
    assert "do not pay" in str(slow)
    # Two tokens bring 1 + 0.6 + 0.4 at a cost of (2 + 2 · 0.1) / 1; one brings more for its cost.
    costs = Costs([1.0, 1.1, 2.0], 0.1)
    expected = Verdict(1, 1.6, pytest.approx(1.2), measured=False)
    assert verdict_of_depths([0.6, 0.4], costs) == expected
