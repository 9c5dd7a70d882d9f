"""What a user's column becomes: text, labels, conversations, vectors, or the bytes of images and sounds.

Each function takes a column and `where` (file and column, for messages) and gives a column of the same length,
in which a row that says nothing is null.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from graft.errors import DataError

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
"""A conversation."""
ROLES = ("system", "user", "assistant", "tool")


def text(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Strings as they are, numbers, dates and booleans written out; blank text is null.

    Raises:
        DataError: the column holds something else.
    """
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise DataError(f"{where} holds {kind}, not text; name a text column, or use messages:, image: or audio:")
    try:
        strings = column.cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(f"{where} holds {kind}, which cannot be written as text; convert it first") from error
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(strings), ""), None, strings)


def label(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Labels as text; whole numbers lose their decimal point, whichever way they were stored ("3.0" is "3")."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    strings = text(column, where)
    if pc.all(pc.match_substring_regex(strings, r"^-?\d+(\.0+)?$")).as_py():
        return pc.replace_substring_regex(strings, r"\.0+$", "")
    return strings


def media(column: pa.ChunkedArray, where: str, folder: Path) -> pa.ChunkedArray:
    """The bytes of images or sounds, given as bytes, as paths, or as the `datasets` struct of the two.

    Args:
        column: binary, strings, or structs with `bytes` and `path`.
        where: file and column.
        folder: what relative paths start from.

    Raises:
        DataError: the column holds something else, or a file cannot be read.
    """
    kind = column.type
    if pa.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}:
        values = [row and (row["bytes"] or row["path"]) for row in column.to_pylist()]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        values = column.to_pylist()
    else:
        raise DataError(f"{where} holds {kind}; give bytes, or paths relative to the data file")
    read = [
        _file_bytes(folder, value, where, row) if isinstance(value, str) and value else value or None
        for row, value in enumerate(values, 1)
    ]
    return _chunked(pa.array(read, pa.binary()))


def messages(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Conversations, given as lists of `role` and `content`, or as JSON text of such a list.

    Raises:
        DataError: a row is no such list; the message names the row.
    """
    rows = column.to_pylist()
    return _chunked(pa.array([_conversation(value, where, row) for row, value in enumerate(rows, 1)], MESSAGES))


def vector(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Vectors of float32 numbers, all of the first one's width.

    Raises:
        DataError: the column does not hold lists of numbers, or lists of several lengths.
    """
    rows = column.to_pylist()
    width = next((len(row) for row in rows if isinstance(row, list)), 0)
    try:
        return _chunked(pa.array(rows, pa.list_(pa.float32(), width)))
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"{where} holds {column.type}; give lists of {width} numbers each") from error


def _is_binary(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))


def _chunked(array: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Arrow splits an array by itself when its bytes outgrow one chunk."""
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _file_bytes(folder: Path, name: str, where: str, row: int) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise DataError(
            f"{where}, row {row}: {name}: {error.strerror or error}; paths are relative to the data file"
        ) from error


def _conversation(value: Any, where: str, row: int) -> list[dict[str, str]] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}, row {row}: not JSON: {error}") from error
    if value is None or value in ("", []) or isinstance(value, str):
        return None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DataError(f"{where}, row {row}: give a list of messages, each with role and content")
    for turn in value:
        if turn.get("role") not in ROLES:
            raise DataError(f"{where}, row {row}: role {turn.get('role')!r}; allowed: {', '.join(ROLES)}")
        if not isinstance(turn.get("content"), str):
            raise DataError(f"{where}, row {row}: a message's content is {turn.get('content')!r}; give text")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in value]
    return turns if any(turn["content"].strip() for turn in turns) else None
