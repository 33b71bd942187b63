"""Means and differences of what was measured row by row."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from glmkit.evaluation import comparing
from glmkit.evaluation.comparing import Measure, difference, mean


def test_a_mean_is_weighed():
    assert mean([Measure(3.0, 1.0), Measure(1.0, 3.0)]) == 1.0
    assert mean([]) is None
    assert mean([Measure(0.0, 0.0)]) is None


def test_nothing_is_compared_with_nothing():
    assert difference([], []) is None


def test_a_constant_difference_is_sure():
    first = [Measure(float(each)) for each in range(20)]
    found = difference(first, [Measure(each.total + 2) for each in first])
    assert found.value == pytest.approx(2)
    assert found.low == pytest.approx(2) and found.high == pytest.approx(2)
    assert found.sure


def test_noise_is_not_sure():
    draws = np.random.default_rng(1)
    first, second = draws.normal(size=(2, 50))
    found = difference([*map(Measure, first)], [*map(Measure, second)])
    assert found.low < 0 < found.high and not found.sure
    assert found.low < found.value < found.high


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    """95% of the intervals hold the true difference; of 60 trials that is 52 and more."""
    monkeypatch.setattr(comparing, "RESAMPLES", 200)
    draws, held = np.random.default_rng(2), 0
    for _ in range(60):
        first = draws.normal(size=40)
        second = first * 0.5 + draws.normal(0.3, 1, size=40)
        found = difference([*map(Measure, first)], [*map(Measure, second)])
        held += found.low <= 0.3 <= found.high
    assert held >= 52


def test_rows_count_by_their_weight():
    """A batch of a thousand tokens counts as a thousand tokens do."""
    first = [Measure(2000.0, 1000.0), Measure(5.0, 1.0)] * 10
    second = [Measure(1000.0, 1000.0), Measure(9.0, 1.0)] * 10
    found = difference(first, second)
    assert found.value == pytest.approx(-0.995, abs=1e-3) and found.sure


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6))
def test_equal_models_do_not_differ(values):
    measures = [*map(Measure, values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "RESAMPLES", 20)
        found = difference(measures, measures)
    assert found.value == 0 and not found.sure
