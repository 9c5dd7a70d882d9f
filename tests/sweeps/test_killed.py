"""A sweep that is killed, again and again: nothing is lost, nothing counted twice, nothing left running."""

import os
import signal
import subprocess
import sys
import time
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

TOPICS = ("rain", "bread", "trains")


@pytest.fixture
def desks(tmp_path: Path, tiny_bert: Path) -> tuple[Path, Path]:
    """Two folders with the same spec of 60 runs."""
    lines = [f"a text about {topic} number {i},{topic}" for i in range(60) for topic in TOPICS]
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("text,topic\n" + "\n".join(lines) + "\n")
        (tmp_path / name / "spec.yaml").write_text(SPEC.replace("MODEL", str(tiny_bert)))
    return tmp_path / "calm", tmp_path / "killed"


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


@pytest.mark.long
def test_sixty_trials_killed_three_times_equal_undisturbed_ones(desks: tuple[Path, Path]) -> None:
    calm, killed = desks
    undisturbed = subprocess.run([*GRAFT, "sweep", "spec.yaml"], cwd=calm, capture_output=True, text=True, check=False)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert done(calm) == 60
    seen, families = [], []
    for target in (5, 20, 40):  # while the first processes start, in the middle, towards the end
        process = subprocess.Popen(
            [*GRAFT, "sweep", "spec.yaml"], cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while done(killed) < target and process.poll() is None:
            time.sleep(0.01)
        families += psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        seen.append(done(killed))
    assert seen == sorted(seen)
    assert 5 <= seen[0] < 60
    listed = subprocess.run([*GRAFT, "ls"], cwd=killed, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    last = subprocess.run([*GRAFT, "sweep", "spec.yaml"], cwd=killed, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert done(killed) == 60
    (metrics, answers), (expected_metrics, expected_answers) = tables(killed), tables(calm)
    assert metrics.drop_columns(["value"]).equals(expected_metrics.drop_columns(["value"]))
    pairs = zip(metrics["value"].to_pylist(), expected_metrics["value"].to_pylist(), strict=True)
    assert all(one == pytest.approx(other, rel=1e-6, abs=1e-9) for one, other in pairs)
    columns = ["run_id", "id", "text", "target", "prediction"]
    assert answers.select(columns).equals(expected_answers.select(columns))
    _, alive = psutil.wait_procs(families, timeout=300)  # Ray's agents look for their cluster once a minute or so
    assert not alive
