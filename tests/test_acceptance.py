"""Acceptance rules as functions of tensors: a row of a batch is a draw."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chances import p_value
from foretell.decoding import (
    Distance,
    Draft,
    Exact,
    MinimumBlock,
    SpeculativeSampling,
    TopK,
    Typical,
)
from foretell.decoding.acceptance import choose, draw
from foretell.errors import InputError

V = 4
DRAWS = 30_000  # enough to catch a rule that accepts 2 % too often
TREES = {
    "chain of 1": [0],
    "chain of 3": [0, 1, 2],
    "two branches": [0, 0, 1, 2],
    "three, then two, then one": [0, 0, 0, 1, 1, 3, 3, 4],
    "depth first": [0, 1, 2, 2, 1, 0, 6],
}


def tables(seed: int, depth: int, sharp: float, zeros: bool = False) -> list[Tensor]:
    """Distributions after every prefix: of length k, (V^k, V)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in range(depth):
        logits = sharp * torch.randn(V**length, V, generator=generator)
        if zeros:
            logits[:, 1] = -torch.inf
        found.append(logits.softmax(-1))
    return found


def drawn_draft(q: list[Tensor], parents: list[int], rows: int, generator) -> tuple[Draft, Tensor]:
    """Tokens drawn from q, siblings without replacement; and each node's prefix as a number."""
    depths, prefixes = [0], [torch.zeros(rows, dtype=torch.long)]
    tokens, probabilities = [], []
    for number, parent in enumerate(parents):
        given = q[depths[parent]][prefixes[parent]].clone()
        for earlier in range(number):
            if parents[earlier] == parent:
                given.scatter_(1, tokens[earlier].unsqueeze(1), 0.0)
        given = given / given.sum(-1, keepdim=True)
        token = torch.multinomial(given, 1, generator=generator).squeeze(1)
        tokens.append(token)
        probabilities.append(given)
        prefixes.append(prefixes[parent] * V + token)
        depths.append(depths[parent] + 1)
    chain = parents == list(range(len(parents)))
    draft = Draft(
        torch.stack(tokens, 1),
        None if chain else torch.tensor(parents).expand(rows, -1),
        torch.stack(probabilities, 1),
    )
    return draft, torch.stack(prefixes, 1)


def target_logits(p: list[Tensor], parents: list[int], prefixes: Tensor) -> Tensor:
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    at_nodes = [p[depth][prefixes[:, node]] for node, depth in enumerate(depths)]
    return torch.stack(at_nodes, 1).log()


def emitted(draft: Draft, verdict, length: int, p: list[Tensor], generator) -> Tensor:
    """The first `length` tokens of every row as a number, completed by draws from p."""
    rows = len(draft.tokens)
    nodes = (
        verdict.path if verdict.path is not None else torch.arange(draft.size + 1).expand(rows, -1)
    )
    nodes = torch.nn.functional.pad(nodes, (0, length + 1))
    number = torch.zeros(rows, dtype=torch.long)
    for place in range(length):
        drafted = draft.tokens.gather(1, (nodes[:, place + 1, None] - 1).clamp(min=0)).squeeze(1)
        fresh = torch.multinomial(p[place][number], 1, generator=generator).squeeze(1)
        own = torch.where(verdict.accepted == place, verdict.next_token, fresh)
        number = number * V + torch.where(place < verdict.accepted, drafted, own)
    return number


def joint(p: list[Tensor], length: int) -> Tensor:
    found = torch.ones(1)
    for table in p[:length]:
        found = (found.unsqueeze(1) * table).flatten()
    return found


def check_distribution(rule, parents, p, q, rows: int, seed: int) -> float:
    """The p-value of what a rule emits; a row of the batch is a draw."""
    generator = torch.Generator().manual_seed(seed)
    draft, prefixes = drawn_draft(q, parents, rows, generator)
    logits = target_logits(p, parents, prefixes)
    uniforms = torch.rand(rows, 2, len(parents) + 1, generator=generator)
    verdict = rule(draft, logits, uniforms)
    length = int(draft.depths.max()) + 1
    numbers = emitted(draft, verdict, length, p, generator)
    return p_value(torch.bincount(numbers, minlength=V**length), joint(p, length))


CASES = {
    "different": (1.5, 1.5, False, False),
    "equal": (1.5, 1.5, True, False),
    "impossible tokens": (1.5, 1.5, False, True),
    "nearly certain": (6.0, 1.0, False, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("rule", [SpeculativeSampling(), Exact()], ids=["speculative", "exact"])
def test_lossless_rules_emit_the_backbones_distribution(rule, tree: str, case: str) -> None:
    sharp_p, sharp_q, equal, zeros = CASES[case]
    parents = TREES[tree]
    p = tables(1, 5, sharp_p, zeros)
    q = p if equal and not zeros else tables(2, 5, sharp_q)
    assert check_distribution(rule, parents, p, q, DRAWS, seed=3) > 0.001
    assert rule.lossless


@pytest.mark.parametrize("tree", TREES)
def test_chosen_tokens_are_judged_without_bias(tree: str) -> None:
    """As by `Exact`, whose distribution is the backbone's."""
    p, q, parents = tables(4, 5, 1.5), tables(5, 5, 1.5), TREES[tree]
    generator = torch.Generator().manual_seed(6)
    draft, prefixes = drawn_draft(q, parents, 1000, generator)
    chosen, logits = Draft(draft.tokens, draft.parents), target_logits(p, parents, prefixes)
    uniforms = torch.rand(1000, 2, len(parents) + 1, generator=generator)
    own = SpeculativeSampling()(chosen, logits, uniforms)
    expected = Exact()(chosen, logits, uniforms)
    assert torch.equal(own.accepted, expected.accepted)
    assert torch.equal(own.next_token, expected.next_token)
    assert torch.equal(own.last, expected.last)
    assert len(expected.accepted.unique()) > 1


class Generous(SpeculativeSampling):
    """Takes what was drafted for 2 % less likely than it was."""

    def __call__(self, draft: Draft, logits: Tensor, uniforms: Tensor | None = None):
        given = Draft(draft.tokens, draft.parents, draft.probabilities / 1.02)
        return super().__call__(given, logits, uniforms)


@pytest.mark.parametrize(("rule", "most"), [(MinimumBlock(3), 1e-6), (Generous(), 0.001)])
def test_a_biased_rule_would_be_caught(rule, most: float) -> None:
    """By the same check, with one that always accepts and one that does too often."""
    p, q = tables(1, 5, 1.5), tables(2, 5, 1.5)
    assert check_distribution(rule, [0, 1, 2], p, q, DRAWS, seed=3) < most


def test_equal_distributions_are_always_accepted() -> None:
    p = tables(1, 5, 1.5)
    generator = torch.Generator().manual_seed(0)
    draft, prefixes = drawn_draft(p, [0, 1, 2], 5000, generator)
    uniforms = torch.rand(5000, 2, 4, generator=generator)
    verdict = SpeculativeSampling()(draft, target_logits(p, [0, 1, 2], prefixes), uniforms)
    assert (verdict.accepted == 3).float().mean() > 0.999  # p/q is 1 but for rounding


def test_acceptance_is_the_overlap_of_the_distributions() -> None:
    """Leviathan et al. 2023, corollary 3.6: α = Σ min(p, q)."""
    p, q = tables(1, 5, 1.5), tables(2, 5, 1.5)
    generator = torch.Generator().manual_seed(0)
    draft, prefixes = drawn_draft(q, [0], 200_000, generator)
    uniforms = torch.rand(200_000, 2, 2, generator=generator)
    verdict = SpeculativeSampling()(draft, target_logits(p, [0], prefixes), uniforms)
    overlap = torch.minimum(p[0], q[0]).sum()
    assert abs(float(verdict.accepted.float().mean() - overlap)) < 0.005


def test_what_has_no_probability_is_never_drawn() -> None:
    probabilities = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.3, 0.5, 1 - 2**-24])
    assert set(draw(probabilities, uniforms).tolist()) <= {1, 3}
    assert draw(probabilities, uniforms)[0] == 1
    assert draw(probabilities, uniforms)[3] == 3


@given(
    widths=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    own=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    drafted=st.lists(st.integers(0, 2), min_size=7, max_size=7),
)
def test_the_exact_rule_walks_the_tree(widths, own, drafted) -> None:
    parents = [min(parent, place) for place, parent in enumerate(widths)]
    logits = torch.nn.functional.one_hot(torch.tensor([own]), 3).float()
    draft = Draft(torch.tensor([drafted]), torch.tensor([parents]))
    verdict = Exact()(draft, logits)

    def ways(node: int) -> list[list[int]]:
        children = [
            child + 1
            for child, parent in enumerate(parents)
            if parent == node and drafted[child] == own[node]
        ]
        return [[node]] + [[node, *rest] for child in children for rest in ways(child)]

    longest = max(map(len, ways(0)))
    path = verdict.path[0, : int(verdict.accepted) + 1].tolist()
    assert len(path) == longest
    assert path in ways(0)
    assert int(verdict.next_token) == own[path[-1]]
    assert int(verdict.last) == path[-1]


def naive(stands, parents: list[int]) -> int:
    """The length of the longest way on which every token stands."""
    depth = {0: 0}
    for number, parent in enumerate(parents, start=1):
        if parent in depth and stands[number - 1]:
            depth[number] = depth[parent] + 1
    return max(depth.values())


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    "rule",
    [TopK(2), Distance(1), Typical(0.2, 0.5), MinimumBlock(2)],
    ids=lambda r: type(r).__name__,
)
def test_lossy_rules_accept_what_they_say(rule, tree: str) -> None:
    generator = torch.Generator().manual_seed(9)
    parents = TREES[tree]
    p, q = tables(7, 5, 1.5), tables(8, 5, 1.0)
    draft, prefixes = drawn_draft(q, parents, 100, generator)
    logits = target_logits(p, parents, prefixes)
    verdict = rule(draft, logits)
    depths = [0]
    for parent in parents:
        depths.append(depths[parent] + 1)
    for row in range(100):
        stands = []
        for number, parent in enumerate(parents):
            scores = logits[row, parent]
            token, best = int(draft.tokens[row, number]), int(scores.argmax())
            probabilities = scores.exp()
            entropy = -float((probabilities * scores).sum())
            likely = float(probabilities[token]) > min(0.2, 0.5 * math.exp(-entropy))
            allowed = {
                TopK: token in scores.topk(2).indices.tolist(),
                Distance: abs(token - best) <= 1,
                Typical: likely,
                MinimumBlock: token == best or depths[number + 1] <= 2,
            }
            stands.append(allowed[type(rule)])
        assert int(verdict.accepted[row]) == naive(stands, parents)
        last = int(verdict.last[row])
        assert int(verdict.next_token[row]) == int(logits[row, last].argmax())
    assert not rule.lossless


def test_an_empty_draft_gives_the_backbones_own_token() -> None:
    logits = torch.randn(3, 1, V)
    nothing = Draft.nothing(3, torch.device("cpu"))
    for rule in (Exact(), SpeculativeSampling(), TopK(), Distance(), Typical(), MinimumBlock()):
        verdict = rule(nothing, logits)
        assert verdict.accepted.tolist() == [0, 0, 0]
        assert torch.equal(verdict.next_token, choose(nothing, logits, None)[:, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TopK(0),
        lambda: Distance(-1),
        lambda: Typical(0.0),
        lambda: Typical(0.1, -1.0),
        lambda: MinimumBlock(0),
    ],
)
def test_a_rule_that_means_nothing_is_refused(wrong) -> None:
    with pytest.raises(InputError):
        wrong()


def test_every_way_through_a_small_tree() -> None:
    """All drafts and choices of a tree of three nodes, against a walk."""
    for drafted, own in product(product(range(2), repeat=3), product(range(2), repeat=4)):
        logits = torch.nn.functional.one_hot(torch.tensor([own]), 2).float()
        verdict = Exact()(Draft(torch.tensor([drafted]), torch.tensor([[0, 0, 1]])), logits)
        expected = 0
        if drafted[0] == own[0]:
            expected = 2 if drafted[2] == own[1] else 1
        elif drafted[1] == own[0]:
            expected = 1
        assert int(verdict.accepted) == expected


def test_what_was_ruled_out_is_not_among_the_likeliest() -> None:
    logits = torch.tensor([[[2.0, -torch.inf, -torch.inf]] * 2])
    for token, accepted in ((0, 1), (1, 0), (2, 0)):
        assert int(TopK(2)(Draft(torch.tensor([[token]])), logits).accepted) == accepted
