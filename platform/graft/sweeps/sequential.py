"""Carries out a sweep one experiment after the other, in this process."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import yaml
from pyarrow import fs

from graft import hashing, runner
from graft.graph import Progress, no_progress
from graft.results.records import Result, failure_table, write_table
from graft.results.report import write_report
from graft.spec import Experiment
from graft.storage import open_storage, write_atomic
from graft.store import DEFAULT_LIMIT_BYTES, ColumnStore
from graft.sweeps.axes import expand

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
    watch: Callable[[int, int, runner.Plan], Progress] = lambda done, total, plan: no_progress,
    store_limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> SweepResult:
    """Carry out every experiment of a sweep and report on them.

    An experiment that was done before, in this sweep or another, is read; one that fails is a row with its error.

    Args:
        experiment: a spec with `sweep:`.
        storage: folder or URI that holds `runs/`, `sweeps/` and `store/`.
        watch: called before each experiment; gives what watches its rows.
        store_limit_bytes: size above which the column store evicts.

    Raises:
        GraftError: a member cannot be carried out as written; nothing has run then.
    """
    # Two values of an axis may stand for one experiment; it is carried out and counted once.
    planned = list({plan.run_id: plan for plan in runner.plans(expand(experiment))}.values())
    files = open_storage(storage)
    store = runner.open_store(files, store_limit_bytes)
    sweep_id = identify(experiment, planned)
    folder = f"sweeps/{sweep_id}"
    write_atomic(files, f"{folder}/sweep.yaml", _description(experiment, planned))
    outcomes = []
    for done, plan in enumerate(planned):
        outcomes.append(_outcome(plan, files, store, watch(done, len(planned), plan)))
    store.flush()
    metrics = pa.concat_tables([table for table, _ in outcomes])
    _write_predictions(files, f"{folder}/predictions.parquet", [table for _, table in outcomes if table is not None])
    write_table(files, f"{folder}/metrics.parquet", metrics)
    html, _ = write_report([_inside(storage, folder)])
    return SweepResult(sweep_id, metrics, sum(table is None for _, table in outcomes), html)


def identify(experiment: Experiment, planned: Sequence[runner.Plan]) -> str:
    """The id of a sweep: slug, and hash of the runs that it holds."""
    return f"{experiment.name}-{hashing.digest(sorted({plan.run_id for plan in planned}))[:10]}"


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


def _outcome(
    plan: runner.Plan, files: fs.SubTreeFileSystem, store: ColumnStore, progress: Progress
) -> tuple[pa.Table, pa.Table | None]:
    """Metric rows and predictions of one experiment; a failure is a row, whatever its cause."""
    try:
        result: Result = runner.carry_out(plan, files, store, progress)
    except Exception as error:
        log.warning("%s failed: %s: %s", plan.run_id, type(error).__name__, error)
        return failure_table(runner.failure(plan, error)), None
    run_ids = pa.array([plan.run_id] * result.predictions.num_rows)
    return result.metrics, result.predictions.add_column(0, "run_id", run_ids)


def _description(experiment: Experiment, planned: Sequence[runner.Plan]) -> bytes:
    content = {**experiment.to_mapping(), "runs": [plan.run_id for plan in planned]}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()
