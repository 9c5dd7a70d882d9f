"""Intervals: how far a mean could be from what another draw would have given.

Student-t over seeds covers the draw of examples and the training, not the draw of test rows, which every seed
shares; Wilson's interval covers the test rows of a single run. `graft.results.resampling` covers both.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence limits; `low` and `high` are None where they are unknown, as for one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """Values that the mean is taken over."""
    covers: str = "seeds"
    """What another draw of would have given other numbers: `seeds`, `items`, `seeds and items`, `seeds and groups`."""

    @property
    def half_width(self) -> float | None:
        """Half the distance between the limits."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether both limits are known and on the same side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values with its Student-t interval.

    Args:
        values: one per seed; at least one.
        confidence: probability that such an interval holds the true mean.

    Raises:
        ValueError: there are no values.
    """
    values = [float(value) for value in values]
    if not values:
        raise ValueError("values: a mean needs at least one value, got none")
    if not all(math.isfinite(value) for value in values):
        return Interval(sum(values) / len(values), None, None, len(values))
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    margin = _t_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - margin, mean + margin, len(values))


def paired_interval(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Interval:
    """The mean of `a - b` over the seeds that both have, with its Student-t interval.

    A seed draws the same examples for both, so what it makes easy or hard for both cancels out.

    Args:
        a: seed to value.
        b: seed to value.
        confidence: probability that such an interval holds the true difference.

    Raises:
        ValueError: the two have no seed in common.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        raise ValueError(f"no seed in common: {sorted(a)} and {sorted(b)}; run both with the same seeds")
    return mean_interval([a[seed] - b[seed] for seed in common], confidence)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The share of successes among `n` independent rows with Wilson's score interval, good at 0 and 1 too.

    Raises:
        ValueError: `n` is not positive, or `successes` is not between 0 and `n`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, and n be at least 1; got {successes} of {n}")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    margin = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - margin), min(1.0, centre + margin), n, "items")


def _t_quantile(confidence: float, degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees))
