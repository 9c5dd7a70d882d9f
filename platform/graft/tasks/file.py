"""A user's own rows as a task: CSV, JSON lines, Parquet or a saved `datasets` folder."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, model_validator

from graft.errors import DataError, suggest
from graft.tasks import columns, parsers, reading
from graft.tasks.dataset import RESERVED, Dataset, beside, input_field
from graft.tasks.groups import GroupedTask
from graft.tasks.split import divide, labels_of, reserve, shared_rows


def _texts(value: Any) -> Any:
    """One value or several as text, as the columns are compared: YAML reads 7 and true as no text."""
    values = value if isinstance(value, list | tuple) else [value]
    plain = all(isinstance(one, str | int | float) for one in values)
    return [str(one) for one in values] if plain else value


class FileTask(GroupedTask):
    """Rows from a file that graft splits, or from a training file and a test file that are used whole."""

    name: Literal["file"]
    path: str | None = None
    """File or saved datasets folder with all rows, relative to the current directory; null with train and test."""
    train: str | None = None
    """File with the training rows; null where path is given."""
    test: str | None = None
    """File with the test rows, all of which are used; null where path is given."""
    text: str | None = Field(None, min_length=1)
    """Input: a column of text."""
    fields: tuple[str, ...] | None = Field(None, min_length=1)
    """Input: several columns of text, in the order in which they are shown."""
    messages: str | None = Field(None, min_length=1)
    """Input: a column of conversations, lists of role and content or JSON text of them."""
    image: str | None = Field(None, min_length=1)
    """Input: a column of image bytes, or of paths relative to the data file."""
    audio: str | None = Field(None, min_length=1)
    """Input: a column of sound bytes, or of paths relative to the data file."""
    label: str | None = Field(None, min_length=1)
    """Column of labels (classification)."""
    target: str | None = Field(None, min_length=1)
    """Column of free-text answers (generation)."""
    rationale: str | None = Field(None, min_length=1)
    """Column of gold rationales; null for none."""
    group: str | None = None
    """Column for grouped intervals (language, source); null for none."""
    item: str | None = Field(None, min_length=1)
    """Column whose equal values are one item (a question in several languages): its rows stay on one side of the split.
    `item: id` where ids are unique within each group only. null: every row is an item of its own."""
    where: dict[str, Annotated[tuple[str, ...], BeforeValidator(_texts), Field(min_length=1)]] | None = None
    """Column to the values of the rows that are used, the others are left out; null uses all."""

    @model_validator(mode="after")
    def _each_choice_is_made_once(self) -> Self:
        if (self.train is None) != (self.test is None) or (self.path is None) == (self.train is None):
            raise ValueError("give path:, or both train: and test:")
        given = [key for key in ("text", "fields", "messages", "image", "audio") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, fields, messages, image, audio; given: {given or 'none'}")
        if (self.label is None) == (self.target is None):
            raise ValueError("give either label: (classification) or target: (generation)")
        if self.label is not None and self.parser is not None:
            raise ValueError("parser reads free text, not labels: leave it null, or give target: in place of label:")
        if self.macro is not None and self.group is None:
            raise ValueError("macro averages over groups: name their column with group:, or leave macro null")
        if self.item == "id" and self.group is None:
            raise ValueError("item: id needs group:, the column within which ids are unique")
        return self

    @model_validator(mode="after")
    def _columns_do_not_clash(self) -> Self:
        named = Counter([*self.inputs, *filter(None, (self.label, self.target, self.rationale))])
        for column, count in named.items():
            if count > 1:
                raise ValueError(f"column {column!r} is named {count} times; input, answer and rationale must differ")
        for column in self.inputs:
            if column in RESERVED:
                raise ValueError(
                    f"input column {column!r} bears a name that graft writes itself; rename it in the file"
                )
        if "group" in self.inputs and self.group is not None:
            raise ValueError(
                "an input column is called 'group', as is the one that group: makes; rename it in the file"
            )
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input columns."""
        one = self.text or self.messages or self.image or self.audio
        return self.fields or ((one,) if one else ())

    @property
    def kind(self) -> str:
        """Text, messages, image or audio."""
        return next((kind for kind in ("messages", "image", "audio") if getattr(self, kind) is not None), "text")

    def read(self) -> Dataset:
        """Read the rows, check them, and split them where that is left to graft.

        Raises:
            DataError: a file that is missing or cannot be parsed, a missing column, an empty row, a duplicate id,
                one label only, rows that the training and test files share, or too few rows.
        """
        if self.path is None:
            return self._given(*(_single(path, reading.read_tables(path)) for path in (self.train, self.test) if path))
        tables = reading.read_tables(self.path)
        if {"train", "test"} <= tables.keys():
            return self._given(*((f"{self.path}/{name}", Path(self.path), tables[name]) for name in ("train", "test")))
        rows, items = self._rows(*_single(self.path, tables))
        labelled = self.label is not None
        found = divide(rows, self.inputs, self.kind, self.test_examples, labelled=labelled, items=items)
        self.averaged(found.test)
        return found

    def rows_of(self, path: str, prefix: str = "") -> tuple[pa.Table, list[str] | None]:
        """The checked rows of another file with this task's columns, and their items; rows without `id` are numbered.

        Raises:
            DataError: as `read`.
        """
        return self._rows(*_single(path, reading.read_tables(path)), prefix=prefix)

    def _given(self, train: tuple[str, Path, pa.Table], test: tuple[str, Path, pa.Table]) -> Dataset:
        """The dataset of rows that the user has split."""
        (learned, learned_items), (asked, asked_items) = (
            self._rows(*train, prefix="train-"),
            self._rows(*test, prefix="test-"),
        )
        tables = [learned, asked]
        ids = [table["id"].to_pylist() for table in tables]
        for what, own, other in (("id", *ids), ("item", learned_items or [], asked_items or [])):
            others = set(other)
            if twice := next((one for one in own if one in others), None):
                raise DataError(
                    f"{what} {twice!r} is in {train[0]} and in {test[0]}; {what}s are unique over both: rename one"
                )
        if shared := shared_rows(tables[1], tables[0], self.inputs):
            raise DataError(
                f"{test[0]}: {len(shared)} rows have the same input as a row of {train[0]}, the first is row "
                f"{shared[0] + 1}; remove them from one of the two"
            )
        labels, pool = labels_of(*tables) if self.label else None, None
        if self.rationale:
            tables[0], pool = reserve(tables[0], self.inputs, stratified=self.label is not None, items=learned_items)
        self.averaged(asked)
        about = None
        if learned_items and asked_items:
            about = dict(zip([*ids[0], *ids[1]], [*learned_items, *asked_items], strict=True))
        return Dataset(tables[0], tables[1], self.inputs, self.kind, labels, pool=pool, items=about)

    def _rows(self, where: str, folder: Path, table: pa.Table, prefix: str = "") -> tuple[pa.Table, list[str] | None]:
        """The checked rows of one file (id, inputs, target, and rationale and group where asked for), their items."""
        if not table.num_rows:
            raise DataError(f"{where}: no rows; give a file with rows under its column names")
        if self.where:
            table, where = self._chosen(table, where), f"{where} (only rows that task.where asks for)"
        groups, items = (
            None if name is None else columns.label(reading.column_of(table, name, where), f"{where}, column {name!r}")
            for name in (self.group, self.item)
        )
        if items is not None:
            _refuse_empty(where, [str(self.item)], [items])
        within = groups if self.item == "id" else None
        named = {"id", *self.inputs, self.label, self.target, self.rationale}
        others = [name for name in table.column_names if name not in named]
        found = _asked(where, folder, table, self.inputs, self.kind, _ids(table, where, prefix, within, others))
        for name, source in (("target", self.label or self.target), ("rationale", self.rationale)):
            if source is not None:
                convert = columns.label if source == self.label else columns.text
                values = convert(reading.column_of(table, source, where), f"{where}, column {source!r}")
                _refuse_empty(where, [source], [values])
                found[name] = pa.field(name, pa.string()), values
        parsers.check_targets(found["target"][1].to_pylist(), self.parser, f"{where}, column {self.target!r}")
        if groups is not None:
            found["group"] = pa.field("group", pa.string()), groups
        fields, values = zip(*found.values(), strict=True)
        return pa.table(list(values), pa.schema(fields)), None if items is None else items.to_pylist()

    def _chosen(self, table: pa.Table, where: str) -> pa.Table:
        """The rows that `where` asks for."""
        assert self.where is not None
        for column, wanted in self.where.items():
            values = columns.label(reading.column_of(table, column, where), f"{where}, column {column!r}")
            known = set(values.drop_null().to_pylist())
            for value in wanted:
                if value not in known:
                    raise DataError(f"{where}, column {column!r}: no row has {value!r}; {suggest(value, known)}")
            table = table.filter(pc.is_in(values, value_set=pa.array(wanted, pa.string())))
        return table


def question_rows(path: str | Path, inputs: Sequence[str], kind: str, task: FileTask | None = None) -> pa.Table:
    """`id` and the input columns of a file of rows to answer, read as a task's rows are; other columns are left out.

    Args:
        path: of the file.
        inputs: what the graph reads.
        kind: of the task's own inputs.
        task: says what the file calls the group and the rationale, which may bear graft's own names too, and whether
            ids are unique within groups only.

    Raises:
        DataError: the file is missing or cannot be parsed, lacks a column, or has an empty row.
    """
    where, folder, table = _single(str(path), reading.read_tables(str(path)))
    if not table.num_rows:
        raise DataError(f"{where}: no rows; give a file with rows under its column names")
    more = {}
    for name in beside(inputs):
        named = getattr(task, name, None) or name
        source = name if name in table.column_names and named not in table.column_names else named
        convert = columns.label if name == "group" else columns.text
        text = convert(reading.column_of(table, source, where), f"{where}, column {source!r}")
        more[name] = pa.field(name, pa.string()), pc.fill_null(text, "")
    within = None
    if task is not None and task.item == "id" and task.group and task.group in table.column_names:
        within = columns.label(reading.column_of(table, task.group, where), f"{where}, column {task.group!r}")
    ids = _ids(table, where, "question-", within)
    own = [name for name in inputs if name not in more]
    fields, values = zip(*(_asked(where, folder, table, own, kind, ids) | more).values(), strict=True)
    return pa.table(list(values), pa.schema(fields))


def _asked(
    where: str, folder: Path, table: pa.Table, inputs: Sequence[str], kind: str, ids: pa.ChunkedArray
) -> dict[str, tuple[pa.Field, pa.ChunkedArray]]:
    """Fields and values of `id` and the checked input columns."""
    found = {"id": (pa.field("id", pa.string()), ids)}
    raw = {name: reading.column_of(table, name, where) for name in inputs}
    values = [_input(column, kind, f"{where}, column {name!r}", folder) for name, column in raw.items()]
    _refuse_empty(where, inputs, values)
    for name, column in zip(inputs, values, strict=True):
        # One of several fields may be empty, but not null: a row is written out whole.
        whole = pc.fill_null(column, "") if kind == "text" else column
        found[name] = input_field(name, kind, column.type), whole
    return found


def _input(column: pa.ChunkedArray, kind: str, where: str, folder: Path) -> pa.ChunkedArray:
    if kind == "messages":
        return columns.messages(column, where)
    if kind in ("image", "audio"):
        return columns.media(column, where, folder)
    return columns.vector(column, where) if kind == "vector" else columns.text(column, where)


def _single(path: str, tables: dict[str, pa.Table]) -> tuple[str, Path, pa.Table]:
    """Name for messages, folder that media paths start from, and the only table of a file."""
    if len(tables) > 1:
        raise DataError(
            f"{path}: holds the splits {', '.join(sorted(tables))}; only path: takes two, called train and test: "
            "name the folder of one split"
        )
    source = Path(os.path.expanduser(path))
    return path, source if source.is_dir() else source.parent, next(iter(tables.values()))


def _ids(
    table: pa.Table, where: str, prefix: str, within: pa.ChunkedArray | None = None, others: Sequence[str] = ()
) -> pa.ChunkedArray:
    """The file's own ids where it has the column, else ones made from the rows' positions.

    Args:
        table: the rows.
        where: file, for messages.
        prefix: of made ids.
        within: the groups within which the file's ids are unique; an id is then `GROUP/ID`.
        others: columns of which `task.where` may ask for one value, in messages.
    """
    if "id" not in table.column_names:
        return pa.chunked_array([pa.array([f"{prefix}{row}" for row in range(table.num_rows)])])
    ids = columns.label(reading.column_of(table, "id", where), f"{where}, column 'id'")
    _refuse_empty(where, ["id"], [ids])
    if within is not None:
        pairs = zip(within.to_pylist(), ids.to_pylist(), strict=True)
        ids = pa.chunked_array([pa.array([f"{group}/{id}" for group, id in pairs], pa.string())])
    if pc.count_distinct(ids).as_py() < len(ids):
        twice = Counter(ids.to_pylist()).most_common(1)[0]
        raise DataError(
            f"{where}: id {twice[0]!r} is on {twice[1]} rows; make ids unique, or rename the column and the rows are "
            "numbered; where it is one item in several groups, say so by group: and item: id"
            + _apart(table, ids, others)
        )
    return ids


def _apart(table: pa.Table, ids: pa.ChunkedArray, others: Sequence[str]) -> str:
    """The cure where a file holds several parts, such as splits or languages, whose ids are unique in each part."""
    names = ids.to_pylist()
    for name in others:
        if table.column_names.count(name) > 1 or pa.types.is_nested(table.schema.field(name).type):
            continue
        values = table[name].to_pylist()
        parts = dict.fromkeys(value for value in values if value is not None)
        # A column that says something else of each row tells rows apart too, and means no parts.
        if 1 < len(parts) <= len(values) / 2 and len(set(zip(names, values, strict=True))) == len(values):
            return (
                f"; where column {name!r} names parts of the file, use one: task.where: {{{name}: {next(iter(parts))}}}"
            )
    return ""


def _refuse_empty(where: str, names: Sequence[str], values: list[pa.ChunkedArray]) -> None:
    """Raise if a row has nothing in any of these columns."""
    empty = values[0].is_null()
    for column in values[1:]:
        empty = pc.and_(empty, column.is_null())
    if count := pc.sum(empty).as_py():
        raise DataError(
            f"{where}: {count} of {len(empty)} rows have nothing in {', '.join(map(repr, names))}, the first is row "
            f"{pc.index(empty, True).as_py() + 1} (counted from 1, without the header); fill them in or remove them"
        )
