"""A sweep that is killed, again and again: nothing is lost, nothing counted twice, nothing left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

GRAFT = [sys.executable, "-m", "graft.cli"]

SPEC = """
name: killed
task: {name: file, path: rows.csv, text: text, label: topic}
models: {encoder: {source: MODEL}}
method: {name: probe}
sweep:
  axes: {regime.examples: [8, 12, 16, 24, 32]}
  ablations: {ladder: [method.classifier=ridge, method.classifier=centroid, method.classifier=majority]}
  seeds: 3
"""

LADDER = """
name: killed
task: {name: file, path: rows.csv, text: text, label: topic, rationale: why, test_examples: 30}
models: {teacher: {source: MODEL}, student: {source: MODEL}}
regime: {examples: 16}
method: {name: fiat, exemplars: 1, max_rationale_tokens: 8}
training: {max_steps: 6, tokens_per_batch: 512}
sweep:
  ablations: {ladder: [method.rationale=none, method.instruction=false, method.adapter=full]}
  seeds: 2
"""

TOPICS = ("rain", "bread", "trains")


@pytest.fixture
def desks(tmp_path: Path, tiny_bert: Path) -> tuple[Path, Path]:
    """Two folders with the same spec of 60 runs."""
    return written(tmp_path, SPEC.replace("MODEL", str(tiny_bert)))


@pytest.fixture
def ladders(tmp_path: Path, tiny_llama: Path) -> tuple[Path, Path]:
    """Two folders with the same ladder of 8 runs, of which two read rationales."""
    return written(tmp_path, LADDER.replace("MODEL", str(tiny_llama)))


def written(folder: Path, spec: str) -> tuple[Path, Path]:
    lines = [f"a text about {topic} number {i},{topic},it says {topic}" for i in range(60) for topic in TOPICS]
    for name in ("calm", "killed"):
        (folder / name).mkdir()
        (folder / name / "rows.csv").write_text("text,topic,why\n" + "\n".join(lines) + "\n")
        (folder / name / "spec.yaml").write_text(spec)
    return folder / "calm", folder / "killed"


def done(desk: Path) -> int:
    return len(list(desk.glob("runs/*/metrics.parquet")))


def tables(desk: Path) -> tuple[pa.Table, pa.Table]:
    """Metrics and predictions of the sweep, in an order of their own, without costs and times."""
    (folder,) = (desk / "sweeps").iterdir()
    metrics = parquet.read_table(folder / "metrics.parquet")
    metrics = metrics.select(
        ["run_id", "metric", "split", "value", "n", "examples", "seed", "ablation", "status", "error", "task_sha"]
    )
    answers = parquet.read_table(folder / "predictions.parquet")
    return (
        metrics.sort_by([("run_id", "ascending"), ("metric", "ascending")]),
        answers.sort_by([("run_id", "ascending"), ("id", "ascending")]),
    )


def finished(desk: Path) -> None:
    sweep = subprocess.run([*GRAFT, "sweep", "spec.yaml"], cwd=desk, capture_output=True, text=True, check=False)
    assert sweep.returncode == 0, sweep.stderr


def killed_when(desk: Path, reached: Callable[[], bool]) -> list[psutil.Process]:
    """Begin the sweep, and kill its driver; gives the processes that it had started."""
    process = subprocess.Popen(
        [*GRAFT, "sweep", "spec.yaml"], cwd=desk, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not reached() and process.poll() is None:
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return family


def assert_equal(killed: Path, calm: Path) -> None:
    (metrics, answers), (expected_metrics, expected_answers) = tables(killed), tables(calm)
    assert metrics.drop_columns(["value"]).equals(expected_metrics.drop_columns(["value"]))
    pairs = zip(metrics["value"].to_pylist(), expected_metrics["value"].to_pylist(), strict=True)
    assert all(one == pytest.approx(other, rel=1e-6, abs=1e-9) for one, other in pairs)
    columns = ["run_id", "id", "text", "target", "prediction"]
    assert answers.select(columns).equals(expected_answers.select(columns))


@pytest.mark.long
def test_sixty_trials_killed_three_times_equal_undisturbed_ones(desks: tuple[Path, Path]) -> None:
    calm, killed = desks
    finished(calm)
    assert done(calm) == 60
    seen, families = [], []
    for target in (5, 20, 40):  # while the first processes start, in the middle, towards the end
        families += killed_when(killed, lambda target=target: done(killed) >= target)  # type: ignore[misc]
        seen.append(done(killed))
    assert seen == sorted(seen)
    assert 5 <= seen[0] < 60
    listed = subprocess.run([*GRAFT, "ls"], cwd=killed, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    finished(killed)
    assert done(killed) == 60
    assert_equal(killed, calm)
    _, alive = psutil.wait_procs(families, timeout=300)  # Ray's agents look for their cluster once a minute or so
    assert not alive


def rationales(desk: Path) -> tuple[int, int]:
    """Rows that the teacher has written, and how many of them are different ones."""
    keys: list[bytes] = []
    for about in desk.glob("store/columns/*/about.json"):
        if "explain(" in about.read_text():
            for shard in about.parent.glob("*.arrow"):
                keys += pa.ipc.open_file(shard).read_all()["__key"].to_pylist()
    return len(keys), len(set(keys))


@pytest.mark.long
def test_a_killed_ladder_has_written_each_rationale_once(ladders: tuple[Path, Path]) -> None:
    calm, killed = ladders
    finished(calm)
    written, different = rationales(calm)
    assert written == different > 30
    killed_when(killed, lambda: rationales(killed)[0] > 0)
    early = rationales(killed)[0]
    killed_when(killed, lambda: done(killed) >= 3)
    finished(killed)
    assert done(killed) == 8
    assert rationales(killed) == (written, different)
    assert 0 < early <= written
    assert_equal(killed, calm)
    (folder,) = (killed / "sweeps").iterdir()
    costs = parquet.read_table(folder / "metrics.parquet").to_pylist()
    assert sum(row["teacher_calls"] for row in costs) == 0  # written for all runs, before the first of them
    reads = {row["run_id"]: row["teacher_reads"] for row in costs}
    assert sorted(count > 0 for count in reads.values()) == [*[False] * 6, True, True]
