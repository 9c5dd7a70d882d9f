"""A power law through a learning curve, and how many examples an arm needs to be as good as another.

The mean score of n examples is fitted as `a - b n^-c` (Hestness et al. 2017, arXiv:1712.00409): a is what endless
examples would bring, if the law went on to hold, and c how fast the rest shrinks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_SIZES = 3
"""As many as the law has parameters: its curve then goes through all the means, and only more sizes can test it."""

MINUS = "\N{MINUS SIGN}"

STEEPEST = 4.0
"""Of c; a larger one is a curve that has reached its end by the second size."""


NOTHING = 1e-6
"""A b below this moves no digit that is shown."""


@dataclass(frozen=True)
class Fit:
    """`a - b n^-c`, or `a + b n^-c` where a lower value is the better one; b and c are not negative."""

    a: float
    b: float
    c: float
    falls: bool
    """Whether a lower value is the better one."""
    residual: float
    """Root of the mean squared distance to the means, in the metric's unit."""

    def at(self, examples: Any) -> Any:
        """The fitted score of so many examples; a number or an array."""
        rest = self.b * np.asarray(examples, np.float64) ** -self.c
        return self.a + rest if self.falls else self.a - rest

    def __str__(self) -> str:
        if self.b < NOTHING:
            return f"{self.a:.3f}, flat"
        sign = "+" if self.falls else MINUS
        return f"{self.a:.3f} {sign} {self.b:.3g} · n^{MINUS}{self.c:.2f}"


def fit(means: Mapping[int, float], lower_is_better: bool = False, highest: float | None = None) -> Fit | None:
    """The power law nearest to an arm's means, by least squares.

    Args:
        means: number of examples to mean score.
        lower_is_better: for a loss; the law then falls to a.
        highest: of a, for a metric that has a maximum.

    Returns:
        None with fewer than three sizes, and where no law is found.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    if len(means) < LEAST_SIZES:
        return None
    sizes = np.array(sorted(means), np.float64)
    scores = np.array([means[int(size)] for size in sizes]) * (-1 if lower_is_better else 1)
    top = np.inf if highest is None else highest
    if lower_is_better:
        top = 0.0  # no loss is below zero
    begin = float(np.clip(scores.max(), -np.inf, top))

    def law(n: Any, a: float, b: float, c: float) -> Any:
        return a - b * (n / sizes[0]) ** -c  # b is then the distance at the first size, whatever its unit

    spread = float(np.ptp(scores)) or 1e-6
    bounds = ([scores.min() - spread, 0.0, 0.0], [top, np.inf, STEEPEST])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # three sizes leave no errors of the parameters
            (a, b, c), _ = curve_fit(law, sizes, scores, [begin, spread, 0.5], bounds=bounds, max_nfev=10_000)
    except (RuntimeError, ValueError):
        return None
    residual = float(np.sqrt(np.mean((law(sizes, a, b, c) - scores) ** 2)))
    return Fit(-a if lower_is_better else a, b * sizes[0] ** c, c, lower_is_better, residual)


@dataclass(frozen=True)
class Match:
    """With how many examples an arm is as good as a baseline is at its largest size."""

    arm: str
    examples: int | None
    """None where it is not so good at any measured size."""
    at_first: bool = False
    """Whether it is so good with its fewest examples already, so that fewer may do."""

    def __str__(self) -> str:
        if self.examples is None:
            return "not within the measured sizes"
        return f"{self.examples:,} or fewer" if self.at_first else f"about {self.examples:,}"


def examples_to_match(arm: str, means: Mapping[int, float], score: float, lower_is_better: bool = False) -> Match:
    """Where an arm's curve first reaches a score, straight between measured sizes on a logarithmic axis.

    Args:
        arm: its name.
        means: number of examples to mean score.
        score: to be reached.
        lower_is_better: for a loss.
    """
    sizes = sorted(means)
    sign = -1 if lower_is_better else 1
    above: Sequence[float] = [sign * (means[size] - score) for size in sizes]
    if above[0] >= 0:
        return Match(arm, sizes[0], at_first=True)
    for place in range(1, len(sizes)):
        if above[place] >= 0:
            share = -above[place - 1] / (above[place] - above[place - 1])
            return Match(arm, round(sizes[place - 1] * (sizes[place] / sizes[place - 1]) ** share))
    return Match(arm, None)
