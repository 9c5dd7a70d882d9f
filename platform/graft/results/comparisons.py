"""Which of two arms is better, in four words that say no more than the items and seeds allow.

    better, worse   the corrected p is below 0.05 and the 95 % interval of the difference excludes zero
    equivalent      else, where the difference lies within the margin at 5 % (two one-sided tests)
    undecided       else

All comparisons are paired: the same items, and the seeds that both arms have. Each belongs to a family, which is
corrected together: all rungs of a ladder by Holm, all arms of a column against its reference by Benjamini-Hochberg.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graft.errors import DataError, suggest
from graft.results.ablations import FULL, rung_of
from graft.results.ladders import ladders
from graft.results.outcomes import Outcome
from graft.results.significance import (
    McNemar,
    benjamini_hochberg,
    corrected,
    difference_p,
    equivalence_p,
    holm,
    mcnemar,
    smallest_detectable,
)
from graft.results.statistics import Interval
from graft.results.tables import LOWER_IS_BETTER

LEVEL = 0.05
"""Of every test here."""

MARGIN = 0.01
"""Differences that are taken for none, in the metric's unit: a point of a share, a hundredth of a nat."""

MARGINS = {"chrf": 1.0, "perplexity": None}
"""Other margins; no difference of perplexities is small without a word on their size, so none is equivalent."""

BASELINES = ("probe",)
"""Methods that any other should beat: a probe on frozen representations, the majority class among them."""


@dataclass(frozen=True)
class Comparison:
    """One arm against another with one number of examples."""

    task: str
    metric: str
    examples: int
    arm: str
    other: str
    difference: Interval
    """The arm's mean minus the other's; `covers` says what the interval answers for."""
    p: float | None
    """Of no difference, two-sided; None where nothing is known of the errors, as for one seed without items."""
    corrected_p: float | None
    """As one of its family."""
    equivalent_p: float | None
    """Of a difference of `margin` or more; None without a margin or errors."""
    margin: float | None
    detectable: float | None
    """The smallest difference that would have been found with a probability of 80 %, uncorrected."""
    mcnemar: tuple[McNemar, ...]
    """One for each seed, where an item is right or wrong."""
    seeds: tuple[int, ...]
    """Those that both have."""
    items: int
    """Test items that both answered; 0 where the interval does not know them."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `equivalent` or `undecided`, of the arm; a lower value may be the better one."""
        if self.corrected_p is not None and self.corrected_p < LEVEL and self.difference.excludes_zero:
            return "better" if (self.difference.mean < 0) == (self.metric in LOWER_IS_BETTER) else "worse"
        if self.equivalent_p is not None and self.equivalent_p < LEVEL:
            return "equivalent"
        return "undecided"


def compare(arm: Outcome, other: Outcome, margin: float | None = None) -> Comparison:
    """Two arms of one task, metric and number of examples, as a family of their own: p is not corrected.

    Args:
        arm: what is judged.
        other: what it is judged by.
        margin: of equivalence, in the metric's unit; None takes MARGINS, or else MARGIN.

    Raises:
        DataError: the two have no seed in common.
        ValueError: the margin is not positive.
    """
    cell = arm.cell
    if not set(cell.seeds) & set(other.cell.seeds):
        raise DataError(f"{cell.arm} and {other.cell.arm} have no seed in common; run both with the same seeds")
    margin = MARGINS.get(cell.metric, MARGIN) if margin is None else margin
    difference = arm.spread - other.spread
    p = difference_p(difference)
    return Comparison(
        cell.task,
        cell.metric,
        cell.examples,
        cell.arm,
        other.cell.arm,
        difference.interval(),
        p,
        p,
        None if margin is None else equivalence_p(difference, margin),
        margin,
        smallest_detectable(difference),
        _mcnemar(arm, other, difference.seeds),
        difference.seeds,
        difference.items if difference.draws_SB is not None else 0,
    )


def compare_named(outcomes: Sequence[Outcome], arm: str, other: str, margin: float | None = None) -> list[Comparison]:
    """Two arms by name, in every task and number of examples that both have; a comparison that was planned.

    No p is corrected. Whoever names the pair after a look at the table has compared all its pairs.

    Raises:
        DataError: there is no such arm, or the two never meet.
    """
    names = {outcome.cell.arm for outcome in outcomes}
    for name in (arm, other):
        if name not in names:
            raise DataError(f"there is no arm {name!r}; {suggest(name, names)}")
    found = []
    for column in _columns(outcomes):
        own = {outcome.cell.arm: outcome for outcome in column}
        if arm in own and other in own and set(own[arm].cell.seeds) & set(own[other].cell.seeds):
            found.append(compare(own[arm], own[other], margin))
    if not found:
        raise DataError(f"{arm!r} and {other!r} have no task, number of examples and seed in common; run both alike")
    return found


def compare_with_baseline(
    outcomes: Sequence[Outcome], baselines: Collection[str] = BASELINES, margin: float | None = None
) -> list[Comparison]:
    """Every arm of a column against its strongest baseline, corrected together by Benjamini-Hochberg.

    The strongest is the baseline with the best mean; where a column has none, its best arm. Being picked for its mean,
    it looks better than it is: `better` is the harder to earn for that, `worse` the easier, about the baseline alone.

    Args:
        outcomes: of one metric; columns are a task and a number of examples.
        baselines: names of methods or of arms.
        margin: see `compare`.
    """
    found: list[Comparison] = []
    for column in _columns(outcomes):
        simple = [outcome for outcome in column if {outcome.method, outcome.cell.arm} & set(baselines)]
        found += _against(_best(simple or column), column, margin)
    return found


def compare_best(outcomes: Sequence[Outcome], margin: float | None = None) -> list[Comparison]:
    """The arm with the best mean of each column against every other arm, corrected by Benjamini-Hochberg.

    Which arm is the best is read off the same items and seeds. The correction covers that it is compared with many: of
    the arms said to be worse than it, at most 5 % are expected not to be. It does not cover that it was picked. Among
    K arms that are all alike, the best and the worst differ by more than two arms named before, so that some of them
    is called worse more often than in one case of twenty; and the mean of the best is too high. What the best is worth
    is said by seeds and items that did not choose it; `compare_named` of a pair named beforehand is free of it.
    """
    found: list[Comparison] = []
    for column in _columns(outcomes):
        best = _best(column)
        found += [_turned(comparison) for comparison in _against(best, column, margin)]
    return found


def compare_rungs(outcomes: Sequence[Outcome], margin: float | None = None) -> list[Comparison]:
    """Each rung of a ladder against the one above, every other ablation against the whole; Holm within each.

    Ladders are those of `graft.results.ladders`. A rung whose upper neighbour has no mean, or no seed in common
    with it, has no comparison.
    """
    found: list[Comparison] = []
    for task in dict.fromkeys(outcome.cell.task for outcome in outcomes):
        of_cell = {id(outcome.cell): outcome for outcome in outcomes if outcome.cell.task == task}
        for ladder in ladders(outcome.cell for outcome in of_cell.values()):
            rungs = [of_cell[id(rung.cell)] for rung in ladder.rungs]
            above = {rung_of(rung.cell.ablation or "") or 0: rung for rung in rungs} if ladder.cumulative else {}
            pairs = []
            for rung in rungs:
                ablation = rung.cell.ablation or ""
                other = above.get((rung_of(ablation) or 0) - 1) if ladder.cumulative else rungs[0]
                if ablation != FULL and other and set(rung.cell.seeds) & set(other.cell.seeds):
                    pairs.append(compare(rung, other, margin))
            found += _corrected(pairs, holm)
    return found


def _against(reference: Outcome, column: Iterable[Outcome], margin: float | None) -> list[Comparison]:
    """Every other arm that has a seed in common against this one."""
    seeds = set(reference.cell.seeds)
    others = [outcome for outcome in column if outcome is not reference and seeds & set(outcome.cell.seeds)]
    return _corrected([compare(outcome, reference, margin) for outcome in others], benjamini_hochberg)


def _corrected(family: Sequence[Comparison], correction: Callable[[Sequence[float]], list[float]]) -> list[Comparison]:
    found = corrected([comparison.p for comparison in family], correction)
    return [replace(comparison, corrected_p=p) for comparison, p in zip(family, found, strict=True)]


def _turned(comparison: Comparison) -> Comparison:
    """The same from the other arm's side."""
    interval = comparison.difference
    low, high = (None if limit is None else -limit for limit in (interval.high, interval.low))
    return replace(
        comparison,
        arm=comparison.other,
        other=comparison.arm,
        difference=replace(interval, mean=-interval.mean, low=low, high=high),
        mcnemar=tuple(replace(test, only_arm=test.only_other, only_other=test.only_arm) for test in comparison.mcnemar),
    )


def _columns(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """The outcomes of each task and number of examples."""
    found: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.cell.task, outcome.cell.examples].append(outcome)
    return [found[key] for key in sorted(found)]


def _best(column: Sequence[Outcome]) -> Outcome:
    """The one with the best mean; of several, the first by name."""
    sign = 1 if column[0].cell.metric in LOWER_IS_BETTER else -1
    return min(column, key=lambda outcome: (sign * outcome.spread.mean, outcome.cell.arm))


def _mcnemar(arm: Outcome, other: Outcome, seeds: Sequence[int]) -> tuple[McNemar, ...]:
    """One test for each seed, where every row is right or wrong, and an item of its own."""
    own, its = arm.spread.values_SN, other.spread.values_SN
    if (
        arm.spread.items_N is not None
        or own is None
        or its is None
        or not all(np.isin(values, (0, 1)).all() for values in (own, its))
    ):
        return ()
    return tuple(
        mcnemar(seed, own[arm.spread.seeds.index(seed)], its[other.spread.seeds.index(seed)]) for seed in seeds
    )
