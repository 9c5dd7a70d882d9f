"""Groups of rows (languages, sources): averages over them, and choosing among them."""

from collections.abc import Iterable, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from graft.errors import DataError, suggest
from graft.spec import Task

MACRO = "macro"
"""Names the average over groups among the splits of a run's metrics: `test/macro` beside `test/GROUP`."""

Chosen = Literal["all"] | tuple[str, ...]
"""All groups, or the named ones."""


class GroupedTask(Task):
    """A task whose rows may belong to groups."""

    macro: Chosen | None = None
    """Groups over which each metric is also averaged, every group counting alike: `all` or a list of them. Their rows
    in metrics.parquet have the split test/GROUP and test/macro; null gives the metrics of all test rows together only.
    """

    def averaged(self, test: pa.Table) -> tuple[str, ...]:
        """The groups that `macro` names, in its order; none where it is null.

        Raises:
            DataError: no test row belongs to one of them, or to any group.
        """
        if self.macro is None:
            return ()
        known = [] if "group" not in test.column_names else sorted(set(test["group"].drop_null().to_pylist()))
        chosen = named(self.macro, known, "task.macro")
        if MACRO in chosen:
            raise DataError(f"task.macro: a group is called {MACRO!r}, as is the average over them; rename it")
        return chosen


def named(chosen: Chosen, known: Sequence[str], where: str) -> tuple[str, ...]:
    """The chosen groups among those that there are.

    Raises:
        DataError: there are none, or one of the chosen is not among them.
    """
    if not known:
        raise DataError(f"{where}: no row belongs to a group; leave it null")
    if chosen == "all":
        return tuple(known)
    for group in chosen:
        if group not in known:
            raise DataError(f"{where}: no row belongs to {group!r}; {suggest(group, known)}")
    return tuple(dict.fromkeys(chosen))


def rows_in(table: pa.Table, column: str, values: Iterable[str]) -> pa.Table:
    """The rows whose column has one of these values."""
    return table.filter(pc.is_in(table[column], value_set=pa.array(list(values), table[column].type)))
