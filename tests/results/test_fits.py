"""The power law of a learning curve, and how many examples an arm needs to be as good as another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.results.fits import examples_to_match, fit

SIZES = (8, 32, 128, 512, 2048)


@pytest.mark.parametrize("falls", [False, True])
def test_a_power_law_is_found_again(falls) -> None:
    sign = 1 if falls else -1
    means = {size: 0.9 + sign * 0.8 * size**-0.4 for size in SIZES}
    found = fit(means, lower_is_better=falls)
    assert (found.a, found.b, found.c) == pytest.approx((0.9, 0.8, 0.4), rel=1e-3)
    assert found.residual == pytest.approx(0, abs=1e-6)
    assert found.at(np.array(SIZES)) == pytest.approx(list(means.values()), abs=1e-5)
    assert str(found) == f"0.900 {'+' if falls else '−'} 0.8 · n^−0.40"


def test_three_sizes_are_gone_through_and_two_are_not_fitted() -> None:
    means = {8: 0.5, 64: 0.7, 512: 0.75}
    assert fit(means).residual == pytest.approx(0, abs=1e-6)
    assert fit({8: 0.5, 64: 0.7}) is None


def test_no_law_promises_more_than_the_metric_has() -> None:
    rising = {size: 0.1 * np.log2(size) for size in SIZES[:4]}
    assert fit(rising, highest=1.0).a <= 1
    assert fit({size: 2 - 0.2 * np.log2(size) for size in SIZES[:4]}, lower_is_better=True).a >= 0


def test_a_curve_that_falls_short_of_a_law_is_fitted_level() -> None:
    found = fit({8: 0.8, 64: 0.7, 512: 0.6})
    assert found.at(8) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.5, "8 or fewer"), (0.4, "8 or fewer"), (0.6, "about 16"), (0.7, "about 32"), (0.8, "about 128")],
)
def test_examples_to_match_lie_between_measured_sizes(score, text) -> None:
    assert str(examples_to_match("a", {8: 0.5, 32: 0.7, 128: 0.8}, score)) == text


def test_nothing_is_extrapolated() -> None:
    assert examples_to_match("a", {8: 0.5, 32: 0.7}, 0.701).examples is None
    assert str(examples_to_match("a", {8: 0.5, 32: 0.7}, 0.701)) == "not within the measured sizes"
    assert str(examples_to_match("a", {8: 0.9, 32: 0.5}, 0.7, lower_is_better=True)) == "about 16"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 1))
def test_a_match_is_a_measured_amount_of_data(scores, score) -> None:
    means = dict(zip(SIZES, scores, strict=False))
    found = examples_to_match("a", means, score).examples
    assert (found is None) == (max(scores) < score)
    assert found is None or 8 <= found <= max(means)
