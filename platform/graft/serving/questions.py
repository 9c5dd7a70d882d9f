"""What a request's `input` becomes: the rows that a run's graph reads."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from graft.errors import DataError, suggest
from graft.tasks import columns
from graft.tasks.dataset import beside, input_field

KINDS = ("text", "messages", "vector")
"""Kinds of input that travel as JSON values."""

LARGEST = float(np.finfo(np.float32).max)


def question_table(items: Sequence[Any], inputs: Sequence[str], kind: str) -> pa.Table:
    """`id` and the input columns of the rows that are asked about.

    Args:
        items: objects of column to value; plain values too where there is one column.
        inputs: names of the columns.
        kind: of the task's own: text, messages or vector; a group or a rationale beside them is text.

    Raises:
        DataError: an item is not such a row; the message names its position, from 0, and never repeats its content.
    """
    if kind not in KINDS:
        raise DataError(f"input: this run reads {kind}, which cannot be sent here yet; use graft predict")
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
        raw = pa.chunked_array([pa.array(values)])
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: not {kind} as this run reads it ({type(error).__name__})") from error
    return columns.vector(raw, where) if kind == "vector" else columns.messages(raw, where)


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
