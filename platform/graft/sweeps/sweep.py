"""Carries out a sweep: one Ray Tune trial per run that is not done yet, one table and one report over all runs.

What frozen models compute for several runs is computed first and once, into the column store; then every trial reads
it. A run that is done is never run again, so a sweep that was killed anywhere needs no memory of its own: the same
command plans the same runs, finds which are missing and carries out those.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import yaml
from pyarrow import fs

from graft import planning, runner, runs
from graft.cluster import Cluster, check_shared, connect
from graft.errors import SpecError, StoreError
from graft.pool import MIN_ROWS, RayPool
from graft.results.records import Result, failure_table, with_ablations, write_table
from graft.results.report import write_report
from graft.results.shared import add_shared
from graft.spec import Experiment
from graft.storage import open_storage, write_atomic
from graft.store import DEFAULT_LIMIT_BYTES
from graft.sweeps.axes import Member, expand_members
from graft.sweeps.curves import Curves
from graft.sweeps.frozen import compute_shared
from graft.sweeps.roster import plan_sweep
from graft.sweeps.status import Status, Watcher
from graft.sweeps.work import Work

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
    if (most := max(member.experiment.scaling.workers for member in members)) > 1:
        raise SpecError(f"scaling.workers: got {most}; a sweep trains each run in one process: give 1")
    runner.train_missing([member.experiment for member in members], watcher.rows, address)
    sweep = _Sweep(experiment, members, storage, watcher, store_limit_bytes)
    sweep.read_done()
    if missing := sweep.missing():
        with connect(address, f"graft-sweep-{sweep.status.sweep_id}") as cluster:
            sweep.carry_out(missing, cluster, concurrent)
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
        self.roster = plan_sweep(experiment, members)
        self.plans = self.roster.plans
        self.files = open_storage(storage)
        self.storage = storage
        self.watcher = watcher
        self.store_limit_bytes = store_limit_bytes
        self.folder = f"sweeps/{self.roster.sweep_id}"
        self.status = Status(self.roster.sweep_id, _inside(storage, self.folder), len(self.plans))
        self.results: dict[str, Result] = {}
        self.curves = Curves(self.files, self.folder)
        self.description = _description(experiment, self.plans)

    def read_done(self) -> None:
        """Take in the runs that are done, whichever command did them."""
        for run_id in self.plans:
            if result := _finished(self.files, run_id):
                self.results[run_id] = result
                self.status.done[run_id] = result.values
                self.curves.write(self.plans[run_id], self.status.done[run_id])
        self.status.read = len(self.results)
        self.watcher.update(self.status)

    def missing(self) -> dict[str, planning.Plan]:
        """Plans of the runs without a result."""
        return {run_id: plan for run_id, plan in self.plans.items() if run_id not in self.results}

    def carry_out(self, plans: Mapping[str, planning.Plan], cluster: Cluster, concurrent: int | None) -> None:
        """What the runs share first, then a trial per run.

        Raises:
            SpecError: more CPUs are asked for than the cluster has.
            ClusterError: the nodes do not share the storage.
        """
        limit = _concurrency(cluster, concurrent)
        check_shared(cluster, self.storage)
        self.status.dashboard = cluster.dashboard
        self.watcher.update(self.status)
        write_atomic(self.files, f"{self.folder}/sweep.yaml", self.description)
        store = runner.open_store(self.files, self.store_limit_bytes)
        # Frozen models compute where the trials do: few rows in this process only if that is on the same machine.
        with RayPool(self.storage, min_rows=MIN_ROWS if cluster.local else 0) as pool:
            spent = compute_shared(list(plans.values()), store, pool, self.watcher.rows)
        add_shared(self.files, self.folder, spent)
        from graft.sweeps.tuning import tune_runs

        work = Work.of(self.status.sweep_id, plans, self.storage, self.store_limit_bytes)
        tune_runs(work, self.status, self._changed, limit, _gpus(plans.values(), cluster))

    def assemble(self) -> SweepResult:
        """One table over all runs in the order of the plan, their predictions, and the report."""
        tables, answers = [], []
        for run_id, plan in self.plans.items():
            result = self.results.get(run_id) or (_finished(self.files, run_id) if run_id in self.status.done else None)
            if result:
                tables.append(result.metrics)
                answers.append(result.predictions.add_column(0, "run_id", pa.array([run_id] * len(result.predictions))))
            else:
                error = self.status.failed.get(run_id, "it ended without a result; give the same command again")
                tables.append(failure_table(runner.failure(plan, error)))
        metrics = with_ablations(pa.concat_tables(tables), self.roster.ablations)
        write_atomic(self.files, f"{self.folder}/sweep.yaml", self.description)
        _write_predictions(self.files, f"{self.folder}/predictions.parquet", answers)
        write_table(self.files, f"{self.folder}/metrics.parquet", metrics)
        html, _ = write_report([self.status.folder])
        return SweepResult(self.status.sweep_id, metrics, len(tables) - len(answers), html)

    def _changed(self, run_id: str) -> None:
        if run_id in self.status.done:
            self.curves.write(self.plans[run_id], self.status.done[run_id])
        self.watcher.update(self.status)


def _concurrency(cluster: Cluster, asked: int | None) -> int:
    """How many runs at once; more CPUs than the cluster has are refused."""
    if asked is not None:
        cluster.require(asked, f"--concurrent {asked}")
    return asked or max(1, int(cluster.cpus))


def _gpus(plans: Iterable[planning.Plan], cluster: Cluster) -> int:
    """One GPU per trial where the cluster has some and a run may use it."""
    return int(cluster.gpus > 0 and any(plan.experiment.scaling.device != "cpu" for plan in plans))


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


def _description(experiment: Experiment, planned: Iterable[str]) -> bytes:
    content = {**experiment.to_mapping(), "runs": list(planned)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
