"""What the report says of one task: its tables as plain values, and their pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from graft.results.answers import Standing, answer, is_baseline
from graft.results.arms import Arm, value_text
from graft.results.comparisons import Comparison, compare_best, compare_rungs, compare_with_baseline
from graft.results.fits import Fit, Match, examples_to_match, fit
from graft.results.ladders import Ladder, ladders
from graft.results.outcomes import UNIT, Outcome
from graft.results.plots.costs import cost_scatter
from graft.results.plots.curves import expected_best_curves, learning_curve
from graft.results.plots.differences import ablation_bars, forest, group_gains, waterfall
from graft.results.plots.style import colour
from graft.results.prices import PRICES, costs_of, front, prices_of
from graft.results.searches import expected_best
from graft.results.statistics import paired_interval
from graft.results.tables import LOWER_IS_BETTER, Cell, Grid, grids, ordered, summary
from graft.results.words import Sentence
from graft.tasks.groups import MACRO

CURVES = ("log_loss",)
"""Metrics drawn besides the main one."""

BASELINE, BEST = "the strongest simple baseline", "the best arm (no simple baseline has results)"
"""What the arms of a column may be held against."""

Run = Mapping[str, Any]
"""The columns of a run, and its `arm`."""


@dataclass(frozen=True)
class Law:
    """An arm's fitted curve, and the examples it needs to match the reference."""

    arm: str
    fit: Fit | None
    match: Match | None
    """None for the reference itself."""


@dataclass(frozen=True)
class LadderPart:
    """One ladder, or the other ablations of an arm."""

    ladder: Ladder
    comparisons: Mapping[str, Comparison]
    """Arm of a rung to its comparison."""
    picture: str
    last: bool
    """Whether none of the same arm has more examples."""


@dataclass(frozen=True)
class GroupPart:
    """Averages over groups of test rows, and what the best arm gains in each."""

    macro: Grid
    picture: str
    """Empty where the best arm has no other to be held against."""
    best: str = ""
    reference: str = ""


@dataclass(frozen=True)
class SearchPart:
    """What the search of a sweep tried for this task's arms."""

    picture: str
    examples: int
    """Of the picture."""
    chosen: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Section:
    """One task: its metrics, the main one first; everything else is about the main one."""

    task: str
    answer: tuple[Sentence, ...]
    grids: tuple[Grid, ...]
    verdicts: Mapping[tuple[str, int], str]
    """Arm and examples to its verdict against the reference of the column."""
    references: Mapping[int, str]
    """Examples to the strongest baseline, or the best arm where there is no baseline."""
    baselines: frozenset[int]
    """The examples whose reference is a baseline: where it failed, the others have the best arm among them."""
    curves: tuple[str, ...]
    laws: tuple[Law, ...]
    standings: tuple[Standing, ...]
    """One for each number of examples."""
    differences: tuple[Comparison, ...]
    """To the reference with the most examples, best arm first."""
    forest: str
    ladders: tuple[LadderPart, ...]
    groups: GroupPart | None
    costs: tuple[Mapping[str, Any], ...]
    scatter: str
    fronts: Mapping[str, tuple[str, ...]]
    """Heading of a cost to the arms that nothing is as good as for less."""
    search: SearchPart | None
    colours: Mapping[str, str] = field(default_factory=dict)

    @property
    def held_against(self) -> str:
        """What the references are, in words."""
        if not self.baselines:
            return BEST
        return (
            BASELINE
            if self.baselines >= self.references.keys()
            else f"{BASELINE} (where none has results, the best arm)"
        )

    @property
    def differs_from(self) -> str:
        """What the reference of the differences is, in words."""
        return BASELINE if max(self.references, default=None) in self.baselines else BEST

    @property
    def discordant(self) -> tuple[Comparison, ...]:
        """The differences whose items are right or wrong, so that McNemar's test has something to count."""
        return tuple(comparison for comparison in self.differences if comparison.mcnemar)


def section(
    task: str,
    outcomes: Mapping[str, Sequence[Outcome]],
    cells: Sequence[Cell],
    runs: Sequence[Run],
    metrics: pa.Table,
    searches: Sequence[Mapping[str, Any]],
    cost_columns: Iterable[str],
    margin: float | None,
) -> Section:
    """Everything about one task.

    Args:
        task: its name among the cells.
        outcomes: metric to those of this task.
        cells: of every metric and of this task, with the outcomes' intervals.
        runs: of this task.
        metrics: rows of METRICS of all tasks, for the splits of groups.
        searches: rows of SEARCH with their `arm`, of this task.
        cost_columns: those to be tabled.
        margin: of equivalence; None takes the metric's own.
    """
    names = ordered({cell.metric for cell in cells})
    metric = names[0]
    found = tuple(grids([cell for cell in cells if cell.metric == name])[0] for name in names)
    grid, own = found[0], outcomes.get(metric, ())
    places = {arm: place for place, arm in enumerate(sorted({cell.arm for cell in cells}))}
    compared = compare_with_baseline(own, margin=margin)
    references = {comparison.examples: comparison.other for comparison in compared}
    standings = _standings(grid, own, compare_best(own, margin))
    last = max(references, default=None)
    rank = {cell.arm: place for place, cell in enumerate(grid.ranked(last))} if last is not None else {}
    differences = sorted((one for one in compared if one.examples == last), key=lambda one: rank[one.arm])
    baselines = frozenset(one.cell.examples for one in own if is_baseline(one) and one.cell.examples in references)
    prices = prices_of(runs, standings[-1].examples, grid) if standings else {}
    label = metric.replace("_", " ").capitalize()
    columns = {
        column: heading for column, heading in PRICES.items() if any(priced.costs[column] for priced in prices.values())
    }
    laws = _laws(grid, own, references)
    return Section(
        task=task,
        answer=answer(
            standings[-1],
            [one for one in compared if one.examples == standings[-1].examples],
            prices,
            len(grid.arms),
        )
        if standings
        else (),
        grids=found,
        verdicts={(one.arm, one.examples): one.verdict for one in compared},
        references=references,
        baselines=baselines,
        curves=_curves(task, cells, found, {law.arm: law.fit for law in laws if law.fit}),
        laws=laws,
        standings=tuple(standings),
        differences=tuple(differences),
        forest=forest(differences, f"{label} on {task}: each arm against {references[last]}, {last:,} examples")
        if differences and last is not None
        else "",
        ladders=_ladders(task, grid, own, margin),
        groups=_groups(task, metric, metrics, runs, standings, references),
        costs=costs_of(runs, cost_columns, grid.arms),
        scatter=cost_scatter(list(prices.values()), columns, places, metric, f"{label} on {task} and what it costs")
        if len(prices) > 1 and columns
        else "",
        fronts={
            heading: tuple(arm.arm for arm in front(list(prices.values()), column, metric))
            for column, heading in columns.items()
        },
        search=_search(task, searches, places),
        colours={arm: colour(place) for arm, place in places.items()},
    )


def _standings(grid: Grid, outcomes: Sequence[Outcome], compared: Sequence[Comparison]) -> list[Standing]:
    """The best arm of each column; nearest others first."""
    of_cell = {(outcome.cell.arm, outcome.cell.examples): outcome for outcome in outcomes}
    found = []
    for size in grid.sizes:
        if ranked := grid.ranked(size):
            rank = {cell.arm: place for place, cell in enumerate(ranked)}
            others = [comparison for comparison in compared if comparison.examples == size]
            best = others[0].arm if others else ranked[0].arm
            others.sort(key=lambda comparison: rank[comparison.other])
            found.append(Standing(size, of_cell[best, size], tuple(others)))
    return found


def _laws(grid: Grid, outcomes: Sequence[Outcome], references: Mapping[int, str]) -> tuple[Law, ...]:
    """The fitted curve of each arm that has enough sizes; none where the sweep has one size alone."""
    if len(grid.sizes) < 2:
        return ()
    falls = grid.metric in LOWER_IS_BETTER
    highest = 1.0 if grid.metric in UNIT else None
    means: dict[str, dict[int, float]] = {arm: {} for arm in grid.arms}
    for outcome in outcomes:
        means[outcome.cell.arm][outcome.cell.examples] = outcome.spread.mean
    reference = references[max(references)] if references else None
    score = means[reference][max(means[reference])] if reference else 0.0
    return tuple(
        Law(
            arm,
            fit(means[arm], falls, highest),
            None if reference in (None, arm) else examples_to_match(arm, means[arm], score, falls),
        )
        for arm in grid.arms
        if means[arm]
    )


def _curves(task: str, cells: Sequence[Cell], found: Sequence[Grid], fits: Mapping[str, Fit]) -> tuple[str, ...]:
    if len(found[0].sizes) < 2:
        return ()
    main = found[0].metric
    names = {grid.metric for grid in found}
    drawn = dict.fromkeys(name for name in (main, *CURVES) if name in names)
    return tuple(
        learning_curve(cells, name, f"{name.replace('_', ' ').capitalize()} on {task}", fits if name == main else None)
        for name in drawn
        if any(cell.metric == name and cell.interval for cell in cells)
    )


def _ladders(task: str, grid: Grid, outcomes: Sequence[Outcome], margin: float | None) -> tuple[LadderPart, ...]:
    compared = {(one.arm, one.examples): one for one in compare_rungs(outcomes, margin)}
    parts = []
    found = sorted(
        ladders(grid.cells.values()), key=lambda ladder: (ladder.whole, not ladder.cumulative, -ladder.examples)
    )
    seen: set[tuple[str, bool]] = set()
    for ladder in found:
        arms = [rung.cell.arm for rung in ladder.rungs]
        own = {arm: compared[arm, ladder.examples] for arm in arms if (arm, ladder.examples) in compared}
        kind = "Ladder" if ladder.cumulative else "Ablations"
        title = f"{kind} of {ladder.whole} on {task}, {ladder.examples:,} examples"
        picture = (waterfall if ladder.cumulative else ablation_bars)(ladder, own, title) if own else ""
        parts.append(LadderPart(ladder, own, picture, (ladder.whole, ladder.cumulative) not in seen))
        seen.add((ladder.whole, ladder.cumulative))
    return tuple(parts)


def _groups(
    task: str,
    metric: str,
    metrics: pa.Table,
    runs: Sequence[Run],
    standings: Sequence[Standing],
    references: Mapping[int, str],
) -> GroupPart | None:
    own = {run["run_id"] for run in runs}
    splits = {row["split"] or "" for row in metrics.select(["run_id", "split"]).to_pylist() if row["run_id"] in own}
    groups = sorted(split for split in splits if split.startswith("test/") and split != f"test/{MACRO}")
    macro = [cell for cell in summary(metrics, metric, f"test/{MACRO}") if cell.task == task]
    if not macro:
        return None
    last = standings[-1]
    best, reference = last.best.cell.arm, references.get(last.examples)
    if reference == best:  # then the next best arm tells more
        reference = last.others[0].other if last.others else None
    gains = {}
    for split in groups if reference else ():
        of_arm = {
            cell.arm: cell.values
            for cell in summary(metrics, metric, split)
            if cell.task == task and cell.examples == last.examples
        }
        values, its = of_arm.get(best, {}), of_arm.get(reference or "", {})
        if values.keys() & its.keys():
            gains[split.removeprefix("test/")] = paired_interval(values, its)
    sign = 1 if metric in LOWER_IS_BETTER else -1
    gains = dict(sorted(gains.items(), key=lambda item: (sign * item[1].mean, item[0])))
    title = f"Gain of {best} over {reference} in each group of {task}, {last.examples:,} examples"
    picture = group_gains(gains, metric, title) if gains else ""
    return GroupPart(grids(macro)[0], picture, best, reference or "")


def named_searches(searches: pa.Table | None, of_run: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """Rows of SEARCH with the `arm` that the report knows them by, found by the run that reports on what was chosen."""
    found = []
    for row in searches.to_pylist() if searches else ():
        known = of_run.get(row["reports"] or "")
        name = " ".join(filter(None, [row["method"], row["ablation"]]))
        found.append({**row, "arm": known or Arm(row["task"], name)})
    return found


def _search(task: str, rows: Sequence[Mapping[str, Any]], places: Mapping[str, int]) -> SearchPart | None:
    if not rows:
        return None
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["arm"].name, row["examples"]), []).append(row)
    examples = max(size for _, size in cells)
    metric = rows[0]["metric"]
    curves = {}
    for (arm, size), tried in sorted(cells.items()):
        values = [row["value"] for row in tried if row["status"] == "done" and row["value"] is not None]
        if size == examples and values:
            curves[arm] = expected_best(values, metric in LOWER_IS_BETTER)
    chosen = [
        {
            "arm": arm,
            "examples": size,
            "tried": len(tried),
            "failed": sum(row["status"] == "failed" for row in tried),
            "stopped": sum(row["status"] == "pruned" for row in tried),
            "seconds": sum(row["seconds"] or 0 for row in tried),
            "metric": metric,
            "value": next((row["value"] for row in tried if row["chosen"]), None),
            "settings": next((_settings(row["settings"]) for row in tried if row["chosen"]), "none: all failed"),
        }
        for (arm, size), tried in sorted(cells.items())
    ]
    title = f"Search on {task}: the best setting to be expected, {examples:,} examples"
    picture = expected_best_curves(curves, places, metric, title) if curves else ""
    return SearchPart(picture, examples, tuple(chosen))


def _settings(text: str) -> str:
    """What was chosen, numbers as a table shows them: search.parquet has them whole."""
    chosen = {
        key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in json.loads(text).items()
    }
    return ", ".join(f"{key}={value_text(value)}" for key, value in chosen.items()) or "as written"


def with_intervals(cells: Iterable[Cell], outcomes: Iterable[Outcome]) -> list[Cell]:
    """The same cells with the intervals of their outcomes, which may know the test items too."""
    known = {(one.cell.task, one.cell.arm, one.cell.examples): one.interval() for one in outcomes}
    return [replace(cell, interval=known.get((cell.task, cell.arm, cell.examples), cell.interval)) for cell in cells]
