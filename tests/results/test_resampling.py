"""Intervals over seeds and items, by simulations in which the truth is known."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from graft.results.resampling import Spread, clusters, resample, shared_items, weights_of
from graft.results.significance import difference_p
from graft.results.statistics import mean_interval, wilson
from graft.results.weighted import mean

BASE = 0.5
"""Probit of an easy item; items scatter around it by one."""


def binary(random: np.random.Generator, seeds: int, items: int, arms: int, seed_scatter: float) -> np.ndarray:
    """Right or wrong [arms, seeds, items]: an item is as hard for every arm, a seed is better or worse on all items."""
    hard = random.normal(size=items)
    good = seed_scatter * random.normal(size=(arms, seeds, 1))
    return (BASE + hard + good + random.normal(size=(arms, seeds, items)) > 0).astype(float)


def truth(seed_scatter: float) -> float:
    return float(stats.norm.cdf(BASE / math.sqrt(2 + seed_scatter**2)))


def spread(values: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None) -> Spread:
    seeds, items = values.shape
    draws = values.astype(np.float32) @ weights / weights.sum(axis=0)
    return Spread(tuple(range(seeds)), values.mean(axis=1), items, draws.astype(float), values, groups, share=True)


def drawn(items: int, draws: int = 400, groups: np.ndarray | None = None) -> np.ndarray:
    return np.concatenate(list(weights_of(items, groups, draws)), axis=1)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("seed_scatter", [0.0, 0.1, 0.3])
def test_of_a_hundred_intervals_at_least_ninety_three_hold_the_truth(seeds, seed_scatter) -> None:
    random = np.random.default_rng(seeds)
    held = {"mean": [], "difference": []}
    for items in (100, 600):
        weights = drawn(items)
        for _ in range(200):
            arms = binary(random, seeds, items, 2, seed_scatter)
            first, second = (spread(values, weights) for values in arms)
            own, difference = first.interval(), (first - second).interval()
            held["mean"].append(own.low <= truth(seed_scatter) <= own.high)
            held["difference"].append(difference.low <= 0 <= difference.high)
    assert all(np.mean(found) >= 0.93 for found in held.values()), {key: np.mean(found) for key, found in held.items()}


def test_ten_seeds_that_are_alike_hardly_widen_the_items_interval() -> None:
    random = np.random.default_rng(0)
    weights, widths, alone = drawn(400), [], []
    for _ in range(50):
        values = binary(random, 10, 400, 1, 0.0)[0]
        widths.append(spread(values, weights).interval().half_width)
        alone.append(1.96 * values.mean(axis=0).std(ddof=1) / math.sqrt(400))
    assert 1 <= np.mean(widths) / np.mean(alone) < 1.1


def test_a_percentile_interval_of_three_seeds_would_not_hold_it() -> None:
    """The reason for all of this: seeds resampled as items are."""
    random = np.random.default_rng(0)
    weights, held, ours = drawn(600), [], []
    choices = random.integers(0, 3, (400, 3))
    for _ in range(200):
        found = spread(binary(random, 3, 600, 1, 0.3)[0], weights)
        draws = found.draws_SB[choices, np.arange(400)[:, None]].mean(axis=1)
        low, high = np.quantile(draws, [0.025, 0.975])
        held.append(low <= truth(0.3) <= high)
        ours.append(found.interval().low <= truth(0.3) <= found.interval().high)
    assert np.mean(held) < 0.88
    assert np.mean(ours) > 0.93


def test_groups_are_drawn_whole() -> None:
    """With languages that differ, an interval over items alone does not hold what other languages would give."""
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 25)
    by_group, by_item = drawn(300, groups=groups), drawn(300)
    held, missed = [], []
    for _ in range(300):
        hard = 0.7 * random.normal(size=12)[groups]
        values = (hard + random.normal(size=(4, 300)) > 0).astype(float)
        found = spread(values, by_group, groups).interval()
        held.append(found.low <= 0.5 <= found.high)
        items = spread(values, by_item).interval()
        missed.append(not items.low <= 0.5 <= items.high)
    assert np.mean(held) >= 0.92
    assert np.mean(missed) > 0.2
    assert spread(values, by_group, groups).covers == "seeds and groups"


def test_fewer_than_six_groups_are_none() -> None:
    assert clusters(None) is None
    assert clusters(["bn", "fi", "ja", "ru", "te"] * 10) is None
    assert clusters([*"abcdef", None]) is None
    assert clusters([*"abcdefa"]).tolist() == [0, 1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize(("groups", "by_group"), [(12, 0.0), (12, 0.5), (4, 0.0)])
def test_an_item_in_several_groups_is_one(groups: int, by_group: float) -> None:
    """Questions that stand in every language: of two equal arms neither is better because of which were drawn."""
    random = np.random.default_rng(5)
    questions = 60
    languages = np.repeat(np.arange(groups), questions)
    clusters_N = clusters(languages.astype(str))
    items_N = shared_items(np.tile(np.arange(questions), groups).astype(str), clusters_N)
    weights, alone = (
        np.concatenate(list(weights_of(len(languages), clusters_N, 400, about)), axis=1) for about in (items_N, None)
    )
    held, false, missed = [], [], []
    for _ in range(200):
        hard, place = random.normal(size=questions), random.normal(size=groups)
        arms = []
        for _ in range(2):
            liked = hard + random.normal(size=questions)
            level = (liked[None] + (place + by_group * random.normal(size=groups))[:, None]).ravel()
            arms.append((level + random.normal(size=(1, len(languages))) > 0).astype(float))
        first, second = (dataclasses.replace(spread(one, weights, clusters_N), items_N=items_N) for one in arms)
        difference = first - second
        interval, p = difference.interval(), difference_p(difference, 500)
        held.append(interval.low <= 0 <= interval.high)
        assert p is not None
        false.append(p < 0.05)
        without = (spread(arms[0], alone, clusters_N) - spread(arms[1], alone, clusters_N)).interval()
        missed.append(not without.low <= 0 <= without.high)
    assert np.mean(held) >= 0.92
    assert np.mean(false) <= 0.08
    assert np.mean(missed) > 0.1
    assert difference.covers == ("items" if groups < 6 else "groups and items")
    assert difference.distinct == questions


def test_rows_that_share_an_item() -> None:
    groups = clusters([*"aabbccddeeff"])
    assert shared_items(None, groups) is None
    assert shared_items([*"abcdefghijkl"], None) is None, "each is by itself"
    assert shared_items([*"uuvvwwxxyyzz"], groups) is None, "drawn with their groups"
    assert shared_items([*"uvwxyzuvwxyz"], groups).tolist() == [0, 1, 2, 3, 4, 5] * 2
    assert shared_items([*"uuvvwwxxyyzz"], None).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert shared_items([*"ababababab"], None) is None, "two items say nothing of others"


def test_many_items_leave_students_t_over_seeds() -> None:
    """Where all items are alike for all seeds, only the seeds speak."""
    estimates = np.array([0.61, 0.66, 0.58])
    found = Spread((0, 1, 2), estimates, 10**9, np.tile(estimates[:, None], (1, 50)), share=True).interval()
    expected = mean_interval(estimates)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_one_seed_gives_the_items_interval_and_says_so() -> None:
    values = (np.random.default_rng(0).random(500) < 0.8).astype(float)
    found = spread(values[None], drawn(500, 4000)).interval()
    reference = stats.binomtest(int(values.sum()), 500).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.004)
    assert found.covers == "items"
    assert found.n == 1


def test_the_items_part_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=800)
    estimates, draws = resample([mean(values)], 800)
    found = Spread((0,), estimates, 800, draws)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(800), rel=0.05)
    assert estimates[0] == pytest.approx(values.mean())


def test_without_predictions_it_is_students_t_over_seeds_and_says_so() -> None:
    found = Spread((0, 1, 2), np.array([0.5, 0.6, 0.8])).interval()
    assert found == mean_interval([0.5, 0.6, 0.8])
    assert found.covers == "seeds"


def test_seeds_that_agree_by_luck_do_not_hide_the_items() -> None:
    random = np.random.default_rng(0)
    values = np.stack([random.permutation(np.repeat([0.0, 1.0], 100)) for _ in range(3)])
    found = spread(values, drawn(200, 4000))
    assert found.seeds_error == 0
    assert found.interval().half_width == pytest.approx(
        1.96 * values.mean(axis=0).std(ddof=1) / math.sqrt(200), rel=0.1
    )


def test_items_that_are_all_right_have_wilsons_limit() -> None:
    found = spread(np.ones((3, 50)), drawn(50)).interval()
    assert found.high - found.mean == pytest.approx(wilson(0, 50).high)
    assert found.mean - found.low == pytest.approx(wilson(0, 50).high)


def test_the_share_of_the_items_is_that_of_the_variance_components() -> None:
    """The residual that both parts hold, against the closed form of a crossed design."""
    random = np.random.default_rng(2)
    seeds, items = 6, 1000
    values = random.normal(size=items) + 1.5 * random.normal(size=(seeds, items)) + random.normal(size=(seeds, 1))
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    residual = (rest**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items)
    total = values.mean(axis=0).var(ddof=1) / items
    assert spread(values, drawn(items, 4000)).items_own == pytest.approx(math.sqrt(1 - residual / total), rel=0.03)


def test_a_difference_is_paired_by_seed_and_item() -> None:
    random = np.random.default_rng(4)
    weights, values = drawn(400), binary(random, 4, 400, 1, 0.3)[0]
    first, second = spread(values, weights), spread(np.roll(values, 1, axis=0), weights)
    same = (first - first).interval()
    assert (same.mean, same.high) == (0, pytest.approx(wilson(0, 400).high))
    difference = first - Spread((1, 3, 9), second.estimates_S[:3], 400, second.draws_SB[:3], values[:3])
    assert difference.seeds == (1, 3)
    np.testing.assert_array_equal(difference.values_SN, values[[1, 3]] - values[[0, 1]])
    with pytest.raises(ValueError, match="no seed in common"):
        first - Spread((8, 9), np.zeros(2))


def test_an_infinite_value_leaves_the_limits_unknown() -> None:
    found = Spread((0, 1), np.array([1.0, math.inf]), 5, np.ones((2, 10))).interval()
    assert (found.low, found.high) == (None, None)
