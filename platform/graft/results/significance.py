"""Tests of a difference between two arms, and what is to be corrected when there are many.

The main test is a paired permutation test. Under its null hypothesis the two arms may be exchanged: item by item, the
sign of their difference is a coin's. What is flipped is the difference of an item's mean over the seeds (of a group's
sum, where groups are drawn; where items cross the groups, groups and items are flipped, and both errors add up).
Flipping seeds instead, three of them, could never give less than p = 0.25; flipping seed
by item would take the rows of one training for independent ones, and flipping items alone answers for these trainings
but for no other. So the seeds come in as they do in `graft.results.resampling`: to the flips, shrunk by what residuals
are counted twice, is added Student's t of the seeds' standard error, integrated exactly and not drawn (the sum of the
two is the Behrens-Fisher distribution where the flips are normal). p is the larger of that and of the flips alone.

A metric that is no mean over items has no sign to flip, and exchanging two models' scores would ask whether they are
calibrated alike too; there the errors are those of the bootstrap (Efron & Tibshirani 1993, section 16).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graft.results.resampling import CHUNK, Spread
from graft.results.weighted import Floats
from graft.seeds import generator

FLIPS = 4000
"""Random sign flips; the smallest p is one more than this over one."""

POWER = 0.8
"""The probability that `smallest_detectable` speaks of."""


@dataclass(frozen=True)
class McNemar:
    """One seed's exact test of whether two arms are right equally often on the items where they differ."""

    seed: int
    only_arm: int
    """Items that only the first arm has right."""
    only_other: int
    p: float


def mcnemar(seed: int, right: Floats, other_right: Floats) -> McNemar:
    """McNemar's exact test: a binomial test of the discordant items (McNemar 1947; Dietterich 1998, section 3.1).

    Args:
        seed: whose predictions these are.
        right: [N], one where the first arm is right, zero where it is not.
        other_right: [N], of the second arm.
    """
    from scipy import stats

    only_arm, only_other = int((right > other_right).sum()), int((other_right > right).sum())
    discordant = only_arm + only_other
    return McNemar(
        seed, only_arm, only_other, float(stats.binomtest(only_arm, discordant).pvalue) if discordant else 1.0
    )


def difference_p(difference: Spread, flips: int = FLIPS) -> float | None:
    """Two-sided p of a mean difference of zero; see the module for how.

    With one seed it speaks of these two trainings only, without items it is Student's paired t-test over seeds, with
    neither it is None.
    """
    if not _known(difference):
        return None
    flipped = difference.draws_SB is not None and difference.values_SN is not None
    errors_B = _flipped(difference, flips) if flipped else difference.items_errors_B
    return _tail(difference, errors_B, -abs(difference.mean), abs(difference.mean))


def equivalence_p(difference: Spread, margin: float) -> float | None:
    """The p of a difference of at least `margin`, in the metric's unit: the larger of two one-sided tests (TOST).

    Below 0.05, the difference lies within the margin (Schuirmann 1987); the errors are those of the bootstrap. Shares
    of items that differ nowhere are no proof of it: p is at least the probability that N items show none of a
    discordance of `margin`, (1 - margin)^N.

    Raises:
        ValueError: the margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin: has to be positive, in the metric's unit, got {margin}")
    if not _known(difference):
        return None
    errors_B, mean = difference.items_errors_B, difference.mean
    too_high = _tail(difference, errors_B, mean - margin, math.inf)
    too_low = _tail(difference, errors_B, -math.inf, mean + margin)
    unseen = (1 - margin) ** difference.distinct if difference.share and margin < 1 else 0.0
    return max(too_high, too_low, unseen)


def smallest_detectable(difference: Spread, confidence: float = 0.95) -> float | None:
    """The smallest true difference that this design would have found with a probability of 80 %.

    The mean half-width of the interval plus 0.84 standard errors: as far as the mean has to be from zero for
    the interval to exclude it, and as far again as it falls short in one case of five. With many seeds and items that
    is the usual 2.8 standard errors of the paired difference. None where the interval is unknown.
    """
    from scipy import stats

    half_width = difference.interval(confidence).half_width
    return None if half_width is None else half_width + float(stats.norm.ppf(POWER)) * difference.standard_error


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down corrected p values (1979): the probability of any false claim in the family stays below them."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's corrected p values (1995): the expected share of false claims stays below them."""
    from scipy import stats

    return np.asarray(stats.false_discovery_control(p_values)).tolist() if len(p_values) else []


def corrected(
    p_values: Sequence[float | None], correction: Callable[[Sequence[float]], list[float]]
) -> list[float | None]:
    """The same p values as one family, corrected; those that are None stay so and do not count."""
    found = iter(correction([p for p in p_values if p is not None]))
    return [None if p is None else next(found) for p in p_values]


def _known(difference: Spread) -> bool:
    """Whether anything is known of the errors of its mean."""
    return bool(np.isfinite(difference.estimates_S).all()) and not math.isnan(difference.standard_error)


def _tail(difference: Spread, errors_B: Floats, low: float, high: float) -> float:
    """The probability of an error of at most `low` or at least `high`, for these seeds and for others."""
    from scipy import stats

    found = []
    if difference.draws_SB is not None:
        slack = 1e-9 * max(1.0, float(abs(errors_B).max()))  # flips of equal size differ by rounding
        beyond = int(((errors_B <= low + slack) | (errors_B >= high - slack)).sum())
        found.append((1 + beyond) / (1 + len(errors_B)))
    if difference.seeds_error > 0:
        t = stats.t(len(difference.seeds) - 1)
        items_B = errors_B * difference.items_own
        sides_B = t.cdf((low - items_B) / difference.seeds_error) + t.sf((high - items_B) / difference.seeds_error)
        found.append(float(np.mean(sides_B)))
    return min(1.0, max(found, default=float(low >= 0 or high <= 0)))


def _flipped(difference: Spread, flips: int) -> Floats:
    """The mean difference [B] when the signs of items, of groups, or of both are random."""
    assert difference.values_SN is not None
    values_N = difference.values_SN.mean(axis=0) / difference.items
    together = [numbers_N for numbers_N in (difference.clusters_N, difference.items_N) if numbers_N is not None]
    sums: list[Floats] = [np.bincount(numbers_N, weights=values_N).astype(np.float64) for numbers_N in together]
    random = generator(0, "flips")
    return np.sum([_with_random_signs(values, random, flips) for values in sums or [values_N]], axis=0)


def _with_random_signs(values: Floats, random: np.random.Generator, flips: int) -> Floats:
    """Sums [flips] of the values, each of them with a coin's sign."""
    values = values[values != 0]
    size = max(1, CHUNK // max(1, len(values)))
    found = []
    for begin in range(0, flips, size):
        signs = random.integers(0, 2, (min(size, flips - begin), len(values)), np.int8)
        found.append(2 * (signs @ values) - values.sum())
    return np.concatenate(found)
