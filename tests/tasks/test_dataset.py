from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from graft.tasks.dataset import Dataset, input_field


def rows(start: int, count: int, **columns: list) -> pa.Table:
    texts = [f"text {start + row}" for row in range(count)]
    return pa.table({"id": texts, "text": texts, "target": ["a", "b"] * (count // 2), **columns})


BASE = Dataset(rows(0, 6), rows(6, 2), ("text",), "text", ("a", "b"))


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, train=BASE.train.take([1, 0, 2, 3, 4, 5])),
        replace(BASE, train=BASE.train.slice(1)),
        replace(BASE, train=BASE.test, test=BASE.train),
        replace(BASE, test=BASE.test.set_column(2, "target", pa.array(["b", "b"]))),
        replace(BASE, test=BASE.test.set_column(0, "id", pa.array(["x", "y"]))),
        replace(BASE, train=rows(0, 6, rationale=["because"] * 6)),
        replace(BASE, pool=rows(8, 2)),
        replace(BASE, labels=None),
        replace(BASE, labels=("a", "b", "c")),
    ],
)
def test_another_dataset_has_another_fingerprint(other: Dataset) -> None:
    assert other.fingerprint != BASE.fingerprint


def test_how_the_rows_are_stored_makes_no_difference() -> None:
    chunks = pa.concat_tables([BASE.train.slice(0, 2), BASE.train.slice(2)])
    large = chunks.set_column(1, "text", chunks["text"].cast(pa.large_string()))
    assert replace(BASE, train=large).fingerprint == BASE.fingerprint


def test_vectors_are_part_of_the_fingerprint() -> None:
    def dataset(value: float) -> Dataset:
        vectors = pa.FixedSizeListArray.from_arrays(np.full(4, value, np.float32), 2)
        table = pa.table({"id": ["0", "1"], "vector": vectors, "target": ["a", "b"]})
        return Dataset(table, table, ("vector",), "vector", ("a", "b"))

    assert dataset(1.0).fingerprint == dataset(1.0).fingerprint != dataset(2.0).fingerprint


def test_a_column_that_is_not_text_says_its_kind() -> None:
    assert input_field("x", "image", pa.binary()).metadata == {b"kind": b"image"}
    assert input_field("x", "text", pa.string()).metadata is None
