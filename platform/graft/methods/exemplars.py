"""Exemplars: rows with their rationales that a teacher's prompt shows.

They come from a pool outside every regime and the test set, drawn by `exemplar_seed` alone, or from a file: one
rationale then serves all seeds and regimes, and no row is ever its own exemplar, nor is one about the same item.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from graft.errors import DataError, SpecError
from graft.hashing import row_keys
from graft.seeds import generator
from graft.spec import Task
from graft.tasks.file import FileTask
from graft.tasks.split import shared_rows

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset

Exemplars = tuple[dict[str, Any], ...]


def exemplars(given: int | str, per_group: bool, seed: int, task: Task, dataset: "Dataset") -> Exemplars:
    """Rows with `id`, the inputs, `target`, `rationale`, and `group` where asked for.

    Args:
        given: how many (of each group, with `per_group`), or a file of them.
        per_group: every group has its own.
        seed: draws them.
        task: names the columns of a file.
        dataset: holds the pool.

    Raises:
        SpecError: there is nothing to draw from, or too little of it.
        DataError: one has no rationale, is a row of the test or training set or about the item of one, or a group has
            none.
    """
    if given == 0:
        return ()
    if per_group and not dataset.groups:
        raise SpecError("method.exemplars_per_group: this task has no groups; set task.group, or leave it false")
    rows = _from_file(given, per_group, task, dataset) if isinstance(given, str) else _pool(dataset)
    columns = ["id", *dataset.inputs, "target", "rationale", *(["group"] if per_group else [])]
    found = [tidy(row) for row in rows.select(columns).to_pylist()]
    if isinstance(given, int):
        order = generator(seed, "exemplars").permutation(len(found))
        found = _chosen([found[place] for place in order], given, per_group)
    if per_group and (without := sorted(dataset.groups - {one["group"] for one in found})):
        raise DataError(
            f"method.exemplars_per_group: {len(without)} groups have no exemplar, the first is {without[0]!r}; give "
            "exemplars: a file that has some of each, or leave exemplars_per_group false"
        )
    return tuple(found)


def donors(seed: int, count: int, dataset: "Dataset") -> Exemplars:
    """What rows say of themselves whose rationales may be shown in another row's place.

    Raises:
        DataError: they all say the same, so that none can stand in for another.
    """
    order = generator(seed, "donors").permutation(dataset.train.num_rows)[:count]
    columns = [*dataset.inputs, *(["group"] if "group" in dataset.train.column_names else [])]
    rows = dataset.train.select(columns).take(pa.array(order))
    if len(set(row_keys(rows.select(dataset.inputs)))) < 2:
        raise DataError(
            f"method.rationale: shuffled shows each row the rationale of one that says something else, and all "
            f"{rows.num_rows} training rows that it draws from say the same; give rows that differ, or use corrupted"
        )
    return tuple(rows.to_pylist())


def _pool(dataset: "Dataset") -> pa.Table:
    if dataset.pool is None:
        raise SpecError(
            "method.exemplars are drawn from rows with rationales, and this task has none: name their column "
            "(task.rationale), give a file (method.exemplars: exemplars.jsonl), or set method.exemplars to 0"
        )
    return dataset.pool


def _chosen(rows: list[dict[str, Any]], count: int, per_group: bool) -> list[dict[str, Any]]:
    """The first so many, or so many of each group.

    Raises:
        SpecError: there are fewer.
    """
    groups = {one["group"] for one in rows} if per_group else {None}
    found = []
    for group in sorted(groups, key=str):
        own = [one for one in rows if group is None or one["group"] == group]
        if len(own) < count:
            of = "" if group is None else f" of group {group!r}"
            raise SpecError(f"method.exemplars: got {count}; the pool has {len(own)} rows{of}: give at most that many")
        found += own[:count]
    return found


def _from_file(path: str, per_group: bool, task: Task, dataset: "Dataset") -> pa.Table:
    """The rows of a file with the task's own columns (of other tasks: the inputs, `target`, `rationale` and `item`)."""
    rows, items = _as_file(path, per_group, task, dataset).rows_of(path, prefix="exemplar-")
    for name, others in (("test", dataset.test), ("training", dataset.train)):
        if shared := shared_rows(rows, others, dataset.inputs):
            raise DataError(
                f"{path}: row {shared[0] + 1} is a row of the {name} set ({len(shared)} of its rows are); an exemplar "
                "tells its answer: take it out"
            )
        known = {(dataset.items or {}).get(id) for id in others["id"].to_pylist()}
        if about := [(row, item) for row, item in enumerate(items or (), 1) if item in known]:
            row, item = about[0]
            raise DataError(
                f"{path}: row {row} is about item {item!r}, as is a row of the {name} set ({len(about)} of its rows "
                "are about such items); an exemplar tells its answer: take it out"
            )
    return rows


def _as_file(path: str, per_group: bool, task: Task, dataset: "Dataset") -> FileTask:
    """The task that a file of exemplars is a part of."""
    if isinstance(task, FileTask):
        # Ids that are items are unique within groups alone.
        grouped = per_group or task.item == "id"
        changed = {"rationale": task.rationale or "rationale", "where": None}
        return task.model_copy(update={**changed, "group": task.group if grouped else None})
    answer = "target" if dataset.labels is None else "label"
    named = {"fields": dataset.inputs} if dataset.kind == "text" else {dataset.kind: dataset.inputs[0]}
    optional = {"group": per_group, "item": dataset.items is not None}
    fields: Mapping[str, Any] = {**named, answer: "target", **{name: name for name, there in optional.items() if there}}
    return FileTask(name="file", path=path, rationale="rationale", **fields)


def tidy(row: dict[str, Any]) -> dict[str, Any]:
    """Without blank lines in the rationale: they stand between exemplars."""
    return {**row, "rationale": re.sub(r"\s*\n\s*\n\s*", "\n", row["rationale"].strip())}
