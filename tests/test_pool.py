"""The pool on a real cluster: the numbers of one process, each row computed once, whatever is killed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from graft import models, planning, pool, prediction, runner
from graft.arrays import matrix
from graft.cluster import Cluster
from graft.errors import ClusterError, ModelError
from graft.execution import run_node
from graft.methods.embed import Embed
from graft.node import Node
from graft.pool import RayPool
from graft.spec import Experiment
from graft.storage import open_storage
from graft.store import ColumnStore

# Ray 2.60 sets settings of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@dataclasses.dataclass(frozen=True)
class Deadly(Embed):
    """Ends the first process that runs it, and every one that reads a certain text."""

    marker: str = ""

    def run(self, rows: pa.Table) -> pa.Table:
        try:
            Path(self.marker).touch(exist_ok=False)
            first = True
        except FileExistsError:
            first = False
        if first or "poison" in rows["text"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(rows)


@dataclasses.dataclass(frozen=True)
class Unchecked(Embed):
    """Finds out late that a text is too long."""

    def check(self, rows: pa.Table) -> None:
        pass


@pytest.fixture(scope="module")
def cluster(ray_cluster: Cluster) -> Cluster:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    return ray_cluster


@pytest.fixture
def store(tmp_path: Path) -> ColumnStore:
    return runner.open_store(open_storage(tmp_path))


def texts(count: int) -> pa.Table:
    return pa.table({"text": [f"row {i} says " + "word " * (i * 7 % 23) for i in range(count)]})


def embed(kind: type[Embed], model: Path, **fields: Any) -> Embed:
    return kind(model=models.load(str(model)), reads=("text",), kind="text", **fields)


def stored_rows(folder: Path) -> Counter[bytes]:
    """How often each row is stored."""
    shards = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in folder.glob("store/columns/*/*.arrow")]
    return Counter(key for shard in shards for key in shard["__key"].to_pylist())


def experiment(folder: Path, model: Path, rows: int, **changes: Any) -> Experiment:
    table = texts(rows).append_column("topic", pa.array([f"t{i % 3}" for i in range(rows)]))
    csv.write_csv(table, folder / "rows.csv")
    values = {
        "name": "pool",
        "models": {"encoder": {"source": str(model)}},
        "task": {"name": "file", "path": str(folder / "rows.csv"), "text": "text", "label": "topic"},
        "regime": {"examples": 24},
        "method": {"name": "probe", "classifier": "ridge"},
    }
    return Experiment.from_mapping({**values, **changes})


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_nothing_is_computed_twice(
    cluster: Cluster, tiny_bert: Path, store: ColumnStore, tmp_path: Path
) -> None:
    rows, marker = texts(60), tmp_path / "died"
    node = embed(Deadly, tiny_bert, marker=str(marker))
    with RayPool(tmp_path, min_rows=8) as several:
        pooled = run_node(node, rows, store, pool=several)
        assert marker.exists()
        before = node.model.usage.forward_passes
        again = run_node(node, rows, store, pool=several)
        assert node.model.usage.forward_passes == before
    assert store.reads == 60, "what the first call has computed itself is not counted as read"
    assert again.equals(pooled)
    assert set(stored_rows(tmp_path).values()) == {1}
    alone = run_node(embed(Embed, tiny_bert), rows, None)
    assert matrix(pooled["embedding"]) == pytest.approx(matrix(alone["embedding"]), rel=1e-5, abs=1e-6)


@pytest.mark.long
def test_rationales_of_many_rows_are_written_by_the_pool(
    cluster: Cluster, tiny_llama: Path, store: ColumnStore, tmp_path: Path
) -> None:
    base = {"source": str(tiny_llama)}
    method = {"name": "fiat", "exemplars": 0, "max_rationale_tokens": 4}
    wanted = experiment(tmp_path, tiny_llama, 90, models={"teacher": base, "student": base}, method=method)
    plan = planning.plan(wanted)
    explain, rows, said = plan.graph.nodes[0], plan.examples.select(["id", "text"]), []
    with RayPool(tmp_path, min_rows=8) as several:
        pooled = run_node(explain, rows, store, lambda what, done, total: said.append((done, total)), several)
    assert (store.tallies["teacher_calls"], store.tallies["teacher_reads"]) == (24, 0)
    assert said[-1] == (24, 24)
    assert set(stored_rows(tmp_path).values()) == {1}
    alone = explain.run(rows.select(["text"]))
    assert pooled["rationale"].to_pylist() == alone["rationale"].to_pylist()


def test_an_error_in_a_worker_arrives_as_itself(
    cluster: Cluster, tiny_bert: Path, store: ColumnStore, tmp_path: Path
) -> None:
    rows = pa.concat_tables([texts(40), pa.table({"text": ["long " * 400]})])
    with (
        RayPool(tmp_path, min_rows=8) as several,
        pytest.raises(ModelError, match=r"the longest text has \d+ tokens, its context holds 128"),
    ):
        run_node(embed(Unchecked, tiny_bert), rows, store, pool=several)


def test_all_cpus_taken_is_said_at_once(
    cluster: Cluster, tiny_bert: Path, store: ColumnStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(pool, "FREE_SECONDS", 0.5)
    taken = placement_group([{"CPU": cluster.cpus}])
    try:
        ray.get(taken.ready(), timeout=60)
        with RayPool(tmp_path, min_rows=8) as several, pytest.raises(ClusterError, match="needs a free CPU"):
            run_node(embed(Embed, tiny_bert), texts(20), store, pool=several)
    finally:
        remove_placement_group(taken)


@pytest.mark.long
def test_more_than_ten_thousand_rows_of_a_file_go_through_the_pool(
    cluster: Cluster, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = experiment(tmp_path, tiny_bert, 150).run(tmp_path)
    known = len(stored_rows(tmp_path))
    csv.write_csv(asked := texts(10_100), tmp_path / "asked.csv")
    filled: list[int] = []
    fill = RayPool.fill

    def noted(self: RayPool, node: Node, keys: list[bytes], rows: pa.Table, *others: Any) -> None:
        filled.append(rows.num_rows)
        fill(self, node, keys, rows, *others)

    monkeypatch.setattr(RayPool, "fill", noted)
    seen: list[tuple[int, int]] = []
    count = prediction.predict_file(
        result.run_id,
        tmp_path / "asked.csv",
        tmp_path / "out.parquet",
        str(tmp_path),
        lambda what, done, total: seen.append((done, total)),
    )
    assert (count, filled) == (10_100, [10_100 - known]), "what the run has computed is not computed again"
    assert set(stored_rows(tmp_path).values()) == {1}
    assert seen[-1] == (filled[0], filled[0])
    assert len(seen) > 15, "progress block by block"
    answers, some = parquet.read_table(tmp_path / "out.parquet"), np.arange(0, 10_100, 500)
    assert answers["text"].equals(asked["text"])
    expected = result.graph.run(asked.take(some))
    assert matrix_of_scores(answers.take(some)) == pytest.approx(matrix_of_scores(expected), rel=1e-5, abs=1e-6)


def matrix_of_scores(answers: pa.Table) -> np.ndarray:
    return np.array([list(row.values()) for row in answers["scores"].to_pylist()])


def test_fewer_rows_start_no_ray(tiny_bert: Path, tmp_path: Path) -> None:
    program = """
import sys
import time
from pathlib import Path
from graft.prediction import predict_file
from graft.spec import Experiment
result = Experiment.from_mapping(eval(sys.argv[1])).run(".")
assert predict_file(result.run_id, Path("rows.csv"), Path("out.csv")) == 150
assert "ray" not in sys.modules
"""
    values = experiment(tmp_path, tiny_bert, 150).to_mapping()
    subprocess.run([sys.executable, "-c", program, repr(values)], cwd=tmp_path, check=True)


@pytest.mark.long
def test_rows_that_end_every_process_are_given_up(
    cluster: Cluster, tiny_bert: Path, store: ColumnStore, tmp_path: Path
) -> None:
    (tmp_path / "died").touch()
    rows = pa.concat_tables([texts(40), pa.table({"text": ["poison"]})])
    node = embed(Deadly, tiny_bert, marker=str(tmp_path / "died"))
    with RayPool(tmp_path, min_rows=8) as several, pytest.raises(ClusterError, match="has ended 3 processes"):
        run_node(node, rows, store, pool=several)


@pytest.mark.slow
def test_what_the_store_refuses_is_computed_here(
    cluster: Cluster, tiny_bert: Path, store: ColumnStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "columns").write_text("no folder can be made here")
    with RayPool(tmp_path, min_rows=8) as several:
        pooled = run_node(embed(Embed, tiny_bert), texts(40), store, pool=several)
    alone = run_node(embed(Embed, tiny_bert), texts(40), None)
    assert matrix(pooled["embedding"]) == pytest.approx(matrix(alone["embedding"]), rel=1e-5, abs=1e-6)
    assert "takes nothing more" in caplog.text


DRIVER = """
import sys
import time
import pyarrow as pa
from graft import models, runner
from graft.execution import run_node
from graft.methods.embed import Embed
from graft.pool import RayPool
from graft.storage import open_storage

class Small(Embed):
    chunk_rows = 50

folder, model = sys.argv[1:]
node = Small(model=models.load(model), reads=("text",), kind="text")
rows = pa.table({"text": [f"{i} " + "word " * 30 for i in range(4000)]})
store = runner.open_store(open_storage(folder))
with RayPool(folder, min_rows=8) as pool:
    assert run_node(node, rows, store, pool=pool).num_rows == 4000
print(node.model.usage.forward_passes)
"""


@pytest.mark.long
def test_a_killed_driver_goes_on_where_it_ended(tiny_bert: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(tiny_bert)]
    with subprocess.Popen(command) as driver:
        while not stored_rows(tmp_path):
            assert driver.poll() is None
            time.sleep(0.05)
        started = psutil.Process(driver.pid).children(recursive=True)
        names = {process: process.name() for process in started}
        driver.kill()
    workers = [process for process, name in names.items() if not name.endswith("Agent")]
    assert not psutil.wait_procs(workers, timeout=60)[1], "the cluster of a killed process ends by itself"
    done = len(stored_rows(tmp_path))
    assert 0 < done < 4000
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(again.stdout) == 4000 - done
    assert Counter(stored_rows(tmp_path).values()) == {1: 4000}
    psutil.wait_procs(started, timeout=180)  # agents try for a minute to tell the dead head
