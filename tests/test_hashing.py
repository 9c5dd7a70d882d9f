import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.hashing import digest, file_sha256, row_keys

TEXTS = st.lists(st.none() | st.text(), min_size=1, max_size=8)
NUMBERS = st.floats(width=32, allow_nan=False)
VECTORS = st.lists(st.none() | st.lists(st.none() | NUMBERS, max_size=4), min_size=1, max_size=8)
VALUES = st.none() | st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=3)


def keys(values: list, kind: pa.DataType, name: str = "x") -> list[bytes]:
    return row_keys(pa.table({name: pa.array(values, kind)}))


@given(TEXTS)
def test_text_has_one_key_whatever_its_type(values: list) -> None:
    assert keys(values, pa.string()) == keys(values, pa.large_string())


@given(VECTORS)
def test_lists_have_one_key_whatever_their_type(values: list) -> None:
    assert keys(values, pa.list_(pa.float32())) == keys(values, pa.large_list(pa.float32()))


@given(st.lists(st.none() | st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=8))
def test_lists_of_fixed_size_have_the_key_of_a_list(values: list) -> None:
    assert keys(values, pa.list_(pa.float32(), 3)) == keys(values, pa.list_(pa.float32()))


@given(VECTORS, TEXTS, st.data())
def test_a_key_depends_on_its_own_row_alone(vectors: list, texts: list, data: st.DataObject) -> None:
    rows = min(len(vectors), len(texts))
    table = pa.table({"v": pa.array(vectors[:rows], pa.list_(pa.float32())), "t": pa.array(texts[:rows], pa.string())})
    cut = data.draw(st.integers(0, rows))
    whole = row_keys(table)
    assert row_keys(pa.concat_tables([table.slice(0, cut), table.slice(cut)])) == whole
    assert row_keys(table.slice(cut)) == whole[cut:]
    assert row_keys(table.select(["t", "v"])) == whole


@given(VECTORS, st.integers(0, 7))
def test_different_vectors_have_different_keys(values: list, index: int) -> None:
    row = values[index % len(values)]
    if row is not None:
        changed = [*row[:-1], (row[-1] or 0.0) + 1.0] if row and abs(row[-1] or 0) < 1e6 else [*row, 1.0]
        kind = pa.list_(pa.float32())
        assert keys([row], kind) != keys([changed], kind)
    assert len(set(keys(values, pa.list_(pa.float32())))) == len({repr(zeros_alike(row)) for row in values})


def zeros_alike(row: list | None) -> list | None:
    """Both zeros are one number in a list without nulls; a list with a null is hashed as it is written."""
    return row if row is None or None in row else [number + 0.0 for number in row]


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=2, max_size=6, unique=True))
def test_columns_do_not_run_into_one_another(pairs: list) -> None:
    first, second = zip(*pairs, strict=True)
    assert len(set(row_keys(pa.table({"a": first, "b": second})))) == len(pairs)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["1"]), pa.array([1])),
        (pa.array(["1"]), pa.array([b"1"])),
        (pa.array([""]), pa.array([None], pa.string())),
        (pa.array([1]), pa.array([1.0])),
        (pa.array([[np.nan]]), pa.array([[None]], pa.list_(pa.float64()))),
        (pa.array([[1.0]], pa.list_(pa.float32())), pa.array([[1.0]], pa.list_(pa.float64()))),
        (pa.array([[]], pa.list_(pa.float32())), pa.array([None], pa.list_(pa.float32()))),
        (pa.array([[{"role": "a", "content": "b"}]]), pa.array([[{"role": "b", "content": "a"}]])),
    ],
)
def test_different_values_have_different_keys(one: pa.Array, other: pa.Array) -> None:
    assert row_keys(pa.table({"x": one})) != row_keys(pa.table({"x": other}))


def test_a_key_holds_the_column_names() -> None:
    assert keys(["a"], pa.string(), "x") != keys(["a"], pa.string(), "y")


def test_integer_width_and_the_sign_of_zero_in_a_list_make_no_difference() -> None:
    assert keys([3], pa.int8()) == keys([3], pa.int64())
    assert keys([[0.0]], pa.list_(pa.float32())) == keys([[-0.0]], pa.list_(pa.float32()))


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=5))
def test_the_order_of_a_mapping_makes_no_difference(mapping: dict) -> None:
    assert digest(mapping) == digest(dict(reversed(mapping.items())))


def test_a_file_that_changes_changes_its_hash(tmp_path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before = file_sha256(path)
    path.write_bytes(b"other")
    assert file_sha256(path) != before
