"""Identity by content: what makes two specs, files, rows or nodes the same.

Every hash is BLAKE2b of a canonical form, so it is equal on every machine and in every process.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEY_BYTES = 16


def digest(*parts: Any) -> str:
    """A hex digest (32 characters) of JSON-like values, arrays or bytes; mappings compare without order."""
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def table_digest(table: pa.Table) -> str:
    """A hex digest of a table's columns and values, as they are stored: chunks make no difference, types do."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashlib.blake2b(sink.getvalue(), digest_size=KEY_BYTES).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file; read once per process while the file's size and time stay the same."""
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: Path, _size: int, _mtime: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def row_keys(table: pa.Table) -> list[bytes]:
    """One key (16 bytes) per row, from its columns' names and values.

    Chunking, the order of columns, integer width and the width of offsets (`string` or `large_string`, any kind
    of list) make no difference; the floating-point type of a list's numbers and a null do.
    """
    states = [hashlib.blake2b(digest_size=KEY_BYTES) for _ in range(table.num_rows)]
    for name in sorted(table.column_names):
        head = _framed(b"c", name.encode())
        for state, value in zip(states, _values(table[name]), strict=True):
            state.update(head)
            _feed(state, value)
    return [state.digest() for state in states]


def _values(column: pa.ChunkedArray) -> Iterable[Any]:
    """Python values of a column; number lists as arrays, which hash without a Python object per number."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (is_list and pa.types.is_floating(kind.value_type)):
        values: list[Any] = column.to_pylist()
        return values
    return (row for chunk in column.chunks for row in _number_lists(chunk))


def _number_lists(chunk: pa.Array) -> Iterator[Any]:
    """Each row's numbers as an array; as a plain list where one is null, which no array can tell from a NaN."""
    flat = chunk.flatten()
    numbers = flat.to_numpy(zero_copy_only=False)
    valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    # flatten() leaves out what lies under a null, whatever length a fixed-size list claims for it.
    lengths = np.where(valid, pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False), 0)
    ends = np.cumsum(lengths)
    for is_valid, start, end in zip(valid, ends - lengths, ends, strict=True):
        if is_valid and flat.null_count and flat[start:end].null_count:
            yield flat[start:end].to_pylist()
        else:
            yield numbers[start:end] if is_valid else None


def _framed(tag: bytes, payload: bytes) -> bytes:
    """Length-prefixed, so that no two sequences of parts run into one another."""
    return tag + len(payload).to_bytes(8, "little") + payload


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, str):
        state.update(_framed(b"s", value.encode()))
    elif isinstance(value, bytes):
        state.update(_framed(b"b", value))
    elif isinstance(value, np.ndarray):
        # Shape and type are part of the value; + 0.0 makes the two zeros equal.
        array = np.ascontiguousarray(value + 0.0 if value.dtype.kind == "f" else value)
        state.update(_framed(b"a", f"{array.dtype.str}{array.shape}".encode()))
        state.update(array.tobytes())
    else:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
        state.update(_framed(b"j", text.encode()))


def _plain(value: Any) -> Any:
    """JSON for what JSON does not know."""
    if isinstance(value, bytes):
        return {"bytes": hashlib.blake2b(value, digest_size=KEY_BYTES).hexdigest()}
    if isinstance(value, np.ndarray):
        return {"array": digest(value)}
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no canonical form to hash")
