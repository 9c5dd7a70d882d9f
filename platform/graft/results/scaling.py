"""How a loss falls with parameters and data: two forms from the literature, fitted to runs.

    Chinchilla    L = E + A / N^alpha + B / D^beta             Hoffmann et al. 2022, arXiv:2203.15556, equation 2
    KM            L = ((Nc / N)^(aN / aD) + Dc / D)^aD         Kaplan, McCandlish et al. 2020, arXiv:2001.08361, eq. 1.5

N are parameters, D are tokens of data, L is in nats. Both are fitted to the logarithm of the loss with Huber's loss
(as the first paper's approach 3), from many beginnings, because neither surface is convex.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from graft.errors import DataError

Numbers = NDArray[np.float64]
HUBER = 1e-3
"""Where Huber's loss turns from a square into a line, in log nats, as in the first paper."""

FEW_EVALUATIONS, MOST_EVALUATIONS = 60, 1000
"""Of a short search, and of one that goes to its end."""
TO_THE_END = 3
"""Short searches that are followed to their ends."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """One form, fitted."""

    form: str
    parameters: dict[str, float]
    error: float
    """Root of the mean square error of the log loss, of the runs that were fitted."""
    left_out: float
    """The same of each run under a fit to all the others: what the form is worth for a run that was not made."""

    def predict(self, size: float, data: float) -> float:
        """Loss in nats.

        Args:
            size: parameters.
            data: tokens.
        """
        values = np.log(list(self.parameters.values()))
        log_loss, _ = FORMS[self.form].surface(values, np.array([size], float), np.array([data], float))
        return float(np.exp(log_loss[0]))


@dataclasses.dataclass(frozen=True)
class Form:
    """A family of surfaces; its parameters are positive, so their logarithms are fitted."""

    names: tuple[str, ...]
    begins: tuple[tuple[float, ...], ...]
    """Values from which each parameter's search begins."""
    surface: Callable[[Numbers, Numbers, Numbers], tuple[Numbers, Numbers]]
    """Log loss [N] of P logarithms of parameters, N sizes and N amounts of data, and its derivatives [N, P]."""


def _chinchilla(values: Numbers, size: Numbers, data: Numbers) -> tuple[Numbers, Numbers]:
    e, a, alpha, b, beta = values
    by_size, by_data = np.exp(alpha) * np.log(size), np.exp(beta) * np.log(data)
    terms = np.array([np.full_like(size, e), a - by_size, b - by_data])
    total = np.logaddexp.reduce(terms, axis=0)
    of_e, of_a, of_b = np.exp(terms - total)
    return total, np.stack([of_e, of_a, -of_a * by_size, of_b, -of_b * by_data], axis=1)


def _km(values: Numbers, size: Numbers, data: Numbers) -> tuple[Numbers, Numbers]:
    nc, dc, an, ad = values
    by_size = np.exp(an - ad) * (nc - np.log(size))
    both = np.logaddexp(by_size, dc - np.log(data))
    of_size = np.exp(by_size - both)
    slopes = [of_size * np.exp(an - ad), 1 - of_size, of_size * by_size, both - of_size * by_size]
    return np.exp(ad) * both, np.exp(ad) * np.stack(slopes, axis=1)


FORMS = {
    "chinchilla": Form(
        ("E", "A", "alpha", "B", "beta"),
        ((0.5, 2.0), (10.0, 1e3), (0.3, 0.6), (10.0, 1e3), (0.3, 0.6)),
        _chinchilla,
    ),
    "km": Form(("Nc", "Dc", "aN", "aD"), ((1e6, 1e10), (1e6, 1e10), (0.08, 0.3), (0.08, 0.3)), _km),
}


def fit(form: str, sizes: Sequence[float], data: Sequence[float], losses: Sequence[float]) -> Fit:
    """A form fitted to runs.

    Args:
        form: `chinchilla` or `km`.
        sizes: parameters of each run's model.
        data: tokens that each run learned from.
        losses: nats per token, held out.

    Raises:
        DataError: there are fewer runs than the form has parameters, plus one.
    """
    known = FORMS[form]
    n, d, y = (np.asarray(values, float) for values in (sizes, data, np.log(losses)))
    if len(y) <= len(known.names):
        raise DataError(f"{len(y)} runs cannot say {len(known.names)} parameters of {form}; give more than that")
    begins = [np.log(begin) for begin in itertools.product(*known.begins)]
    values = _search(known, begins, n, d, y)
    rest = [np.arange(len(y)) != at for at in range(len(y))]
    # From a few other beginnings too: the surface is not convex.
    begins = [values, *begins[:: max(1, len(begins) // 3)]]
    missed = [_residuals(_search(known, begins, n[own], d[own], y[own]), known, n, d, y)[~own][0] for own in rest]
    return Fit(
        form,
        dict(zip(known.names, map(float, np.exp(values)), strict=True)),
        float(np.sqrt(np.mean(_residuals(values, known, n, d, y) ** 2))),
        float(np.sqrt(np.mean(np.square(missed)))),
    )


def _residuals(values: Numbers, form: Form, n: Numbers, d: Numbers, y: Numbers) -> Numbers:
    return form.surface(values, n, d)[0] - y


def _slopes(values: Numbers, form: Form, n: Numbers, d: Numbers, y: Numbers) -> Numbers:
    return form.surface(values, n, d)[1]


def _search(form: Form, begins: Sequence[Numbers], n: Numbers, d: Numbers, y: Numbers) -> Numbers:
    """The best of several searches: a short one from each beginning, then those that came furthest to their ends."""

    def searched(begin: Numbers, evaluations: int) -> Any:
        return optimize.least_squares(
            _residuals, begin, _slopes, loss="huber", f_scale=HUBER, args=(form, n, d, y), max_nfev=evaluations
        )

    short = sorted((searched(begin, FEW_EVALUATIONS) for begin in begins), key=lambda one: one.cost)
    ends = [searched(one.x, MOST_EVALUATIONS) for one in short[:TO_THE_END]]
    return np.asarray(min(ends, key=lambda one: one.cost).x, float)
