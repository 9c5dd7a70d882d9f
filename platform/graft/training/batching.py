"""Which rows make up which global batch: a function of the seed and the batch's position alone.

    epoch ─► windows of shuffled rows ─► sorted by length, filled by tokens ─► batches, shuffled

Neither the number of workers nor what happened before changes a batch, so a resumed run sees what an undisturbed one
would have seen. Rows of a batch are of similar length: little of a batch is padding.
"""

import bisect
import functools
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graft.models.batching import batches
from graft.seeds import generator

Rows = NDArray[np.int64]

WINDOW_BATCHES = 64
"""Batches whose rows are sorted together: more saves padding, fewer mixes lengths better over time."""
RAMP = (8, 4, 2)
"""Shares of a whole batch, as divisors, in the stages of a ramp."""


class Drawn(Protocol):
    """Rows that are made when they are needed, instead of read from a table."""

    def batch(self, position: int) -> pa.Table:
        """The encoded rows of one global batch, longest first: a function of the position alone."""
        ...

    def fingerprint(self) -> str:
        """Identity by content."""
        ...


class GlobalBatches:
    """The endless sequence of global batches.

    Args:
        lengths: positions that each row takes.
        tokens: positions of a whole batch, padding included; a longer row goes alone.
        seed: of the order.
        ramp_steps: first batches that are smaller, in stages.
    """

    def __init__(self, lengths: NDArray[np.int64], tokens: int, seed: int, ramp_steps: int = 0) -> None:
        self.lengths, self.tokens, self.seed, self.ramp_steps = lengths, tokens, seed, ramp_steps
        self._ends: dict[int, list[int]] = {}
        self._epoch = functools.lru_cache(maxsize=2)(self._packed)

    def rows(self, position: int) -> Rows:
        """Row numbers of one batch, longest rows first."""
        begin = 0
        for stage, divisor in enumerate((*RAMP, 1)):
            end = self.ramp_steps * (stage + 1) // len(RAMP)
            if divisor == 1 or position < end:
                return self._in_stage(stage, max(1, self.tokens // divisor), position - begin)
            begin = end
        raise AssertionError("the last stage has no end")

    def _in_stage(self, stage: int, tokens: int, position: int) -> Rows:
        # Where each epoch ends; epochs differ a little, because other rows stand together.
        ends = self._ends.setdefault(stage, [0])
        while position >= ends[-1]:
            ends.append(ends[-1] + len(self._epoch(stage, tokens, len(ends) - 1)))
        epoch = bisect.bisect_right(ends, position) - 1
        return self._epoch(stage, tokens, epoch)[position - ends[epoch]]

    def _packed(self, stage: int, tokens: int, epoch: int) -> list[Rows]:
        """All rows once."""
        random = generator(self.seed, f"batches-{stage}-{epoch}")
        order = random.permutation(len(self.lengths))
        window = max(1, WINDOW_BATCHES * tokens // max(1, int(self.lengths.mean())))
        found = []
        for start in range(0, len(order), window):
            rows = order[start : start + window]
            found += [rows[batch] for batch in batches(self.lengths[rows], tokens)]
        return [found[place] for place in random.permutation(len(found))]


def micro_batches(lengths: NDArray[np.int64], rows: Rows, workers: int, tokens: int | None) -> list[list[Rows]]:
    """What each worker puts through the model, in turn; all workers have equally many (some empty).

    Args:
        lengths: positions that each row takes.
        rows: of the global batch, longest first.
        workers: how many share it.
        tokens: positions that a device holds at once; None for no limit.
    """
    shares = [rows[worker::workers] for worker in range(workers)]
    split = [[share[part] for part in batches(lengths[share], tokens or np.iinfo(np.int64).max)] for share in shares]
    most = max(map(len, split))
    return [parts + [rows[:0]] * (most - len(parts)) for parts in split]
