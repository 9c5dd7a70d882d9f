"""Tables from files: CSV, JSON lines, Parquet and saved `datasets` folders, with one-line errors."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json
from pyarrow import parquet

from graft.errors import DataError, suggest

BLOCK_BYTES = 1 << 26
"""Read at once; no single row of a CSV or JSON file may be longer."""


def read_tables(path: str) -> dict[str, pa.Table]:
    """The tables in a file or folder: one under the name "", or the splits of a saved DatasetDict.

    Args:
        path: relative to the current directory.

    Raises:
        DataError: there is no such file, its format is unknown, or it cannot be parsed.
    """
    source = located(path)
    if os.path.isdir(source):
        return {name: _named_labels(table) for name, table in _saved_datasets(source, path).items()}
    reader = READERS.get(source.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown format {source.suffix!r}; give {', '.join(READERS)}, or a folder saved by datasets"
        )
    try:
        table = reader(source)
        table.validate(full=True)  # text that is not UTF-8 shows here, not in the middle of a run
    except (pa.ArrowException, OSError, ValueError, AttributeError, csv.Error) as error:
        cure = CURES[reader]
        raise DataError(f"{path}: cannot be read as {source.suffix}: {_short(error)}; {cure}") from error
    return {"": _named_labels(table)}


def located(path: str) -> Path:
    """Where a file or folder that a spec names lies.

    Args:
        path: relative to the current directory.

    Raises:
        DataError: nothing is there.
    """
    # os.path answers where pathlib raises: an unknown ~user, a name that is too long, a folder closed to us.
    source = Path(os.path.expanduser(path))
    if not os.path.exists(source):
        raise DataError(f"{path}: no such file (looked in {Path.cwd()}); paths are relative to the current directory")
    return source


def _read_csv(path: Path) -> pa.Table:
    """Every column is text, so that "007" stays "007" and a date is not respelled."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream, delimiter=delimiter), [])
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise pa.ArrowInvalid(f"its columns are separated by {other!r}; write commas, or tabs and call it .tsv")
    return arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )


def _read_json(path: Path) -> pa.Table:
    with path.open("rb") as stream:
        if stream.read(1) == b"[":  # one array of objects, which Arrow does not read
            stream.seek(0)
            return pa.Table.from_pylist(json.load(stream))
    options = arrow_json.ReadOptions(block_size=BLOCK_BYTES)
    table = arrow_json.read_json(path, read_options=options)
    dates = [pa.field(field.name, pa.string()) for field in table.schema if pa.types.is_timestamp(field.type)]
    if not dates:
        return table
    # Arrow reads text that looks like a date as a timestamp, which would come back spelled differently.
    parse = arrow_json.ParseOptions(explicit_schema=pa.schema(dates))
    return arrow_json.read_json(path, read_options=options, parse_options=parse)


def _read_parquet(path: Path) -> pa.Table:
    return parquet.ParquetFile(path).read()


READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""File name ending to reader; `.json` holds one object per line, like the other two, or one array of objects."""

CURES: dict[Callable[[Path], pa.Table], str] = {
    _read_csv: "save it as UTF-8, with quotes around values that hold a delimiter",
    _read_json: "write one JSON object per line, in UTF-8, each column of one type",
    _read_parquet: "write the file anew",
}


def _saved_datasets(folder: Path, path: str) -> dict[str, pa.Table]:
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"{path}: a folder that datasets did not save (no state.json); give a file, or use save_to_disk"
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
        splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        return {name: split.with_format("arrow")[:] for name, split in splits.items()}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a saved datasets folder: {_short(error)}") from error


def _named_labels(table: pa.Table) -> pa.Table:
    """Columns that datasets knows as ClassLabel hold numbers; here they hold the labels' names."""
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = {column: kind["names"] for column, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return table  # not written by datasets
    for column, values in names.items():
        if column in table.column_names and pa.types.is_integer(table.schema.field(column).type):
            numbers = table[column]
            known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(values)))  # -1: no label
            named = pc.take(pa.array(values, pa.string()), pc.if_else(known, numbers, None))
            table = table.set_column(table.column_names.index(column), column, named)
    return table


def column_of(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """One column, dictionaries decoded.

    Raises:
        DataError: there is none of this name, or more than one.
    """
    count = table.column_names.count(name)
    if count != 1:
        problem = (
            f"no column {name!r}; {suggest(name, table.column_names)}" if not count else f"{count} columns {name!r}"
        )
        raise DataError(f"{where}: {problem}" + ("" if not count else "; rename all but one"))
    column = table[name]
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _short(error: Exception) -> str:
    """The first line of a parser's message, which may quote whole rows after it."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else line[:200] + "…"
