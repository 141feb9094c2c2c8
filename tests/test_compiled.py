"""The compiled step says what the uncompiled one says.

Compiling takes its time: of drafters and rows one case always, the others with
`pytest -m long tests/test_compiled.py`.
"""

import copy
import itertools
import weakref
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import foretell as ft
from foretell.backbone.calls import BackboneOutput, BlockCall
from foretell.decoding import (
    AutoLength,
    Draft,
    Drafter,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    Sampling,
    Step,
    TreeShape,
    compiling,
    drafter_for,
    passes,
)
from foretell.decoding.arguments import caches, exchanged, tensors
from foretell.decoding.cache import slotted
from foretell.decoding.capturing import Captured
from foretell.decoding.drafters import model as model_drafter
from foretell.decoding.drafters import parallel, sequential

NEW = 10
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6], [2], [7, 1, 8, 2, 8])


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What was compiled."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling ends with torch's graph, which runs as it is: shapes and guards are the same, and
    the compiler of C++, which takes most of the time, is left out."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def one_block(small_llama: PreTrainedModel) -> PreTrainedModel:
    """`small_llama` with one block: tracing takes its time for each."""
    config = small_llama.config
    config.num_hidden_layers = 1
    return type(small_llama)(config).eval()


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all passes from now on."""
    enter, found = slotted.SlottedPast.enter, []

    def entered(past, width, *given):
        found.append(width)
        return enter(past, width, *given)

    monkeypatch.setattr(slotted.SlottedPast, "enter", entered)
    return found


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Prompts padded in front, and their mask."""
    width = max(map(len, PROMPTS[:rows]))
    missing = [[0] * (width - len(row)) for row in PROMPTS[:rows]]
    tokens = [some + row for some, row in zip(missing, PROMPTS, strict=False)]
    mask = [some + [1] * len(row) for some, row in zip(missing, PROMPTS, strict=False)]
    return torch.tensor(tokens), torch.tensor(mask)


def drafter(model: ft.MTPModel, name: str) -> Drafter:
    if name in ("model", "model comb"):
        draft = ft.MTPModel(copy.deepcopy(model.lm)).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in draft.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
        shape = TreeShape(nodes=6) if name == "model comb" else None
        return ModelDrafter(model.backbone, draft.backbone, 3 if shape else 2, shape)
    if name in ("none", "lookup"):
        return NoDrafter() if name == "none" else LookupDrafter(2, 1)
    shape = TreeShape(widths=(2, 2)) if name == "tree" else None
    return drafter_for(model.backbone, model.require_head(), None, shape)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param(
            name, rows, marks=pytest.mark.slow if (name, rows) == ("tree", 3) else pytest.mark.long
        )
        for name in ("none", "chain", "tree", "lookup", "sequential", "model")
        for rows in (1, 3)
    ],
)
def test_a_compiled_step_changes_no_token(small_llama, name: str, rows: int) -> None:
    kind = "sequential" if name == "sequential" else "parallel"
    model = ft.attach(small_llama, kind, depth=2).eval()
    tokens, mask = batch(rows)
    steps, compiled = (
        model.decode(
            tokens, mask, max_new_tokens=NEW, drafter=drafter(model, name), compiled=compiled
        ).steps
        for compiled in (False, True)
    )
    assert compiled == steps


@pytest.mark.usefixtures("traced")
def test_a_compiled_step_follows_changed_weights_and_other_models(one_block) -> None:
    """Guards are checked once per `generate`: what changes between two of them is seen."""
    model, (tokens, mask) = ft.attach(one_block, "parallel", depth=2).eval(), batch(1)
    other = ft.attach(copy.deepcopy(one_block), "parallel", depth=2).eval()
    said = []
    for seed, turn in enumerate((model, other, model)):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in turn.parameters():
                weight.normal_()
        steps, compiled = (
            turn.decode(tokens, mask, max_new_tokens=NEW, compiled=compiled).steps
            for compiled in (False, True)
        )
        assert compiled == steps
        said.append(steps)
    assert len({repr(steps) for steps in said}) == 3


@pytest.mark.usefixtures("traced")
def test_a_compiled_step_goes_on_where_slots_are_added(one_block, monkeypatch) -> None:
    """Drafts at the end of the text need more slots than were set aside, within one `generate`."""
    monkeypatch.setattr(slotted, "FIXED_SLOTS", 16)
    monkeypatch.setattr(passes, "DRAFT_SLOTS", 0)
    model, tokens = ft.attach(one_block, "parallel", depth=2).eval(), torch.tensor([[3] * 8])
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    steps, compiled = (
        model.decode(tokens, max_new_tokens=24, compiled=compiled).steps
        for compiled in (False, True)
    )
    tokens_of = [[token for (step,) in some for token in step.tokens] for some in (steps, compiled)]
    assert tokens_of[0] == tokens_of[1]


@pytest.mark.usefixtures("traced")
def test_a_compiled_step_is_one_for_all_numbers_of_slots_and_rows(one_block, monkeypatch) -> None:
    """Empty slots and rows that have ended are left out; torch compiles step and heads once for
    all, and for texts of all lengths, but for a row alone, which therefore keeps a neighbour."""
    monkeypatch.setitem(slotted.STAGES, "cpu", (8, 16))
    monkeypatch.setattr(slotted, "FIXED_SLOTS", 16)
    model, (tokens, mask) = ft.attach(one_block, "parallel", depth=2).eval(), batch(3)
    slots, rows = set(), set()
    enter = slotted.SlottedPast.enter

    def entered(past, width, *given):
        given = enter(past, width, *given)
        slots.add(past.slots.seen)
        rows.add(past.rows)
        return given

    new = [8, 24, 40]
    expected = model.decode(tokens, mask, max_new_tokens=new).continuations
    monkeypatch.setattr(slotted.SlottedPast, "enter", entered)
    result = model.decode(tokens, mask, max_new_tokens=new, compiled=True)
    assert result.continuations == expected
    assert {16, 24, 32, 40} <= slots
    assert rows == {2, 3}
    short = model.decode(tokens, mask, max_new_tokens=8, compiled=True).continuations
    assert short == [row[:8] for row in expected]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def drawn(model: ft.MTPModel, seed: int = 0) -> None:
    """Weights at random, so that it says many things."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()


class Unsteady(NoDrafter):
    """Trees of changing size, which this model never accepts: it repeats its prompt."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.longest = lengths, max(lengths)

    def start(self, *args) -> None:
        self.left = itertools.cycle(self.lengths)

    def draft(self, committed, limit: int) -> Draft:
        tokens = (committed.tokens[:, :1] + 1).expand(-1, min(next(self.left), limit))
        return Draft(tokens, torch.arange(tokens.shape[1]).expand(len(tokens), -1))


@pytest.mark.usefixtures("traced")
def test_a_shape_comes_back_after_slots_were_added(one_block, monkeypatch) -> None:
    """What was compiled for fewer slots no longer fits, though the arguments look the same."""
    monkeypatch.setattr(slotted, "FIXED_SLOTS", 16)
    monkeypatch.setitem(slotted.STAGES, "cpu", (8, 16))
    monkeypatch.setattr(passes, "DRAFT_SLOTS", 0)
    model, tokens = ft.attach(one_block, "parallel", depth=2).eval(), torch.tensor([[3] * 8])
    steps, compiled = (
        model.decode(
            tokens,
            max_new_tokens=8,
            stop_tokens=(),
            drafter=Unsteady([0, 0, 20, 0]),
            compiled=compiled,
        ).row_steps
        for compiled in (False, True)
    )
    assert [s.tokens for s in compiled] == [s.tokens for s in steps]


@pytest.mark.usefixtures("traced")
def test_too_many_shapes_run_uncompiled(one_block, monkeypatch) -> None:
    monkeypatch.setattr(compiling, "SHAPES", 2)
    model, tokens = ft.attach(one_block, "parallel", depth=2).eval(), torch.tensor([[3] * 8])
    drafter = Unsteady([1, 2, 3, 4])
    steps, compiled = (
        model.decode(
            tokens, max_new_tokens=12, stop_tokens=(), drafter=drafter, compiled=compiled
        ).steps
        for compiled in (False, True)
    )
    assert compiled == steps
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.usefixtures("traced")
def test_lookup_has_two_shapes(one_block, widths) -> None:
    """Drafts as long as they may be, filled up, and none."""
    model, (tokens, mask) = ft.attach(one_block, "parallel", depth=2).eval(), batch(3)
    drawn(model)
    found, shapes = [], []
    for compiled in (False, True):
        widths.clear()
        found.append(
            model.decode(
                tokens, mask, max_new_tokens=20, stop_tokens=(), drafter=LookupDrafter(5, 1),
                compiled=compiled,
            ).steps
        )  # fmt: skip
        shapes.append(set(widths))
    assert found[0] == found[1]
    assert len(shapes[0]) > 3
    prompt = tokens.shape[1]
    assert shapes[1] - {prompt} <= {1, 6}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
def test_lengths_are_chosen_in_a_compiled_step_too(small_llama, monkeypatch) -> None:
    """Steps that compile are known as such, and none does in the second text."""
    model, tokens = ft.attach(small_llama, "parallel", depth=1).eval(), torch.tensor([[3] * 8])
    options = {"max_new_tokens": 40, "stop_tokens": (), "draft_length": "auto"}
    expected, record = model.decode(tokens, **options).continuations, AutoLength.record
    compiling: list[list[bool]] = []

    def noted(auto: AutoLength, steps: list[Step], seconds: float, compiled: bool) -> None:
        compiling[-1].append(compiled)
        record(auto, steps, seconds, compiled)

    monkeypatch.setattr(AutoLength, "record", noted)
    for _ in range(2):
        compiling.append([])
        result = model.decode(tokens, **options, compiled=True)
        assert result.continuations == expected
        assert set(result.draft_lengths) == {0, 1}
    assert 0 < sum(compiling[0]) <= torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert not any(compiling[1])
    uncompiled, compiled = model._measured["heads"].values()  # each learns apart
    assert uncompiled is not compiled
    assert compiled.costs


def test_a_chosen_length_is_the_width_of_its_pass(small_llama, widths, monkeypatch) -> None:
    model, tokens = ft.attach(small_llama, "parallel", depth=3).eval(), torch.tensor([[3] * 8])

    def chosen(auto: AutoLength) -> int:
        auto.chosen.append(len(auto.chosen) % 4)
        return auto.chosen[-1]

    monkeypatch.setattr(AutoLength, "choose", chosen)
    for module in (passes, parallel):  # the shapes alone
        monkeypatch.setattr(module, "compile_fixed", lambda function, backbone: function)
    result = model.decode(
        tokens, max_new_tokens=20, stop_tokens=(), draft_length="auto", compiled=True
    )
    assert set(result.draft_lengths) == {0, 1, 2, 3}
    chosen_widths = [number % 4 + 1 for number in range(result.forwards - 1)]
    assert widths[-result.forwards :] == [8, *chosen_widths]  # some tries come first


@pytest.mark.usefixtures("traced")
def test_compiled_streams_may_take_turns(one_block) -> None:
    """One without heads among them; the hooks that the first one needs are gone when it has ended,
    while the last goes on."""
    model, tokens = ft.attach(one_block, "parallel", depth=2).eval(), torch.tensor([[3] * 8])
    drawn(model, 3)
    options = [
        {"max_new_tokens": 8},
        {"max_new_tokens": 12, "drafter": NoDrafter()},
        {"max_new_tokens": 24},
    ]
    expected = [model.decode(tokens, stop_tokens=(), **given).steps for given in options]
    streams = [model.stream(tokens, stop_tokens=(), **given, compiled=True) for given in options]
    found: list[list[tuple[Step, ...]]] = [[] for _ in streams]
    for turn in itertools.zip_longest(*streams):
        for steps, step in zip(found, turn, strict=True):
            steps += [step] if step else []
    assert found == expected
    assert any(step.accepted for (step,) in found[2])


@pytest.fixture
def played_back(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In place of CUDA graphs: what was recorded runs again on the tensors of its recording, which
    is all that a graph knows. Counts what is recorded and what is played back."""
    counts = [0, 0]

    def record(run):
        counts[0] += 1
        output = run()

        def replay() -> None:
            counts[1] += 1
            for own, new in zip(tensors(output), tensors(run()), strict=True):
                own.copy_(new)

        return replay, output

    for module in (passes, parallel, sequential, model_drafter):
        monkeypatch.setattr(
            module,
            "compile_fixed",
            lambda function, backbone: Captured(function, backbone, lambda: record),
        )
    return counts


@pytest.mark.parametrize(
    ("name", "rows", "temperature"),
    [
        pytest.param(
            name, rows, heat, marks=[] if (number + rows // 3 + heat) % 2 == 0 else pytest.mark.long
        )
        for number, name in enumerate(
            ["none", "chain", "tree", "lookup", "sequential", "comb", "model", "model comb"]
        )
        for rows in (1, 3)
        for heat in (0, 1)
    ],
)
def test_a_step_played_back_changes_no_token(
    small_llama, played_back: list[int], name: str, rows: int, temperature: int
) -> None:
    """Every way to draft with one row and with three, once greedily and once drawn."""
    kind = "sequential" if name in ("sequential", "comb") else "parallel"
    model = ft.attach(small_llama, kind, depth=2).eval()
    drawn(model)
    tokens, mask = batch(rows)
    steps, graphs = (
        model.decode(
            tokens,
            mask,
            max_new_tokens=[20, 14, 30][:rows],
            stop_tokens=(),
            drafter=drafter(model, "tree" if name == "comb" else name),
            sampling=Sampling(temperature=temperature, seeds=3),
            compiled=compiled,
        ).row_steps
        for compiled in (False, True)
    )
    assert [(s.tokens, s.accepted) for s in graphs] == [(s.tokens, s.accepted) for s in steps]
    recorded, replayed = played_back
    assert 0 < recorded < replayed


def test_playback_goes_on_where_slots_are_added_and_rows_leave(
    small_llama, played_back, monkeypatch
) -> None:
    monkeypatch.setattr(slotted, "FIXED_SLOTS", 16)
    monkeypatch.setattr(passes, "DRAFT_SLOTS", 0)
    monkeypatch.setitem(slotted.STAGES, "cpu", (8, 16))
    model = ft.attach(small_llama, "sequential", depth=2).eval()
    drawn(model)
    tokens, mask = batch(3)
    expected, found = (
        model.decode(
            tokens, mask, max_new_tokens=[8, 24, 60], stop_tokens=(), compiled=compiled
        ).continuations
        for compiled in (False, True)
    )
    assert found == expected
    assert played_back[1] > played_back[0] > 4


def test_what_cannot_be_recorded_runs_as_it_is(small_llama, monkeypatch) -> None:
    def record(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(
        passes,
        "compile_fixed",
        lambda function, backbone: Captured(function, backbone, lambda: record),
    )
    model, (tokens, mask) = ft.attach(small_llama, "sequential", depth=2).eval(), batch(1)
    options = {"max_new_tokens": 8, "drafter": NoDrafter()}
    expected = model.decode(tokens, mask, **options).steps
    with pytest.warns(UserWarning, match=r"small_llama|Llama.*\(operation not permitted when st"):
        assert model.decode(tokens, mask, **options, compiled=True).steps == expected


def test_a_model_on_several_devices_is_not_recorded(small_llama) -> None:
    backbone = ft.MTPModel(small_llama).backbone
    small_llama.get_output_embeddings().to("meta")
    with pytest.warns(UserWarning, match="its weights lie on several devices"):
        captured = Captured(lambda value: value + 1, backbone, lambda: pytest.fail("recorded"))
    one = torch.ones(1)
    assert [captured(one).item() for _ in range(3)] == [2, 2, 2]


def test_arguments_are_found_and_exchanged() -> None:
    """Through tuples, dicts and records; caches are kept as they are."""
    first, second, third = (torch.full((1,), float(n)) for n in range(3))
    cache = DynamicCache()
    call = BlockCall((cache, first), {"mask": {"full": second}, "flag": True})
    value = (BackboneOutput(third, {}, call), [3, None])
    assert [tensor.item() for tensor in tensors(value)] == [2, 0, 1]
    assert caches(value) == [cache]
    other = exchanged(value, torch.neg)
    assert [tensor.item() for tensor in tensors(other)] == [-2, 0, -1]
    assert other[0].call.args[0] is cache
    assert other[1] == [3, None]
    assert other[0].call.kwargs["flag"] is True
    assert [tensor.item() for tensor in tensors(value)] == [2, 0, 1]


@pytest.mark.usefixtures("traced")
def test_sequential_drafts_compile_after_prompts_of_any_length(one_block) -> None:
    """Also after one as long as their steady window, whose caches are empty."""
    model = ft.attach(one_block, "sequential", depth=2).eval()
    drawn(model)
    for length in (1, 3, 4, 5):
        prompt = torch.arange(1, 1 + length).unsqueeze(0)
        steps, compiled = (
            model.decode(prompt, max_new_tokens=NEW, stop_tokens=(), compiled=compiled).row_steps
            for compiled in (False, True)
        )
        assert [s.tokens for s in compiled] == [s.tokens for s in steps]


def test_what_is_recorded_does_not_keep_its_owner(small_llama) -> None:
    """Nor does an object at the address of an earlier one pass for it."""

    class Owner:
        def doubled(self, value: Tensor, other: object) -> Tensor:
            return 2 * value

    recorded = []

    def record(run):
        recorded.append(run())
        return (lambda: None), recorded[-1]

    owner = Owner()
    owner.steady = Captured(Owner.doubled, ft.MTPModel(small_llama).backbone, lambda: record)
    for _ in range(3):
        assert owner.steady(owner, torch.ones(1), Owner()).item() == 2
    assert not recorded  # another object each time
    same = Owner()
    for _ in range(3):
        owner.steady(owner, torch.ones(1), same)
    assert len(recorded) == 1
    alive = weakref.ref(owner)
    del owner
    assert alive() is None
