"""Workers of Ray Train: the numbers of one process, and errors that arrive as themselves."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft.cluster import Cluster
from graft.errors import ClusterError, GraftError, ModelError, SpecError, TrainingError
from graft.spec import Scaling, Training
from graft.training import workers
from graft.training.loop import Loop
from graft.training.states import Job, Trained
from graft.training.workers import train_together

sys.path.insert(0, str(Path(__file__).parent))

import nodes
from nodes import Fragile, Reciter, rows

# Ray 2.60 sets settings of its own that it calls deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

STEPS = 20


@pytest.fixture(scope="module")
def cluster(ray_cluster: Cluster) -> Cluster:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(nodes)  # workers cannot import the tests
    return ray_cluster


def job(node: Any, **settings: Any) -> Job:
    values = {"max_steps": STEPS, "learning_rate": 2e-3, "tokens_per_batch": 160, "checkpoint_steps": 5}
    training = Training(**{**values, "checkpoint_seconds": 0, **settings})
    return Job(node, training, node.encode(rows(60)))


def together(job: Job, storage: Path, progress: Any = lambda *_: None, count: int = 2) -> Trained:
    scaling = Scaling(workers=count)
    return train_together(job, "runs/r", progress, storage=storage, address=None, scaling=scaling, name="r")


def test_two_workers_train_as_this_process(
    cluster: Cluster, tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = job(Reciter(str(tiny_llama)))
    seen: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO, "graft"):
        trained = together(work, tmp_path, lambda *what: seen.append(what))
    alone = Loop(work).run()
    assert alone is not None
    losses = [point["loss"] for point in trained.state.curve]
    assert len(losses) == STEPS
    assert losses == pytest.approx([point["loss"] for point in alone.state.curve], rel=1e-5)
    assert trained.weights.keys() == alone.weights.keys()
    for name, value in trained.weights.items():
        np.testing.assert_allclose(value, alone.weights[name], rtol=1e-3, atol=2e-5)
    assert seen[-1] == ("train reciter", STEPS, STEPS)
    assert "train reciter: worker 0 of 2 begins" in caplog.text, "what workers log is logged here"
    assert not list(tmp_path.glob("**/*ray*"))
    with caplog.at_level(logging.INFO, "graft"):
        again = together(work, tmp_path)
    assert caplog.text.count("begins") == 1
    assert "train reciter: read, it was trained before" in caplog.text
    assert again.state == trained.state
    assert all(np.array_equal(value, trained.weights[name]) for name, value in again.weights.items())


@pytest.mark.parametrize(
    ("how", "kind", "expected", "builds"),
    [
        pytest.param("known", ModelError, "^this model cannot be built here; use another$", 1, marks=pytest.mark.long),
        pytest.param(
            "unknown",
            TrainingError,
            r"workers ended 2 times at step 0.*worker 1: ZeroDivisionError: a bug",
            2,
            marks=pytest.mark.long,
        ),
        ("killed", TrainingError, r"workers ended 2 times at step 0.*worker 1: ActorDiedError: .*; look at", 2),
    ],
)
def test_an_error_in_a_worker_arrives(
    how: str,
    kind: type[GraftError],
    expected: str,
    builds: int,
    cluster: Cluster,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "ATTEMPTS", 2)
    work = job(Fragile(str(tiny_llama), how=how, marker=str(tmp_path / "built")))
    with pytest.raises(kind, match=expected) as raised:
        together(work, tmp_path)
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert (tmp_path / "built").read_text().split().count("1") == builds
    check_free(cluster)


def check_free(cluster: Cluster) -> None:
    """Nothing is left that holds a CPU."""
    import ray

    until = time.monotonic() + 30
    while ray.available_resources().get("CPU") != cluster.cpus:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_no_room_is_waited_for_and_then_said(
    cluster: Cluster, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(workers, "WAIT_SECONDS", 3.0)
    taken = placement_group([{"CPU": 1}])
    try:
        ray.get(taken.ready(), timeout=60)
        with pytest.raises(ClusterError, match="no room for 2 workers on the cluster at"):
            together(job(Reciter(str(tiny_llama))), tmp_path)
    finally:
        remove_placement_group(taken)
    check_free(cluster)


def test_more_workers_than_cpus_are_refused(cluster: Cluster, tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"scaling\.workers: 64 needs 64 CPUs, the cluster at .* has 2"):
        together(job(Reciter(str(tiny_llama))), tmp_path, count=64)
    assert not (tmp_path / "runs").exists()
