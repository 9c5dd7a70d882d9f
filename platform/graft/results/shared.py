"""What a sweep computed once for all its runs: `shared.parquet` in its folder, a row per frozen beginning and start.

These costs belong to no single run: each run only says how many rows it read from the store.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
from pyarrow import fs

from graft.errors import SpecError, StoreError
from graft.results.files import read_table, write_table
from graft.storage import exists, open_storage

log = logging.getLogger(__name__)

FILE = "shared.parquet"


@dataclass(frozen=True)
class Shared:
    """What one frozen beginning of a graph has cost all runs together."""

    graph: str
    """The nodes in words."""
    rows: int
    """Rows that the runs need, computed now or found in the store."""
    forward_passes: int
    tokens: int
    seconds: float
    teacher_calls: int = 0
    """Rationales that were written; a sweep of before they were counted has none."""


def adding(files: fs.FileSystem, folder: str) -> Callable[[Sequence[Shared]], None]:
    """What writes all that this start of a sweep has computed so far to what earlier ones have.

    What was only read costs nothing.
    """
    earlier = _read(files, folder)

    def add(costs: Sequence[Shared]) -> None:
        spent = [cost for cost in costs if cost.forward_passes]
        if spent:
            rows = [asdict(cost) for cost in (*earlier, *spent)]
            try:
                write_table(files, f"{folder}/{FILE}", pa.Table.from_pylist(rows))
            except StoreError as error:
                log.warning("what the sweep has computed for all its runs is not written down: %s", error)

    return add


def load_shared(paths: Iterable[str]) -> list[Shared]:
    """What the sweeps in these folders have computed for all their runs, one entry per frozen beginning."""
    total: dict[str, Shared] = {}
    for path in paths:
        try:
            found = _read(open_storage(path, create=False), ".")
        except SpecError:
            continue  # that it is not there is for the reader of the metrics to say
        for cost in found:
            known = total.get(cost.graph, Shared(cost.graph, 0, 0, 0, 0.0))
            total[cost.graph] = Shared(
                cost.graph,
                max(known.rows, cost.rows),
                known.forward_passes + cost.forward_passes,
                known.tokens + cost.tokens,
                known.seconds + cost.seconds,
                known.teacher_calls + cost.teacher_calls,
            )
    return list(total.values())


def _read(files: fs.FileSystem, folder: str) -> list[Shared]:
    path = f"{folder}/{FILE}"
    if not exists(files, path):
        return []
    try:
        return [Shared(**row) for row in read_table(files, path).to_pylist()]
    except (StoreError, TypeError) as error:
        log.warning("%s: what the sweep computed for all its runs is not known: %s", path, error)
        return []
