"""Synthetic classification tasks, drawn on the device that trains, each a function of its own seed.

    seed ─► w ~ weight_scale · N(0, I) ─► x_i ~ N(0, I) ─► y_i ~ Bernoulli(sigmoid(x_i · w))

Bhatia et al. 2023 (TART, arXiv:2306.07536, section 4.1): one task per sequence, and a curriculum over the number of
dimensions and of points. Random numbers come from a hash of (seed, number), so that no batch, worker or device draws
others; the curriculum is a function of the step alone.

Shapes: B tasks, N points, D dimensions.
"""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from graft import hashing
from graft.pretraining.recipe import LogisticTasks
from graft.seeds import generator

GOLDEN, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""SplitMix64's constants (Steele et al. 2014, OOPSLA), as signed numbers."""


@dataclasses.dataclass(frozen=True)
class TaskBatches:
    """The endless sequence of batches of tasks.

    Args:
        data: what is drawn, and its curriculum.
        seed: of all tasks.
    """

    data: LogisticTasks
    seed: int

    def batch(self, position: int) -> pa.Table:
        """Seeds of tasks, and how large they are."""
        seeds = generator(self.seed, f"tasks-{position}").integers(2**62, size=self.data.tasks_per_batch)
        return table(seeds, *self.size(position))

    def size(self, position: int) -> tuple[int, int]:
        """Dimensions and points of the tasks of a batch."""
        data, stage = self.data, position // self.data.every_steps
        return (
            min(data.dimensions, data.first_dimensions + stage * data.more_dimensions),
            min(data.points, data.first_points + stage * data.more_points),
        )

    def fresh(self, count: int, stream: str) -> pa.Table:
        """Tasks of full size that no batch and no other stream holds."""
        seeds = generator(self.seed, f"fresh-{stream}").integers(2**62, size=count)
        return table(seeds, self.data.dimensions, self.data.points)

    def looked_at(self) -> pa.Table:
        """Tasks on which training is watched."""
        return self.fresh(self.data.tasks_per_batch, "looked at")

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("logistic-tasks", self.data.model_dump(), self.seed)


def table(seeds: np.ndarray, dimensions: int, points: int) -> pa.Table:
    """Tasks as `Trains.encode` gives rows: a point is read twice, as input and as label."""
    count = len(seeds)
    return pa.table(
        {
            "seed": pa.array(seeds, pa.int64()),
            "dimensions": pa.array([dimensions] * count, pa.int32()),
            "points": pa.array([points] * count, pa.int32()),
            "length": pa.array([2 * points] * count, pa.int32()),
            "targets": pa.array([[points]] * count, pa.list_(pa.int32())),
        }
    )


def draw(seeds_B: Tensor, points: int, dimensions: int, width: int, weight_scale: float) -> tuple[Tensor, Tensor]:
    """Inputs float32 [B, N, width], zero beyond the dimensions, and labels float32 [B, N], 0 or 1.

    Args:
        seeds_B: int64, one per task, on the device where they are drawn.
        points: N.
        dimensions: that carry something.
        width: of the inputs.
        weight_scale: standard deviation of the task's weights.
    """
    tasks, each = len(seeds_B), points * dimensions
    numbers = normal(seeds_B, each + dimensions)
    x_BND = numbers[:, :each].view(tasks, points, dimensions)
    w_BD = weight_scale * numbers[:, each:]
    logits_BN = torch.einsum("bnd,bd->bn", x_BND, w_BD)
    y_BN = (uniform(~seeds_B, points) < torch.sigmoid(logits_BN)).float()
    return torch.nn.functional.pad(x_BND, (0, width - dimensions)), y_BN


def uniform(seeds_B: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1), float32 [B, count]."""
    return _bits(seeds_B, count).double().mul(2.0**-53).float().clamp(max=1 - 2**-24)


def normal(seeds_B: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32 [B, count] (Box and Muller 1958)."""
    half = (count + 1) // 2
    bits = _bits(seeds_B, 2 * half).double().mul(2.0**-53)
    radius = torch.sqrt(-2 * torch.log1p(-bits[:, :half]))
    angle = 2 * math.pi * bits[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].float()


def _bits(seeds_B: Tensor, count: int) -> Tensor:
    """53 random bits each, int64 [B, count]."""
    numbers = torch.arange(1, count + 1, device=seeds_B.device)
    state = seeds_B[:, None] + numbers * GOLDEN  # int64 wraps around, as it shall
    state = (state ^ _shifted(state, 30)) * FIRST
    state = (state ^ _shifted(state, 27)) * SECOND
    return _shifted(state ^ _shifted(state, 31), 11)


def _shifted(state: Tensor, by: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (state >> by) & ((1 << (64 - by)) - 1)
