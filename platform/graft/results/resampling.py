"""How far a mean over seeds, on one set of test items, could be from that of other seeds and other items.

    seeds   S trainings, each with its own draw of examples      differ by what a training makes of chance
    items   N test rows, the same for all seeds and arms         differ by how hard they are, for every training

Seeds are crossed with items, so a value is `mean + seed + item + residual`, and the variance of the mean over both is
Var(seed)/S + Var(item)/N + Var(residual)/(S N) (Owen 2007, "The pigeonhole bootstrap", section 3). The items are
resampled, the seeds held: that gives the second and third term, for any metric. The variance between seeds over S holds
the first and third. The third, which both have, is taken from how the draws of one seed differ from those of another,
and out of the items' part.

Few seeds are not resampled: a percentile interval over three covers about 80 % (measured in the tests' simulation:
binary outcomes, strong seeds). Their part is Student's t with S - 1 degrees of freedom, and the two parts are joined
as Banerjee (1960, Sankhya 22) proves to cover at least what it says: the squares of both margins add up. The result is
never narrower than the items alone make it: seeds that agree by luck make no small test set a large one.

A task with groups (languages, sources) resamples whole groups where there are six or more, after Davison & Hinkley
(1997, section 3.8): items of a group are alike, and a group's own draw of items is already part of how it differs from
other groups. Fewer groups say nothing about others; then items are drawn as if there were none.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from graft.results.statistics import Interval, mean_interval, wilson
from graft.results.weighted import Floats, Ints, Weighted
from graft.seeds import generator

DRAWS = 2000
"""Draws of items; the ends of a 95 % interval then vary by 3 % of its half-width, its standard error by 1.6 %."""

DRAWS_BESIDE = 500
"""Draws of items for metrics beside a task's main one: the ends of an interval then vary by 6 % of its half-width."""

LEAST_GROUPS = 6
"""Fewer groups are no clusters: 2^5 sign flips, for one, never reach p = 0.05."""

CHUNK = 1 << 19
"""Weights that are held at once: 2 MiB, which stay in a core's cache."""


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """What is known of one mean, or of a difference of two: its value for each seed, and how items would move it.

    Legend: S seeds, N items, B draws.
    """

    seeds: tuple[int, ...]
    estimates_S: Floats
    """The metric on all items."""
    items: int = 0
    """Test rows; 0 where they are not known."""
    draws_SB: Floats | None = None
    """The metric on each draw of items, the same draws for all seeds and all arms; None where it is not known."""
    values_SN: Floats | None = None
    """What each item contributes, of a metric that is a mean over items; None for others."""
    clusters_N: Ints | None = None
    """The group of each item; None where items are drawn alone."""
    share: bool = False
    """Whether each item's value lies between 0 and 1, so that a difference comes from items that differ."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(self.estimates_S.mean())

    def __sub__(self, other: "Spread") -> "Spread":
        """The difference on common seeds and the same items: what is easy or hard for both cancels out.

        Raises:
            ValueError: no seed in common.
        """
        common = [seed for seed in self.seeds if seed in other.seeds]
        if not common:
            raise ValueError(f"no seed in common: {list(self.seeds)} and {list(other.seeds)}")
        own, its = ([spread.seeds.index(seed) for seed in common] for spread in (self, other))

        def difference(a: Floats | None, b: Floats | None) -> Floats | None:
            return None if a is None or b is None else a[own] - b[its]

        return dataclasses.replace(
            self,
            seeds=tuple(common),
            estimates_S=self.estimates_S[own] - other.estimates_S[its],
            draws_SB=difference(self.draws_SB, other.draws_SB),
            values_SN=difference(self.values_SN, other.values_SN),
        )

    @property
    def covers(self) -> str:
        """What an interval covers, as `Interval.covers` says it."""
        units = "items" if self.clusters_N is None else "groups"
        if self.draws_SB is None:
            return "seeds"
        return units if len(self.seeds) == 1 else f"seeds and {units}"

    @property
    def seeds_error(self) -> float:
        """The standard error that the seeds give to their mean; 0 for one seed, which does not tell."""
        return float(self.estimates_S.std(ddof=1)) / math.sqrt(len(self.seeds)) if len(self.seeds) > 1 else 0.0

    @property
    def standard_error(self) -> float:
        """Of the mean, from seeds and items; NaN where neither is known: one seed, and no items."""
        if self.draws_SB is None:
            return self.seeds_error if len(self.seeds) > 1 else math.nan
        items = self.items_errors_B.std()
        return float(max(items, math.hypot(items * self.items_own, self.seeds_error)))

    @functools.cached_property
    def items_errors_B(self) -> Floats:
        """How each draw of items moves the mean of these very seeds; zeros without draws."""
        if self.draws_SB is None:
            return np.zeros(1)
        mean_B = self.draws_SB.mean(axis=0)
        mean_B = mean_B[np.isfinite(mean_B)]  # a draw in which the metric is undefined says nothing
        if not len(mean_B):
            return np.zeros(1)
        return np.asarray((mean_B - mean_B.mean()) * self._correction)

    @functools.cached_property
    def items_own(self) -> float:
        """The share, 0 to 1, of the items' standard error that would be there with any number of seeds."""
        total = self.items_errors_B.var()
        if self.draws_SB is None or len(self.seeds) == 1 or total == 0:
            return 1.0
        apart_SB = self.draws_SB - self.draws_SB.mean(axis=0)
        seeds = len(self.seeds)
        residual = np.nanvar(apart_SB, axis=1).sum() * self._correction**2 / (seeds * (seeds - 1))
        return math.sqrt(max(0.0, 1 - residual / total))

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean with its interval; see the module for how, `Interval.covers` for what it covers."""
        if self.draws_SB is None:
            return mean_interval(self.estimates_S, confidence)
        if not np.isfinite(self.estimates_S).all():
            return Interval(self.mean, None, None, len(self.seeds), self.covers)
        low, high = np.quantile(self.items_errors_B, [(1 - confidence) / 2, (1 + confidence) / 2])
        wider = _t(confidence, self._units - 1) / _t(confidence, math.inf)
        below, above = (self._margin(abs(end) * wider, confidence) for end in (float(low), float(high)))
        return Interval(self.mean, self.mean - below, self.mean + above, len(self.seeds), self.covers)

    def _margin(self, items: float, confidence: float) -> float:
        """The items' margin joined with that of the seeds."""
        # All items alike: no draw can show what did not happen once, Wilson's limit can.
        items = max(items, wilson(0, self.items, confidence).high or 0.0) if self.share else items
        if len(self.seeds) == 1:
            return items
        return max(items, math.hypot(items * self.items_own, _t(confidence, len(self.seeds) - 1) * self.seeds_error))

    @property
    def _units(self) -> int:
        """What is drawn: items, or groups of them."""
        return self.items if self.clusters_N is None else len(np.unique(self.clusters_N))

    @property
    def _correction(self) -> float:
        """A sample's spread is smaller than that of what it was drawn from."""
        return math.sqrt(self._units / (self._units - 1)) if self._units > 1 else 1.0


def clusters(groups: Sequence[str | None] | None) -> Ints | None:
    """The number of each item's group; None where there are too few groups to resample, or items without one."""
    if groups is None or None in groups:
        return None
    names, numbers = np.unique(np.asarray(groups, str), return_inverse=True)
    return numbers.astype(np.int64) if len(names) >= LEAST_GROUPS else None


def resample(
    metrics: Sequence[Weighted], items: int, clusters_N: Ints | None = None, draws: int = DRAWS
) -> tuple[Floats, Floats]:
    """Each metric on all items, and on draws of them; the same draws for every metric, whenever it is called.

    Args:
        metrics: of R runs on the same items in the same order.
        items: N.
        clusters_N: groups to draw instead of items.
        draws: B.

    Returns:
        Values [R] and [R, B]; NaN where a metric is undefined.
    """
    ones = np.ones((items, 1))
    values = np.array([metric(ones)[0] for metric in metrics])
    chunks = [[metric(weights) for metric in metrics] for weights in weights_of(items, clusters_N, draws)]
    return values, np.concatenate(chunks, axis=1).astype(np.float64)


def weights_of(items: int, clusters_N: Ints | None = None, draws: int = DRAWS) -> Iterator[Floats]:
    """How often each item is drawn, [N, up to B] float32 in chunks; a group's items are drawn together."""
    units = items if clusters_N is None else int(clusters_N.max()) + 1
    random = generator(0, "items")
    for size in _chunks(draws, items):
        drawn = random.integers(0, units, (size, units)) + units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).T.astype(np.float32)
        yield np.ascontiguousarray(counts) if clusters_N is None else counts[clusters_N]


def _chunks(draws: int, items: int) -> Iterator[int]:
    """Sizes that add up to the draws."""
    size = max(1, CHUNK // max(1, items))
    for begin in range(0, draws, size):
        yield min(size, draws - begin)


def _t(confidence: float, degrees: float) -> float:
    """How many standard errors a two-sided interval reaches."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees)) if degrees > 0 else math.inf
