"""Benchmarks as they are released: a folder of JSON lines, by split and language.

FOLDER/train/te.jsonl    FOLDER/te.train.jsonl    FOLDER/train.jsonl (languages in a column)
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from graft.errors import DataError
from graft.tasks import columns, reading
from graft.tasks.dataset import Dataset
from graft.tasks.groups import Chosen, named, rows_in
from graft.tasks.split import labels_of, shared_rows

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
"""What a folder or a part of a file's name is called, to the split it is."""


@dataclass(frozen=True)
class Part:
    """A file of a release."""

    path: Path
    split: str
    language: str | None
    """None where a column says it, row by row."""


def parts(path: str, unnamed: str | None = None) -> list[Part]:
    """The files of a release, in the order of their names.

    Args:
        path: of the folder, relative to the current directory.
        unnamed: split of the files whose names say none; None refuses them.

    Raises:
        DataError: there is no such folder, or what lies there is named otherwise.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{path}: no such folder (looked in {Path.cwd()}); give the folder that holds the splits")
    files = sorted(file for file in (*folder.glob("*.jsonl"), *folder.glob("*/*.jsonl")))
    found = []
    for file in files:
        words = re.split(r"[/.]", str(file.relative_to(folder).with_suffix("")))
        splits = [SPLITS[word] for word in words if word in SPLITS]
        others = [word for word in words if word not in SPLITS]
        if len(splits) + (not splits and unnamed is not None) != 1 or len(others) > 1:
            raise DataError(
                f"{file}: its name says no single split; give a folder with train, validation and test "
                "folders of LANGUAGE.jsonl, or with files LANGUAGE.SPLIT.jsonl"
            )
        found.append(Part(file, splits[0] if splits else str(unnamed), others[0] if others else None))
    if not found:
        there = ", ".join(sorted(child.name for child in folder.iterdir())) or "nothing"
        raise DataError(f"{path}: no .jsonl files; give the folder that holds the splits; it holds {there}")
    return found


def texts(table: pa.Table, wanted: Mapping[str, str], where: str) -> pa.Table:
    """Columns of a file as text under new names; a cell that is empty is "".

    Args:
        table: what the file holds.
        wanted: new name to the file's own.
        where: the file, for messages.

    Raises:
        DataError: a column is missing; the message lists those that there are.
    """
    found = {
        name: columns.text(reading.column_of(table, column, where), f"{where}, column {column!r}").fill_null("")
        for name, column in wanted.items()
    }
    return pa.table(found)


def gather(
    found: Sequence[Part],
    split: str,
    rows: Callable[[pa.Table, Part], pa.Table],
    languages: Chosen,
    path: str,
) -> pa.Table:
    """All rows of a split in the chosen languages, with ids `SPLIT-LANGUAGE-NUMBER` and `group`, the language.

    Args:
        found: the files.
        split: which of them.
        rows: reads a file's table: the columns of the task, and `group` where the file's name says no language.
        languages: which of those in the split's files.
        path: the folder, for messages.

    Raises:
        DataError: the split has no rows, or none in one of the languages.
    """
    tables = []
    for part in (part for part in found if part.split == split):
        own = rows(next(iter(reading.read_tables(str(part.path)).values())), part)
        if part.language is not None and "group" not in own.column_names:
            own = own.append_column("group", pa.array([part.language] * own.num_rows, pa.string()))
        numbers = [f"{split}-{language}-{row}" for row, language in enumerate(own["group"].to_pylist())]
        tables.append(own.append_column("id", pa.array(numbers, pa.string())))
    if not tables or not sum(table.num_rows for table in tables):
        raise DataError(
            f"{path}: no rows of the split {split!r}; it holds {', '.join(sorted({p.split for p in found}))}"
        )
    joined = pa.concat_tables(tables)
    chosen = named(languages, sorted(set(joined["group"].to_pylist())), f"task.languages ({path}, {split})")
    joined = rows_in(joined, "group", chosen)
    if len(set(joined["id"].to_pylist())) < joined.num_rows:
        raise DataError(f"{path}: a language has two files in the split {split!r}; give the folder of one task")
    return joined


def dataset(train: pa.Table, test: pa.Table, inputs: tuple[str, ...], kind: str, labelled: bool) -> Dataset:
    """The dataset of a released split; training rows about what is asked for in the test are left out.

    That is a row with the same input, and one with the same `item` in whatever language. Rows of a released test are
    never left out.

    Raises:
        DataError: no training row stays, or all rows have one label.
    """
    shared, items = set(shared_rows(train, test, inputs)), None
    if "item" in train.column_names and "item" in test.column_names:
        asked = set(test["item"].to_pylist())
        items = {row["id"]: row["item"] for table in (train, test) for row in table.select(["id", "item"]).to_pylist()}
        shared |= {row for row, item in enumerate(train["item"].to_pylist()) if item in asked}
    if shared:
        log.warning("%d training rows ask what the test asks: they are left out", len(shared))
        train = train.filter(pa.array([row not in shared for row in range(train.num_rows)]))
    if not train.num_rows:
        raise DataError("every training row asks what the test asks; give a training split of its own")
    order = ["id", *inputs, "target", "group"]
    labels = labels_of(train, test) if labelled else None
    return Dataset(train.select(order), test.select(order), inputs, kind, labels, items=items)
