"""What the loop decides on its own in one process: which weights are kept, when it stops, what it refuses to learn."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs

from graft.errors import TrainingError
from graft.spec import Training
from graft.training.batching import GlobalBatches
from graft.training.checkpoints import Checkpoints
from graft.training.guard import MOST_ROLLBACKS
from graft.training.loop import Loop
from graft.training.states import Job, Trained

sys.path.insert(0, str(Path(__file__).parent))

from nodes import Reciter, rows

SETTINGS = {"max_steps": 12, "learning_rate": 1e-2, "tokens_per_batch": 160, "checkpoint_steps": 4}


def loop(
    folder: Path,
    poisoned: int | None = None,
    lora: bool = False,
    held_out: bool = False,
    checkpoints: Checkpoints | None = None,
    kind: type[Loop] = Loop,
    **settings: Any,
) -> Loop:
    """A loop over 24 rows; of 30, the others are held out."""
    node = Reciter(str(folder), lora=lora, poison=None if poisoned is None else 399)
    table = node.encode(rows(30, poisoned))
    kept = table.slice(24) if held_out else None
    return kind(Job(node, Training(**{**SETTINGS, **settings}), table.slice(0, 24), kept), checkpoints)


class Stop(Exception):
    """Ends a training in the middle."""


class Stopped(Loop):
    """Ends after some steps, as a killed process would; what it has remembered is on storage."""

    at = 0

    def _note(self, *arguments: Any) -> None:
        super()._note(*arguments)
        if self.state.step == self.at:
            raise Stop


def done(one: Loop) -> Trained:
    result = one.run()
    assert result is not None
    return result


def looks(trained: Trained) -> dict[int, float]:
    """Step, counted from 1, to the loss of the held-out rows after it."""
    return {
        int(point["step"]) + 1: point["validation_loss"] for point in trained.state.curve if "validation_loss" in point
    }


def held_out_loss(folder: Path, weights: dict[str, np.ndarray]) -> float:
    """Mean loss of the held-out rows' tokens."""
    node = Reciter(str(folder))
    module, table = node.build().eval(), node.encode(rows(30)).slice(24)
    with torch.no_grad():
        for name, value in weights.items():
            module.get_parameter(name).copy_(torch.from_numpy(value))
        return float(module(**node.collate(table))[0]) / sum(count for (count,) in table["targets"].to_pylist())


def test_the_weights_of_the_best_look_are_kept(tiny_llama: Path) -> None:
    # Random rows cannot be foreseen: what is learned of some makes others less likely in the end.
    trained = done(loop(tiny_llama, held_out=True, max_steps=40, validate_every_steps=4))
    seen = looks(trained)
    assert list(seen) == list(range(4, 41, 4))
    best = min(seen, key=lambda step: seen[step])
    assert best < 40
    assert trained.state.best_step == best
    assert held_out_loss(tiny_llama, trained.weights) == pytest.approx(seen[best], rel=1e-5)


def test_the_last_step_is_looked_at_too(tiny_llama: Path) -> None:
    assert list(looks(done(loop(tiny_llama, held_out=True, max_steps=6, validate_every_steps=4)))) == [4, 6]


def test_patience_ends_a_training_that_gets_no_better(tiny_llama: Path) -> None:
    trained = done(loop(tiny_llama, held_out=True, max_steps=200, validate_every_steps=2, patience=3))
    seen = looks(trained)
    assert trained.state.step == max(seen) < 200
    assert trained.state.best_step == trained.state.step - 3 * 2
    assert min(seen.values()) == seen[trained.state.best_step]


SELECTING = {"held_out": True, "max_steps": 30, "validate_every_steps": 3, "checkpoint_seconds": 0}


def stopped(model: Path, folder: Path, at: int) -> None:
    """A training that selects its weights, killed after some steps."""
    with Checkpoints(fs.LocalFileSystem(), str(folder)) as kept:
        one = loop(model, checkpoints=kept, kind=Stopped, **SELECTING)
        one.at = at
        with pytest.raises(Stop):
            one.run()


@pytest.mark.parametrize("at", [5, 22, *(pytest.param(at, marks=pytest.mark.long) for at in (9, 14, 29))])
def test_a_training_that_selects_its_weights_is_killed_and_ends_with_the_same_ones(
    at: int, tiny_llama: Path, tmp_path: Path
) -> None:
    undisturbed = done(loop(tiny_llama, **SELECTING))
    stopped(tiny_llama, tmp_path, at)
    with Checkpoints(fs.LocalFileSystem(), str(tmp_path)) as kept:
        again = done(loop(tiny_llama, checkpoints=kept, **SELECTING))
    assert "taken up from a checkpoint" in again.state.events[0]["reason"]
    assert (again.state.best_step, again.state.best_loss) == (undisturbed.state.best_step, undisturbed.state.best_loss)
    assert all(np.array_equal(value, undisturbed.weights[name]) for name, value in again.weights.items())
    assert looks(again) == looks(undisturbed)


def test_a_lost_best_one_costs_the_selection_and_not_the_training(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tiny_llama, tmp_path, 22)
    for path in tmp_path.glob("best-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with Checkpoints(fs.LocalFileSystem(), str(tmp_path)) as kept:
        one = loop(tiny_llama, checkpoints=kept, **SELECTING)
        assert one.state.step == 20
        again = done(one)
    assert "the best weights so far are lost" in caplog.text
    assert again.state.best_step > 20
    assert again.state.best_loss == min(value for step, value in looks(again).items() if step > 20)


def test_costs_are_those_of_all_attempts(tiny_llama: Path, tmp_path: Path) -> None:
    stopped(tiny_llama, tmp_path, 22)
    with Checkpoints(fs.LocalFileSystem(), str(tmp_path)) as kept:
        one = loop(tiny_llama, checkpoints=kept, **SELECTING)
        before = one.state.seconds
        again = done(one)
    assert 0 < before < again.state.seconds
    assert again.state.peak_memory_bytes > 2**20
    assert again.state.tokens == done(loop(tiny_llama, **SELECTING)).state.tokens


def test_without_looks_the_last_weights_are_kept(tiny_llama: Path) -> None:
    one = loop(tiny_llama)
    trained = done(one)
    assert trained.state.best_step is None
    assert all(np.array_equal(trained.weights[name], value.detach().numpy()) for name, value in one.parameters.items())


@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_clipped_as_torch_clips_them(tiny_llama: Path, lora: bool) -> None:
    free, clipped = (loop(tiny_llama, lora=lora, max_steps=1, clip_norm=norm) for norm in (None, 0.05))
    found = [done(one).state.curve[0]["gradient_norm"] for one in (free, clipped)]
    assert found[0] == found[1] > 0.05  # as it was before
    expected = list(free.parameters.values())
    torch.nn.utils.clip_grad_norm_(expected, 0.05)
    torch.testing.assert_close([p.grad for p in clipped.parameters.values()], [p.grad for p in expected])
    # A short gradient stays as it is.
    loose = loop(tiny_llama, lora=lora, max_steps=1, clip_norm=1e6)
    done(loose)
    free = loop(tiny_llama, lora=lora, max_steps=1, clip_norm=None)
    done(free)
    assert all(torch.equal(value.grad, free.parameters[name].grad) for name, value in loose.parameters.items())


def test_a_batch_without_a_number_is_skipped_and_what_followed_the_last_state_is_done_again(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = 5
    one = loop(tiny_llama, poisoned, max_steps=8, tokens_per_batch=60, checkpoint_steps=3)
    position = next(at for at in range(100) if poisoned in one.order.rows(at))
    assert position % 3  # else nothing is done again
    with caplog.at_level(logging.WARNING, "graft"):
        trained = done(one)
    first = trained.state.events[0]
    assert "nan" in first["reason"]
    assert first["position"] == position
    assert first["back_to"] == position // 3 * 3
    assert first["skipped"] == position + 1 - first["back_to"]
    assert all(np.isfinite(value).all() for value in trained.weights.values())
    assert trained.state.step == 8
    assert trained.state.position == 8 + sum(event["skipped"] for event in trained.state.events)
    assert "batches are skipped" in caplog.text


def test_a_training_whose_data_are_not_to_blame_ends(tiny_llama: Path) -> None:
    everywhere = loop(tiny_llama, 0, tokens_per_batch=10_000)  # every batch holds every row
    assert len(GlobalBatches(everywhere.order.lengths, 10_000, 0).rows(0)) == 24
    with pytest.raises(
        TrainingError, match=rf"diverges: at step 0 .*nan.* {MOST_ROLLBACKS + 1}th time in a row; lower "
    ):
        everywhere.run()
