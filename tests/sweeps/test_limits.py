"""What one run of a sweep may take, and how many go on at once."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from graft import planning
from graft.cluster import Cluster
from graft.errors import SpecError
from graft.results.records import load_metrics
from graft.spec import Experiment, Scaling
from graft.storage import exists, open_storage, write_atomic
from graft.sweeps.limits import LimitError, Spent, limited, resident_bytes, too_long
from graft.sweeps.resources import share_out
from graft.sweeps.sweep import run_sweep
from graft.sweeps.trial import GraftTrial
from graft.sweeps.work import Work
from graft.swept import Trial


def work(seconds: float) -> int:
    ended, count = time.monotonic() + seconds, 0
    while time.monotonic() < ended:
        count += 1
    return count


def endless(rows: Path, model: Path, **values: Any) -> Experiment:
    """A training that does not come to its end."""
    return Experiment.from_mapping(
        {
            "name": "limited",
            "models": {"base": {"source": str(model)}},
            "task": {"name": "file", "path": str(rows), "text": "q", "target": "a", "test_examples": 4},
            "regime": {"examples": 8},
            "method": {"name": "peft", "max_new_tokens": 4},
            "training": {"tokens_per_batch": 64, "max_steps": 1_000_000},
            **values,
        }
    )


def test_what_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    files = open_storage(tmp_path)
    with (
        pytest.raises(LimitError, match=r"ran longer than sweep\.trial\.seconds allows \(0\.5\)"),
        limited(Trial(seconds=0.5), Spent(files, "long")),
    ):
        work(60)
    with limited(Trial(seconds=30), Spent(files, "short")):
        assert work(0.6) > 0
    assert too_long(Trial(seconds=0.5), Spent(files, "long").earlier)
    assert not too_long(Trial(seconds=30), Spent(files, "long").earlier)
    assert not exists(files, "runs/short")
    assert not [thread for thread in threading.enumerate() if thread.name == "limits"]


def test_what_a_checkpoint_stands_for_counts_in_the_next_attempt_and_what_is_lost_does_not(tmp_path: Path) -> None:
    files = open_storage(tmp_path)
    killed = Spent(files, "r")
    killed.began -= 100
    killed.note()
    assert Spent(files, "r").earlier == 0
    write_atomic(files, "runs/r/checkpoints/0123/last-000000120.safetensors", b"")
    killed.note()
    killed.began -= 50
    killed.note()
    again = Spent(files, "r")
    assert 100 <= again.earlier < 150
    again.began -= 30
    write_atomic(files, "runs/r/checkpoints/0123/last-000000240.safetensors", b"")
    again.note()
    assert 130 <= Spent(files, "r").earlier < 180
    with pytest.raises(LimitError), limited(Trial(seconds=130), Spent(files, "r")):
        work(60)
    again.forget()
    assert Spent(files, "r").earlier == 0


def test_what_grows_too_large_is_interrupted(tmp_path: Path) -> None:
    allowed = (resident_bytes() + 200 * 2**20) / 2**30
    held = []

    def grow() -> None:
        for _ in range(600):
            held.append(bytearray(b"x" * 2**20))
            work(0.005)

    with (
        pytest.raises(LimitError, match=r"more than sweep\.trial\.memory_gib allows"),
        limited(Trial(memory_gib=allowed), Spent(open_storage(tmp_path), "r")),
    ):
        grow()
    assert 100 < len(held) < 600


def test_a_run_that_has_reached_its_limit_stays_failed_until_it_may_take_more(tmp_path: Path, tiny_llama: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("q,a\n" + "".join(f"what is {i},it is {i}\n" for i in range(60)))
    experiment = endless(rows, tiny_llama)
    plan = planning.plan(experiment)
    config = {
        "run_id": plan.run_id,
        "experiment": json.dumps(experiment.to_mapping()),
        "rows": plan.dataset.fingerprint,
    }
    log = tmp_path / "out" / "runs" / plan.run_id / "run.log"

    def told(seconds: float) -> str:
        """What an attempt that may take so long ends with."""
        trial = GraftTrial.__new__(GraftTrial)  # as Tune makes it, which needs a cluster
        trial.config = config
        trial.setup(config, Work.of("s", {"rows": plan.dataset}, tmp_path / "out", 10**9, Trial(seconds=seconds)))
        return str(trial.step()["error"])

    first = told(2)
    assert first.startswith("it ran longer than sweep.trial.seconds allows (2)")
    before = log.read_text()
    assert f"the run stopped: {first}" in before
    assert told(2) == first
    assert log.read_text() == before
    assert "allows (4)" in told(4)
    assert log.read_text().count(f"{plan.run_id} begins") == 2


def cluster(cpus: float, gpus: float = 0) -> Cluster:
    return Cluster("here:1", None, cpus, gpus, 1, local=True)


@pytest.mark.parametrize(
    ("there", "trial", "asked", "expected"),
    [
        (cluster(8), Trial(), None, (8, {"CPU": 1.0, "GPU": 0.0})),
        (cluster(8), Trial(), 3, (3, {"CPU": 1.0, "GPU": 0.0})),
        (cluster(8), Trial(cpus=0.5), None, (16, {"CPU": 0.5, "GPU": 0.0})),
        (cluster(8, 2), Trial(), None, (8, {"CPU": 1.0, "GPU": 1.0})),
        (cluster(8, 2), Trial(gpus=0.25), None, (8, {"CPU": 1.0, "GPU": 0.25})),
    ],
)
def test_runs_share_the_cluster(
    there: Cluster, trial: Trial, asked: int | None, expected: tuple[int, dict[str, float]]
) -> None:
    assert share_out(there, trial, [Scaling()], asked) == expected


@pytest.mark.parametrize(
    ("there", "scalings", "asked", "expected"),
    [
        (cluster(8), [Scaling(workers=2)], None, (4, {"memory": 1, "GPU": 0.0})),
        (cluster(9), [Scaling(workers=4), Scaling()], None, (2, {"memory": 1, "GPU": 0.0})),
        (cluster(8), [Scaling(workers=2)], 3, (3, {"memory": 1, "GPU": 0.0})),
        (cluster(16, 6), [Scaling(workers=2)], None, (2, {"memory": 1, "GPU": 1.0})),
        (cluster(16, 6), [Scaling(workers=2, device="cpu")], None, (8, {"memory": 1, "GPU": 0.0})),
    ],
)
def test_as_many_runs_as_there_are_whole_teams_for(
    there: Cluster, scalings: list[Scaling], asked: int | None, expected: tuple[int, dict[str, float]]
) -> None:
    assert share_out(there, Trial(), scalings, asked) == expected


def test_a_team_that_finds_no_room_is_refused() -> None:
    with pytest.raises(SpecError, match=r"scaling\.workers: 4 needs 4 CPUs, the cluster at .* has 2"):
        share_out(cluster(2), Trial(), [Scaling(workers=4)], None)
    with pytest.raises(SpecError, match=r"scaling\.workers: 2 need a GPU each and their run 1 .* the cluster has 2"):
        share_out(cluster(8, 2), Trial(), [Scaling(workers=2)], None)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(SpecError, match=r"sweep\.trial\.gpus: a run needs 2 GPUs, the cluster has 1"):
        share_out(cluster(8, 1), Trial(gpus=2), [Scaling()], None)
    with pytest.raises(SpecError, match=r"sweep\.trial\.cpus: a run needs 9 CPUs, the cluster has 8"):
        share_out(cluster(8), Trial(cpus=9), [Scaling()], None)


@pytest.mark.slow
def test_a_run_beyond_its_limits_is_a_row_and_the_others_go_on(
    ray_cluster: Any, tmp_path: Path, tiny_llama: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("q,a\n" + "".join(f"what is {i},it is {i}\n" for i in range(60)))
    sweep = {"axes": {"training.max_steps": [2, 1_000_000]}, "trial": {"seconds": 25}}
    experiment = endless(rows, tiny_llama, sweep=sweep)
    result = run_sweep(experiment, tmp_path / "out")
    assert result.failed == 1
    rows_ = load_metrics([str(tmp_path / "out" / "sweeps" / result.sweep_id)]).to_pylist()
    assert {row["error"] for row in rows_ if row["status"] == "failed"} == {
        "it ran longer than sweep.trial.seconds allows (25); allow more, or make it smaller"
    }
    assert any(row["status"] == "done" for row in rows_)
