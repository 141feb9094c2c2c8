import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foretell.targets import IGNORE, depth_targets, tokens_ahead

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)
"""Documents packed into one row."""


def positions_of(documents: list[int]) -> Tensor:
    return torch.cat([torch.arange(length) for length in documents]).unsqueeze(0)


def owners_of(documents: list[int]) -> list[int]:
    return [number for number, length in enumerate(documents) for _ in range(length)]


def naive_targets(labels: list[int], owners: list[int], depth: int) -> list[int]:
    """Token by token: the one depth+1 places on, if there, in the same document, and wanted."""
    targets = []
    for t in range(len(labels)):
        ahead = t + 1 + depth
        inside = ahead < len(labels) and owners[ahead] == owners[t]
        targets.append(labels[ahead] if inside else IGNORE)
    return targets


@given(rows=st.lists(lengths, min_size=1, max_size=3), depth=st.integers(0, 12), hide=st.randoms())
def test_targets_equal_a_naive_loop(rows: list[list[int]], depth: int, hide) -> None:
    size = min(map(sum, rows))
    owners = [owners_of(row)[:size] for row in rows]
    positions = torch.cat([positions_of(row)[:, :size] for row in rows])
    labels = torch.arange(1, size * len(rows) + 1).reshape(len(rows), size)  # all tokens differ
    hidden = torch.tensor([[hide.random() < 0.2 for _ in row] for row in labels.tolist()])
    labels = labels.masked_fill(hidden, IGNORE)
    expected = [
        naive_targets(row, owner, depth) for row, owner in zip(labels.tolist(), owners, strict=True)
    ]
    before = labels.clone()
    assert depth_targets(labels, depth, positions).tolist() == expected
    assert torch.equal(labels, before)


@given(documents=lengths, depth=st.integers(0, 12))
def test_no_target_crosses_a_document(documents: list[int], depth: int) -> None:
    owners = torch.tensor([owners_of(documents)])  # as labels: a target names its document
    targets = depth_targets(owners, depth, positions_of(documents))
    found = targets != IGNORE
    assert torch.equal(targets[found], owners[found])
    assert int(found.sum()) == sum(max(0, length - 1 - depth) for length in documents)


@given(length=st.integers(1, 12), depth=st.integers(0, 14))
def test_without_positions_a_row_is_one_document(length: int, depth: int) -> None:
    labels = torch.arange(2 * length).reshape(2, length)
    positions = torch.arange(length).expand(2, length)
    assert torch.equal(depth_targets(labels, depth), depth_targets(labels, depth, positions))


@given(length=st.integers(1, 12), distance=st.integers(0, 14))
def test_tokens_ahead_equal_a_naive_loop(length: int, distance: int) -> None:
    tokens = torch.arange(2 * length).reshape(2, length)
    expected = [
        [row[min(t + distance, length - 1)] for t in range(length)] for row in tokens.tolist()
    ]
    assert tokens_ahead(tokens, distance).tolist() == expected


def test_depth_k_predicts_the_token_k_plus_one_places_on() -> None:
    row = torch.tensor([[10, 11, 12, 20, 21]])
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    none = IGNORE
    assert depth_targets(row, 0, positions).tolist() == [[11, 12, none, 21, none]]
    assert depth_targets(row, 1, positions).tolist() == [[12, none, none, none, none]]
    assert depth_targets(row, 2).tolist() == [[20, 21, none, none, none]]
    assert tokens_ahead(row, 1).tolist() == [[11, 12, 20, 21, 21]]
