"""Carries out a sweep: one Ray Tune trial per run that is not done yet, one table and one report over all runs.

What frozen models compute for several runs is computed first and once, into the column store; then every trial reads
it. A run that is done is never run again, so a sweep that was killed anywhere needs no memory of its own: the same
command plans the same runs, finds which are missing and carries out those.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import yaml
from pyarrow import fs

from graft import costs, runner, runs
from graft.cluster import Cluster, check_shared, connect, connecting
from graft.errors import StoreError
from graft.pool import MIN_ROWS, RayPool
from graft.results.arms import arms
from graft.results.files import write_table
from graft.results.records import Result, failure_table, with_column
from graft.results.report import write_report
from graft.results.searches import FILE as SEARCHES
from graft.results.searches import SEARCH
from graft.results.shared import adding
from graft.spec import Experiment
from graft.storage import open_storage, write_atomic
from graft.store import DEFAULT_LIMIT_BYTES
from graft.sweeps.agenda import Agenda, Group, Values
from graft.sweeps.axes import Member, expand_members
from graft.sweeps.changes import changes
from graft.sweeps.curves import Curves
from graft.sweeps.frozen import compute_shared
from graft.sweeps.looks import Looks
from graft.sweeps.resources import share_out
from graft.sweeps.roster import Roster, plan_sweep
from graft.sweeps.search import CellSearch, Journal
from graft.sweeps.status import Progress, Status, Watcher
from graft.sweeps.tracking import trackers
from graft.sweeps.work import Work
from graft.swept import Sweep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """Where a sweep lies and what it holds."""

    sweep_id: str
    metrics: pa.Table
    failed: int
    report: str


def run_sweep(
    experiment: Experiment,
    storage: str | Path = ".",
    *,
    address: str | None = None,
    concurrent: int | None = None,
    watcher: Watcher | None = None,
    store_limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> SweepResult:
    """Carry out every run of a sweep and report on them.

    A run that was done before, in this sweep or another, is read; one that fails is a row with its error.

    Args:
        experiment: a spec with `sweep:`.
        storage: folder or URI that holds `runs/`, `sweeps/` and `store/`; every node of the cluster sees it.
        address: of a running Ray cluster; None starts one on this machine.
        concurrent: runs at the same time at most; None is one per CPU that the cluster has.
        watcher: told how far it is.
        store_limit_bytes: size above which the column store evicts.

    Raises:
        GraftError: a member cannot be carried out as written; nothing has run then.
        ClusterError: there is no cluster, or it was lost.
    """
    watcher = watcher or Watcher()
    members = expand_members(experiment)
    runner.train_missing([member.experiment for member in members], watcher.rows, address)
    sweep = _Sweep(experiment, members, storage, watcher, store_limit_bytes)
    sweep.begin()
    if sweep.agenda.due:
        watcher.note(connecting(address))
        with connect(address, f"graft-sweep-{sweep.status.sweep_id}") as cluster:
            sweep.carry_out(cluster, concurrent)
    return sweep.assemble()


class _Sweep:
    """The runs of one sweep and what is known of each so far."""

    def __init__(
        self,
        experiment: Experiment,
        members: Sequence[Member],
        storage: str | Path,
        watcher: Watcher,
        store_limit_bytes: int,
    ):
        self.experiment, self.sweep = experiment, experiment.sweep or Sweep()
        self.roster = plan_sweep(experiment, members)
        self.files = open_storage(storage)
        self.storage = storage
        self.watcher = watcher
        self.store_limit_bytes = store_limit_bytes
        self.folder = f"sweeps/{self.roster.sweep_id}"
        self.status = Status(self.roster.sweep_id, _inside(storage, self.folder), len(self.roster.plans))
        self.results: dict[str, Result] = {}
        self.curves = Curves(self.files, self.folder)
        self.trackers = trackers(self.sweep.track, self.roster.sweep_id, self.files, self.folder)
        self.journal = Journal(self.files, f"{self.folder}/optuna.log")
        self.datasets = {plan.experiment.task.model_dump_json(): plan.dataset for plan in self.roster.plans.values()}

    def begin(self) -> None:
        """Take in the runs that are done, whichever command did them, and see what is missing."""
        groups = []
        for place, arm in enumerate(self.roster.arms):
            search = None
            if arm.space and self.sweep.search is not None and arm.cell is not None:
                storage, run_id = self.journal.storage, arm.plans[0].run_id
                search = CellSearch(arm.cell, self.sweep.search, arm.space, storage, place, run_id)
            groups.append(Group(list(arm.plans), self.roster.ablations[arm.plans[0].run_id], search))
        self.status.arms = _arms(self.roster, groups)
        for note in changes(self.experiment, self.roster.sweep_id, self.files):
            self.watcher.note(note)
        self.agenda = Agenda(groups, self._read, self.datasets, Looks(self.files, self.folder))
        self.status.done |= self.agenda.done
        self.status.read = len(self.status.done)
        self._count()
        self.watcher.update(self.status)

    def carry_out(self, cluster: Cluster, concurrent: int | None) -> None:
        """What the runs share first, then a trial per run.

        Raises:
            SpecError: more CPUs are asked for than the cluster has.
            ClusterError: the nodes do not share the storage.
        """
        plans = list(self.agenda.known.values())
        limit, resources = share_out(cluster, self.sweep.trial, [plan.experiment.scaling for plan in plans], concurrent)
        check_shared(cluster, self.storage)
        self.status.dashboard = cluster.dashboard
        self.watcher.update(self.status)
        self._describe()
        store = runner.open_store(self.files, self.store_limit_bytes)
        # Frozen models compute where the trials do: few rows in this process only if that is on the same machine.
        with RayPool(self.storage, min_rows=MIN_ROWS if cluster.local else 0) as pool:
            shared = [*self.agenda.due, *(plan for group in self.agenda.groups for plan in group.plans)]
            compute_shared(shared, store, pool, self.watcher.rows, adding(self.files, self.folder))
        from graft.sweeps.tuning import tune_runs

        work = Work.of(self.status.sweep_id, self.datasets, self.storage, self.store_limit_bytes, self.sweep.trial)
        tune_runs(work, self.agenda, self.status, self._changed, limit, resources)

    def assemble(self) -> SweepResult:
        """One table over all runs in the order of the plan, their predictions, and the report."""
        tables, answers = [], []
        ablations: dict[str, str | None] = {}
        searched: dict[str, str | None] = {}
        for group in self.agenda.groups:
            for plan in group.plans:
                run_id = plan.run_id
                ablations[run_id], searched[run_id] = group.ablation, group.searched
                result = self.results.get(run_id) or (
                    _finished(self.files, run_id) if run_id in self.status.done and not group.error else None
                )
                if result:
                    tables.append(result.metrics)
                    named = pa.array([run_id] * len(result.predictions))
                    answers.append(result.predictions.add_column(0, "run_id", named))
                else:
                    error = self.status.failed.get(run_id, "it ended without a result; give the same command again")
                    tables.append(failure_table(costs.failure(plan, group.error or error)))
        metrics = with_column(pa.concat_tables(tables), "ablation", ablations)
        metrics = with_column(metrics, "searched", searched)
        self._describe()
        self._write_searches()
        _write_predictions(self.files, f"{self.folder}/predictions.parquet", answers)
        write_table(self.files, f"{self.folder}/metrics.parquet", metrics)
        html, _ = write_report([self.status.folder])
        return SweepResult(self.status.sweep_id, metrics, len(tables) - len(answers), html)

    def _read(self, run_id: str) -> tuple[Values, float] | None:
        """The result of a run that is done, with its seconds."""
        if (result := _finished(self.files, run_id)) is None:
            return None
        if result.metrics["split"][0].as_py() == "test":
            self.results[run_id] = result
        return result.values, result.metrics["seconds"][0].as_py() or 0.0

    def _changed(self, run_id: str) -> None:
        self._count()
        self.watcher.update(self.status)

    def _count(self) -> None:
        """Take in what the agenda knows by now."""
        self.status.total = self.agenda.total
        for progress, group in zip(self.status.arms, self.agenda.groups, strict=True):
            progress.tried = sum(attempt.told for attempt in group.search.attempts) if group.search else 0
            progress.runs = tuple(plan.run_id for plan in group.plans) if group.settled else ()
        self.status.tried = {run for run, plan in self.agenda.known.items() if plan.split != "test"}
        for run_id, values in self.status.done.items():
            if run_id not in self.status.tried:
                self.curves.write(self.agenda.known[run_id], values)
                known = {name: value for name, value in values.items() if value is not None}
                for tracker in self.trackers:
                    tracker.log(self.agenda.known[run_id], known)

    def _describe(self) -> None:
        content = {**self.experiment.to_mapping(), "runs": list(self.agenda.known)}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_atomic(self.files, f"{self.folder}/sweep.yaml", text.encode())

    def _write_searches(self) -> None:
        rows = [
            row
            for group in self.agenda.groups
            if group.search is not None
            for row in group.search.rows(group.plans[0].run_id if group.settled and not group.error else None)
        ]
        if rows:
            write_table(self.files, f"{self.folder}/{SEARCHES}", pa.Table.from_pylist(rows, schema=SEARCH))
        self.journal.keep()
        for tracker in self.trackers:
            tracker.close()


def _arms(roster: Roster, groups: Sequence[Group]) -> list[Progress]:
    """Each arm by the name that the report will give it: what is searched for is no part of it."""
    ablations, searched, tables = {}, {}, []
    for group, arm in zip(groups, roster.arms, strict=True):
        for plan in group.plans:
            ablations[plan.run_id], searched[plan.run_id] = group.ablation, json.dumps(dict.fromkeys(arm.space))
            tables.append(failure_table(costs.failure(plan, "")))
    named = arms(with_column(with_column(pa.concat_tables(tables), "ablation", ablations), "searched", searched))
    return [
        Progress(
            arm=named[group.plans[0].run_id].name,
            examples=group.plans[0].experiment.regime.examples,
            trials=group.search.search.trials if group.search else 0,
            wanted=len(group.plans),
        )
        for group in groups
    ]


def _finished(files: fs.SubTreeFileSystem, run_id: str) -> Result | None:
    """The result of a run that is done; one that is damaged is carried out again."""
    folder = f"runs/{run_id}"
    if not runs.is_done(files, folder):
        return None
    try:
        return runs.read_result(files, folder)
    except StoreError as error:
        log.warning("%s; the run is carried out again", error)
        return None


def _inside(storage: str | Path, folder: str) -> str:
    """A folder of a storage as a path or URI of its own; a URI's query stays at its end."""
    if "://" not in str(storage):
        return str(Path(storage) / folder)
    place, mark, query = str(storage).partition("?")
    return f"{place.rstrip('/')}/{folder}{mark}{query}"


def _write_predictions(files: fs.SubTreeFileSystem, path: str, tables: Sequence[pa.Table]) -> None:
    """All runs' predictions in one table, where their tasks have columns of the same kinds."""
    if not tables:
        return
    try:
        joined = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        log.warning("no joint %s: %s; each run's own folder holds its predictions", path, error)
        return
    write_table(files, path, joined)
