"""The answers of runs, read back: no more of them than intervals and tests look at."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from graft.errors import SpecError, StoreError
from graft.results.files import read_table
from graft.results.outcomes import COLUMNS
from graft.results.records import METRICS, PREDICTIONS, run_folders
from graft.storage import exists, open_storage

log = logging.getLogger(__name__)

FILE = "predictions.parquet"


def load_predictions(paths: Iterable[str], run_ids: Collection[str]) -> pa.Table | None:
    """The predictions of these runs, as far as they are found; each run once.

    Looked for in the run and sweep folders themselves, then beside a sweep, in its storage's `runs/`. Only what
    `graft.results.outcomes` looks at is read. A file that is damaged is left out with a warning.

    Args:
        paths: as `graft.results.records.load_metrics` takes them.
        run_ids: whose predictions are wanted.

    Returns:
        Rows with `run_id` and the columns of `outcomes.COLUMNS` that are there; None where nothing is found.

    Raises:
        DataError: only another graft understands a table.
    """
    missing = set(run_ids)
    found: list[pa.Table] = []
    for path in paths:
        files = _opened(path)
        for folder in run_folders(files) if files else ():
            found += _taken(files, folder, missing)
    for path in paths:
        beside = _opened(_storage_of(path)) if missing else None
        for run_id in sorted(missing) if beside else ():
            found += _taken(beside, f"runs/{run_id}", missing)
    return _joined(found) if found else None


def _taken(files: fs.FileSystem, folder: str, missing: set[str]) -> list[pa.Table]:
    """A folder's predictions of runs that are still missing; they are so no longer."""
    path, metrics = (f"{folder}/{name}".lstrip("/") for name in (FILE, "metrics.parquet"))
    if not missing or not exists(files, path):
        return []
    try:
        table = read_table(files, path, PREDICTIONS, others=True, columns=COLUMNS)
        if "run_id" not in table.column_names:
            run_id = read_table(files, metrics, METRICS)["run_id"][0]
            table = table.add_column(0, "run_id", pa.repeat(run_id, table.num_rows))
    except StoreError as error:
        log.warning("%s: intervals do not cover the test items", error)
        return []
    table = table.filter(pc.is_in(table["run_id"], pa.array(sorted(missing), pa.string())))
    missing -= set(pc.unique(table["run_id"]).to_pylist())
    return [table] if table.num_rows else []


def _joined(tables: list[pa.Table]) -> pa.Table:
    """All of them, or those that go with the first: tasks may have columns of other kinds."""
    joined = tables[0]
    for table in tables[1:]:
        try:
            joined = pa.concat_tables([joined, table], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            log.warning("predictions of different kinds; intervals of some do not cover the test items: %s", error)
    return joined


def _opened(path: str | None) -> fs.FileSystem | None:
    try:
        return open_storage(path, create=False) if path else None
    except SpecError:
        return None  # that it is not there is for the reader of the metrics to say


def _storage_of(path: str) -> str | None:
    """The storage that a sweep's folder lies in; None for what is no such folder."""
    folder = path.rstrip("/") if "://" in path else str(Path(path).expanduser().resolve())
    parts = folder.rsplit("/", 2)
    return parts[0] or "/" if len(parts) == 3 and parts[1] == "sweeps" else None
