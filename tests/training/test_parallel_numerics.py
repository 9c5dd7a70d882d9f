"""Two processes train as one does: losses, weights, decisions. This file is the second one's program too."""

import dataclasses
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pyarrow import fs
from safetensors.numpy import load_file, save_file

from graft.errors import ModelError
from graft.spec import Training
from graft.training.checkpoints import Checkpoints
from graft.training.loop import Loop
from graft.training.states import Job, Trained

sys.path.insert(0, str(Path(__file__).parent))

from nodes import Bridged, Reciter, rows

STEPS = 20
DEFAULTS = {"max_steps": STEPS, "learning_rate": 2e-3, "tokens_per_batch": 160, "checkpoint_steps": 5}
STOPPED_AT = 13
"""Training is interrupted after this step; its last checkpoint is from step 10."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One training, in one process or in two."""

    lora: bool = False
    strategy: str = "ddp"
    poisoned: int | None = None
    judged: bool = False
    """Whether the module changes whole weights between steps, as ADALORA does."""
    settings: tuple[tuple[str, Any], ...] = ()
    begun_by: int | None = None
    """Processes that train up to `STOPPED_AT`, before those that end it."""
    calm: bool = False
    """Whether bridges are trained, between two of the model."""

    def alone(self) -> "Case":
        """What one process is to give the same results for."""
        return dataclasses.replace(self, strategy="ddp", begun_by=None, settings=self._numeric())

    def _numeric(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, value) for name, value in self.settings if name != "tokens_per_device")

    def job(self, model: Path) -> Job:
        kind = Judge if self.judged else Bridged if self.calm else Reciter
        node = kind(str(model), lora=self.lora, poison=None if self.poisoned is None else 399)
        training = Training(**{**DEFAULTS, "checkpoint_seconds": 0, **dict(self.settings)})
        table = node.encode(rows(60, self.poisoned))
        if training.validate_every_steps is None:
            return Job(node, training, table, strategy=self.strategy)
        return Job(node, training, table.slice(0, 50), table.slice(50), self.strategy)


KINDS = {f"{kind}-{how}": Case(kind == "lora", how) for kind in ("full", "lora") for how in ("ddp", "fsdp")}
SHORT = ("max_steps", 10)
CASES = {
    **KINDS,
    **{f"accumulated-{how}": Case(True, how, settings=(SHORT, ("tokens_per_device", 30))) for how in ("ddp", "fsdp")},
    # Batches of one or two rows: sometimes a process has none.
    **{f"lone-{how}": Case(True, how, settings=(SHORT, ("tokens_per_batch", 24))) for how in ("ddp", "fsdp")},
    **{f"poisoned-{how}": Case(True, how, poisoned=7, settings=(SHORT,)) for how in ("ddp", "fsdp")},
    **{f"{name}-from-one": dataclasses.replace(KINDS[name], begun_by=1) for name in ("full-fsdp", "lora-ddp")},
}
CASES |= {f"calm-{how}": Case(strategy=how, calm=True, settings=(SHORT,)) for how in ("ddp", "fsdp")}
UNSHARDABLE = {"judged": Case(strategy="fsdp", judged=True)}
SELECTING = ("validate_every_steps", 4)
SELECTED = {f"selected-{how}": Case(True, how, settings=(SELECTING,)) for how in ("ddp", "fsdp")}
CASES |= SELECTED
INTERRUPTED = {
    **{f"{name}-from-two": dataclasses.replace(KINDS[name], begun_by=2) for name in ("full-ddp", "lora-fsdp")},
    **{f"{name}-from-two": dataclasses.replace(case, begun_by=2) for name, case in SELECTED.items()},
}


class Judge(Reciter):
    def build(self) -> torch.nn.Module:
        module = super().build()
        module.after_step = lambda step: None
        return module


class Stop(Exception):
    """Ends a training in the middle, in all its processes alike."""


class Interrupted(Loop):
    def _note(self, *arguments: Any) -> None:
        super()._note(*arguments)
        if self.state.step == STOPPED_AT:
            raise Stop


def train(case: Case, model: Path, folder: Path, kind: type[Loop] = Loop) -> tuple[Loop, Trained | None]:
    with Checkpoints(fs.LocalFileSystem(), str(folder)) as checkpoints:
        loop = kind(case.job(model), checkpoints)
        return loop, loop.run()


def begin(case: Case, model: Path, folder: Path) -> None:
    with pytest.raises(Stop):
        train(case, model, folder, Interrupted)


def program(model: Path, folder: Path, rank: int) -> None:
    """What each of the two processes does: all cases; the first one writes what came of them."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = {}
    for name, case in CASES.items():
        loop, trained = train(case, model, folder / name)
        buckets = loop.parallel._wrapped._get_ddp_logging_data() if case.strategy == "ddp" else {}
        found[name] = {"state": dataclasses.asdict(loop.state), "buckets": buckets, "frozen": frozen(loop)}
        if trained:
            save_file(trained.weights, folder / f"{name}.safetensors")
    for name, case in INTERRUPTED.items():
        begin(case, model, folder / name)
    for name, case in UNSHARDABLE.items():
        with pytest.raises(ModelError) as refused:
            train(case, model, folder / name)
        found[name] = {"refused": str(refused.value)}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def frozen(loop: Loop) -> dict[str, float]:
    """A sum of each weight that is not trained."""
    found = {}
    for name, value in loop.inner.named_parameters():
        if not value.requires_grad:
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[name] = float(whole.double().sum())
    return found


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have carried out all cases."""
    folder = tmp_path_factory.mktemp("two")
    for name, case in CASES.items():
        if case.begun_by == 1:
            begin(case, tiny_llama, folder / name)
    with subprocess.Popen([sys.executable, __file__, str(tiny_llama), str(folder)]) as second:
        program(tiny_llama, folder, 0)
        assert second.wait(60) == 0
    return folder


def state(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"{rank}.json").read_text())[name]


_ALONE: dict[Case, tuple[dict[str, Any], Trained]] = {}


def alone(case: Case, model: Path, folder: Path) -> tuple[dict[str, Any], Trained]:
    """State and weights of an undisturbed training in one process."""
    if case not in _ALONE:
        trained = Loop(case.job(model)).run()
        assert trained is not None
        _ALONE[case] = dataclasses.asdict(trained.state), trained
    return _ALONE[case]


def check_equal(
    found: dict[str, Any], weights: dict[str, np.ndarray], expected: dict[str, Any], undisturbed: Trained
) -> None:
    """The same steps with the same losses, the same decisions, the same weights."""
    for name in ("loss", "gradient_norm", "learning_rate", "validation_loss"):
        assert points(found, name) == pytest.approx(points(expected, name), rel=1e-5 if "loss" in name else 1e-4)
    for name in ("step", "position", "rollbacks", "tokens", "sequences", "best_step", "looks"):
        assert found[name] == expected[name]
    assert weights.keys() == undisturbed.weights.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, undisturbed.weights[name], rtol=1e-3, atol=2e-5)


def points(found: dict[str, Any], name: str) -> list[float]:
    """A column of the curve, where it has a value."""
    return [point[name] for point in found["curve"] if name in point]


def decisions(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in found["events"] if "back_to" in event]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name: str, folder: Path, tiny_llama: Path) -> None:
    case = CASES[name]
    expected, trained = alone(case.alone(), tiny_llama, folder)
    found = state(folder, name)["state"]
    assert len(points(found, "loss")) == dict(case.settings).get("max_steps", STEPS)
    assert len(points(found, "validation_loss")) == (STEPS // 4 if SELECTING in case.settings else 0)
    check_equal(found, load_file(folder / f"{name}.safetensors"), expected, trained)
    assert decisions(found) == decisions(expected)
    costs = {"seconds": found["seconds"], "peak_memory_bytes": found["peak_memory_bytes"]}
    assert state(folder, name, rank=1)["state"] | costs == found, "all processes know the same"
    taken_up = [event["step"] for event in found["events"] if event["reason"] == "taken up from a checkpoint"]
    assert taken_up == ([10] if case.begun_by else [])


@pytest.mark.parametrize("name", INTERRUPTED)
def test_one_process_goes_on_where_two_were_interrupted(name: str, folder: Path, tiny_llama: Path) -> None:
    case = INTERRUPTED[name]
    expected, undisturbed = alone(case.alone(), tiny_llama, folder)
    _, trained = train(case, tiny_llama, folder / name)
    assert trained is not None
    found = dataclasses.asdict(trained.state)
    assert [event["step"] for event in found["events"]] == [10]
    check_equal(found, trained.weights, expected, undisturbed)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.lora or case.calm])
def test_what_is_frozen_stays_and_is_not_sent(name: str, folder: Path, tiny_llama: Path) -> None:
    before = Loop(CASES[name].alone().job(tiny_llama))
    for rank in (0, 1):
        found = state(folder, name, rank)
        assert found["frozen"] == frozen(before)
        if CASES[name].strategy == "ddp":
            trained = sum(value.nbytes for value in before.parameters.values())
            assert found["buckets"]["total_parameter_size_bytes"] == trained


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_no_number_is_met_alike(strategy: str, folder: Path) -> None:
    events = decisions(state(folder, f"poisoned-{strategy}")["state"])
    assert events
    assert all("nan" in event["reason"] for event in events)
    assert events[0]["back_to"] == events[0]["step"] // 5 * 5
    assert events[0]["skipped"] == events[0]["position"] + 1 - events[0]["back_to"]


def test_what_judges_whole_weights_is_not_sharded(folder: Path) -> None:
    for rank in (0, 1):
        refused = json.loads((folder / f"{rank}.json").read_text())["judged"]["refused"]
        assert "whole weights" in refused
        assert "ddp" in refused


def test_some_batches_had_no_row_for_a_process(tiny_llama: Path) -> None:
    loop = Loop(CASES["lone-ddp"].job(tiny_llama))
    assert min(len(loop.order.rows(position)) for position in range(10)) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    program(Path(sys.argv[1]), Path(sys.argv[2]), 1)
