"""TensorBoard, MLflow and Weights & Biases are told of each run once; without their packages the cure is said."""

import sys
from pathlib import Path
from typing import Any

import pytest

from graft import planning, runner
from graft.errors import SpecError
from graft.spec import Experiment
from graft.storage import open_storage
from graft.sweeps.curves import Curves
from graft.sweeps.sweep import run_sweep
from graft.sweeps.tracking import trackers

SWEEP = {"axes": {"method.classifier": ["ridge", "knn"]}}


def spec(track: list[str]) -> Experiment:
    base = {"name": "wines", "task": {"name": "wine"}, "method": {"name": "probe"}, "regime": {"examples": 16}}
    return Experiment.from_mapping({**base, "sweep": {**SWEEP, "track": track}})


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_not_there_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        SpecError, match=rf"sweep\.track: {name} is not installed: pip install 'graft-compose\[{name}\]'"
    ):
        run_sweep(spec([name]), tmp_path)


def test_a_point_that_a_kill_left_unwritten_is_written_by_the_next_command(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = open_storage(tmp_path)
    plan = planning.plan(Experiment.from_mapping(spec([]).to_mapping() | {"sweep": None}))
    folder = tmp_path / "s" / "tensorboard" / plan.run_id
    folder.mkdir(parents=True)
    (folder / ".events.out.tfevents.1.tmp").touch()
    for _ in range(2):  # the second time as another command
        Curves(files, "s").write(plan, {"accuracy": 0.5})
        (written,) = folder.glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(written)).Reload()
    assert [(point.step, point.value) for point in accumulator.Scalars("accuracy")] == [(16, 0.5)]


def test_mlflow_has_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    files = open_storage(tmp_path)
    plan = planning.plan(Experiment.from_mapping(spec([]).to_mapping() | {"sweep": None}))
    result = runner.carry_out(plan, files, None)
    known = {name: value for name, value in result.values.items() if value is not None}
    for _ in range(2):  # the second time as another command
        (tracker,) = trackers(["mlflow"], "wines-1", files, "sweeps/wines-1")
        tracker.log(plan, known)
        tracker.log(plan, known)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "sweeps" / "wines-1" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("wines-1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == pytest.approx(known)
    assert run.data.params["method.classifier"] == "logistic"
    assert run.info.run_name == plan.run_id


def test_wandb_has_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    files = open_storage(tmp_path)
    plan = planning.plan(Experiment.from_mapping(spec([]).to_mapping() | {"sweep": None}))
    values: dict[str, Any] = {"accuracy": 0.5}
    for _ in range(2):
        (tracker,) = trackers(["wandb"], "wines-1", files, "sweeps/wines-1")
        tracker.log(plan, values)
        tracker.log(plan, values)
        tracker.close()
    written = [path.name for path in (tmp_path / "sweeps" / "wines-1" / "wandb").glob("offline-run-*")]
    assert len(written) == 1
    assert written[0].endswith(plan.run_id)
