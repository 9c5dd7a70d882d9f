"""A head that has read labelled rows: what a method, a server and a scikit-learn estimator ask.

Shapes: k labelled rows, Q others, D dimensions, C classes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graft.errors import DataError
from graft.models.heads.head import Head
from graft.models.heads.hybrid import HybridHead
from graft.models.heads.regressions import Axes, Base
from graft.models.heads.tart import TartHead

QUERIES = 512
"""Rows that are answered at once, at most."""
MOST_WEIGHTS = 1 << 22
"""Of attention, in one head: fewer rows are answered at once where there are many classes and labelled rows."""
MOST_NUMBERS = 100_000_000
"""Classes times labelled rows times axes: more would take gigabytes, and many minutes."""


def reasoner(
    head: Head, x_kD: NDArray[Any], y_k: NDArray[Any], classes: int, components: int | None = None
) -> "Reasoner":
    """A head with its labelled rows.

    Args:
        head: frozen; it computes in float64 from now on, so that an answer does not depend on what is asked beside it.
        x_kD: vectors.
        y_k: their classes, whole numbers below `classes`.
        classes: C, at least two.
        components: principal components that the head is told of; None for as many as it reads.

    Raises:
        DataError: the head cannot read so many rows, or so many classes of them.
    """
    kinds: dict[type[Head], type[Reasoner]] = {HybridHead: HybridReasoner, TartHead: TartReasoner}
    with torch.inference_mode():
        labels = torch.from_numpy(np.asarray(y_k, np.int64))[None]
        return kinds[type(head)](head.double(), _one(x_kD), labels, classes, components)


class Reasoner:
    """Answers other rows; each by itself, whatever is asked beside it."""

    read: int
    """Labelled rows times classes."""

    def __init__(self, head: Any, x_1kD: Tensor, y_1k: Tensor, classes: int, components: int | None) -> None:
        raise NotImplementedError

    def log_probabilities(self, x_QD: NDArray[Any]) -> NDArray[np.float64]:
        """Of every class, [Q, C]; the keys and values of the labelled rows were computed once."""
        with torch.inference_mode():
            at_once = max(1, min(QUERIES, MOST_WEIGHTS // self.read))
            parts = [self._logits(part) for part in _one(x_QD).split(at_once, dim=1)]
            found: NDArray[np.float64] = torch.cat(parts).double().log_softmax(dim=-1).numpy()
            return found

    def _logits(self, x_1QD: Tensor) -> Tensor:
        """[Q, C]."""
        raise NotImplementedError


class HybridReasoner(Reasoner):
    """Base scores and their correction."""

    def __init__(self, head: HybridHead, x_1kD: Tensor, y_1k: Tensor, classes: int, components: int | None) -> None:
        rows, axes = y_1k.shape[1], min(x_1kD.shape[1:]) + 1
        if classes * max(rows, axes) * axes > MOST_NUMBERS:
            raise DataError(
                f"{rows:,} labelled rows of {x_1kD.shape[2]:,} numbers and {classes:,} labels are more than a hybrid "
                "head reads; give fewer labelled rows, or use a probe"
            )
        # Where axes are equally long, their order and signs follow the rows': so that theirs says nothing, it is fixed.
        order = torch.from_numpy(np.lexsort(np.column_stack([x_1kD[0], y_1k[0]]).T))
        x_1kD, y_1k = x_1kD[:, order], y_1k[:, order]
        self.head, self.y_1k, self.read = head, y_1k, classes * rows
        self.base = Base.fit(x_1kD, y_1k, classes, head.settings["components"], told=components)
        self.kept = head.remember(self.base.labelled, y_1k)

    def _logits(self, x_1QD: Tensor) -> Tensor:
        return self.head.answer(self.base.rows(x_1QD), self.y_1k, self.kept)[0]


class TartReasoner(Reasoner):
    """One class against the others, in turn; two classes are asked for both ways, so that neither is the first.

    Raises:
        DataError: there are more labelled rows than the head has positions for.
    """

    def __init__(self, head: TartHead, x_1kD: Tensor, y_1k: Tensor, classes: int, components: int | None) -> None:
        most = head.settings["points"] - 1
        if y_1k.shape[1] > most:
            raise DataError(
                f"this head reads at most {most} labelled rows, there are {y_1k.shape[1]}; give fewer "
                "(regime.examples), or head: hybrid"
            )
        self.head, self.classes, self.told, self.read = head, classes, components, classes * 2 * y_1k.shape[1]
        self.axes = Axes.fit(x_1kD)
        own = nn.functional.one_hot(y_1k[0], classes).T
        self.kept = head.remember(self._inputs(x_1kD).expand(classes, -1, -1), own.double())

    def _inputs(self, x_1ND: Tensor) -> Tensor:
        return self.axes.components(self.axes.along(x_1ND), self.head.settings["dimensions"], self.told)

    def _logits(self, x_1QD: Tensor) -> Tensor:
        odds = self.head.answer(self._inputs(x_1QD).expand(self.classes, -1, -1), self.kept).T
        # Two logits of opposite sign would count twice in their softmax.
        return odds / 2 if self.classes == 2 else nn.functional.logsigmoid(odds)


def _one(x_ND: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x_ND, np.float64))[None]
