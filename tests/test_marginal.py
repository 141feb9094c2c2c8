import copy
from functools import cache
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import families
from foretell.backbone import Backbone
from foretell.checkpoints import load_causal_lm, load_tokenizer
from foretell.errors import BackboneError, InputError
from foretell.probe import Marginal, branches, marginalize
from foretell.probe.branches import ReadRow, greedy_chains

VOCAB = 11
POSITIONS = (0, 3, 8)
MASKED = ["llama", "mistral", "gemma2", "gpt2", "opt", "deepseek_v3", "cohere", "gpt_oss"]


@cache
def toy(family: str) -> PreTrainedModel:
    """A model of `family` with a vocabulary that can be enumerated."""
    known = families.OTHERS if family in families.OTHERS else families.FAMILIES
    make = known[family]

    def small():
        config = make()
        config.vocab_size = VOCAB
        return config

    with mock.patch.dict(known, {family: small}):
        return families.build(family)


def row(length: int = 9) -> Tensor:
    return families.prompt(1, length) % VOCAB


def next_tokens(model: PreTrainedModel, prefix: Tensor, strings: Tensor) -> Tensor:
    """(N, k+1, V): log p of every token of `strings` (N, k) after `prefix`, and of what follows."""
    rows = torch.cat([prefix.expand(len(strings), -1), strings], dim=1)
    logits = model(rows, use_cache=False).logits[:, len(prefix) - 1 :]
    return logits.double().log_softmax(-1)


@torch.inference_mode()
def brute_force(
    model: PreTrainedModel, prefix: Tensor, depth: int, strings: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(V,) and (N,): the sum over `strings` (all by default), and the strings' probabilities."""
    size = model.config.get_text_config().vocab_size
    if strings is None:
        every = list(product(range(size), repeat=depth))
        strings = torch.tensor(every, dtype=torch.long).reshape(size**depth, depth)
    chances = next_tokens(model, prefix, strings)
    own = chances[:, :depth].gather(2, strings.unsqueeze(2)).squeeze(2).sum(1).exp()
    return own @ chances[:, depth].exp(), own


def beam(model: PreTrainedModel, prefix: Tensor, depth: int, width: int) -> Tensor:
    """(≤ width, depth): the strings that the probe is meant to keep."""
    strings = torch.empty(1, 0, dtype=torch.long)
    for _ in range(depth):
        longer = torch.tensor(
            [[*string, token] for string in strings.tolist() for token in range(VOCAB)]
        )
        chances = brute_force(model, prefix, longer.shape[1], longer)[1]
        strings = longer[chances.topk(min(width, len(longer))).indices]
    return strings


def run(model: PreTrainedModel, tokens: Tensor, positions, depth: int, width: int):
    where = torch.tensor(positions)
    return list(marginalize(Backbone(model), tokens, where, depth, width))


def differ(found: Marginal, expected: list[Tensor]) -> float:
    return float((found.probabilities - torch.stack(expected)).abs().max())


# -- against brute force ------------------------------------------------------------------------


@pytest.mark.parametrize("family", MASKED)
def test_every_string_is_summed_over(family: str) -> None:
    model, tokens = toy(family), row()
    found = run(model, tokens, POSITIONS, 2, VOCAB**2)
    assert [marginal.depth for marginal in found] == [0, 1, 2]
    for marginal in found:
        expected = [brute_force(model, tokens[0, : t + 1], marginal.depth)[0] for t in POSITIONS]
        assert differ(marginal, expected) < 1e-5
        torch.testing.assert_close(marginal.covered_mass, torch.ones(len(POSITIONS)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_in_double_precision_next_to_nothing_is_left(family: str) -> None:
    model, tokens = copy.deepcopy(toy(family)).double(), row(7)
    for marginal in run(model, tokens, (0, 6), 2, VOCAB**2):
        expected = [brute_force(model, tokens[0, : t + 1], marginal.depth)[0] for t in (0, 6)]
        assert differ(marginal, expected) < 1e-6


@pytest.mark.data
def test_real_weights_agree_with_brute_force(data_dir: Path) -> None:
    where = data_dir / "models" / "stories260K"
    model = load_causal_lm(where).float()
    text = "Once upon a time, there was a little girl"
    tokens = torch.tensor([load_tokenizer(where)(text)["input_ids"]])
    positions = (0, tokens.shape[1] - 1)
    found = run(model, tokens, positions, 1, model.config.vocab_size)
    for marginal in found:
        expected = [brute_force(model, tokens[0, : t + 1], marginal.depth)[0] for t in positions]
        assert differ(marginal, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3"])
@pytest.mark.parametrize("width", [1, 3, 20])
def test_a_narrow_sum_is_over_the_likeliest_strings(family: str, width: int) -> None:
    model, tokens = toy(family), row()
    for marginal in run(model, tokens, POSITIONS, 2, width)[1:]:
        for index, t in enumerate(POSITIONS):
            prefix = tokens[0, : t + 1]
            strings = beam(model, prefix, marginal.depth, width)
            part, chances = brute_force(model, prefix, marginal.depth, strings)
            mass = chances.sum()
            assert float(marginal.covered_mass[index]) == pytest.approx(float(mass), abs=1e-5)
            expected = part + (1 - mass) / VOCAB  # what is not covered is spread evenly
            assert float((marginal.probabilities[index] - expected).abs().max()) < 1e-5


@torch.inference_mode()
def standing(model: PreTrainedModel, prefix: Tensor, readers: list[Tensor]) -> list[float]:
    """By the definition: that all of the tokens drawn from the `readers` of depths 1…k stand."""
    found = []
    for depth in range(1, len(readers) + 1):
        strings = torch.tensor(list(product(range(VOCAB), repeat=depth)))
        chances, total = next_tokens(model, prefix, strings).exp(), 0.0
        for string, after in zip(strings.tolist(), chances, strict=True):
            reach = after[0, string[0]]
            for j in range(1, depth):
                reach = reach * torch.minimum(after[j], readers[j - 1])[string[j]]
            total += float(reach * torch.minimum(after[depth], readers[depth - 1]).sum())
        found.append(total)
    return found


@pytest.mark.parametrize("width", [2, 7, VOCAB**2])
def test_what_a_reader_drafts_stands_as_by_the_definition(width: int) -> None:
    model, tokens = toy("llama"), row()
    found = run(model, tokens, POSITIONS, 2, width)
    for index, t in enumerate(POSITIONS):
        readers = [marginal.probabilities[index].double() for marginal in found[1:]]
        for marginal, true in zip(
            found[1:], standing(model, tokens[0, : t + 1], readers), strict=True
        ):
            low, high = float(marginal.stands_min[index]), float(marginal.stands_max[index])
            assert low - 1e-5 <= true <= high + 1e-5
            if width == VOCAB**2:
                assert low == pytest.approx(true, abs=1e-5) == high


@pytest.mark.parametrize("width", [1, 4, (VOCAB, 5)])
def test_the_true_distribution_lies_in_the_interval(width) -> None:
    model, tokens = toy("gpt2"), row()
    for marginal in run(model, tokens, POSITIONS, 2, width):
        for index, t in enumerate(POSITIONS):
            true = brute_force(model, tokens[0, : t + 1], marginal.depth)[0]
            covered, missing = marginal.covered[index], marginal.missing[index]
            assert bool((true >= covered - 1e-5).all())
            assert bool((true <= covered + missing + 1e-5).all())


def test_widths_by_depth() -> None:
    found = run(toy("llama"), row(), POSITIONS, 2, (VOCAB, 3))
    torch.testing.assert_close(found[1].covered_mass, torch.ones(3))
    assert bool((found[2].covered_mass < 0.999).all())
    narrow = run(toy("llama"), row(), POSITIONS, 2, 3)
    assert bool((found[2].covered_mass >= narrow[2].covered_mass - 1e-6).all())


def test_parts_of_the_positions_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(toy("llama"), row(), (8, 2, 5), 2, 6)
    monkeypatch.setattr(branches, "BUDGET", 1)
    for part, one in zip(run(toy("llama"), row(), (8, 2, 5), 2, 6), whole, strict=True):
        for name in ("covered", "covered_mass", "stands_min", "stands_max"):
            torch.testing.assert_close(getattr(part, name), getattr(one, name))


def test_chains_keep_to_the_budget_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, where, sizes = ReadRow(Backbone(toy("llama")), row(), 2), torch.tensor([8, 2, 5]), []
    first = prefix.distribution(where).argmax(-1)
    whole = greedy_chains(prefix, where, first, 2)
    monkeypatch.setattr(branches, "BUDGET", 1)
    original = ReadRow.branches

    def counting(self: ReadRow, positions: Tensor) -> branches.Branches:
        sizes.append(len(positions))
        return original(self, positions)

    monkeypatch.setattr(ReadRow, "branches", counting)
    assert torch.equal(greedy_chains(prefix, where, first, 2), whole)
    assert sizes == [1, 1, 1]


def test_the_greedy_chain_is_what_generate_says() -> None:
    model, tokens = toy("llama"), row()
    prefix = ReadRow(Backbone(model), tokens, 3)
    where = torch.tensor([2, 8])
    first = prefix.distribution(where).argmax(-1)
    found = greedy_chains(prefix, where, first, 3)
    for chain, t in zip(found, (2, 8), strict=True):
        said = model.generate(tokens[:, : t + 1], max_new_tokens=4, do_sample=False)
        assert chain.tolist() == said[0, t + 1 :].tolist()


# -- what always holds --------------------------------------------------------------------------


def test_distributions_sum_to_one_and_mass_grows_with_width() -> None:
    before = torch.zeros(3, len(POSITIONS))
    for width in (1, 2, 5, 11, 30, 121):
        found = run(toy("llama"), row(), POSITIONS, 2, width)
        for marginal in found:
            assert marginal.probabilities.shape == (len(POSITIONS), VOCAB)
            assert bool((marginal.probabilities >= 0).all())
            torch.testing.assert_close(
                marginal.probabilities.sum(1), torch.ones(len(POSITIONS)), rtol=0, atol=1e-5
            )
        mass = torch.stack([marginal.covered_mass for marginal in found])
        assert bool((mass >= before - 1e-6).all())
        assert bool((mass <= 1 + 1e-5).all())
        assert bool((mass[0] == 1).all())
        before = mass


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_positions_do_not_see_each_other(family: str) -> None:
    together = run(toy(family), row(), (8, 2, 5, 2), 2, 4)
    for index, position in enumerate((8, 2, 5, 2)):
        alone = run(toy(family), row(), (position,), 2, 4)
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one.probabilities[0], many.probabilities[index])
            torch.testing.assert_close(one.covered_mass[0], many.covered_mass[index])


def test_a_position_sees_nothing_that_comes_after_it() -> None:
    tokens = row()
    whole = run(toy("llama"), tokens, (4,), 2, 6)
    for length in (5, 7):
        for one, other in zip(
            run(toy("llama"), tokens[:, :length], (4,), 2, 6), whole, strict=True
        ):
            torch.testing.assert_close(one.probabilities, other.probabilities)


@pytest.mark.parametrize("length", [families.WINDOW - 1, families.WINDOW + 9])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "llama4_text"])
def test_windows_and_chunks_mean_what_they_mean_in_separate_passes(family, length: int) -> None:
    model, tokens = toy(family), row(length)
    where = (2, families.WINDOW - 2, length - 1)
    found = run(model, tokens, where, 1, VOCAB)[1]
    assert differ(found, [brute_force(model, tokens[0, : t + 1], 1)[0] for t in where]) < 1e-5


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(-1, 4), (-5, 4), (1, 0), (1, -2), (0, 0)])
def test_depth_and_width_must_make_sense(depth: int, width: int) -> None:
    with pytest.raises(InputError, match=f"depth is {depth} and width {width}"):
        run(toy("llama"), row(), POSITIONS, depth, width)


@pytest.mark.parametrize("family", ["qwen3_next", "mamba", "falcon_alibi", "mpt"])
def test_a_backbone_that_does_not_obey_masks_is_refused(family: str) -> None:
    name = type(toy(family)).__name__
    with pytest.raises(BackboneError, match=f"{name} cannot be marginalized: it takes no"):
        run(toy(family), row(), (0,), 1, 2)


def test_what_is_obeyed_up_to_a_window_is_refused_behind_it() -> None:
    """GPT-Neo counts its local window in slots: of the row, and of strings behind it."""
    model, short = toy("gpt_neo"), row(4)
    found = run(model, short, (1, 3), 1, VOCAB)[1]
    assert differ(found, [brute_force(model, short[0, : t + 1], 1)[0] for t in (1, 3)]) < 1e-5
    for length, width in ((families.WINDOW + 9, 2), (8, VOCAB)):
        with pytest.raises(BackboneError, match=f"not obey it behind {families.WINDOW} tokens"):
            run(model, row(length), (0, 3, 7), 1, width)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = families.build("llama")
    backbone = Backbone(model)
    with torch.no_grad():
        next(iter(model.model.layers[1].parameters())).fill_(float("nan"))
    with pytest.raises(BackboneError, match="not finite"):
        list(marginalize(backbone, row(), torch.tensor([0]), 1, 2))
