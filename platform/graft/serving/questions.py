"""What a request's `input` becomes: the rows that a run's graph reads."""

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from graft.errors import DataError, suggest
from graft.tasks import columns
from graft.tasks.dataset import beside, input_field

DATA_URI = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w.=+-]{1,100}){0,4},", re.ASCII)
"""What stands before the bytes of an image or a sound."""

LARGEST = float(np.finfo(np.float32).max)


def question_table(items: Sequence[Any], inputs: Sequence[str], kind: str) -> pa.Table:
    """`id` and the input columns of the rows that are asked about.

    Args:
        items: objects of column to value; plain values too where there is one column.
        inputs: names of the columns.
        kind: of the task's own: text, messages, vector, image or audio; a group or a rationale beside them is text.
            Images and sounds are data URIs in base64.

    Raises:
        DataError: an item is not such a row; the message names its position, from 0, and never repeats its content.
    """
    rows = [_row(item, place, inputs) for place, item in enumerate(items)]
    fields, values = [pa.field("id", pa.string())], [pa.array([f"question-{place}" for place in range(len(rows))])]
    more = beside(inputs)
    for name in inputs:
        own = "text" if name in more else kind
        column = _column([row[name] for row in rows], own, name)
        fields.append(input_field(name, own, column.type))
        values.append(column)
    asked = [column for field, column in zip(fields, values, strict=True) if field.name not in ("id", *more)]
    for place in range(len(rows)):
        if all(_is_empty(column[place]) for column in asked):
            raise DataError(f"input[{place}]: is empty; every row needs some content")
    return pa.table(values, pa.schema(fields))


def example_table(items: Sequence[Any], labels: Sequence[str], inputs: Sequence[str], kind: str) -> pa.Table:
    """Labelled rows, as `question_table`, with `target`.

    Raises:
        DataError: as there.
    """
    try:
        rows = question_table(items, inputs, kind)
    except DataError as error:
        raise DataError(str(error).replace("input", "examples", 1)) from error
    ids = pa.array([f"example-{place}" for place in range(len(items))])
    return rows.set_column(0, "id", ids).append_column("target", pa.array(labels, pa.string()))


def _row(item: Any, place: int, inputs: Sequence[str]) -> dict[str, Any]:
    if not isinstance(item, dict):
        if len(inputs) == 1:
            return {inputs[0]: item}
        raise DataError(f"input[{place}]: give an object with {', '.join(inputs)}; this run reads several columns")
    for name in inputs:
        if name not in item:
            raise DataError(f"input[{place}]: {name!r} is missing; this run reads {', '.join(inputs)}")
    for name in item:
        if name not in inputs:
            raise DataError(f"input[{place}]: unknown column {name!r}; {suggest(name, inputs)}")
    return item


def _column(values: list[Any], kind: str, name: str) -> pa.ChunkedArray:
    where = f"input, column {name!r}"
    try:
        if kind == "text":
            _each(values, where, _is_text, "text")
            return pa.chunked_array([pa.array([value or "" for value in values], pa.string())])
        if kind == "vector":
            _each(values, where, _is_vector, "a list of finite numbers")
        if kind in ("image", "audio"):
            return pa.chunked_array(
                [pa.array([_bytes(value, where, row) for row, value in enumerate(values)], pa.binary())]
            )
        raw = pa.chunked_array([pa.array(values)])
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: not {kind} as this run reads it ({type(error).__name__})") from error
    return columns.vector(raw, where) if kind == "vector" else columns.messages(raw, where)


def _bytes(value: Any, where: str, row: int) -> bytes:
    """What a data URI holds."""
    head = DATA_URI.match(value) if isinstance(value, str) else None
    if head is None or not head[0].endswith(";base64,"):
        raise DataError(f"{where}, row {row}: give a data URI: data:image/png;base64,... or data:audio/wav;base64,...")
    try:
        return base64.b64decode(value[head.end() :], validate=True)
    except ValueError as error:
        raise DataError(f"{where}, row {row}: what follows {head[0]!r} is not base64") from error


def _each(values: list[Any], where: str, fine: Callable[[Any], bool], wanted: str) -> None:
    for place, value in enumerate(values):
        if not fine(value):
            raise DataError(f"{where}, row {place}: give {wanted}, got {type(value).__name__}")


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_vector(value: Any) -> bool:
    """Numbers that float32 holds; a comparison with NaN is false."""
    return isinstance(value, list) and all(
        isinstance(number, int | float) and not isinstance(number, bool) and -LARGEST <= number <= LARGEST
        for number in value
    )


def _is_empty(value: pa.Scalar) -> bool:
    plain = value.as_py()
    return plain is None or plain == [] or (isinstance(plain, str) and not plain.strip())
