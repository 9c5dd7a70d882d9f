"""Tests and corrections against scipy, statsmodels and simulated levels and power."""

import functools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import contingency_tables, multitest

from graft.results.resampling import Spread, weights_of
from graft.results.significance import (
    benjamini_hochberg,
    corrected,
    difference_p,
    equivalence_p,
    holm,
    mcnemar,
    smallest_detectable,
)


@functools.cache
def weights_for(items: int, draws: int, groups: tuple[int, ...] | None) -> np.ndarray:
    return np.concatenate(list(weights_of(items, None if groups is None else np.array(groups), draws)), axis=1)


def spread(values: np.ndarray, draws: int = 300, groups: np.ndarray | None = None, share: bool = True) -> Spread:
    seeds, items = values.shape
    weights = weights_for(items, draws, None if groups is None else tuple(groups))
    drawn = (values.astype(np.float32) @ weights / weights.sum(axis=0)).astype(float)
    return Spread(tuple(range(seeds)), values.mean(axis=1), items, drawn, values, groups, share)


def differences(random: np.random.Generator, seeds: int, items: int, scatter: float, shift: float = 0.0) -> np.ndarray:
    """Right minus right of two arms on binary items: [seeds, items] in -1, 0, 1."""
    hard = random.normal(size=items)
    right = [
        0.5 + gain + hard + scatter * random.normal(size=(seeds, 1)) + random.normal(size=(seeds, items)) > 0
        for gain in (shift, 0.0)
    ]
    return right[0].astype(float) - right[1]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (12, 4), (40, 41), (9, 25)])
def test_mcnemar_is_statsmodels(b, c) -> None:
    right = np.array([1] * b + [0] * c + [1] * 5 + [0] * 3)
    other = np.array([0] * b + [1] * c + [1] * 5 + [0] * 3)
    found = mcnemar(7, right, other)
    assert (found.seed, found.only_arm, found.only_other) == (7, b, c)
    expected = contingency_tables.mcnemar([[5, b], [c, 3]], exact=True).pvalue if b + c else 1.0
    assert found.p == pytest.approx(expected)


def test_one_seed_of_few_items_is_scipys_permutation_test() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.4, 1, size=(1, 12))
    expected = stats.permutation_test(
        (values[0], np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=10**5
    ).pvalue
    assert difference_p(spread(values, share=False), flips=20_000) == pytest.approx(expected, abs=0.01)


def test_one_seed_right_or_wrong_is_mcnemars_test() -> None:
    """Sign flips of discordant items are McNemar's coin."""
    values = np.array([[1.0] * 15 + [-1.0] * 5 + [0.0] * 80])
    assert difference_p(spread(values)) == pytest.approx(mcnemar(0, values[0] > 0, values[0] < 0).p, abs=0.01)


def test_without_items_it_is_the_paired_t_test() -> None:
    values = np.array([0.02, 0.05, 0.01, 0.04])
    expected = stats.ttest_1samp(values, 0).pvalue
    assert difference_p(Spread((0, 1, 2, 3), values)) == pytest.approx(expected)
    assert difference_p(Spread((0,), np.array([0.3]))) is None
    assert equivalence_p(Spread((0,), np.array([0.3])), 1) is None
    assert difference_p(Spread((0, 1), np.array([0.1, 0.1]))) == 0
    assert difference_p(Spread((0, 1), np.array([0.0, 0.0]))) == 1


@pytest.mark.parametrize(("seeds", "scatter"), [(3, 0.0), (3, 0.15), (3, 0.5), (5, 0.15), (10, 0.15)])
def test_the_permutation_test_has_its_level_whether_seeds_vary_or_not(seeds, scatter) -> None:
    random = np.random.default_rng(seeds)
    found = [difference_p(spread(differences(random, seeds, 200, scatter)), flips=300) for _ in range(250)]
    assert np.mean(np.array(found) < 0.05) <= 0.07


def test_flipping_items_alone_has_not() -> None:
    """The reason for the seeds' part."""
    random = np.random.default_rng(0)
    wrong = []
    for _ in range(150):
        values = differences(random, 3, 400, 0.3).mean(axis=0)
        flips = random.choice([-1.0, 1.0], (300, 400)) @ values
        wrong.append(np.mean(abs(flips) >= abs(values.sum())) < 0.05)
    assert np.mean(wrong) > 0.25


def test_groups_are_flipped_whole() -> None:
    """Level where items of a group share what makes them differ."""
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(10), 20)
    found = []
    for _ in range(200):
        values = random.normal(size=10)[groups] + random.normal(size=(1, 200))
        found.append(difference_p(spread(values, 100, groups, share=False), flips=300))
    assert np.mean(np.array(found) < 0.05) <= 0.08
    assert np.mean(np.array(found) < 0.5) > 0.3


def test_a_metric_that_is_no_mean_over_items_has_the_bootstraps_p() -> None:
    values = np.random.default_rng(5).normal(0.15, 1, (1, 300))
    whole = spread(values, 4000, share=False)
    plain = Spread(whole.seeds, whole.estimates_S, whole.items, whole.draws_SB)
    assert difference_p(plain) == pytest.approx(stats.ttest_1samp(values[0], 0).pvalue, abs=0.01)


def test_equivalence_is_two_one_sided_t_tests() -> None:
    values = np.random.default_rng(2).normal(0.02, 0.5, (1, 2000))
    expected = max(
        stats.ttest_1samp(values[0], 0.05, alternative="less").pvalue,
        stats.ttest_1samp(values[0], -0.05, alternative="greater").pvalue,
    )
    assert equivalence_p(spread(values, 4000, share=False), 0.05) == pytest.approx(expected, abs=0.01)
    over_seeds = Spread(tuple(range(5)), np.array([0.01, 0.0, 0.02, -0.01, 0.01]))
    expected = max(
        stats.ttest_1samp(over_seeds.estimates_S, 0.03, alternative="less").pvalue,
        stats.ttest_1samp(over_seeds.estimates_S, -0.03, alternative="greater").pvalue,
    )
    assert equivalence_p(over_seeds, 0.03) == pytest.approx(expected)


@pytest.mark.parametrize("scatter", [0.0, 0.15])
def test_two_arms_that_differ_by_the_margin_are_rarely_called_equivalent(scatter) -> None:
    random = np.random.default_rng(6)
    margin = float(stats.norm.cdf(0.7 / math.sqrt(2 + scatter**2)) - stats.norm.cdf(0.5 / math.sqrt(2 + scatter**2)))
    found = [equivalence_p(spread(differences(random, 4, 300, scatter, 0.2)), margin) for _ in range(250)]
    assert np.mean(np.array(found) < 0.05) <= 0.07


def test_items_that_never_differ_prove_nothing_about_more_than_they_could_show() -> None:
    assert equivalence_p(spread(np.zeros((3, 50))), 0.01) == pytest.approx(0.99**50)
    assert equivalence_p(spread(np.zeros((3, 1000)), 2000), 0.01) < 0.05
    with pytest.raises(ValueError, match="margin"):
        equivalence_p(spread(np.zeros((1, 5))), 0)


@pytest.mark.parametrize(("seeds", "scatter"), [(5, 0.1), (10, 0.0), (10, 0.1)])
def test_the_smallest_detectable_difference_is_found_four_times_of_five(seeds, scatter) -> None:
    random = np.random.default_rng(seeds)
    at_zero = [smallest_detectable(spread(differences(random, seeds, 300, scatter), 200)) for _ in range(40)]
    effect = float(np.median(at_zero))
    found = []
    for _ in range(200):
        values = differences(random, seeds, 300, scatter)
        moved = spread(values, 200)
        shifted = Spread(
            moved.seeds, moved.estimates_S + effect, moved.items, moved.draws_SB + effect, None, None, True
        )
        found.append(shifted.interval().excludes_zero)
    assert 0.72 <= np.mean(found) <= 0.97


def test_many_seeds_and_items_leave_two_point_eight_standard_errors() -> None:
    found = spread(np.random.default_rng(0).normal(size=(1, 3000)), 4000, share=False)
    assert smallest_detectable(found) == pytest.approx(2.8 / math.sqrt(3000), rel=0.05)
    assert smallest_detectable(Spread((0,), np.array([0.5]))) is None


P_VALUES = np.random.default_rng(0).random(12) ** 3


def test_holm_and_benjamini_hochberg_are_statsmodels() -> None:
    for correction, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        for values in (P_VALUES, P_VALUES[:1], np.array([0.04, 0.04, 0.04, 1.0])):
            expected = multitest.multipletests(values, method=method)[1]
            assert correction(values.tolist()) == pytest.approx(expected)
        assert correction([]) == []


def test_what_has_no_p_does_not_count_in_its_family() -> None:
    assert corrected([0.02, None, 0.03], holm) == pytest.approx([0.04, None, 0.04])
