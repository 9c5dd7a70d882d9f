"""Runs one node over a table: what the column store has is read, the rest is computed and kept."""

import itertools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from graft import hashing
from graft.errors import DataError, GraftError, naming_memory
from graft.store import ColumnStore

if TYPE_CHECKING:
    from graft.node import Node

Progress = Callable[[str, int, int], None]
"""Called with what is done, rows done, and rows in all."""


KEEP_SECONDS = 1.0
"""Least time between two notes of what was spent; a kill between two loses the account of what came in between."""


def no_progress(what: str, done: int, total: int) -> None:
    """Watch nothing."""


def noting(progress: Progress, note: Callable[[], None]) -> Progress:
    """A progress that also calls `note` where rows have been stored: what they have cost is then known."""
    noted = time.monotonic()

    def watched(what: str, done: int, total: int) -> None:
        nonlocal noted
        if done and time.monotonic() - noted >= KEEP_SECONDS:
            note()
            noted = time.monotonic()
        progress(what, done, total)

    return watched


class Pool(Protocol):
    """Other processes that compute what the store lacks."""

    min_rows: int
    """Up to so many missing rows are computed in this process."""

    def fill(self, node: "Node", keys: Sequence[bytes], rows: pa.Table, store: ColumnStore, progress: Progress) -> None:
        """Compute a storable node's rows, known by distinct keys; append them to the store as far as it takes them.

        What is computed is counted there as it comes, before `progress` hears of it.

        Raises:
            GraftError: what the node raises, or the pool cannot go on.
        """
        ...


def run_node(
    node: "Node",
    rows: pa.Table,
    store: ColumnStore | None,
    progress: Progress = no_progress,
    pool: Pool | None = None,
) -> pa.Table:
    """The rows with a node's columns added, through the store where the node is storable.

    What the store lacks in great number is computed by the pool; without a store there is none.
    """
    if not rows.num_rows:
        raise DataError("there are no rows to run; give at least one")
    read = node.given(rows)
    if store is not None and node.storable:
        columns = _stored(node, read, store, progress, pool)
    else:
        node.check(read)
        columns = computed(node, read)
    for name in columns.column_names:
        # What the task itself says in a column of that name was for fitting: no node reads it from there.
        rows = rows.drop_columns([name]) if name in rows.column_names else rows
        rows = rows.append_column(columns.schema.field(name), columns[name])
    return rows


def computed(node: "Node", rows: pa.Table) -> pa.Table:
    """What a node gives for its read columns, held to what it says it writes.

    Raises:
        OutOfMemoryError: there is not enough memory for these rows.
    """
    with naming_memory():
        columns = node.run(rows)
    if not isinstance(columns, pa.Table):
        raise GraftError(f"{class_path(type(node))}.run gave a {type(columns).__name__}; it must give a pyarrow Table")
    if tuple(columns.column_names) != tuple(node.writes) or columns.num_rows != rows.num_rows:
        raise GraftError(
            f"{class_path(type(node))}.run gave {columns.num_rows} rows of {columns.column_names}; "
            f"it must give {rows.num_rows} rows of {list(node.writes)}"
        )
    return columns


def _stored(node: "Node", rows: pa.Table, store: ColumnStore, progress: Progress, pool: Pool | None) -> pa.Table:
    """Read what the store has; compute the rest, each distinct row once, and append it chunk by chunk."""
    column, keys = node.column(), hashing.row_keys(rows)
    missing: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        missing.setdefault(key, position)
    place: dict[bytes, int] = {}
    tables: list[pa.Table] = []

    def take_in(found: Sequence[bytes], columns: pa.Table) -> None:
        start = len(place)
        place.update((key, start + order) for order, key in enumerate(found))
        tables.append(columns)
        for key in found:
            del missing[key]

    def read_store(counted: bool = True) -> None:
        wanted = list(missing)
        found, columns = store.lookup(column, wanted, counted)
        if columns is not None:
            take_in([wanted[position] for position in found], columns)

    read_store()
    store.count(node.tally, reads=len(place))
    if missing:
        node.check(rows.take(list(missing.values())))
    if pool is not None and len(missing) > min(pool.min_rows, node.pool_rows or pool.min_rows):
        pool.fill(node, list(missing), rows.take(list(missing.values())), store, progress)
        read_store(counted=False)  # computed for this very call: that saved nothing
    total = len(missing)
    while missing:
        chunk = list(itertools.islice(missing, node.chunk_rows))
        progress(node.describe(), total - len(missing), total)
        began = time.perf_counter()
        columns = computed(node, rows.take([missing[key] for key in chunk]))
        store.append(column, chunk, columns, time.perf_counter() - began, node.describe())
        store.count(node.tally, calls=len(chunk))
        take_in(chunk, columns)
    if total:
        progress(node.describe(), total, total)
    return pa.concat_tables(tables).take(np.array([place[key] for key in keys], dtype=np.int64))


def class_path(cls: type) -> str:
    """`"module:Class"`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, or on a GPU the largest allocation."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and (allocated := int(torch.cuda.max_memory_allocated())):
        return allocated
    # Linux's getrusage also counts what the process that started this one held.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
