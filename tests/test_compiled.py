"""The compiled step says what the uncompiled one says.

Compiling takes its time: one case always, the others with `pytest -m long tests/test_compiled.py`.
"""

import copy

import pytest
import torch
from torch import Tensor

import foretoken as ft
from foretoken.decoding import (
    Drafter,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    TreeShape,
    cache,
    drafter_for,
    passes,
)

NEW = 10
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6], [2], [7, 1, 8, 2, 8])


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Prompts padded in front, and their mask."""
    width = max(map(len, PROMPTS[:rows]))
    missing = [[0] * (width - len(row)) for row in PROMPTS[:rows]]
    tokens = [some + row for some, row in zip(missing, PROMPTS, strict=False)]
    mask = [some + [1] * len(row) for some, row in zip(missing, PROMPTS, strict=False)]
    return torch.tensor(tokens), torch.tensor(mask)


def drafter(model: ft.MTPModel, name: str) -> Drafter:
    if name == "model":
        draft = ft.MTPModel(copy.deepcopy(model.lm)).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in draft.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
        return ModelDrafter(model.backbone, draft.backbone, 2)
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
        model.generate(
            tokens, mask, max_new_tokens=NEW, drafter=drafter(model, name), compiled=compiled
        ).steps
        for compiled in (False, True)
    )
    assert compiled == steps
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_step_follows_changed_weights_and_other_models(small_llama) -> None:
    """Guards are checked once per `generate`: what changes between two of them is seen."""
    model, (tokens, mask) = ft.attach(small_llama, "parallel", depth=2).eval(), batch(1)
    other = ft.attach(copy.deepcopy(small_llama), "parallel", depth=2).eval()
    said = []
    for seed, turn in enumerate((model, other, model)):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in turn.parameters():
                weight.normal_()
        steps, compiled = (
            turn.generate(tokens, mask, max_new_tokens=NEW, compiled=compiled).steps
            for compiled in (False, True)
        )
        assert compiled == steps
        said.append(steps)
    assert len({repr(steps) for steps in said}) == 3
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_step_goes_on_where_slots_are_added(small_llama, monkeypatch) -> None:
    """Drafts at the end of the text need more slots than were set aside, within one `generate`."""
    monkeypatch.setattr(cache, "FIXED_SLOTS", 16)
    monkeypatch.setattr(passes, "DRAFT_SLOTS", 0)
    model, tokens = ft.attach(small_llama, "parallel", depth=2).eval(), torch.tensor([[3] * 8])
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    steps, compiled = (
        model.generate(tokens, max_new_tokens=24, compiled=compiled).steps
        for compiled in (False, True)
    )
    tokens_of = [[token for (step,) in some for token in step.tokens] for some in (steps, compiled)]
    assert tokens_of[0] == tokens_of[1]
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_step_is_one_for_all_numbers_of_slots_and_rows(small_llama, monkeypatch) -> None:
    """Empty slots and rows that have ended are left out; torch compiles step and heads once for
    all, but for a row alone, which therefore keeps a neighbour."""
    monkeypatch.setattr(cache, "FIXED_SEEN", 8)
    model, (tokens, mask) = ft.attach(small_llama, "parallel", depth=2).eval(), batch(3)
    slots, rows = set(), set()
    enter = cache.SlottedPast.enter

    def entered(past, width, draft=None):
        given = enter(past, width, draft)
        slots.add(past.slots.seen)
        rows.add(past.rows)
        return given

    new = [8, 24, 40]
    expected = model.generate(tokens, mask, max_new_tokens=new).continuations
    monkeypatch.setattr(cache.SlottedPast, "enter", entered)
    torch._dynamo.utils.counters.clear()
    result = model.generate(tokens, mask, max_new_tokens=new, compiled=True)
    assert result.continuations == expected
    assert {16, 24, 32, 40} <= slots
    assert rows == {2, 3}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch.compiler.reset()
