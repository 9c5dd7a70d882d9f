"""When a step is not taken: its loss or gradient is not a number, or the loss has jumped.

PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1) went back before a spike and skipped the data around it.
"""

import dataclasses
import math
from dataclasses import dataclass

MEMORY_STEPS = 20
"""Steps over which the running mean forgets, and that it needs before it judges."""
SPIKE_DEVIATIONS = 6.0
SPIKE_NATS = 1.0
"""A spike is above the running mean by both: a quiet curve may move, and a noisy one may be noisy."""
MOST_ROLLBACKS = 5
"""In a row without coming further than ever: more, and training diverges for another reason than its data."""


@dataclass(frozen=True)
class Guard:
    """The running mean and variance of the loss, as values: a state to which training goes back holds its own."""

    mean: float = 0.0
    variance: float = 0.0
    steps: int = 0

    def verdict(self, loss: float, gradient_norm: float) -> str | None:
        """Why a step must not be taken, or None.

        Args:
            loss: of the global batch, in nats per target token.
            gradient_norm: over all trained weights, before clipping.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient's norm is {gradient_norm}"
        over = loss - self.mean
        if self.steps >= MEMORY_STEPS and over > max(SPIKE_NATS, SPIKE_DEVIATIONS * math.sqrt(self.variance)):
            return f"the loss jumped from {self.mean:.3g} to {loss:.3g}"
        return None

    def after_spike(self, loss: float) -> "Guard":
        """The guard after a step that was not taken: what comes again is the curve's own noise, not one bad batch."""
        if not math.isfinite(loss):
            return self
        over = loss - self.mean
        return dataclasses.replace(self, variance=self.variance + over * over / MEMORY_STEPS)

    def after(self, loss: float) -> "Guard":
        """The guard after a step that was taken."""
        share = max(1 / MEMORY_STEPS, 1 / (self.steps + 1))
        over = loss - self.mean
        variance = (1 - share) * (self.variance + share * over * over)
        return dataclasses.replace(self, mean=self.mean + share * over, variance=variance, steps=self.steps + 1)
