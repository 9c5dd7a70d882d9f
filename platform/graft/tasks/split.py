"""One table of rows becomes training rows, a fixed test set and a pool for exemplars.

Every draw here comes from one fixed seed, so it is the same for all regimes, methods and sweeps. Rows with
equal inputs move together: a text that is in the training rows is never asked for in the test. So do rows of one item
(a question in several languages). Such rows are a unit, which hold-outs inside the examples keep whole too.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graft import hashing, seeds
from graft.errors import DataError
from graft.tasks.dataset import Dataset

SEED = 0
"""Draws the test set and the exemplar pool; a constant, because a new test set is a new task."""
POOL_ROWS = (8, 64)
"""Least and most rows of the exemplar pool, which is otherwise a tenth of the rows outside the test set."""


def divide(
    table: pa.Table,
    inputs: tuple[str, ...],
    kind: str,
    test_examples: int,
    *,
    labelled: bool = True,
    items: Sequence[str] | None = None,
) -> Dataset:
    """The dataset of a task that comes as one table (`id`, the inputs, `target`, ...).

    Args:
        table: all rows of the task.
        inputs: names of the input columns.
        kind: kind of the input columns.
        test_examples: rows of the test set, at most a third of all.
        labelled: True where `target` is a label; False where it is free text.
        items: what each row is about, where several rows may be about the same; None where none are.

    Raises:
        DataError: one label only, or too few rows.
    """
    labels = labels_of(table) if labelled else None
    train, test, equal_inputs = split(table, inputs, test_examples, stratified=labelled, items=items)
    pool = None
    if "rationale" in table.column_names:
        kept = None if items is None else kept_items(table, items, train)
        train, pool = reserve(train, inputs, stratified=labelled, items=kept)
    about = None if items is None else dict(zip(table["id"].to_pylist(), items, strict=True))
    return Dataset(train, test, inputs, kind, labels, equal_inputs, pool, about)


def labels_of(*tables: pa.Table) -> tuple[str, ...]:
    """The sorted labels of all tables.

    Raises:
        DataError: there is only one.
    """
    labels = sorted({label for table in tables for label in table["target"].unique().to_pylist()})
    if len(labels) < 2:
        raise DataError(
            f"every row has the label {labels[0]!r}; a classification needs at least two: "
            "add rows of another label, or name another label column"
        )
    return tuple(labels)


def kept_items(table: pa.Table, items: Sequence[str], kept: pa.Table) -> list[str]:
    """The items of those rows of a table that were kept."""
    item_of = dict(zip(table["id"].to_pylist(), items, strict=True))
    return [item_of[id] for id in kept["id"].to_pylist()]


def split(
    table: pa.Table,
    inputs: tuple[str, ...],
    test_examples: int,
    *,
    stratified: bool = True,
    items: Sequence[str] | None = None,
) -> tuple[pa.Table, pa.Table, int]:
    """Training rows, test rows, and how many rows share their input with another.

    Both keep the table's order. The test set holds at most `test_examples` rows and at most a third of all,
    each label in proportion, and never all rows of a label.

    Raises:
        DataError: the rows are too few to give a test set.
    """
    equal = _equal_inputs(table, inputs)
    count = min(test_examples, table.num_rows // 3)
    chosen = _choose(_together(equal, items), _strata(table, stratified), count, "test")
    if not chosen.any():
        raise DataError(
            f"{table.num_rows} rows are too few to give a test set, which takes at most a third of the rows and "
            "never the last one of a label or of a text; add rows, or give train: and test: files"
        )
    sizes = np.bincount(equal)
    return table.filter(pa.array(~chosen)), table.filter(pa.array(chosen)), int(sizes[sizes > 1].sum())


def reserve(
    table: pa.Table, inputs: tuple[str, ...], *, stratified: bool = True, items: Sequence[str] | None = None
) -> tuple[pa.Table, pa.Table]:
    """The rows that stay, and the exemplar pool taken from them: a tenth, but 8 to 64 rows.

    Raises:
        DataError: no row would stay.
    """
    least, most = POOL_ROWS
    count = min(max(table.num_rows // 10, least), most)
    if table.num_rows <= count:
        raise DataError(
            f"{table.num_rows} training rows are too few for a task with rationales, "
            f"which sets {count} aside for exemplars; add rows, or leave out rationale:"
        )
    together = _together(_equal_inputs(table, inputs), items)
    chosen = _choose(together, _strata(table, stratified), count, "pool")
    return table.filter(pa.array(~chosen)), table.filter(pa.array(chosen))


def units(rows: pa.Table, inputs: tuple[str, ...], items: Mapping[str, str] | None = None) -> dict[str, int]:
    """By a row's id the number of its unit: rows share it that have the same input or are about the same item.

    Args:
        rows: with `id` and the inputs.
        inputs: names of the input columns.
        items: by a row's id what it is about, where several rows may be about the same; None where none are.
    """
    ids = rows["id"].to_pylist()
    about = None if items is None else [items[id] for id in ids]
    return dict(zip(ids, _together(_equal_inputs(rows, inputs), about).tolist(), strict=True))


def numbered(values: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """A number per value that equal ones share, counted from 0 without gaps in their order."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def strata_of(units: npt.NDArray[np.int64], strata: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The stratum of each unit, from the unit and the stratum of each row.

    One with several labels counts for the rarest, which is the one that could be lost.
    """
    found = np.empty(int(units.max()) + 1, np.int64)
    rarest_last = np.argsort(-np.bincount(strata)[strata], kind="stable")  # and the last one assigned stays
    found[units[rarest_last]] = strata[rarest_last]
    return found


def shared_rows(table: pa.Table, other: pa.Table, inputs: tuple[str, ...]) -> list[int]:
    """Positions of the rows in `table` whose inputs are also those of a row in `other`."""
    known = set(hashing.row_keys(other.select(inputs)))
    return [index for index, key in enumerate(hashing.row_keys(table.select(inputs))) if key in known]


def _equal_inputs(table: pa.Table, inputs: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number per row that rows with equal inputs share, counted from 0 without gaps."""
    return numbered(hashing.row_keys(table.select(inputs)))


def _together(equal: npt.NDArray[np.int64], items: Sequence[str] | None) -> npt.NDArray[np.int64]:
    """A number per row that rows share which have the same input or the same item, over any number of rows between."""
    if items is None:
        return equal
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    item = numbered(items)
    size = int(equal.max()) + 1
    ends = size + int(item.max()) + 1
    links = coo_matrix((np.ones(len(equal)), (equal, size + item)), shape=(ends, ends))
    _, component = connected_components(links, directed=False)
    return numbered(component[equal].tolist())


def _strata(table: pa.Table, stratified: bool) -> npt.NDArray[np.int64]:
    return numbered(table["target"].to_pylist()) if stratified else np.zeros(table.num_rows, np.int64)


def _choose(
    units: npt.NDArray[np.int64], strata: npt.NDArray[np.int64], count: int, stream: str
) -> npt.NDArray[np.bool_]:
    """True for the rows drawn: whole units, at most `count` rows, each stratum in proportion but never whole."""
    sizes = np.bincount(units)
    stratum_of, number = strata_of(units, strata), int(strata.max()) + 1
    room = _quotas(np.bincount(stratum_of, weights=sizes, minlength=number).astype(np.int64), count)
    chosen = np.zeros(len(sizes), np.bool_)
    for unit in seeds.generator(SEED, stream).permutation(len(sizes)):
        if sizes[unit] <= room[stratum_of[unit]]:
            room[stratum_of[unit]] -= sizes[unit]
            chosen[unit] = True
    for stratum in range(number):
        own = units[strata == stratum]
        # All its rows may lie in units that counted for rarer strata: the smallest of them goes back.
        if chosen[own].all():
            chosen[own[np.argmin(sizes[own])]] = False
    return chosen[units]


def _quotas(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Rows to draw per stratum: largest remainders, and at least one row of each stratum stays."""
    exact = rows * (count / rows.sum())
    most = np.maximum(rows - 1, 0)
    quotas: npt.NDArray[np.int64] = np.minimum(exact.astype(np.int64), most)
    for stratum in np.argsort(quotas - exact, kind="stable"):
        if quotas.sum() < count and quotas[stratum] < most[stratum]:
            quotas[stratum] += 1
    return quotas
