"""Answers the rows of a file with a finished run's graph."""

from pathlib import Path

import pyarrow as pa

from graft import runner
from graft.errors import DataError
from graft.graph import Progress, no_progress
from graft.storage import open_storage
from graft.tasks.file import question_rows

FORMATS = (".csv", ".jsonl", ".parquet")


def predict_file(run: str, file: Path, out: Path, storage: str = ".", progress: Progress = no_progress) -> int:
    """Write `id`, the input fields, `prediction` and `scores` for every row of a file; returns how many.

    The output appears whole or not at all. Rows without an `id` column are numbered.

    Raises:
        DataError: the run, the file or a column is missing, or the output's format is unknown.
    """
    if out.suffix not in FORMATS:
        raise DataError(f"-o {out}: {out.suffix or 'no suffix'} is not a format; use one of {', '.join(FORMATS)}")
    files, folder = runner.open_run(run, storage)
    graph = runner.load_graph(files, folder)
    rows = question_rows(file, graph.inputs, runner.read_spec(files, folder).task.kind)
    answers = runner.predictions(graph.run(rows, runner.open_store(open_storage(storage)), progress), graph.inputs)
    _write(answers.drop_columns(["split"]), out)
    return answers.num_rows


def _write(table: pa.Table, out: Path) -> None:
    from pyarrow import csv, parquet

    draft = out.with_name(f".{out.name}.tmp")
    try:
        if out.suffix == ".parquet":
            parquet.write_table(table, draft)
        elif out.suffix == ".jsonl":
            table.to_pandas().to_json(draft, orient="records", lines=True, force_ascii=False)
        else:
            csv.write_csv(_flat(table), draft)
        draft.replace(out)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise DataError(f"-o {out}: cannot be written: {error}") from error


def _flat(table: pa.Table) -> pa.Table:
    """Without nesting, as CSV needs it: a column `scores.<label>` per label, lists as text."""
    flat = table.flatten()
    for position, field in enumerate(flat.schema):
        if pa.types.is_list(field.type):
            texts = [" ".join(map(str, value or ())) for value in flat[field.name].to_pylist()]
            flat = flat.set_column(position, field.name, pa.array(texts))
    return flat
