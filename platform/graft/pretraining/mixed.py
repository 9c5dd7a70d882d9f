"""Synthetic classifications that look like frozen embeddings of real ones, each a function of its own seed.

    seed ─► spectrum, kind of rule, noise, shares ─► vectors and classes, labelled rows first

Vectors have a power-law spectrum. Classes come from one of three rules: a softmax of linear scores with a bias; a
softmax of a small network's scores; or normal distributions about a centre each. Some tasks have wrong labels. The
first labelled rows hold one of each class that there is, as in graft's own regimes.

Shapes: B tasks, k labelled rows, Q others, N = k + Q, D dimensions, C classes, U hidden units.
"""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from graft import hashing
from graft.pretraining.logistic import normal, uniform
from graft.pretraining.recipe import MixedTasks
from graft.seeds import generator

UNITS = 12
"""Of a small network's hidden layer."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Of all tasks in a batch."""

    labelled: int
    queries: int
    dimensions: int
    classes: int

    def table(self, seeds: np.ndarray) -> pa.Table:
        """Tasks as `Trains.encode` gives rows: a row of a task is read once per class."""
        count = len(seeds)
        sizes = {name: pa.array([value] * count, pa.int32()) for name, value in dataclasses.asdict(self).items()}
        length = (self.labelled + self.queries) * self.classes
        return pa.table(
            {
                "seed": pa.array(seeds, pa.int64()),
                **sizes,
                "length": pa.array([length] * count, pa.int32()),
                "targets": pa.array([[self.queries]] * count, pa.list_(pa.int32())),
            }
        )


@dataclasses.dataclass(frozen=True)
class MixedBatches:
    """The endless sequence of batches of tasks.

    Args:
        data: what is drawn.
        seed: of all tasks.
    """

    data: MixedTasks
    seed: int

    def batch(self, position: int) -> pa.Table:
        """Seeds of tasks, and how large they are."""
        seeds = generator(self.seed, f"tasks-{position}").integers(2**62, size=self.data.tasks_per_batch)
        return self.size(generator(self.seed, f"sizes-{position}")).table(seeds)

    def size(self, random: np.random.Generator) -> Size:
        """Half of all batches have two classes; sizes are drawn by their logarithms."""
        data = self.data
        classes = 2 if random.random() < 0.5 else int(random.integers(3, max(4, data.classes + 1)))
        classes = min(classes, data.classes)
        labelled = round(math.exp(random.uniform(math.log(data.least_labelled), math.log(data.labelled))))
        dimensions = round(math.exp(random.uniform(math.log(data.least_dimensions), math.log(data.dimensions))))
        return Size(max(labelled, classes), data.queries, dimensions, classes)

    def fresh(self, count: int, stream: str, size: Size) -> pa.Table:
        """Tasks of one size that no batch and no other stream holds."""
        seeds = generator(self.seed, f"fresh-{stream}-{dataclasses.astuple(size)}").integers(2**62, size=count)
        return size.table(seeds)

    def looked_at(self) -> pa.Table:
        """Tasks on which training is watched."""
        data = self.data
        size = Size(min(32, data.labelled), data.queries, data.dimensions, min(3, data.classes))
        return self.fresh(4 * data.tasks_per_batch, "looked at", size)

    def fingerprint(self) -> str:
        """Identity by content."""
        return hashing.digest("mixed-tasks", self.data.model_dump(), self.seed)


def draw(seeds_B: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Vectors float32 [B, N, D] and classes int64 [B, N], the labelled rows first."""
    tasks, rows = len(seeds_B), size.labelled + size.queries
    dimensions, classes = size.dimensions, size.classes
    chance = uniform(~seeds_B, 12 + rows * (classes + 2))
    of_task, of_row = chance[:, :12], chance[:, 12:].view(tasks, rows, classes + 2)
    parts = (rows * dimensions, dimensions * classes, dimensions * UNITS, UNITS * classes, 2 * classes)
    vectors, linear, into, out, biases = normal(seeds_B, sum(parts)).split(parts, dim=1)

    number = torch.arange(1, dimensions + 1, device=seeds_B.device, dtype=torch.float32)
    deviation = number ** -_between(of_task[:, 0], 0.1, 0.8)[:, None]
    # Between what varies most (0) and all directions alike (1).
    weighed = deviation ** -(of_task[:, 1] ** 1.5)[:, None]
    x_BND = vectors.view(tasks, rows, dimensions) * deviation[:, None]
    linear_BDC = linear.view(tasks, dimensions, classes) * weighed[..., None]
    share = _between(of_task[:, 2], 0.0, 1.2)[:, None]
    prior = share * biases[:, :classes]

    hidden = torch.tanh(1.5 * _standard(x_BND @ (into.view(tasks, dimensions, UNITS) * weighed[..., None])))
    bent = (of_task[:, 3] < 0.3).float()[:, None, None] * of_task[:, 4][:, None, None]
    scores = (1 - bent) * _standard(x_BND @ linear_BDC) + bent * _standard(hidden @ out.view(tasks, UNITS, classes))
    sharp = torch.exp(_between(of_task[:, 5], math.log(1.0), math.log(40.0)))[:, None, None]
    gumbel = -torch.log(-torch.log(of_row[..., :classes].clamp(1e-7, 1 - 1e-7)))
    ruled_BN = (sharp * (scores + 0.5 * prior[:, None]) + gumbel).argmax(dim=-1)
    placed_BN = (prior[:, None] + gumbel).argmax(dim=-1)

    # Centres so far from each other that two classes are told apart by `apart` standard deviations.
    centres = (
        linear.view(tasks, dimensions, classes).mT
        * deviation[:, None] ** _between(of_task[:, 6], 0.0, 2.0)[:, None, None]
    )
    distance = (2 * (centres / deviation[:, None]).square().sum(dim=2).mean(dim=1)).sqrt()[:, None, None]
    apart = torch.exp(_between(of_task[:, 7], math.log(1.5), math.log(10.0)))[:, None, None]
    centres = centres / distance * apart
    placed = of_task[:, 8] < 0.5
    moved = x_BND + centres.gather(1, placed_BN[..., None].expand(-1, -1, dimensions))
    x_BND = torch.where(placed[:, None, None], moved, x_BND)
    y_BN = torch.where(placed[:, None], placed_BN, ruled_BN)

    wrong = (of_task[:, 9] < 0.3).float() * 0.2 * of_task[:, 10]
    other = (of_row[..., classes] * classes).long().clamp(max=classes - 1)
    y_BN = torch.where(of_row[..., classes + 1] < wrong[:, None], other, y_BN)
    return _one_of_each_first(x_BND, y_BN, classes)


def _between(chance: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * chance


def _standard(scores_BNC: Tensor) -> Tensor:
    """Of deviation 1 within a task."""
    return scores_BNC / scores_BNC.flatten(1).std(dim=1)[:, None, None].clamp(min=1e-6)


def _one_of_each_first(x_BND: Tensor, y_BN: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    own = torch.nn.functional.one_hot(y_BN, classes)
    first = (own.cumsum(dim=1) * own).sum(dim=2) == 1
    order = torch.argsort((~first).to(torch.int8), dim=1, stable=True)
    return x_BND.gather(1, order[..., None].expand_as(x_BND)), y_BN.gather(1, order)
