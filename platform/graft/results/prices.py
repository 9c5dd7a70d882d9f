"""What arms cost, and which of them no other is as good as for less."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft.results.tables import LOWER_IS_BETTER, Grid

PRICES = {
    "teacher_calls": "teacher calls",
    "parameters_trainable": "trainable parameters",
    "seconds": "seconds",
}
"""What an arm costs whoever uses it: column to words."""


@dataclass(frozen=True)
class Priced:
    """One arm's score and what it costs."""

    arm: str
    score: float
    costs: Mapping[str, float]
    """Column to the mean over its runs."""


def front(arms: Sequence[Priced], column: str, metric: str) -> list[Priced]:
    """The arms that no other arm is as good as for less, or better than for as much; from the cheapest on."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    found: list[Priced] = []
    for arm in sorted(arms, key=lambda arm: (arm.costs[column], sign * arm.score, arm.arm)):
        if not found or sign * arm.score < sign * found[-1].score:
            found.append(arm)
    return found


def prices_of(runs: Sequence[Mapping[str, Any]], examples: int, grid: Grid) -> dict[str, Priced]:
    """Means over an arm's runs that are done, with so many examples."""
    found = {}
    for arm in grid.arms:
        cell = grid.cells.get((arm, examples))
        own = [run for run in runs if (run["arm"].name, run["examples"], run["status"]) == (arm, examples, "done")]
        if cell and cell.interval and own:
            # An answer that was read was asked for once: the arm needs it all the same.
            spent = [{**run, "teacher_calls": (run["teacher_calls"] or 0) + (run["teacher_reads"] or 0)} for run in own]
            means = {column: sum(run[column] or 0 for run in spent) / len(spent) for column in PRICES}
            found[arm] = Priced(arm, cell.interval.mean, means)
    return found


def costs_of(
    runs: Sequence[Mapping[str, Any]], columns: Iterable[str], order: Sequence[str]
) -> tuple[Mapping[str, Any], ...]:
    """Means over an arm's runs that are done."""
    rows = []
    for name in order:
        own = [run for run in runs if run["arm"].name == name and run["status"] == "done"]
        means = {column: sum(run[column] or 0 for run in own) / len(own) for column in columns} if own else {}
        rows.append({"arm": name, "runs": len(own), **means})
    return tuple(rows)
