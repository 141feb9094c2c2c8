"""Draft lengths that change while decoding, and the one that is chosen."""

import random
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import families
import foretell as ft
from drafting import HEADED, Checked, Told, attached, prompts, reference
from foretell.backbone import Backbone
from foretell.decoding import (
    AutoLength,
    Batch,
    DecodeOptions,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    Step,
    TreeShape,
    decode,
    drafter_for,
)
from foretell.decoding.length import HOLD, TRIAL
from foretell.errors import InputError
from pairing import pairs

NEW = 14


class CheckedWhereAsked(Checked):
    """Looks at drafts of any length."""

    def draft(self, committed, limit):
        draft = self.inner.draft(committed, limit)
        if draft.size:
            row = torch.cat([committed.tokens[:, : committed.lengths[0]], draft.tokens], dim=1)
            output = self.model.backbone(row, layers=self.model.layers)
            self.compare(row, draft, output, committed.lengths[0] - 2)
        return draft


def run(model: ft.MTPModel, row, drafter, length) -> list[Step]:
    batch = Batch(model.backbone, row, None, NEW)
    work = decode(model.backbone, batch, DecodeOptions(drafter=drafter), length=length)
    return [steps[0] for steps in work]


@pytest.mark.parametrize(
    ("family", "shape"),
    pairs(["llama", "gemma3_text", "qwen3_next", "lfm2_conv", "falcon_alibi"], HEADED),
)
def test_heads_that_were_left_out_catch_up(family: str, shape: str) -> None:
    model = attached(family, shape)
    for lengths in ([0, 3], [0, 0, 0, 2], [3, 0, 1, 0, 0, 2]):
        checked = CheckedWhereAsked(model)
        steps = run(model, prompts(family)[1], checked, Told(lengths))
        assert [token for step in steps for token in step.tokens] == reference(family, 1)
        assert checked.drafts > 0


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_heads_that_were_left_out_catch_up_behind_a_sliding_window(family: str) -> None:
    """From the first token on, over more than the window: transformers makes the mask for that."""
    model = attached(family, "trunk")
    row = prompts(family)[2]
    assert row.shape[1] > families.WINDOW
    checked = CheckedWhereAsked(model)
    steps = run(model, row, checked, Told([0, 3]))
    assert [token for step in steps for token in step.tokens] == reference(family, 2)[:NEW]
    assert checked.drafts > 0


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    kind=st.sampled_from(["heads", "tree", "model", "lookup"]),
    family=st.sampled_from(["llama", "gpt2", "lfm2"]),
)
def test_the_output_is_the_same_for_any_lengths(lengths, kind, family) -> None:
    model = attached(family, "trunk")
    if kind == "tree" and family == "lfm2":
        kind = "heads"  # a recurrent state follows chains alone
    drafter = {
        "heads": lambda: drafter_for(model.backbone, model.head),
        "tree": lambda: drafter_for(model.backbone, model.head, None, TreeShape(nodes=6)),
        "model": lambda: ModelDrafter(model.backbone, Backbone(families.build("llama")), 3),
        "lookup": lambda: LookupDrafter(3, 1),
    }[kind]()
    steps = run(model, prompts(family)[1], drafter, Told(lengths))
    assert [token for step in steps for token in step.tokens] == reference(family, 1)


def simulate(
    costs: list[float],
    rates: list[float],
    rounds: int,
    auto: AutoLength | None = None,
    chance: random.Random | None = None,
) -> AutoLength:
    """Steps of given cost by length, whose drafts are accepted by depth at given rates."""
    chance, auto = chance or random.Random(0), auto or AutoLength(len(rates))
    for _ in range(rounds):
        length = auto.choose()
        accepted = 0
        while accepted < length and chance.random() < rates[accepted]:
            accepted += 1
        step = Step(length, accepted, tuple(range(accepted + 1)))
        auto.record([step], costs[length] * chance.uniform(0.95, 1.05))
    return auto


def test_a_draft_that_had_to_be_shorter_tells_no_cost() -> None:
    for limit, learns in ((3, True), (2, False)):
        auto = AutoLength(3)
        for _ in range(HOLD + TRIAL):
            length = auto.begin(limit)
            assert length <= limit
            auto.end([Step(length, length, tuple(range(length + 1)))], complete=True)
        assert bool(auto.measured.costs) == learns
        assert set(auto.chosen) == {0, 3}


def expected(length: int, costs: list[float], rates: list[float]) -> float:
    tokens, reach = 1.0, 1.0
    for rate in rates[:length]:
        reach *= rate
        tokens += reach
    return tokens / costs[length]


@pytest.mark.parametrize(
    ("costs", "rates"),
    [
        ([1.0, 1.2, 1.3, 1.4], [0.9, 0.9, 0.9]),
        ([1.0, 1.2, 1.6, 2.4], [0.8, 0.3, 0.1]),
        ([1.0, 1.5, 1.7, 1.9], [0.2, 0.2, 0.2]),
        ([1.0, 1.1, 1.9, 2.9], [0.5, 0.5, 0.5]),
    ],
)
def test_the_length_that_brings_most_tokens_per_second_is_chosen(costs, rates) -> None:
    auto = simulate(costs, rates, 600)
    best = max(range(len(costs)), key=lambda n: expected(n, costs, rates))
    late = auto.chosen[200:]
    assert max(set(late), key=late.count) == best
    assert late.count(best) > 0.85 * len(late)


def test_useless_drafts_cost_little() -> None:
    """Heads that are never right, and half as slow again: at most 3 % are lost once it is known."""
    costs = [1.0, 1.3, 1.4, 1.5]
    late = simulate(costs, [0.0, 0.0, 0.0], 1000).chosen[100:]
    assert sum(costs[n] for n in late) / len(late) < 1.03


def test_what_changes_is_noticed() -> None:
    """Other lengths are tried less and less often, and still sometimes."""
    auto = simulate([1.0, 1.3, 1.4, 1.5], [0.0, 0.0, 0.0], 2000)
    tries = [step for step, length in enumerate(auto.chosen) if step > 100 and length]
    assert len(tries) < 0.015 * 2 * 1900
    simulate([1.0, 1.3, 1.4, 1.5], [0.9, 0.9, 0.9], 1000, auto=auto)
    assert auto.chosen[-100:].count(3) > 85


def test_only_neighbours_are_compared() -> None:
    """Steps get slower and slower, and each first step of a length takes as long as ten: a length
    still costs what it costs in steps without a draft."""
    auto, step, chance = AutoLength(3), Step(3, 3, (1, 2, 3, 4)), random.Random(0)
    for number in range(2000):
        fresh = auto.stretch.length != auto.choose() or number == 0
        seconds = (10 if fresh else 1 + 0.1 * auto.stretch.length) * 1.003**number
        auto.record([step], seconds * chance.uniform(0.95, 1.05))
    for length in range(4):
        assert auto.cost(length) == pytest.approx(1 + 0.1 * length, rel=0.1)


def test_steps_that_compile_are_left_out_of_a_trial() -> None:
    """The first two of every length do, and take as long as thousands."""
    auto, begun = AutoLength(3), dict.fromkeys(range(4), 0)
    for _ in range(400):
        length = auto.choose()
        begun[length] += 1
        compiled = begun[length] <= 2
        auto.record([Step(length, 0, (1,))], 1000.0 if compiled else 1 + 0.5 * length, compiled)
        if begun[2] and not length:
            break
    assert begun[2] == 2 + HOLD
    assert auto.cost(2) == 2
    assert list(auto.measured.costs[2])


def test_a_busy_moment_is_forgotten() -> None:
    """Steps without a draft were compared while something else ran; later ones put it right."""
    auto = AutoLength(3)
    auto.measured.costs[3] = deque([0.4])
    simulate([1.0, 1.5, 1.7, 1.9], [0.2, 0.2, 0.2], 1500, auto=auto)
    assert auto.cost(3) == pytest.approx(1.9, rel=0.1)
    assert auto.chosen[-200:].count(0) > 180


def test_useless_drafts_cost_nothing_in_the_next_text() -> None:
    first = simulate([1.0, 1.3, 1.4, 1.5], [0.0, 0.0, 0.0], 60)
    second = AutoLength(3, first.measured)
    assert second.choose() == 0
    assert second.chosen == [0]


def test_useless_drafts_are_tried_at_the_start_of_a_text_alone() -> None:
    """There a drafter has little to catch up with; in the rest of the text it need not keep up."""
    measured, costs, tries, rested = AutoLength(3).measured, [1.0, 1.3, 1.4, 1.5], [], []
    chance = random.Random(0)
    for text in range(40):
        auto = AutoLength(3, measured, steps=128)
        for _ in range(128):
            simulate(costs, [0.0] * 3, 1, auto, chance)
            rested.append(auto.resting)
            if text > 1 and auto.chosen[-1]:
                tries.append(len(auto.chosen))
                assert not auto.resting
    assert 0 < len(tries) < 0.03 * len(rested)
    assert max(tries) <= 2 * HOLD
    assert sum(rested[256:]) > 0.9 * len(rested[256:])
    # That drafts have become good is noticed all the same.
    for _ in range(12):
        auto = simulate(costs, [0.9] * 3, 128, AutoLength(3, measured, steps=128))
    assert auto.chosen.count(3) > 100


@pytest.mark.parametrize("seed", range(4))
def test_a_drafter_that_was_let_go_is_not_asked_again(seed: int) -> None:
    """Whatever is measured later in that text: it has not read what was written since."""
    measured, chance, rested = AutoLength(3).measured, random.Random(seed), 0
    for _ in range(100):
        auto, let_go = AutoLength(3, measured, steps=20), False
        for _ in range(20):
            simulate([1.0, 1.5, 1.7, 1.9], [0.2] * 3, 1, auto, chance)
            let_go = let_go or auto.resting
            assert auto.resting == let_go
            assert not let_go or auto.chosen[-1] == 0
            rested += let_go
    assert rested > 0.5 * 100 * 20


def test_long_texts_are_looked_at_again() -> None:
    auto = simulate([1.0, 1.3, 1.4, 1.5], [0.0] * 3, 1000, AutoLength(3, steps=2000))
    tries = [step for step, length in enumerate(auto.chosen) if step > 200 and length]
    assert tries
    assert not auto.resting


def test_a_drafter_of_no_use_is_not_asked() -> None:
    model, row = ft.MTPModel(families.build("llama")), prompts("llama")[1]

    class Asked(NoDrafter):
        longest, times = 1, 0

        def draft(self, committed, limit):
            self.times += 1
            return super().draft(committed, limit)

    asked, options = Asked(), {"max_new_tokens": NEW, "draft_length": "auto"}
    model.decode(row, drafter=asked, **options)
    assert asked.times == NEW - 1
    (measured,) = asked.measured.values()
    measured.costs[1], measured.accepted[0] = deque([2.0] * 5), deque([False] * 20)
    measured.worth, measured.interval, measured.waited = False, 192, 100
    assert model.decode(row, drafter=asked, **options).new_tokens == reference("llama", 1)
    assert asked.times == NEW - 1
    measured.waited = 190
    model.decode(row, drafter=asked, **options)
    assert NEW - 1 < asked.times <= NEW - 1 + 2 * HOLD


@pytest.mark.parametrize("steps", [3, 8, 15])
def test_useless_drafts_cost_little_in_short_texts(steps: int) -> None:
    """No text is long enough for a trial; the texts together are."""
    measured, chosen = AutoLength(3).measured, []
    for _ in range(60):
        auto = simulate([1.0, 1.6, 1.8, 2.0], [0.0] * 3, steps, AutoLength(3, measured))
        chosen += auto.chosen
    assert chosen[60:].count(0) > 0.9 * len(chosen[60:])


def test_drafts_whose_cost_is_unknown_are_not_risked() -> None:
    """Rows left before a step with a draft was timed."""
    auto, step = AutoLength(3), Step(3, 1, (1, 2))
    for number in range(200):
        auto.choose()
        auto.record([step], 1.0 if number < 5 else None)
    assert auto.chosen[20:].count(0) > 0.9 * 180


def test_rows_that_are_decoded_one_by_one_are_timed_apart(monkeypatch) -> None:
    """The first step of a row reads its prompt with the drafter; it is no neighbour of the last."""
    timed, margins, record = [], set(), AutoLength.record

    def noted(auto, *given) -> None:
        begins = auto.stretch.steps == 0 and len(auto.chosen) == 1
        record(auto, *given)
        margins.add(auto.margin)
        if begins:
            timed.append(len(auto.stretch.seconds))

    monkeypatch.setattr(AutoLength, "record", noted)
    rows = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8], [1, 6, 1, 8]])
    attached("lfm2", "trunk").decode(rows, max_new_tokens=6, draft_length="auto")
    assert timed == [0, 0, 0]
    assert margins == {1.0}


def test_steps_of_fewer_rows_are_not_compared_with_those_of_all() -> None:
    auto = AutoLength(1)
    for number in range(200):
        length = auto.choose()
        seconds = 1.0 + length if number < 50 else None  # from then on cheap, for other reasons
        auto.record([Step(length, 0, (0,))], seconds)
    assert auto.cost(1) == 2.0
    assert auto.chosen[-100:].count(0) > 0.9 * 100


def test_in_a_batch_drafting_has_to_gain_more() -> None:
    costs, rates = [1.0, 1.4], [0.5]  # 7 % for one row alone
    for rows, best in ((1, 1), (8, 0)):
        known = simulate(costs, rates, 600).measured
        auto = AutoLength(1, known, rows)
        for _ in range(100):
            auto.choose()
            auto.record([Step(0, 0, (0,))], None)
        assert max(set(auto.chosen[:20]), key=auto.chosen[:20].count) == best


def test_it_notices_that_drafts_have_become_good() -> None:
    auto = AutoLength(2)
    for number in range(1200):
        length = auto.choose()
        accepted = length if number > 300 else 0
        step = Step(length, accepted, tuple(range(accepted + 1)))
        auto.record([step], 1.0 + 0.2 * length)
    assert auto.chosen[-100:].count(2) > 85


def test_auto_is_an_option_of_generate() -> None:
    model, row = attached("llama", "trunk"), prompts("llama")[1]
    result = model.decode(row, max_new_tokens=NEW, draft_length="auto")
    assert result.new_tokens == reference("llama", 1)
    assert {step.drafted for step in result.row_steps} > {0}
    fixed = model.decode(row, max_new_tokens=NEW, draft_length=2)
    assert fixed.new_tokens == reference("llama", 1)
    assert max(step.drafted for step in fixed.row_steps) == 2
    assert len(result.draft_lengths) == result.forwards - 1
    assert result.draft_lengths[:3] == [0, 0, 0]
    (measured,) = model._measured["heads"].values()
    assert measured.worth is None
    model.decode(row, max_new_tokens=NEW, draft_length="auto")
    assert measured.worth is not None  # the next text learns from this one
    assert set(result.draft_lengths) > {0}
    for wrong in (0, 4, -1):
        with pytest.raises(InputError, match="draft length"):
            model.decode(row, max_new_tokens=NEW, draft_length=wrong)
    with pytest.raises(InputError, match="its own draft length"):
        model.decode(row, max_new_tokens=NEW, draft_length=2, drafter=NoDrafter())


def test_auto_without_anything_that_drafts_is_plain_decoding() -> None:
    model, row = attached("llama", "plain"), prompts("llama")[1]
    result = model.decode(row, max_new_tokens=60, draft_length="auto")
    assert len(result.new_tokens) == 60
    assert set(result.draft_lengths) == {0}


def test_what_was_measured_belongs_to_the_drafter() -> None:
    """Of two draft models of one kind, depth and speed apart, neither learns from the other."""
    model, row = ft.MTPModel(families.build("llama")), prompts("llama")[1]
    good = ModelDrafter(model.backbone, model.backbone, 2)
    bad = ModelDrafter(model.backbone, ft.MTPModel(families.build("llama", seed=1)).backbone, 2)
    for drafter in (good, bad):
        for _ in range(2):
            model.decode(row, max_new_tokens=NEW, draft_length="auto", drafter=drafter)
    stood = []
    for drafter in (good, bad):
        (measured,) = drafter.measured.values()
        stood.append([all(measured.accepted[0]), any(measured.accepted[0])])
    assert stood == [[True, True], [False, False]]
    other = ft.MTPModel(families.build("llama", seed=2))  # whose steps cost something else
    other.decode(row, max_new_tokens=NEW, draft_length="auto", drafter=good)
    assert len(good.measured) == 2
