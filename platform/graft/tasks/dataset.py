"""A task's rows, split once and for all: what every method is given and judged by."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from graft import hashing

WRITTEN = ("demonstrations", "embedding", "rationale", "prediction", "scores")
RESERVED = ("id", "run_id", "split", "together", "target", *WRITTEN)
"""Column names that graft writes; an input column may not bear one."""

BESIDE = ("rationale", "group")
"""Columns of text that a graph may read beside the task's inputs, after which it names them."""


@dataclass(frozen=True)
class Dataset:
    """The rows of a task.

    All tables hold `id` (unique strings), the input columns, `target` (string), and `group` and `rationale`
    where the task has them; `checks` too where more than targets judges an answer, which the task's own `judged` alone
    reads. No order depends on any seed of a spec.
    """

    train: pa.Table
    """Rows that a regime draws from."""
    test: pa.Table
    """The fixed test set."""
    inputs: tuple[str, ...]
    """Names of the input columns."""
    kind: str
    """Kind of the input columns: text, messages, image, audio or vector."""
    labels: tuple[str, ...] | None
    """Sorted labels of a classification; None where the target is free text."""
    equal_inputs: int = 0
    """Rows that share their input with another row and were therefore kept on one side of the split."""
    pool: pa.Table | None = None
    """Rows outside every regime and the test set, kept for exemplars; None where the task has no rationales."""
    items: Mapping[str, str] | None = None
    """By a row's id what it is about, where several rows may be about the same; None where none are."""

    @functools.cached_property
    def groups(self) -> frozenset[str]:
        """Groups of the training and test rows; none where the task has no such column."""
        tables = [table for table in (self.train, self.test) if "group" in table.column_names]
        return frozenset(group for table in tables for group in table["group"].unique().to_pylist())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest (32 characters) of every row in order, with its id, and of the labels."""
        tables = [self.train, self.test, *([] if self.pool is None else [self.pool])]
        keys = [b"".join(hashing.row_keys(table)) for table in tables]
        return hashing.digest(self.kind, self.inputs, self.labels, *keys)


def beside(inputs: Sequence[str]) -> tuple[str, ...]:
    """Those of a graph's inputs that are not the task's own."""
    return tuple(name for name in inputs[1:] if name in BESIDE)


def input_field(name: str, kind: str, values: pa.DataType) -> pa.Field:
    """The schema field of an input column; one that is not plain text says its kind in its metadata."""
    return pa.field(name, values, metadata=None if kind == "text" else {"kind": kind})
