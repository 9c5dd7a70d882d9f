import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from graft.results.statistics import Interval, mean_interval, paired_interval, wilson

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@given(VALUES.filter(lambda values: np.std(values) > 1e-6), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_mean_interval_is_scipys(values, confidence) -> None:
    ours = mean_interval(values, confidence)
    low, high = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
    assert ours.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert ours.half_width == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.25]) == Interval(0.25, None, None, 1)
    assert mean_interval([0.25]).half_width is None
    assert not mean_interval([0.25]).excludes_zero


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)


def test_an_infinite_value_leaves_the_limits_unknown() -> None:
    assert mean_interval([1.0, math.inf]) == Interval(math.inf, None, None, 2)


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts) -> None:
    successes, n = counts
    reference = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert (ours.mean, ours.n) == (successes / n, n)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n) -> None:
    with pytest.raises(ValueError, match="successes must lie between 0 and n"):
        wilson(successes, n)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_the_paired_interval_is_that_of_scipys_paired_test(pairs) -> None:
    a, b = np.array(pairs).T
    if np.std(a - b) < 1e-6:
        return
    ours = paired_interval(dict(enumerate(a)), dict(enumerate(b)))
    test = stats.ttest_rel(a, b)
    reference = test.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), rel=1e-7, abs=1e-9)
    if abs(test.pvalue - 0.05) > 1e-6:
        assert ours.excludes_zero == (test.pvalue < 0.05)


def test_only_common_seeds_are_paired() -> None:
    found = paired_interval({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.5, 2: 0.6, 9: 0.0})
    assert found.n == 2
    assert found.mean == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no seed in common"):
        paired_interval({0: 1.0}, {1: 1.0})
