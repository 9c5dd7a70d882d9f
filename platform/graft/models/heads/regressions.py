"""L2 logistic regression by Newton steps, for many tasks at once: what a hybrid head starts from.

    vectors ─► centred, scaled ─► principal axes ─┬─► components, softly whitened
                                                  └─► softmax regression at S strengths ─► scores
                                                      (of a labelled row: as if it had been left out)

All tasks of a batch have equally many labelled rows. The regression sees the whole vector: with fewer labelled rows
than dimensions it is computed in the span of the rows, which is exact.

Shapes: B tasks, k labelled rows, Q other rows, D dimensions, R = min(k, D) axes, C classes, S strengths, P components.
"""

import dataclasses
from typing import Self

import torch
from torch import Tensor

STRENGTHS = (0.2, 1.0, 5.0, 25.0, 125.0)
"""Inverse strengths of the regularisation (scikit-learn's C) for vectors of mean squared length 1, strongest first."""
NEWTON_STEPS = 5
"""Per strength; each begins where the stronger one before it ended."""
INTERCEPT = 10.0**0.5
"""The constant input that carries the intercept: regularised a tenth as strongly as a weight."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a head is told of rows."""

    scores_BNCS: Tensor
    """Logits of the classes, per strength."""
    components_BNP: Tensor
    """Softly whitened principal components."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The principal axes of labelled rows, largest first."""

    centre_B1D: Tensor
    scale_B11: Tensor
    """Divides, so that the labelled rows have mean squared length 1."""
    axes_BDR: Tensor
    variance_BR: Tensor
    """Along each axis; zero for what the rows do not span."""
    rows: int
    """k."""

    @classmethod
    def fit(cls, x_BkD: Tensor) -> Self:
        """Of these rows."""
        centre = x_BkD.mean(dim=1, keepdim=True)
        z = x_BkD - centre
        scale = z.square().sum(dim=2).mean(dim=1).sqrt()[:, None, None]
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls(centre, scale, *_axes(z / scale), x_BkD.shape[1])

    def along(self, x_BND: Tensor) -> Tensor:
        """Coordinates of rows, [B, N, R]."""
        return (x_BND - self.centre_B1D) / self.scale_B11 @ self.axes_BDR

    def components(self, along_BNR: Tensor, count: int, told: int | None = None) -> Tensor:
        """The first coordinates, softly whitened, [B, N, count]; zero for axes that there are not, or beyond `told`.

        The spectrum of few rows is steeper than that of all: the fewer, the less the small axes are stretched. Whitened
        fully, as many components as rows are noise.
        """
        spread = _padded((self.variance_BR + 1 / self.rows).sqrt(), count, 1.0)
        return _padded(along_BNR[..., :told], count) / spread[:, None]


@dataclasses.dataclass(frozen=True)
class Base:
    """Fitted regressions, and the axes in which they are written."""

    axes: Axes
    components: int
    told: int | None
    weights_BSCR: Tensor
    """Of the axes, and of the constant in the last place."""
    labelled: Rows
    """The labelled rows themselves: their scores are approximate leave-one-out ones."""

    @classmethod
    def fit(
        cls,
        x_BkD: Tensor,
        y_Bk: Tensor,
        classes: int,
        components: int,
        strengths: tuple[float, ...] = STRENGTHS,
        newton_steps: int = NEWTON_STEPS,
        told: int | None = None,
    ) -> Self:
        """Fit all strengths on the labelled rows.

        Args:
            x_BkD: their vectors.
            y_Bk: their classes, int64.
            classes: C.
            components: P.
            strengths: S of them, strongest first.
            newton_steps: per strength.
            told: components that are not zero; None for all that there are.
        """
        axes = Axes.fit(x_BkD)
        along = axes.along(x_BkD)
        weights, scores = _regressions(_design(along), y_Bk, classes, strengths, newton_steps)
        return cls(axes, components, told, weights, Rows(scores, axes.components(along, components, told)))

    def rows(self, x_BQD: Tensor) -> Rows:
        """Scores and components of other rows."""
        along = self.axes.along(x_BQD)
        scores = torch.einsum("bqr,bscr->bqcs", _design(along), self.weights_BSCR)
        return Rows(scores, self.axes.components(along, self.components, self.told))


def _axes(z_BkD: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes [B, D, R], largest first, and the variance along each [B, R]; unspanned ones are zero.

    An axis points to where its cubes are positive, which no order of the rows changes.
    """
    rows, dimensions = z_BkD.shape[1:]
    if rows < dimensions:
        values, vectors = torch.linalg.eigh(z_BkD @ z_BkD.mT)
        axes = z_BkD.mT @ vectors
    else:
        values, axes = torch.linalg.eigh(z_BkD.mT @ z_BkD)
    values, axes = values.flip(-1).clamp(min=0), axes.flip(-1)
    spanned = values > values[:, :1] * max(rows, dimensions) * torch.finfo(values.dtype).eps
    length = axes.norm(dim=1)
    axes = torch.where(spanned[:, None], axes / torch.where(spanned, length, 1)[:, None], 0)
    cubes = (z_BkD @ axes).pow(3).sum(dim=1)
    return axes * torch.where(cubes < 0, -1.0, 1.0).to(axes)[:, None], torch.where(spanned, values, 0) / rows


def _design(along_BNR: Tensor) -> Tensor:
    """Coordinates and the constant."""
    return torch.nn.functional.pad(along_BNR, (0, 1), value=INTERCEPT)


def _padded(values: Tensor, width: int, filler: float = 0.0) -> Tensor:
    """The first numbers of the last dimension, filled up where there are fewer."""
    return torch.nn.functional.pad(values[..., :width], (0, max(0, width - values.shape[-1])), value=filler)


def _regressions(
    design_BkR: Tensor, y_Bk: Tensor, classes: int, strengths: tuple[float, ...], newton_steps: int
) -> tuple[Tensor, Tensor]:
    """Weights [B, S, C, R] and approximate leave-one-out scores of the labelled rows [B, k, C, S].

    Newton's method on softmax regression with the curvature of each class by itself, twice p (1 - p): exact for two
    classes, and never less than the true curvature for more (the rest is diagonally dominant). Leaving a row out is one
    such step without it (Rad and Maleki 2020, arXiv:1801.10243, section 2.2).
    """
    target = torch.nn.functional.one_hot(y_Bk, classes).to(design_BkR)
    weights = design_BkR.new_zeros(len(design_BkR), classes, design_BkR.shape[2])
    identity = torch.eye(design_BkR.shape[2], dtype=design_BkR.dtype, device=design_BkR.device)
    found, scores = [], []
    for strength in strengths:
        for _ in range(newton_steps):
            missed, curvature = _residual(design_BkR, weights, target)
            factor = _factor(design_BkR, curvature, identity / strength)
            gradient = torch.einsum("bkc,bkr->bcr", missed, design_BkR) - weights / strength
            weights = weights + torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        missed, curvature = _residual(design_BkR, weights, target)
        factor = _factor(design_BkR, curvature, identity / strength)
        half = torch.linalg.solve_triangular(factor, design_BkR.mT[:, None].expand(-1, classes, -1, -1), upper=False)
        leverage = half.square().sum(dim=2).mT
        logits = torch.einsum("bkr,bcr->bkc", design_BkR, weights)
        scores.append(logits - leverage * missed / (1 - curvature * leverage).clamp(min=1e-3))
        found.append(weights)
    return torch.stack(found, dim=1), torch.stack(scores, dim=-1)


def _residual(design_BkR: Tensor, weights_BCR: Tensor, target_BkC: Tensor) -> tuple[Tensor, Tensor]:
    """What is missed of each target, and twice p (1 - p), both [B, k, C]."""
    share = torch.einsum("bkr,bcr->bkc", design_BkR, weights_BCR).softmax(dim=-1)
    return target_BkC - share, 2 * share * (1 - share)


def _factor(design_BkR: Tensor, curvature_BkC: Tensor, penalty: Tensor) -> Tensor:
    """Cholesky factors of the curvature in each class's weights, [B, C, R, R]."""
    weighted = design_BkR[:, None] * curvature_BkC.mT[..., None]
    return torch.linalg.cholesky(weighted.mT @ design_BkR[:, None] + penalty)
