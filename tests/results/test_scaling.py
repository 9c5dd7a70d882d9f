"""Scaling laws: what was made from a law is found again, and a law is judged by runs that it was not fitted to."""

import functools
import itertools

import numpy as np
import pytest

from graft.errors import DataError
from graft.results.scaling import FORMS, Fit, fit

GRID = list(itertools.product((1e5, 3e5, 1e6, 3e6), (1e6, 4e6, 1.6e7)))
SIZES, DATA = zip(*GRID, strict=True)


def chinchilla(n: float, d: float) -> float:
    return 1.7 + 400 / n**0.34 + 410 / d**0.28


def km(n: float, d: float) -> float:
    return float(((8e8 / n) ** (0.09 / 0.11) + 5e8 / d) ** 0.11)


LAWS = {"chinchilla": chinchilla, "km": km}


@functools.cache
def found_of(form: str) -> Fit:
    """The law that is fitted to what the law of that form gives, without noise."""
    return fit(form, SIZES, DATA, [LAWS[form](n, d) for n, d in GRID])


@pytest.mark.parametrize("form", list(FORMS))
def test_slopes_are_those_of_the_surface(form: str) -> None:
    known, (n, d) = FORMS[form], np.array(GRID).T
    values = np.log([begin[0] for begin in known.begins])
    _, slopes = known.surface(values, n, d)
    for place in range(len(values)):
        moved = [values + step * np.eye(len(values))[place] for step in (1e-6, -1e-6)]
        above, below = (known.surface(one, n, d)[0] for one in moved)
        assert slopes[:, place] == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("form", list(LAWS))
def test_a_law_is_found_again(form: str) -> None:
    found = found_of(form)
    assert found.error < 1e-4
    assert found.left_out < 1e-3
    assert found.predict(1e7, 1e8) == pytest.approx(LAWS[form](1e7, 1e8), rel=0.02)
    assert list(found.parameters) == list(FORMS[form].names)


def test_the_parameters_are_the_papers() -> None:
    found = found_of("km").parameters
    assert found == pytest.approx({"Nc": 8e8, "Dc": 5e8, "aN": 0.09, "aD": 0.11}, rel=0.05)
    found = found_of("chinchilla").parameters
    assert found["alpha"] == pytest.approx(0.34, rel=0.05)
    assert found["beta"] == pytest.approx(0.28, rel=0.05)


def test_noise_shows_in_what_is_left_out_and_outliers_do_not_rule() -> None:
    random = np.random.default_rng(0)
    noisy = [chinchilla(n, d) * np.exp(random.normal(0, 0.01)) for n, d in GRID]
    found = fit("chinchilla", SIZES, DATA, noisy)
    assert 0.002 < found.error < found.left_out < 0.1
    wrong = [chinchilla(n, d) for n, d in GRID]
    wrong[3] *= 1.5
    assert fit("chinchilla", SIZES, DATA, wrong).predict(1e6, 4e6) == pytest.approx(chinchilla(1e6, 4e6), rel=0.02)


def test_too_few_runs_are_an_error() -> None:
    with pytest.raises(DataError, match="5 runs cannot say 5 parameters of chinchilla"):
        fit("chinchilla", SIZES[:5], DATA[:5], [3.0] * 5)
