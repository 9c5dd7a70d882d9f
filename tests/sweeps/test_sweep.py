"""Sweeps on a real Ray cluster: what is shared, what is begun anew, what becomes of failures."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from graft import planning, runner
from graft.errors import SpecError
from graft.spec import Experiment
from graft.sweeps.axes import expand
from graft.sweeps.status import Status, Watcher
from graft.sweeps.sweep import SweepResult, run_sweep
from graft.sweeps.tuning import death

LINES = [f"a text about {topic} number {i},{topic}" for i in range(40) for topic in ("rain", "bread")]


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, Any]:
    """A spec over 80 rows of text: 2 classifiers x 2 amounts of data x 2 seeds."""
    rows = tmp_path_factory.mktemp("topics") / "rows.csv"
    rows.write_text("text,topic\n" + "\n".join(LINES) + "\n")
    return {
        "name": "topics",
        "task": {"name": "file", "path": str(rows), "text": "text", "label": "topic"},
        "models": {"encoder": {"source": str(tiny_bert)}},
        "method": {"name": "probe"},
        "sweep": {"axes": {"method.classifier": ["centroid", "ridge"], "regime.examples": [12, 24]}, "seeds": 2},
    }


class Recorder(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int, int]] = []
        self.shared: list[tuple[str, int, int]] = []

    def update(self, status: Status) -> None:
        self.counts.append((len(status.done), len(status.failed), len(status.running)))

    def rows(self, what: str, done: int, total: int) -> None:
        self.shared.append((what, done, total))


def plain(metrics: pa.Table) -> list[dict[str, Any]]:
    """What must not depend on how a run was carried out."""
    return metrics.select(["run_id", "metric", "value", "n", "examples", "seed", "status"]).to_pylist()


@dataclass
class Swept:
    """A sweep that was carried out, and what was said meanwhile."""

    experiment: Experiment
    storage: Path
    result: SweepResult
    recorder: Recorder

    @property
    def folder(self) -> Path:
        return self.storage / "sweeps" / self.result.sweep_id


def swept_in(storage: Path, values: dict[str, Any]) -> Swept:
    experiment, recorder = Experiment.from_mapping(values), Recorder()
    return Swept(experiment, storage, run_sweep(experiment, storage, watcher=recorder), recorder)


@pytest.fixture(scope="module")
def swept(ray_cluster: Any, values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return swept_in(tmp_path_factory.mktemp("swept"), values)


def test_a_sweep_gives_what_its_runs_give_one_by_one(swept: Swept, ray_cluster: Any, tmp_path: Path) -> None:
    assert swept.result.failed == 0
    single = [runner.run(member, tmp_path).metrics for member in expand(swept.experiment)]
    assert plain(swept.result.metrics) == plain(pa.concat_tables(single))
    assert swept.recorder.counts[0] == (0, 0, 0)
    assert swept.recorder.counts[-1] == (8, 0, 0)
    assert max(running for _, _, running in swept.recorder.counts) <= ray_cluster.cpus
    answers = parquet.read_table(swept.folder / "predictions.parquet")
    assert answers.num_rows == 8 * swept.result.metrics["n"][0].as_py()
    assert Path(swept.result.report).exists()
    assert not list(swept.storage.rglob("*.pkl"))


def test_tensorboard_reads_a_point_per_run(swept: Swept) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted((swept.folder / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == sorted(set(swept.result.metrics["run_id"].to_pylist()))
    events = EventAccumulator(str(folders[0])).Reload()
    (point,) = events.Scalars("accuracy")
    rows = [row for row in swept.result.metrics.to_pylist() if row["run_id"] == folders[0].name]
    (row,) = [row for row in rows if row["metric"] == "accuracy"]
    assert point.value == pytest.approx(row["value"])
    assert point.step == row["examples"]


def test_an_embedding_is_computed_once_over_the_whole_sweep(swept: Swept, values: dict[str, Any]) -> None:
    (shared,) = parquet.read_table(swept.folder / "shared.parquet").to_pylist()
    planned = planning.plans(expand(swept.experiment))
    tables = [table for plan in planned for table in (plan.examples, plan.dataset.test)]
    needed = {text for table in tables for text in table["text"].to_pylist()}
    assert shared["forward_passes"] == len(needed)
    assert sum(swept.result.metrics["forward_passes"].to_pylist()) == 0
    assert swept.recorder.shared[-1][1:] == (len(needed), len(needed))
    assert f"{len(needed)} forward passes" in Path(swept.result.report).read_text()
    # Another arm later: nothing new is computed, only the new runs are carried out.
    axes = {"method.classifier": ["centroid", "ridge", "knn"], "regime.examples": [12, 24]}
    wider = swept_in(swept.storage, {**values, "sweep": {"axes": axes, "seeds": 2}})
    assert wider.recorder.counts[0] == (8, 0, 0)
    assert wider.recorder.counts[-1] == (12, 0, 0)
    assert sum(wider.result.metrics["forward_passes"].to_pylist()) == 0
    assert not (wider.folder / "shared.parquet").exists()


METHOD = '''
"""A method that draws from the process's own random streams, leaves traces in its process, and may end it."""
import dataclasses, os, random, time
from typing import Literal
import numpy as np, torch
from graft.arrays import answer_columns
from graft.graph import Graph
from graft.node import Node
from graft.spec import Method

class Careless(Method):
    name: Literal["careless"]
    deed: str = "draw"
    def roles(self, task):
        return ()
    def graph(self, task, dataset, models):
        return Graph([Draw(self.deed, dataset.inputs)], dataset.inputs)

@dataclasses.dataclass(frozen=True)
class Draw(Node):
    deed: str
    reads: tuple[str, ...]
    labels: tuple[str, ...] = ()
    drawn: np.ndarray | None = None
    pid: int = 0
    writes = ("prediction", "scores")
    def fit(self, rows, context):
        if self.deed == "die":
            os._exit(1)
        if self.deed == "allocate":
            torch.empty(2**50)
        if self.deed == "grow":
            held = []
            while True:
                held.append(np.ones(2**23))  # 64 MiB, written to
                time.sleep(0.02)
        if self.deed == "raise":
            raise RuntimeError("this method has a fault")
        drawn = np.array([random.random(), np.random.rand(), torch.rand(1).item()])
        np.random.rand(7)
        return dataclasses.replace(self, labels=context.labels, drawn=drawn, pid=os.getpid())
    def run(self, rows):
        scores = np.random.rand(rows.num_rows, len(self.labels)) + torch.rand(1).item()
        return answer_columns(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), self.labels)
'''


@pytest.fixture
def careless(tmp_path: Path) -> Path:
    """A folder with that method as an installed package, and a sweep over it."""
    package = tmp_path / "careless"
    package.mkdir()
    (package / "__init__.py").write_text(METHOD)
    installed = tmp_path / "careless-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: careless\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[graft.methods]\ncareless = careless:Careless\n")
    (tmp_path / "spec.yaml").write_text("name: careless\ntask: {name: wine}\nmethod: {name: careless}\n")
    return tmp_path


def graft(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = (
        os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])} | variables
    )
    command = [sys.executable, "-m", "graft.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def settings(run: Path) -> dict[str, Any]:
    """What that method has left in a run."""
    found: dict[str, Any] = json.loads((run / "graph" / "0-draw" / "config.json").read_text())["settings"]
    return found


def test_what_passes_from_trial_to_trial_is_the_process_and_nothing_else(careless: Path) -> None:
    sweep = "sweep={axes: {regime.examples: [8, 16]}, seeds: 3}"
    swept = graft(careless, "sweep", "spec.yaml", sweep, "--storage", "swept", "--concurrent", "1")
    assert swept.returncode == 0, swept.stderr
    runs = sorted((careless / "swept" / "runs").iterdir())
    assert len(runs) == 6
    assert len({settings(run)["pid"] for run in runs}) == 1  # one actor carried out all six
    for words in (["regime.examples=8"], ["regime.examples=16", "regime.seed=2", "training.seed=2"]):
        answer = graft(careless, "run", "spec.yaml", *words, "--storage", "single")
        assert answer.returncode == 0, answer.stderr
    for alone in (careless / "single" / "runs").iterdir():
        together = careless / "swept" / "runs" / alone.name
        one, other = (parquet.read_table(run / "predictions.parquet") for run in (alone, together))
        assert one.equals(other)


@pytest.mark.slow
def test_a_fault_and_a_death_are_rows_and_the_others_go_on(careless: Path) -> None:
    sweep = "sweep={axes: {method.deed: [draw, allocate, draw-again, raise, die]}}"
    swept = graft(careless, "sweep", "spec.yaml", sweep, "--concurrent", "1")
    assert swept.returncode == 1, swept.stderr
    assert "3 of 5 runs failed" in swept.stderr
    assert "Traceback" not in swept.stdout
    (folder,) = (careless / "sweeps").iterdir()
    rows = parquet.read_table(folder / "metrics.parquet").to_pylist()
    failed = {row["error"] for row in rows if row["status"] == "failed"}
    assert len({row["run_id"] for row in rows}) == 5
    assert any("this method has a fault" in error for error in failed)
    assert any("its process died" in error for error in failed)
    (memory,) = (
        error for error in failed if error.startswith("ran out of memory (DefaultCPUAllocator: can't allocate")
    )
    assert "lower training.tokens_per_batch" in memory
    done = {row["run_id"] for row in rows if row["status"] == "done"}
    pids = {settings(careless / "runs" / run)["pid"] for run in done}
    assert len(pids) == len(done) == 2  # what ran out of memory has left its process to nobody
    assert "this method has a fault" in (folder / "report.html").read_text()


@pytest.mark.long
def test_what_ray_ends_for_memory_is_a_row_and_the_others_go_on(careless: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < 6 * 2**30:
        pytest.skip("needs 6 GiB of free memory")
    allowed = (memory.total - memory.available + 3 * 2**30) / memory.total
    words = ["sweep={axes: {method.deed: [grow, draw]}}", "--concurrent", "1"]
    swept = graft(careless, "sweep", "spec.yaml", *words, RAY_memory_usage_threshold=str(allowed))
    assert swept.returncode == 1, swept.stderr
    (folder,) = (careless / "sweeps").iterdir()
    rows = parquet.read_table(folder / "metrics.parquet").to_pylist()
    (error,) = {row["error"] for row in rows if row["status"] == "failed"}
    assert error.startswith("ran out of memory (Ray ended its process, each time it was tried: its node had ")
    assert "sweep.trial.cpus" in error
    assert any(row["status"] == "done" for row in rows)


def test_a_death_is_told_in_a_line() -> None:
    killed = """Failure # 4 (occurred at 2026-11-28_00-53-10)
The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called"""
    said = death(killed)
    assert said.startswith("its process died (Worker unexpectedly exits with a connection error code 2. End of file), ")
    assert "if it was killed for memory, lower training.tokens_per_batch" in said
    assert "killed for memory" not in death("Worker exit detail: Worker exits with an exit code 1.")
    assert death("").startswith("its process died, each time it was tried")


def test_more_cpus_than_exist_are_refused_at_once(ray_cluster: Any, values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--concurrent 64 needs 64 CPUs, the cluster at"):
        run_sweep(Experiment.from_mapping(values), tmp_path, concurrent=64)
    with pytest.raises(SpecError, match=r"scaling\.workers: 64 needs 64 CPUs, the cluster at"):
        run_sweep(Experiment.from_mapping({**values, "scaling": {"workers": 64}}), tmp_path)
    assert not list(tmp_path.iterdir())
