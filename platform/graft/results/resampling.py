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

An item may be several test rows: a question in every language, a text that is there twice. Its rows are drawn together.
Where such items cross the groups, both are drawn, and a row counts as often as its group times its item (Owen 2007,
section 4: never too narrow, the residual part counts three times). Groups alone would say nothing of the questions, of
which all of them hold the same.
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

    Legend: S seeds, N test rows, B draws.
    """

    seeds: tuple[int, ...]
    estimates_S: Floats
    """The metric on all items."""
    items: int = 0
    """Test rows; 0 where they are not known."""
    draws_SB: Floats | None = None
    """The metric on each draw of items, the same draws for all seeds and all arms; None where it is not known."""
    values_SN: Floats | None = None
    """What each row contributes, of a metric that is a mean over rows; None for others."""
    clusters_N: Ints | None = None
    """The group of each row; None where groups are not drawn."""
    share: bool = False
    """Whether each row's value lies between 0 and 1, so that a difference comes from rows that differ."""
    items_N: Ints | None = None
    """The item of each row; None where each is one of its own, or lies with all its rows in a group that is drawn."""

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
        if self.draws_SB is None:
            return "seeds"
        found = [] if len(self.seeds) == 1 else ["seeds"]
        found += [] if self.clusters_N is None else ["groups"]
        found += ["items"] if self.clusters_N is None or self.items_N is not None else []
        return " and ".join([", ".join(found[:-1]), found[-1]] if found[:-1] else found)

    @property
    def distinct(self) -> int:
        """Items, each counted once however many rows it is."""
        return self.items if self.items_N is None else len(np.unique(self.items_N))

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
        items = max(items, wilson(0, self.distinct, confidence).high or 0.0) if self.share else items
        if len(self.seeds) == 1:
            return items
        return max(items, math.hypot(items * self.items_own, _t(confidence, len(self.seeds) - 1) * self.seeds_error))

    @property
    def _units(self) -> int:
        """What is drawn: items, or groups of them; the fewer, where both are."""
        return min([self.distinct, *([] if self.clusters_N is None else [len(np.unique(self.clusters_N))])])

    @property
    def _correction(self) -> float:
        """A sample's spread is smaller than that of what it was drawn from."""
        return math.sqrt(self._units / (self._units - 1)) if self._units > 1 else 1.0


def clusters(groups: Sequence[str | None] | None) -> Ints | None:
    """The number of each row's group, or item; None where there are too few to resample, or rows without one."""
    if groups is None or None in groups:
        return None
    names, numbers = np.unique(np.asarray(groups, str), return_inverse=True)
    return numbers.astype(np.int64) if len(names) >= LEAST_GROUPS else None


def shared_items(items: Sequence[str | None] | None, clusters_N: Ints | None) -> Ints | None:
    """The number of each row's item; None where rows share none, or only within a group that is drawn anyway."""
    items_N = clusters(items)
    if items_N is None or len(np.unique(items_N)) == len(items_N):
        return None
    if clusters_N is not None:
        places = {*zip(items_N.tolist(), clusters_N.tolist(), strict=True)}
        return items_N if len(places) > len(np.unique(items_N)) else None
    return items_N


def resample(
    metrics: Sequence[Weighted],
    items: int,
    clusters_N: Ints | None = None,
    draws: int = DRAWS,
    items_N: Ints | None = None,
) -> tuple[Floats, Floats]:
    """Each metric on all items, and on draws of them; the same draws for every metric, whenever it is called.

    Args:
        metrics: of R runs on the same items in the same order.
        items: N, test rows.
        clusters_N: groups to draw instead of rows.
        draws: B.
        items_N: items to draw instead of rows; beside the groups, where both are given.

    Returns:
        Values [R] and [R, B]; NaN where a metric is undefined.
    """
    ones = np.ones((items, 1))
    values = np.array([metric(ones)[0] for metric in metrics])
    chunks = [[metric(weights) for metric in metrics] for weights in weights_of(items, clusters_N, draws, items_N)]
    return values, np.concatenate(chunks, axis=1).astype(np.float64)


def weights_of(
    items: int, clusters_N: Ints | None = None, draws: int = DRAWS, items_N: Ints | None = None
) -> Iterator[Floats]:
    """How often each row is drawn, [N, up to B] float32 in chunks; rows of a group, and of an item, together."""
    together = [numbers_N for numbers_N in (clusters_N, items_N) if numbers_N is not None] or [np.arange(items)]
    random = generator(0, "items")
    for size in _chunks(draws, items):
        drawn = [_counts(random, int(numbers_N.max()) + 1, size)[numbers_N] for numbers_N in together]
        yield drawn[0] if len(drawn) == 1 else drawn[0] * drawn[1]


def _counts(random: np.random.Generator, units: int, draws: int) -> Floats:
    """How often each unit is among as many that are drawn with replacement, [units, draws] float32."""
    drawn = random.integers(0, units, (draws, units)) + units * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units).T.astype(np.float32)


def _chunks(draws: int, items: int) -> Iterator[int]:
    """Sizes that add up to the draws."""
    size = max(1, CHUNK // max(1, items))
    for begin in range(0, draws, size):
        yield min(size, draws - begin)


def _t(confidence: float, degrees: float) -> float:
    """How many standard errors a two-sided interval reaches."""
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees)) if degrees > 0 else math.inf
