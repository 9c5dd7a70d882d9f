"""The column store's laws: nothing wrong is ever readable, nothing finished is computed again."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from graft.storage import children, open_storage
from graft.store import ColumnStore

COLUMN = "f" * 32


def store_at(folder: Path, limit_bytes: int = 2**30) -> ColumnStore:
    return ColumnStore(open_storage(folder), limit_bytes)


def keys_of(numbers: range | list[int]) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def squares(numbers: range | list[int]) -> pa.Table:
    return pa.table({"square": pa.array([number**2 for number in numbers], pa.int64())})


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("columns/*/*.arrow"))


def test_rows_come_back_as_they_were_written_and_in_the_order_asked(tmp_path: Path) -> None:
    store_at(tmp_path).append(COLUMN, keys_of(range(10)), squares(range(10)), seconds=1.0)
    store = store_at(tmp_path)
    positions, found = store.lookup(COLUMN, keys_of([7, 99, 3, 7]))
    assert positions.tolist() == [0, 2, 3]
    assert found is not None
    assert found["square"].to_pylist() == [49, 9, 49]
    assert store.reads == 3
    assert store.seconds_saved == pytest.approx(0.3)


def test_another_fingerprint_is_another_column(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.append(COLUMN, keys_of([1]), squares([1]), seconds=1.0)
    positions, found = store.lookup("e" * 32, keys_of([1]))
    assert len(positions) == 0
    assert found is None


@settings(max_examples=20)
@given(batches=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True), min_size=1, max_size=6))
def test_any_sequence_of_writes_reads_back(tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("store")
    for batch in batches:
        store_at(folder).append(COLUMN, keys_of(batch), squares(batch), seconds=0.1)
    written = sorted({number for batch in batches for number in batch})
    positions, found = store_at(folder).lookup(COLUMN, keys_of(range(51)))
    assert positions.tolist() == written
    assert found is not None
    assert found["square"].to_pylist() == [number**2 for number in written]


def test_vectors_and_nested_columns_are_stored_bit_for_bit(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 7)
    scores = pa.StructArray.from_arrays([pa.array([0.1] * 5), pa.array([-np.inf] * 5)], names=["a", "b c"])
    table = pa.table({"embedding": column, "scores": scores})
    store_at(tmp_path).append(COLUMN, keys_of(range(5)), table, seconds=1.0)
    _, found = store_at(tmp_path).lookup(COLUMN, keys_of(range(5)))
    assert found is not None
    assert found.schema == table.schema
    assert np.asarray(found["embedding"].combine_chunks().flatten()).tobytes() == vectors.tobytes()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_shard_is_set_aside_and_its_rows_are_missing(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = store_at(tmp_path)
    writer.append(COLUMN, keys_of([1]), squares([1]), seconds=1.0)
    writer.append(COLUMN, keys_of([2]), squares([2]), seconds=1.0)
    victim = shards(tmp_path)[0]
    data = bytearray(victim.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    victim.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    store = store_at(tmp_path)
    positions, found = store.lookup(COLUMN, keys_of([1, 2]))
    assert len(positions) == 1
    assert found is not None
    assert store.corrupt == 1
    assert "damaged" in caplog.text
    assert victim.with_name(victim.name + ".corrupt").exists()
    store.append(COLUMN, keys_of([1, 2]), squares([1, 2]), seconds=1.0)
    assert len(store_at(tmp_path).lookup(COLUMN, keys_of([1, 2]))[0]) == 2


def _write_many(folder: str, first: int) -> None:
    store = store_at(Path(folder))
    for number in range(first, first + 40):
        store.append(COLUMN, keys_of([number]), squares([number]), seconds=0.1)


def test_many_processes_write_one_column_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_many, args=(str(tmp_path), first)) for first in (0, 20, 40)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    store = store_at(tmp_path)
    positions, found = store.lookup(COLUMN, keys_of(range(80)))
    assert positions.tolist() == list(range(80))
    assert found is not None
    assert found["square"].to_pylist() == [number**2 for number in range(80)]
    assert store.corrupt == 0


WRITE_FOREVER = """
import sys, itertools
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store import COLUMN, keys_of, squares, store_at
store = store_at(Path({folder!r}))
for start in itertools.count(0, 500):
    rows = range(start, start + 500)
    store.append(COLUMN, keys_of(rows), squares(rows), seconds=0.1)
    print(start, flush=True)
"""


def test_killed_while_writing_it_loses_at_most_what_it_had_not_appended(tmp_path: Path) -> None:
    code = WRITE_FOREVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    appended = 0
    for delay in (0.01, 0.03, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        said = [first, *process.stdout.readlines()]
        process.wait()
        process.stdout.close()
        appended = max(appended, *(int(line) + 500 for line in said if line.strip().isdigit()))
    store = store_at(tmp_path)
    positions, found = store.lookup(COLUMN, keys_of(range(appended)))
    assert len(positions) == appended
    assert found is not None
    assert found["square"].to_pylist() == [number**2 for number in range(appended)]
    assert store.corrupt == 0


def test_over_its_limit_it_evicts_the_least_recently_used(tmp_path: Path) -> None:
    payload = pa.table({"blob": pa.array([os.urandom(100_000)])})
    first = store_at(tmp_path)
    for column in ("a", "b"):
        first.append(column * 32, keys_of([1]), payload, seconds=1.0)
    time.sleep(0.01)
    store_at(tmp_path).lookup("b" * 32, keys_of([1]))
    reader = store_at(tmp_path)
    reader.lookup("a" * 32, keys_of([1]))
    reader.flush()
    writer = store_at(tmp_path, limit_bytes=270_000)
    writer.append("c" * 32, keys_of([1]), payload, seconds=1.0)
    kept = {path.parent.name[0] for path in shards(tmp_path)}
    assert kept == {"a", "c"}, "b was used least recently"
    assert len(writer.lookup("a" * 32, keys_of([1]))[0]) == 1


def test_holdings_count_what_all_processes_read(tmp_path: Path) -> None:
    writer = store_at(tmp_path)
    writer.append(COLUMN, keys_of(range(4)), squares(range(4)), seconds=2.0, about="embed(x)")
    for _ in range(2):
        reader = store_at(tmp_path)
        reader.lookup(COLUMN, keys_of(range(4)))
        reader.flush()
    (holding,) = store_at(tmp_path).holdings()
    assert holding.node == "embed(x)"
    assert holding.reads == 8
    assert holding.seconds_saved == pytest.approx(4.0)
    assert holding.bytes == sum(path.stat().st_size for path in shards(tmp_path))


def test_a_shard_that_is_appended_twice_counts_once(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for numbers in ([1, 2], [1, 2], [3, 4]):
        store.append(COLUMN, keys_of(numbers), squares(numbers), seconds=1.0)
    _, found = store.lookup(COLUMN, keys_of([1, 2, 3, 4]))
    assert found is not None
    assert found["square"].to_pylist() == [1, 4, 9, 16]


def test_many_accounts_are_folded_into_one_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    store_at(tmp_path).append(COLUMN, keys_of(range(4)), squares(range(4)), seconds=2.0)
    for _ in range(70):
        reader = store_at(tmp_path)
        reader.lookup(COLUMN, keys_of([0]))
        reader.flush()
    store_at(tmp_path).append("e" * 32, keys_of([1]), squares([1]), seconds=1.0)
    assert len(list((tmp_path / "usage").iterdir())) == 1
    holdings = {holding.fingerprint: holding for holding in store_at(tmp_path).holdings()}
    assert holdings[COLUMN].reads == 70


class FullDisk(fs.FileSystemHandler):
    """A real file system whose writes fail with 'no space left'."""

    def __init__(self, inner: fs.FileSystem):
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def _refuse(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    get_type_name = lambda self: "full"  # noqa: E731
    normalize_path = lambda self, path: path  # noqa: E731
    get_file_info = lambda self, paths: self.inner.get_file_info(paths)  # noqa: E731
    get_file_info_selector = lambda self, selector: self.inner.get_file_info(selector)  # noqa: E731
    create_dir = lambda self, path, recursive: self.inner.create_dir(path, recursive=recursive)  # noqa: E731
    open_input_stream = lambda self, path: self.inner.open_input_stream(path)  # noqa: E731
    open_input_file = lambda self, path: self.inner.open_input_file(path)  # noqa: E731
    delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse


def test_a_full_disk_costs_no_result_and_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ColumnStore(fs.PyFileSystem(FullDisk(open_storage(tmp_path))))
    for number in (1, 2):
        store.append(COLUMN, keys_of([number]), squares([number]), seconds=1.0)
    assert caplog.text.count("keeps nothing more") == 1
    assert children(open_storage(tmp_path), f"columns/{COLUMN}") == []
    assert len(store.lookup(COLUMN, keys_of([1]))[0]) == 0


class Unreadable(FullDisk):
    """A file system that cannot be listed."""

    def _list(self, *_: object) -> None:
        raise OSError(5, "Input/output error")

    get_file_info = get_file_info_selector = _list


def test_a_store_that_cannot_be_read_is_a_store_without_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ColumnStore(fs.PyFileSystem(Unreadable(open_storage(tmp_path))))
    store.append(COLUMN, keys_of([1]), squares([1]), seconds=1.0)
    assert len(store.lookup(COLUMN, keys_of([1]))[0]) == 0
    assert "computed again" in caplog.text
