import json
import math

import numpy as np
import pytest

from foretell.tally import DRAWS, GROUPS, Estimate, Tally, estimate


def filled(documents: int = 40, each: int = 7) -> tuple[Tally, np.ndarray]:
    """Values that are alike within a document."""
    random = np.random.default_rng(3)
    values = random.normal(size=(documents, 1)) + 0.1 * random.normal(size=(documents, each))
    tally = Tally("method", "part")
    for document, row in enumerate(values):
        parts = ["a" if number % 2 else "b" for number in range(each)]
        tally.add(("m",), [document] * each, {"x": row}, parts)
    return tally, values


def test_means_and_counts_are_those_of_the_positions() -> None:
    tally, values = filled()
    assert tally.count("x") == values.size
    assert tally.means("x")[0] == pytest.approx(values.mean())
    assert tally.means("x", part="a")[0] == pytest.approx(values[:, 1::2].mean())
    assert tally.total("x", part="b")[0] == pytest.approx(values[:, ::2].sum())
    assert tally.keys("part") == ["a", "b"]
    assert tally.names(method="m") == ["x"]


def test_what_is_not_a_number_does_not_count() -> None:
    tally = Tally("method")
    tally.add(("m",), [0, 0, 1], {"x": [1.0, math.nan, 4.0], "y": [math.inf, 2.0, 4.0]})
    assert (tally.count("x"), tally.means("x")[0]) == (2, 2.5)
    assert (tally.count("y"), tally.means("y")[0]) == (2, 3.0)
    assert math.isnan(tally.means("z")[0])


def test_intervals_are_over_documents_not_positions() -> None:
    """Against a bootstrap written out, and against what independent positions would give."""
    tally, values = filled()
    found = estimate(tally.means("x"))
    random = np.random.default_rng(5)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(4 * DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.1 * width)
    assert found.high == pytest.approx(high, abs=0.1 * width)
    independent = 2 * 1.96 * values.std() / math.sqrt(values.size)
    assert width > 2 * independent


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random, hits = np.random.default_rng(0), 0
    for _ in range(200):
        tally = Tally("method")
        means = random.normal(size=30)
        tally.add(("m",), np.repeat(np.arange(30), 4), {"x": np.repeat(means, 4)})
        found = estimate(tally.means("x"))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_differences_are_paired() -> None:
    first, values = filled()
    second = Tally("method")
    for document, row in enumerate(values):
        second.add(("m",), [document] * len(row), {"x": row + 1})
    found = estimate(second.means("x") - first.means("x"))
    assert found.value == pytest.approx(1)
    assert found.low == pytest.approx(1) == found.high


def test_one_document_has_no_interval() -> None:
    tally = Tally("method")
    tally.add(("m",), [4, 4], {"x": [1.0, 2.0]})
    assert estimate(tally.means("x")) == Estimate(1.5)


def test_one_document_that_has_a_value_gives_it_no_interval() -> None:
    """The others have it nowhere: drawing them as well is not drawing it from several."""
    tally = Tally("method")
    tally.add(
        ("m",), [1, 2, 3, 3], {"x": [math.nan, math.nan, 1.0, 2.0], "y": [1.0, 2.0, 3.0, 4.0]}
    )
    assert estimate(tally.means("x")) == Estimate(1.5)
    assert estimate(1 + tally.means("y") + tally.means("x")).low is None
    assert estimate(tally.means("y")).low is not None


def test_bounds_belong_to_what_they_bound() -> None:
    """Whichever was counted first; they have no interval of their own."""
    tally = Tally("method")
    tally.add(("m",), [0, 1], {"x_min": [1.0, 2.0], "x": [2.0, 4.0], "y_max": [5.0, 7.0]})
    found = tally.estimates()
    assert list(found) == ["x", "y"]
    assert (found["x"].value, found["x"].min, found["x"].max) == (3.0, 1.5, None)
    assert found["x"].low is not None
    assert found["y"] == Estimate(max=6.0)


def test_records_are_the_tally(tmp_path) -> None:
    tally, _ = filled()
    again = Tally("method", "part")
    again.merge(json.loads(json.dumps(tally.records())))
    np.testing.assert_array_equal(again.means("x", part="a"), tally.means("x", part="a"))
    again.merge(tally.records())
    assert again.count("x") == 2 * tally.count("x")


def test_many_documents_share_groups() -> None:
    tally = Tally("method")
    tally.add(("m",), np.arange(3 * GROUPS), {"x": np.ones(3 * GROUPS)})
    assert len(tally.groups) == GROUPS
    assert tally.count("x") == 3 * GROUPS
