"""Tables on disk, which outlive the graft that wrote them.

`read_table` brings an older one up to date and refuses what only another graft understands.
"""

import functools
from collections.abc import Collection
from importlib import metadata

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from graft.errors import DataError, StoreError
from graft.storage import local_root, write_atomic

WRITER = b"graft"
"""Key of the Parquet metadata that names the version of graft that wrote the file."""


def write_table(files: fs.FileSystem, path: str, table: pa.Table) -> None:
    """Write a table as Parquet (zstd, page checksums) that is either absent or whole and says which graft wrote it.

    Raises:
        StoreError: the storage refuses.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), WRITER: _own_version()})
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_atomic(files, path, sink.getvalue())


def read_table(
    files: fs.FileSystem,
    path: str,
    schema: pa.Schema | None = None,
    others: bool = False,
    columns: Collection[str] | None = None,
) -> pa.Table:
    """Read a table that some version of graft has written, every page checked.

    Args:
        files: the storage.
        path: of the file in it.
        schema: columns and types that this graft knows. Columns that an older graft did not write are null; None takes
            the table as it is.
        others: the table may have columns beside `schema`, and need not have all of it.
        columns: read no others; None reads all.

    Raises:
        StoreError: the file is missing or damaged.
        DataError: another graft wrote it, with a column that this one does not know or cannot read.
    """
    try:
        with files.open_input_file(path) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            names = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
            table = file.read(names)
        table.validate(full=True)
        table.schema.to_string()  # decodes what the footer says, which has no checksum
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; the run is not done: give the same command again") from None
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"{path}: damaged: {reason}; delete its folder and give the same command again") from error
    return table if schema is None else _migrated(table, schema, others, _place(files, path))


def _migrated(table: pa.Table, schema: pa.Schema, others: bool, place: str) -> pa.Table:
    """The table as this graft would have written it."""
    for name in () if others else table.column_names:
        if name not in schema.names:
            raise _refusal(table, place, f"column {name!r} is not known to")
    for known in schema:
        if known.name in table.column_names:
            column = table[known.name]
            try:
                cast = column.cast(known.type)
            except pa.ArrowException:
                reason = f"column {known.name!r} is {column.type}, which is no {known.type} as in"
                raise _refusal(table, place, reason) from None
            table = table.set_column(table.column_names.index(known.name), known, cast)
        elif not others:
            table = table.append_column(known, pa.nulls(table.num_rows, known.type))
    return table if others else table.select(schema.names)


def _refusal(table: pa.Table, place: str, reason: str) -> DataError:
    writer = (table.schema.metadata or {}).get(WRITER)
    by = f"graft {writer.decode(errors='replace')}" if writer else "another graft"
    return DataError(
        f"{place}: {reason} graft {_own_version()}; {by} wrote it: read it with that one, or run the spec again in "
        "another --storage"
    )


def _place(files: fs.FileSystem, path: str) -> str:
    """A file's path for people: whole where it is on this machine."""
    root = local_root(files) if isinstance(files, fs.SubTreeFileSystem) else None
    return str(root / path) if root else path


@functools.cache
def _own_version() -> str:
    try:
        return metadata.version("graft-compose")
    except metadata.PackageNotFoundError:
        return "that is not installed"
