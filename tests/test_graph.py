"""Graphs of small real nodes: checks, the store's share, saving."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pytest

from graft import models
from graft.errors import DataError, GraftError, ModelError, SpecError
from graft.execution import Progress, run_node
from graft.graph import Graph
from graft.node import Context, Node
from graft.spec import Experiment
from graft.storage import open_storage
from graft.store import ColumnStore

computed: list[int] = []


@dataclasses.dataclass(frozen=True)
class Double(Node):
    """Doubles a number, and notes that it did."""

    factor: int = 2
    reads = ("x",)
    writes = ("doubled",)
    storable = True
    chunk_rows = 3

    def run(self, rows: pa.Table) -> pa.Table:
        numbers = rows["x"].to_pylist()
        computed.extend(numbers)
        return pa.table({"doubled": pa.array([self.factor * number for number in numbers], pa.int64())})


@dataclasses.dataclass(frozen=True)
class Shift(Node):
    """Adds the mean of what it was fitted on."""

    mean: np.ndarray | None = None
    reads = ("doubled",)
    writes = ("prediction",)

    def fit(self, rows: pa.Table, context: Context) -> Self:
        return dataclasses.replace(self, mean=np.array([np.mean(rows["doubled"].to_pylist())]))

    def run(self, rows: pa.Table) -> pa.Table:
        assert self.mean is not None
        return pa.table({"prediction": pa.array(rows["doubled"].to_numpy() + self.mean[0])})


def rows(numbers: list[int]) -> pa.Table:
    return pa.table({"id": [str(number) for number in numbers], "x": numbers, "target": ["?"] * len(numbers)})


@pytest.fixture
def context() -> Context:
    values = {"name": "x", "task": {"name": "digits"}, "method": {"name": "probe"}}
    return Context(Experiment.from_mapping(values), None)


@pytest.fixture
def store(tmp_path: Path) -> ColumnStore:
    computed.clear()
    return ColumnStore(open_storage(tmp_path / "store"))


def test_columns_flow_from_node_to_node(context: Context) -> None:
    graph = Graph([Double(), Shift()], ["x"])
    fitted = graph.fit(rows([1, 2, 3]), context)
    assert fitted.run(rows([10]))["prediction"].to_pylist() == [24.0]
    assert graph.nodes[1].mean is None, "fitting leaves the graph as it was"  # type: ignore[attr-defined]


def test_a_column_that_nothing_writes_is_refused() -> None:
    with pytest.raises(SpecError, match=r"shift reads 'doubled', which nothing before it writes"):
        Graph([Shift()], ["x"])


def test_a_column_written_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="there already"):
        Graph([Double(), Double()], ["x"])


def test_a_missing_input_column_is_named(context: Context) -> None:
    graph = Graph([Double()], ["x"])
    with pytest.raises(DataError, match=r"'x' is missing.*known: id, y"):
        graph.run(pa.table({"id": ["1"], "y": [1]}))


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        run_node(Double(), rows([]), None)


def test_each_distinct_row_is_computed_once_whatever_its_order(store: ColumnStore) -> None:
    first = run_node(Double(), rows([5, 3, 5, 1, 3]), store)
    assert first["doubled"].to_pylist() == [10, 6, 10, 2, 6]
    assert computed == [5, 3, 1]
    again = run_node(Double(), rows([1, 7, 3]), store)
    assert again["doubled"].to_pylist() == [2, 14, 6]
    assert computed == [5, 3, 1, 7]


def test_another_setting_is_another_column(store: ColumnStore) -> None:
    run_node(Double(), rows([1]), store)
    assert run_node(Double(factor=3), rows([1]), store)["doubled"].to_pylist() == [3]
    assert Double().fingerprint() == Double().fingerprint() != Double(factor=3).fingerprint()


@dataclasses.dataclass
class Elsewhere:
    """A pool that stores all rows but the last `leaves`."""

    min_rows: int
    leaves: int = 0
    asked: list[int] = dataclasses.field(default_factory=list)

    def fill(self, node: Node, keys: Sequence[bytes], rows: pa.Table, store: ColumnStore, progress: Progress) -> None:
        kept = rows.num_rows - self.leaves
        self.asked.append(rows.num_rows)
        store.append(node.column(), keys[:kept], node.run(rows.slice(0, kept)), 1.0)


def test_a_pool_computes_what_is_missing_in_great_number(store: ColumnStore) -> None:
    pool = Elsewhere(min_rows=3)
    run_node(Double(), rows([1, 2, 3]), store, pool=pool)
    assert pool.asked == [], "as many as min_rows are computed here"
    answers = run_node(Double(), rows([9, 1, 8, 9, 7, 6, 2]), store, pool=pool)
    assert pool.asked == [4], "distinct rows that the store lacks"
    assert answers["doubled"].to_pylist() == [18, 2, 16, 18, 14, 12, 4]
    assert store.reads == 2, "what was computed for this very call is not counted as read"


def test_what_a_pool_leaves_is_computed_here(store: ColumnStore) -> None:
    answers = run_node(Double(), rows([1, 2, 3, 4, 5]), store, pool=Elsewhere(min_rows=3, leaves=2))
    assert answers["doubled"].to_pylist() == [2, 4, 6, 8, 10]
    assert computed == [1, 2, 3, 4, 5]


def test_fitting_and_running_go_through_the_pool(context: Context, store: ColumnStore) -> None:
    pool = Elsewhere(min_rows=3)
    fitted = Graph([Double(), Shift()], ["x"]).fit(
        rows([1, 2, 3, 4]), dataclasses.replace(context, store=store, pool=pool)
    )
    fitted.run(rows([5, 6, 7, 8, 9]), store, pool=pool)
    assert pool.asked == [4, 5]


class Killed(BaseException):
    """Stands for a kill between two chunks."""


def test_killed_between_chunks_it_goes_on_after_the_last_one(store: ColumnStore) -> None:
    def kill_late(what: str, done: int, total: int) -> None:
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        run_node(Double(), rows(list(range(10))), store, kill_late)
    assert computed == list(range(6))
    run_node(Double(), rows(list(range(10))), store)
    assert computed == list(range(10))


def test_a_node_that_gives_the_wrong_columns_is_told_so(store: ColumnStore) -> None:
    class Wrong(Double):
        writes = ("tripled",)

    for kept in (None, store):
        with pytest.raises(GraftError, match=r"gave 1 rows of \['doubled'\].*must give 1 rows of \['tripled'\]"):
            run_node(Wrong(), rows([1]), kept)
    assert store.holdings() == [], "what is wrong is not kept"


def test_a_raised_version_is_another_column(store: ColumnStore) -> None:
    class Mended(Double):
        version = 2

    Mended.__qualname__ = Double.__qualname__
    assert Mended().fingerprint() != Double().fingerprint()


def test_saving_and_loading_needs_an_installed_class(context: Context, tmp_path: Path) -> None:
    Graph([Double(), Shift()], ["x"]).fit(rows([1]), context).save(tmp_path)
    with pytest.raises(DataError, match="no installed method provides"):
        Graph.load(tmp_path, models.load)


def test_a_tampered_graph_is_refused(context: Context, tmp_path: Path) -> None:
    values = {"name": "x", "task": {"name": "wine"}, "method": {"name": "probe"}}
    experiment = Experiment.from_mapping(values)
    dataset = experiment.task.read()
    assert experiment.method is not None
    graph = experiment.method.graph(experiment.task, dataset, {})
    graph.fit(dataset.train, Context(experiment, dataset.labels)).save(tmp_path)
    Graph.load(tmp_path, models.load)
    config = tmp_path / "0-classify" / "config.json"
    whole = config.read_text()
    config.write_text(whole[:50])
    with pytest.raises(DataError, match="is damaged"):
        Graph.load(tmp_path, models.load)
    config.write_text(whole)
    config.write_text(config.read_text().replace('"class_0"', '"class_9"'))
    with pytest.raises(ModelError, match="has changed"):
        Graph.load(tmp_path, models.load)
    content = json.loads((tmp_path / "graph.json").read_text())
    for change, expected in (({"format": 99}, "format 99"), ({"nodes": [{"class": "os:system"}]}, "cannot be read")):
        (tmp_path / "graph.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match=expected):
            Graph.load(tmp_path, models.load)
    with pytest.raises(DataError, match=r"no graph\.json"):
        Graph.load(tmp_path / "nowhere", models.load)
