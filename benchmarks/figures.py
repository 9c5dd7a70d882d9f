"""What is read off measured times and sizes: percentiles, spreads, and whether something grows."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


def percentile(values: Sequence[float], percent: float) -> float:
    """A value that so many percent of the values do not exceed; NaN where there is none."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range of what the turns gave."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median and range of the quotient, turn by turn: both sides of a turn met the same machine."""
    return spread([a / b if b else math.nan for a, b in zip(ours, theirs, strict=True)], 2) + "x"


@dataclass(frozen=True)
class Slope:
    """How fast something grows."""

    per_minute: float
    low: float
    high: float
    """Ends of the 95 % interval of `per_minute`."""
    first: float
    last: float
    """Means of the first and the last third of the values."""

    @property
    def flat(self) -> bool:
        """Growth is not shown: the interval reaches down to zero."""
        return self.low <= 0


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """A line through values over time.

    Values close in time resemble each other, so the interval is that of as many independent values as the residuals'
    correlation with their neighbours leaves (n (1 - r) / (1 + r)); at least four values are needed.
    """
    minutes, heights = np.asarray(seconds, float) / 60, np.asarray(values, float)
    third = max(1, len(heights) // 3)
    first, last = float(heights[:third].mean()), float(heights[-third:].mean())
    if len(heights) < 4:
        return Slope(math.nan, -math.inf, math.inf, first, last)
    line = stats.linregress(minutes, heights)
    rest = heights - line.intercept - line.slope * minutes
    scale = float((rest**2).sum())
    alike = max(0.0, float((rest[1:] * rest[:-1]).sum()) / scale) if scale > 0 else 0.0
    degrees = max(1.0, len(heights) * (1 - alike) / (1 + alike) - 2)
    # Of values that never change scipy gives no error.
    error = float(line.stderr) * math.sqrt((len(heights) - 2) / degrees) if scale > 0 else 0.0
    reach = float(stats.t.ppf(0.975, degrees)) * error
    return Slope(float(line.slope), float(line.slope) - reach, float(line.slope) + reach, first, last)


def near(moment: float, moments: Sequence[float], after: float, before: float = 0.0) -> bool:
    """Whether a moment lies from `before` seconds before one of the others to `after` seconds after it."""
    return any(-before <= moment - other <= after for other in moments)
