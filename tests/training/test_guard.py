"""What counts as a spike, and what the guard remembers."""

import math

import numpy as np
import pytest

from graft.training.guard import MEMORY_STEPS, Guard


def after(losses: list[float]) -> Guard:
    guard = Guard()
    for loss in losses:
        assert guard.verdict(loss, 1.0) is None
        guard = guard.after(loss)
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_number_is_refused_from_the_first_step(loss: float, norm: float) -> None:
    assert Guard().verdict(loss, norm)


def test_a_jump_is_refused_once_there_is_something_to_jump_from() -> None:
    quiet = [2.0] * MEMORY_STEPS
    assert after(quiet[1:]).verdict(9.0, 1.0) is None
    assert "jumped from 2 to 9" in str(after(quiet).verdict(9.0, 1.0))
    assert after(quiet).verdict(2.9, 1.0) is None  # less than a nat, however quiet the curve


def test_a_noisy_curve_has_room_for_its_noise() -> None:
    noisy = list(np.random.default_rng(0).normal(3.0, 0.5, 60))
    guard = after(noisy)
    assert guard.verdict(guard.mean + 2.5, 1.0) is None
    assert guard.verdict(guard.mean + 6.0, 1.0)


def test_a_falling_curve_is_no_spike_and_neither_is_a_slow_rise() -> None:
    after([8.0 * 0.95**step for step in range(200)])
    after([1.0 + 0.02 * step for step in range(200)])


def test_mean_and_variance_are_those_of_the_first_steps() -> None:
    losses = list(np.random.default_rng(1).uniform(1, 2, MEMORY_STEPS))
    guard = after(losses)
    assert guard.mean == pytest.approx(np.mean(losses))
    assert guard.variance == pytest.approx(np.var(losses))


def test_what_jumps_again_is_the_curves_own_noise() -> None:
    guard = after([0.05] * 50)
    assert guard.verdict(1.55, 1.0)
    again = guard.after_spike(1.55)
    assert again.verdict(1.55, 1.0) is None
    assert again.verdict(4.0, 1.0)
    assert guard.after_spike(math.nan) == guard
