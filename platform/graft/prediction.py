"""Answers the rows of a file with a finished run's graph."""

import base64
import json
from pathlib import Path

import pyarrow as pa

from graft import runner, runs
from graft.errors import DataError, StoreError
from graft.execution import Progress, no_progress
from graft.pool import RayPool
from graft.storage import open_storage, write_atomic
from graft.tasks.file import FileTask, question_rows

FORMATS = (".csv", ".jsonl", ".parquet")


def predict_file(
    run: str,
    file: Path,
    out: Path,
    storage: str = ".",
    progress: Progress = no_progress,
    address: str | None = None,
) -> int:
    """Write `id`, the input fields, `prediction` and `scores` for every row of a file; returns how many.

    The output appears whole or not at all. Rows without an `id` column are numbered.

    Args:
        run: a run_id or a run folder.
        file: CSV, JSONL or Parquet with the run's input columns, as the task's own file names them.
        out: where the answers go; its suffix says in which format.
        storage: folder or URI that holds `runs/` and `store/`.
        progress: watches the rows go by.
        address: of the Ray cluster on which very many rows are computed; None starts one on this machine for them.

    Raises:
        DataError: the run, the file or a column is missing, or the output's format is unknown.
        ClusterError: the cluster cannot be used.
    """
    if out.suffix not in FORMATS:
        raise DataError(f"-o {out}: {out.suffix or 'no suffix'} is not a format; use one of {', '.join(FORMATS)}")
    if out.resolve() == file.resolve():
        raise DataError(f"-o {out}: is the file that is read; give another name")
    files, folder = runs.open_run(run, storage)
    graph = runs.load_graph(files, folder)
    task = runs.read_spec(files, folder).task
    rows = question_rows(file, graph.inputs, task.kind, task if isinstance(task, FileTask) else None)
    store = runner.open_store(open_storage(storage))
    with RayPool(storage, address, name=f"graft-predict-{file.stem}") as pool:
        answers = runner.predictions(graph.run(rows, store, progress, pool), graph.inputs)
    store.flush()
    _write(answers.drop_columns(["split"]), out)
    return answers.num_rows


def _write(table: pa.Table, out: Path) -> None:
    """The whole file or none; CSV has a column `scores.<label>` per label."""
    from pyarrow import csv, parquet

    sink = pa.BufferOutputStream()
    if out.suffix == ".parquet":
        parquet.write_table(table, sink)
    elif out.suffix == ".csv":
        csv.write_csv(_flat(table), sink)
    else:
        lines = (json.dumps(row, ensure_ascii=False, default=_as_data) for row in table.to_pylist())
        sink.write("".join(f"{line}\n" for line in lines).encode())
    try:
        write_atomic(open_storage(out.parent), out.name, sink.getvalue())
    except StoreError as error:
        raise DataError(f"-o {error}") from error


def _flat(table: pa.Table) -> pa.Table:
    """Without nesting, as CSV needs it: a column per label, lists and bytes as JSON text."""
    flat = table.flatten()
    for position, field in enumerate(flat.schema):
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            values = flat[field.name].to_pylist()
            texts = [json.dumps(value, ensure_ascii=False, default=_as_data) for value in values]
            flat = flat.set_column(position, field.name, pa.array(texts, pa.string()))
    return flat


def _as_data(value: bytes) -> str:
    return base64.b64encode(value).decode()
