"""What is kept of a run: one Parquet row per metric, and reading runs back.

`metrics.parquet` is written last, so its presence says that a run is done.
"""

import dataclasses
import functools
import json
import logging
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from graft.errors import DataError, suggest
from graft.results.ablations import FULL
from graft.results.files import read_table
from graft.storage import children, exists, open_storage

if TYPE_CHECKING:
    from graft.graph import Graph

logger = logging.getLogger(__name__)

METRICS = pa.schema(
    [
        ("run_id", pa.string()),
        ("name", pa.string()),
        ("method", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),  # test; of a task with `macro` also test/GROUP, test/macro; of a search validation
        ("metric", pa.string()),  # null in the one row of a failed run
        ("value", pa.float64()),  # null in a failed run, and for a NaN; a metric undefined on these rows has no row
        ("n", pa.int64()),  # rows that the value is computed from; groups in test/macro
        ("examples", pa.int64()),
        ("seed", pa.int64()),
        ("ablation", pa.string()),  # what it lacks in its sweep's ablations; null in a run's own table
        ("searched", pa.string()),  # JSON, dotted key to what its sweep's search chose; null in a run's own table
        ("status", pa.string()),  # done | failed
        ("error", pa.string()),
        ("spec", pa.string()),  # JSON of the resolved spec
        ("task_sha", pa.string()),  # the dataset's fingerprint: runs are compared where it is equal
        ("equal_inputs", pa.int64()),  # rows that share their input with another: kept on one side of the split
        ("prompt_sha", pa.string()),
        ("versions", pa.string()),  # JSON, package to version
        ("git_commit", pa.string()),
        ("seconds", pa.float64()),  # costs: totals of the run, repeated on each of its rows
        ("tokens", pa.int64()),
        ("forward_passes", pa.int64()),
        ("teacher_calls", pa.int64()),
        ("teacher_reads", pa.int64()),
        ("peak_memory_bytes", pa.int64()),  # of the process since its start, not of the run alone
        ("parameters_trainable", pa.int64()),
        ("parameters_total", pa.int64()),
        ("models", pa.string()),  # JSON, role to {source, fingerprint}
        ("device", pa.string()),
        ("texts_cut", pa.int64()),  # texts longer than task.max_tokens
        ("rationales_cut", pa.int64()),  # of test rows, by method.max_rationale_tokens
        ("store_reads", pa.int64()),  # rows taken from the column store instead of computed
    ]
)
"""The columns of `metrics.parquet`."""

PREDICTIONS = pa.schema(
    [
        ("run_id", pa.string()),  # in a sweep's table
        ("id", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("target", pa.string()),
        ("prediction", pa.string()),  # null where what was written cannot be read
        ("target_log_probability", pa.float64()),
        ("target_tokens", pa.int64()),
    ]
)
"""The columns of `predictions.parquet` that mean the same in every task; beside them stand the task's and method's."""

PACKAGES = ("torch", "transformers", "scikit-learn", "pyarrow", "numpy")
"""Packages whose versions may change a number."""

COSTS = {
    "seconds": "seconds",
    "tokens": "tokens",
    "forward_passes": "forward passes",
    "store_reads": "store reads",
    "teacher_calls": "teacher calls",
    "teacher_reads": "teacher reads",
    "parameters_trainable": "trainable parameters",
    "parameters_total": "all parameters",
}
"""Column to heading of what a run itself spent; peak memory is left out, it is the whole process's so far."""


@dataclass(frozen=True)
class Record:
    """What holds for a whole run, whatever the metric; the names are the columns' names."""

    run_id: str
    name: str
    method: str
    task: str
    examples: int
    seed: int
    spec: Mapping[str, Any]
    """The resolved spec as plain JSON values."""
    ablation: str | None = None
    """What it lacks, as a sweep's table has it; None in a run's own: it does not know which sweeps reach it."""
    searched: str | None = None
    """What a search chose, as a sweep's table has it; None in a run's own, as with `ablation`."""
    error: str | None = None
    """Why the run failed; None for a run that is done."""
    task_sha: str | None = None
    """Fingerprint of the rows; None where the run failed before they were known."""
    equal_inputs: int = 0
    prompt_sha: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    seconds: float = 0.0
    tokens: int = 0
    forward_passes: int = 0
    teacher_calls: int = 0
    teacher_reads: int = 0
    peak_memory_bytes: int = 0
    parameters_trainable: int = 0
    parameters_total: int = 0
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Role to `{"source": ..., "fingerprint": ...}`."""
    device: str | None = None
    texts_cut: int = 0
    rationales_cut: int = 0
    store_reads: int = 0

    def row(self) -> dict[str, Any]:
        """The run-level columns of a row of METRICS; mappings as JSON with sorted keys."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for column in ("spec", "versions", "models"):
            values[column] = json.dumps(values[column], sort_keys=True, ensure_ascii=False)
        return values | {"status": "done" if self.error is None else "failed"}


def metric_table(record: Record, metrics: Mapping[str, float], n: int, split: str = "test") -> pa.Table:
    """One row of METRICS per metric; a NaN becomes null.

    Args:
        record: the run.
        metrics: name to value.
        n: rows that the values are computed from.
        split: the part of the data that these rows belong to.
    """
    head = record.row() | {"split": split, "n": n}
    rows = [head | {"metric": name, "value": float(value)} for name, value in metrics.items()]
    return pa.Table.from_pylist(
        [row | {"value": None if row["value"] != row["value"] else row["value"]} for row in rows], schema=METRICS
    )


def test_values(metrics: pa.Table) -> dict[str, float | None]:
    """Metric to value of one run on all its test (or, in a search, validation) rows, not of groups among them."""
    rows = metrics.select(["metric", "value", "split"]).to_pylist()
    return {row["metric"]: row["value"] for row in rows if row["split"] in ("test", "validation")}


def failure_table(record: Record) -> pa.Table:
    """The one row of a failed run: no metric, no value, status failed and the error."""
    return pa.Table.from_pylist([record.row() | {"status": "failed"}], schema=METRICS)


def environment() -> dict[str, str]:
    """Versions of graft, Python and the packages that may change a number; nothing is imported."""
    found = {"python": platform.python_version()}
    for name, distribution in (("graft", "graft-compose"), *((name, name) for name in PACKAGES)):
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the current directory's repository, `-dirty` where tracked files differ; None without one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


@dataclass(frozen=True)
class Result:
    """One run as its user sees it."""

    run_id: str
    metrics: pa.Table
    """Rows of METRICS."""
    predictions: pa.Table
    """One row per test row: id, split, the input fields, target, prediction, scores."""
    folder: str
    """Where the run is kept: a local path or a URI."""
    load_graph: Callable[[], "Graph"] = field(repr=False, compare=False)
    """Reads the fitted graph from the run's folder."""

    @functools.cached_property
    def graph(self) -> "Graph":
        """The fitted graph, read when first asked for."""
        return self.load_graph()

    @property
    def values(self) -> dict[str, float | None]:
        """Metric to value on all test rows, as the table holds them."""
        return test_values(self.metrics)

    def metric(self, name: str, split: str = "test") -> float:
        """A metric's value on the test rows; NaN where the table holds null.

        Args:
            name: of the metric.
            split: `test`, or of a task with `macro` also `test/macro` and `test/GROUP`.

        Raises:
            DataError: the run failed, or has no such metric: one that is undefined on its rows is left out.
        """
        rows = self.metrics.select(["metric", "value", "split", "error"]).to_pylist()
        for row in rows:
            if row["error"] is not None:
                raise DataError(f"{self.run_id}: the run failed and has no metrics: {row['error']}")
            if row["metric"] == name and row["split"] == split:
                return float("nan") if row["value"] is None else float(row["value"])
        splits = {row["split"] for row in rows}
        if split not in splits:
            raise DataError(f"{self.run_id}: there is no split {split!r}; {suggest(split, splits)}")
        known = {row["metric"] for row in rows if row["split"] == split}
        raise DataError(f"{self.run_id}: there is no metric {name!r}; {suggest(name, known)}")


def load_metrics(paths: Iterable[str]) -> pa.Table:
    """Metrics of run folders, sweep folders and storage roots (their `runs/`), in any mix.

    A run found twice is taken once, done rather than failed. Runs that are not done are skipped with a warning.

    Raises:
        DataError: a path does not exist, no run that is done is found, or only another graft understands a table.
        StoreError: a file is damaged.
    """
    paths = [str(path) for path in paths]
    found, skipped = [], []
    for path in paths:
        files = _existing(path)
        for folder in run_folders(files):
            name = f"{folder}/metrics.parquet".lstrip("/")
            if exists(files, name):
                found.append(read_table(files, name, METRICS))
            else:
                skipped.append(f"{path}/{folder}".rstrip("/"))
    if skipped:
        logger.warning("%s not done, skipped: %s", len(skipped), ", ".join(skipped))
    if not found:
        raise DataError(
            f"{', '.join(paths) or 'no path given'}: no run that is done is here; give run folders, sweep folders, "
            "or a storage folder that holds runs/"
        )
    joined = pa.concat_tables(found)
    # What a search looked at is for choosing, not for comparing: its own table tells of it.
    return each_run_once(joined.filter(pc.not_equal(joined["split"].fill_null("test"), "validation")))


def each_run_once(metrics: pa.Table) -> pa.Table:
    """The first row of each run, split and metric; rows of a failure only where the run is never done.

    What it lacks and what was searched is known to its sweep's rows alone: the rows that are kept have it, wherever it
    was found.
    """
    rows = metrics.select(["run_id", "split", "metric", "status", "ablation", "searched"]).to_pylist()
    done = {row["run_id"] for row in rows if row["status"] == "done"}
    kept: dict[tuple[str, str, str], int] = {}
    for place, row in enumerate(rows):
        if row["status"] == "done" or row["run_id"] not in done:
            kept.setdefault((row["run_id"], row["split"], row["metric"]), place)
    found: dict[str, dict[str, set[str]]] = {"ablation": {}, "searched": {}}
    for row in rows:
        for column, of_run in found.items():
            if row[column] is not None:
                of_run.setdefault(row["run_id"], set()).add(row[column])
    once = metrics.take(pa.array(kept.values(), pa.int64()))
    for column, of_run in found.items():
        # Of several ablations that of what lacks nothing, else a ladder's, which has a number.
        once = with_column(once, column, {run: FULL if FULL in names else min(names) for run, names in of_run.items()})
    return once


def with_column(metrics: pa.Table, column: str, values: Mapping[str, str | None]) -> pa.Table:
    """The same rows with `ablation` or `searched` of each run as given; null where nothing is."""
    texts = pa.array([values.get(run_id) for run_id in metrics["run_id"].to_pylist()], pa.string())
    return metrics.set_column(metrics.column_names.index(column), METRICS.field(column), texts)


def _existing(path: str) -> fs.FileSystem:
    """The file system rooted at a path that must be there: reading makes no folder."""
    try:
        there = exists(*fs.FileSystem.from_uri(path)) if "://" in path else Path(path).expanduser().is_dir()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: cannot be read: {error}; give a folder or a URI such as s3://bucket/folder"
        ) from error
    if not there:
        raise DataError(f"{path}: no such folder (looked in {Path.cwd()}); give a run, sweep or storage folder")
    return open_storage(path)


def run_folders(files: fs.FileSystem) -> list[str]:
    """Folders of runs below a root: the root itself (""), those in its `runs/`, or those in it."""
    names = children(files, "")
    if "metrics.parquet" in names:
        return [""]
    if "runs" in names:  # a storage, even where the user's own spec.yaml lies in it
        return [f"runs/{name}" for name in children(files, "runs")]
    if {"spec.yaml", "sweep.yaml"} & set(names):
        return [""]
    return [name for name in names if exists(files, f"{name}/metrics.parquet")]
