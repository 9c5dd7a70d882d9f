"""What a sweep has yet to carry out: the runs known from the start, and those that its searches ask for as they learn.

    reporting runs ───────────────────────────────────────────────┐
    searches ──► runs that judge a setting ──► the best setting ──┴──► due ──► (Ray Tune) ──► ended

A run that is done, whichever command did it, never becomes due: its result is read, and what follows from it is
planned at once.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from graft import planning
from graft.errors import GraftError
from graft.planning import Plan
from graft.spec import Experiment
from graft.sweeps.looks import Looks
from graft.sweeps.search import Attempt, CellSearch
from graft.tasks.dataset import Dataset

Values = Mapping[str, float | None]
"""Metric to value of one run."""


@dataclass
class Group:
    """The reporting runs of one arm with one amount of data."""

    plans: list[Plan]
    """Of a search that is not over, those of the spec's own settings."""
    ablation: str | None
    search: CellSearch | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    """What the search has chosen."""
    error: str | None = None
    """Why there is nothing to report on."""

    @property
    def settled(self) -> bool:
        """Whether its runs are those that are reported on."""
        return self.search is None or bool(self.settings) or self.error is not None

    @property
    def searched(self) -> str | None:
        """What the search has chosen, as a sweep's table has it."""
        return json.dumps(self.settings, sort_keys=True, ensure_ascii=False) if self.settings else None


class Agenda:
    """Runs that are due, in the order in which they became so.

    Args:
        groups: all arms of the sweep with all amounts of data.
        read: the result of a run that is done, with its seconds; None where it is not.
        datasets: by the task's JSON, so that no rows are read twice.
        looks: what the trainings of a search saw.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        read: Callable[[str], tuple[Values, float] | None],
        datasets: Mapping[str, Dataset],
        looks: Looks,
    ):
        self.groups, self.read, self.datasets, self.looks = list(groups), read, datasets, looks
        self.known: dict[str, Plan] = {}
        """Every run so far, by run_id."""
        self.done: dict[str, Values] = {}
        self.failed: dict[str, str] = {}
        self.stopped: set[str] = set()
        """Runs that a search has pruned."""
        self.was_done = 0
        """Runs that were done before."""
        self._due: deque[Plan] = deque()
        self._waiting: dict[str, list[tuple[Group, CellSearch, Attempt]]] = {}
        self._seconds: dict[str, float] = {}
        for group in self.groups:
            if group.search is None:
                self._add(group.plans)
        for group in self.groups:
            if group.search is not None:
                self._advance(group, group.search)

    @property
    def total(self) -> int:
        """Runs that are known or certain to come; those of settings that failed are counted as if they came."""
        count = len(self.known)
        for group in self.groups:
            if group.search is not None and not group.settled:
                count += group.search.runs_to_come + len(group.plans)
        return count

    def next(self) -> Plan | None:
        """A run that is due; None where none is at the moment."""
        return self._due.popleft() if self._due else None

    @property
    def due(self) -> list[Plan]:
        """What is due at the moment."""
        return list(self._due)

    def ended(self, run_id: str, values: Values | None, error: str | None = None, seconds: float = 0.0) -> None:
        """A run gave its metrics, or failed."""
        if values is not None:
            self.done[run_id] = values
        else:
            self.failed[run_id] = error or "it ended without a result"
        self._seconds[run_id] = seconds
        for group, search, attempt in self._waiting.pop(run_id, []):
            if self._take_in(search, attempt):
                self._advance(group, search)

    def pruned(self, run_id: str, looks: Mapping[int, float]) -> None:
        """A run was stopped at its last look; what it saw is kept, so that it is not run again."""
        self.looks.write(run_id, looks)
        self.stopped.add(run_id)
        for group, search, attempt in self._waiting.pop(run_id, []):
            if self._take_in(search, attempt):
                self._advance(group, search)

    def worst(self, run_id: str) -> dict[int, float]:
        """The limits at which a run is stopped, if it judges a setting of a search that prunes."""
        return next((search.worst() for _, search, _ in self._waiting.get(run_id, [])), {})

    def _advance(self, group: Group, search: CellSearch) -> None:
        """Ask a search until something has to be waited for, then plan what it has chosen."""
        while asked := search.ask():
            for attempt in asked:
                self._begin(group, search, attempt)
        if search.over and not group.settled:
            self._settle(group, search)

    def _begin(self, group: Group, search: CellSearch, attempt: Attempt) -> None:
        """Make the runs of an attempt due, unless they are done."""
        try:
            plans = self._plans(search.experiments(attempt.settings))
        except GraftError as error:
            search.fail(attempt, str(error))
            return
        attempt.runs = [plan.run_id for plan in plans]
        self._add(plans)
        if not self._take_in(search, attempt):
            for run in dict.fromkeys(self._missing(attempt)):
                self._waiting.setdefault(run, []).append((group, search, attempt))

    def _take_in(self, search: CellSearch, attempt: Attempt) -> bool:
        """Judge an attempt, where all of its runs have ended."""
        if self._missing(attempt):
            return False
        attempt.seconds = sum(self._seconds.get(run, 0.0) for run in attempt.runs)
        if search.rungs:
            attempt.looks = self.looks.read(attempt.runs[0])
        if any(run in self.stopped for run in attempt.runs):
            search.prune(attempt)
        elif failed := [self.failed[run] for run in attempt.runs if run in self.failed]:
            search.fail(attempt, failed[0])
        else:
            search.judge(attempt, [self.done[run] for run in attempt.runs])
        return True

    def _missing(self, attempt: Attempt) -> list[str]:
        return [run for run in attempt.runs if not (run in self.done or run in self.failed or run in self.stopped)]

    def _settle(self, group: Group, search: CellSearch) -> None:
        best = search.best
        if best is None:
            reasons = sorted({attempt.error or "" for attempt in search.attempts})
            group.error = f"each of the {len(search.attempts)} settings failed: {reasons[0]}"
            return
        group.settings = best.settings
        seeds = [plan.experiment.regime.seed for plan in group.plans]
        group.plans = self._plans([search.cell.experiment(seed, **best.settings) for seed in seeds])
        self._add(group.plans)

    def _plans(self, experiments: Sequence[Experiment]) -> list[Plan]:
        return planning.plans(experiments, self.datasets)

    def _add(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            if plan.run_id in self.known:
                continue
            self.known[plan.run_id] = plan
            if self.looks.was_pruned(plan.run_id):
                self.stopped.add(plan.run_id)
            elif (found := self.read(plan.run_id)) is not None:
                self.was_done += 1
                self.done[plan.run_id], self._seconds[plan.run_id] = found
            else:
                self._due.append(plan)
