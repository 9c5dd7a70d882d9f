"""What the searches of a sweep have tried: `search.parquet` in its folder, a row per setting.

How good a search is that stops earlier is told by the expected best of k settings (Dodge et al. 2019,
arXiv:1909.03004, section 3): the mean over all ways to draw k of the settings tried.
"""

from collections.abc import Iterable, Sequence
from math import comb

import pyarrow as pa

from graft.errors import SpecError
from graft.results.files import read_table
from graft.storage import exists, open_storage

FILE = "search.parquet"

SEARCH = pa.schema(
    [
        ("method", pa.string()),
        ("task", pa.string()),
        ("examples", pa.int64()),
        ("ablation", pa.string()),
        ("reports", pa.string()),  # run_id of the first run that reports on the arm
        ("trial", pa.int64()),  # from 0, in the order proposed
        ("settings", pa.string()),  # JSON, dotted key to value
        ("metric", pa.string()),
        ("value", pa.float64()),  # mean over folds and tuning seeds of the held-out examples; null where it failed
        ("status", pa.string()),  # done | failed | pruned
        ("error", pa.string()),
        ("chosen", pa.bool_()),
        ("seconds", pa.float64()),  # of all its runs
        ("runs", pa.list_(pa.string())),  # their run_ids
    ]
)
"""The columns of `search.parquet`."""


def load_searches(paths: Iterable[str]) -> pa.Table:
    """What the sweeps in these folders have tried; no rows where none of them searched.

    Raises:
        StoreError: a file is damaged.
        DataError: only another graft understands a table.
    """
    tables = [SEARCH.empty_table()]
    for path in paths:
        try:
            files = open_storage(path, create=False)
        except SpecError:
            continue  # that it is not there is for the reader of the metrics to say
        if exists(files, FILE):
            tables.append(read_table(files, FILE, SEARCH))
    return pa.concat_tables(tables)


def expected_best(values: Sequence[float], lower_is_better: bool = False) -> list[float]:
    """The best value to be expected of k settings drawn from those tried, without putting back, for k from 1 on.

    Args:
        values: of the held-out examples, one per setting.
        lower_is_better: the best is the smallest.
    """
    ordered = sorted(values, reverse=lower_is_better)
    count, found = len(ordered), []
    for drawn in range(1, count + 1):
        # The chance that the best of the drawn ones is at this place: choose(place, drawn - 1) / choose(count, drawn).
        chances = [comb(place, drawn - 1) / comb(count, drawn) for place in range(count)]
        found.append(sum(chance * value for chance, value in zip(chances, ordered, strict=True)))
    return found
