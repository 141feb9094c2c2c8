"""Passes of one width: what is drafted changes no token, however close the two likeliest are."""

import pytest
import torch

import families
import foretell as ft
from foretell.checkpoints import load_tokenizer
from foretell.decoding import (
    Draft,
    Drafter,
    LookupDrafter,
    ModelDrafter,
    NoDrafter,
    TreeShape,
    drafter_for,
)
from foretell.errors import BackboneError, InputError

NEW, WIDTH = 16, 5
TEXTS = ("def main(", "import os, ", "class Reader:\n    def __init__(self")


def nearly_tied(family: str, dtype: torch.dtype) -> ft.MTPModel:
    """Half of the tokens are a hair's breadth from the other half: every choice is a near-tie."""
    lm, half = families.build(family), families.VOCAB // 2
    with torch.no_grad():
        rows = lm.get_output_embeddings().weight
        rows[half : 2 * half] = rows[:half] + 1e-8 * torch.randn_like(rows[:half])
    torch.manual_seed(1)
    return ft.attach(lm.to(dtype), "parallel", depth=3, init="copy").eval()


def drafters(model: ft.MTPModel) -> list[Drafter]:
    heads = drafter_for(model.backbone, model.require_head())
    return [heads, LookupDrafter(4, 1), ModelDrafter(model.backbone, model.backbone, WIDTH + 2)]


def rows_of(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of those lengths, padded behind."""
    rows = families.prompt(len(lengths), max(lengths))
    return rows, (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_near_ties_fall_the_same_way_whatever_is_drafted(family: str, dtype: torch.dtype) -> None:
    model = nearly_tied(family, dtype)
    for lengths in ([9], [3, 20, 11]):
        rows, mask = rows_of(lengths)
        options = {"max_new_tokens": NEW, "pass_width": WIDTH}
        plain = model.decode(rows, mask, drafter=NoDrafter(), **options)
        assert plain.tokens_per_forward == 1
        for drafter in drafters(model):
            result = model.decode(rows, mask, drafter=drafter, **options)
            assert result.continuations == plain.continuations
            assert max(step.drafted for step in result.row_steps) <= min(drafter.longest, WIDTH - 1)
        assert result.tokens_per_forward > 1.5  # the model drafts for itself, not in one width


def test_otherwise_they_need_not() -> None:
    """The reason for it: the same comparison with passes as wide as their drafts."""
    model, changed = nearly_tied("llama", torch.float32), 0
    for seed in range(8):
        row = families.prompt(1, 9, seed)
        found = [
            model.decode(row, max_new_tokens=NEW, drafter=drafter).new_tokens
            for drafter in (NoDrafter(), *drafters(model))
        ]
        changed += any(tokens != found[0] for tokens in found)
    assert changed > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bundled_model_in_half_precision(dtype: torch.dtype) -> None:
    model, tokenizer = ft.MTPModel.from_pretrained("tiny-mtp", dtype=dtype), load_tokenizer("tiny")
    for text in TEXTS:
        row = torch.tensor([tokenizer(text)["input_ids"]])
        options = {"max_new_tokens": 12, "stop_tokens": (), "pass_width": WIDTH}
        plain = model.decode(row, drafter=NoDrafter(), **options)
        heads = model.decode(row, **options)
        assert heads.new_tokens == plain.new_tokens
        assert heads.tokens_per_forward > 1


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_whose_matrices_depend_on_all_tokens_are_refused(family: str) -> None:
    model = ft.attach(families.build(family), depth=2).eval()
    with pytest.raises(BackboneError, match="depends on the other tokens of the pass") as caught:
        model.decode(families.prompt(), max_new_tokens=4, pass_width=4)
    assert type(model.lm).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_one_width_is_refused() -> None:
    model, row = nearly_tied("llama", torch.float32), families.prompt()
    with pytest.raises(InputError, match="pass_width is 0"):
        model.decode(row, max_new_tokens=4, pass_width=0)
    tree = drafter_for(model.backbone, model.require_head(), None, TreeShape(nodes=4))
    with pytest.raises(InputError, match="chains, not trees"):
        model.decode(row, max_new_tokens=4, pass_width=5, drafter=tree)
    hybrid = ft.attach(families.build("qwen3_next"), depth=2).eval()
    with pytest.raises(BackboneError, match="Qwen3NextForCausalLM cannot be decoded in passes"):
        hybrid.decode(row, max_new_tokens=4, pass_width=4)


def test_a_padded_draft_counts_as_before() -> None:
    draft = Draft(
        torch.tensor([[3, 4], [5, 6]]),
        probabilities=torch.rand(2, 2, 7),
        reach=torch.tensor([1, 9]),
    )
    padded = draft.padded(5)
    assert padded.tokens.tolist() == [[3, 4, 0, 0, 0], [5, 6, 0, 0, 0]]
    assert padded.counts.sum(1).tolist() == [1, 2]
    assert padded.deepest.tolist() == draft.deepest.tolist() == [1, 2]
    assert padded.probabilities.shape == (2, 5, 7)
    assert torch.equal(padded.probabilities[:, :2], draft.probabilities)
