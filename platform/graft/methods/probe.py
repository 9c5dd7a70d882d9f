"""A light classifier on frozen features: the baseline that every other method has to beat.

    text ─► embed ─► embedding ─► classify ─► prediction, scores          (vectors skip embed)

The estimators are scikit-learn's; what it learned is kept as arrays, never as a pickle. All but `knn` are
affine in the features, so a fitted probe is two arrays and its log-probabilities are log softmax(x @ coef + intercept).

Choices, each so that the baseline is as strong as its kind allows:
- features are centred; measured columns in their own units (`vector` inputs) are divided by their standard
  deviations, embeddings by one number, since their directions are already comparable;
- `logistic` chooses C by cross-validated log-loss, which calibrates better than choosing by accuracy, as
  `logistic_by_accuracy` does (the more regularised of equals);
- `lda` shrinks one covariance, pooled within labels (Ledoit and Wolf 2004); scikit-learn's own shrinks each label's
  by itself, which with two rows per label was measured to fall below the majority's accuracy;
- the scores of `ridge` (alpha by closed-form leave-one-out), `lda` and `centroid` are no calibrated probabilities: one
  temperature, chosen by cross-validated log-loss, makes them comparable without changing a prediction;
- `knn` weighs its votes by distance, chooses their number by cross-validated log-loss, and smooths them by one uniform
  vote, so that no label has probability zero;
- what is selected is selected on five folds inside the examples (which are scaled before), and the classifier then
  fitted on all of them. Where some of them have equal inputs or items, that holds for the alpha of `ridge` too: leaving
  one out would leave its equals in.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa

from graft.arrays import answer_columns, matrix
from graft.errors import DataError, SpecError
from graft.graph import Graph
from graft.methods.embed import Embed
from graft.node import Context, Node
from graft.spec import Method, Regime, Task
from graft.tasks.regimes import Indices, folds, units_of

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset

Classifier = Literal["majority", "centroid", "knn", "lda", "ridge", "logistic", "logistic_by_accuracy"]
Affine = tuple[np.ndarray, np.ndarray]
"""coef [D, C] and intercept [C], a column per label."""
Parts = Sequence[tuple[Indices, Indices]]
"""Rows to fit and rows to validate on, by fold; none where nothing can be validated."""

Value = TypeVar("Value", int, float)

LOGISTIC_C = tuple(float(c) for c in np.logspace(-4, 1, 11))
RIDGE_ALPHAS = tuple(float(a) for a in np.logspace(-1, 4, 11))
NEIGHBOURS = (1, 3, 5, 9, 15)


class Probe(Method):
    """A scikit-learn classifier on frozen features."""

    name: Literal["probe"] = "probe"
    classifier: Classifier = "logistic"
    """majority, centroid, knn (cosine), lda (shrunken pooled covariance), ridge, logistic (C by log-loss), or
    logistic_by_accuracy."""

    def roles(self, task: Task) -> tuple[str, ...]:
        """An encoder, unless the task's inputs are vectors already."""
        return () if task.kind == "vector" else ("encoder",)

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """Embed and classify, or classify alone.

        Raises:
            SpecError: the targets are free text.
        """
        if dataset.labels is None:
            raise SpecError(
                "method probe answers with labels, the task's targets are free text; use icl, or task.label"
            )
        if task.kind == "vector":
            return Graph([Classify(self.classifier, reads=dataset.inputs, standardise=True)], dataset.inputs)
        return Graph([Embed.of(models["encoder"], task, dataset), Classify(self.classifier)], dataset.inputs)


@dataclasses.dataclass(frozen=True)
class Classify(Node):
    """A vector column to `prediction` and `scores` (struct of label to log-probability)."""

    classifier: Classifier
    reads: tuple[str, ...] = ("embedding",)
    standardise: bool = False
    labels: tuple[str, ...] = ()
    centre: np.ndarray | None = None
    """[D] what is subtracted from the features."""
    scale: np.ndarray | None = None
    """[D] what they are then divided by."""
    coef: np.ndarray | None = None
    """[D, C] of the affine classifiers."""
    intercept: np.ndarray | None = None
    """[C]."""
    neighbours: int = 0
    """Of `knn`."""
    memory: np.ndarray | None = None
    """[k, D] of `knn`: the scaled features of the examples."""
    memory_labels: np.ndarray | None = None
    """[k] of `knn`: positions in `labels`."""

    writes = ("prediction", "scores")

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Scale, then fit the classifier on all rows; what is selected is selected on folds inside them."""
        from threadpoolctl import threadpool_limits

        features = matrix(rows[self.reads[0]]).astype(np.float64)
        targets = rows["target"].to_pylist()
        assert context.labels is not None  # Probe.graph saw to it
        labels = context.labels
        centre = features.mean(axis=0)
        spread = features.std(axis=0) if self.standardise else np.full(features.shape[1], (features - centre).std())
        scale = np.where(spread > 0, spread, 1.0)
        scaled = (features - centre) / scale
        classes = np.array([labels.index(target) for target in targets])
        common = {"labels": labels, "centre": centre, "scale": scale}
        units = units_of(rows, context.units)
        parts = [] if self.classifier == "majority" else _parts(classes, context.experiment.regime, units)
        alone = units is None or len(set(units)) == len(units)
        # measured: on matrices this small a second BLAS thread makes a fit ten times slower.
        with threadpool_limits(1, user_api="blas"):
            if self.classifier == "knn":
                k = _select(NEIGHBOURS, lambda k: _neighbours(k, len(labels)), scaled, classes, parts)
                return dataclasses.replace(self, **common, neighbours=k, memory=scaled, memory_labels=classes)
            coef, intercept = fit_affine(self.classifier, scaled, classes, len(labels), parts, alone)
        return dataclasses.replace(self, **common, coef=coef, intercept=intercept)

    def run(self, rows: pa.Table) -> pa.Table:
        """Log-probabilities of every label, and the most probable one."""
        features = matrix(rows[self.reads[0]])
        assert self.centre is not None
        if features.shape[1] != len(self.centre):
            raise DataError(
                f"{self.reads[0]}: vectors of {features.shape[1]} numbers; this run reads {len(self.centre)}"
            )
        scaled = (features - self.centre) / self.scale
        if self.coef is None:
            assert self.memory is not None
            assert self.memory_labels is not None
            scores = _neighbours(self.neighbours, len(self.labels))(self.memory, self.memory_labels)(scaled)
        else:
            scores = scaled @ self.coef + self.intercept
        return answer_columns(_log_softmax(scores), self.labels)

    def describe(self) -> str:
        """Name the classifier."""
        return f"classify({self.classifier})"

    def parameters_trained(self) -> int:
        """Coefficients and intercepts."""
        return 0 if self.coef is None or self.intercept is None else self.coef.size + self.intercept.size


def fit_affine(
    classifier: Classifier, features: np.ndarray, classes: np.ndarray, num_labels: int, parts: Parts, alone: bool
) -> Affine:
    """Fit on [k, D] features and [k] classes; labels without an example get an intercept of -inf.

    Rows of one label alone, as a fold's may be, give the majority's classifier: there is nothing to tell apart.

    Args:
        classifier: which one.
        features: [k, D].
        classes: [k].
        num_labels: C.
        parts: what is selected is selected on them.
        alone: True where no two rows have to stay on one side.
    """
    if classifier == "majority" or len(np.unique(classes)) < 2:
        return _majority(num_labels)(features, classes)
    if classifier in ("logistic", "logistic_by_accuracy"):
        loss = _log_loss if classifier == "logistic" else _error
        c = _select(LOGISTIC_C, lambda c: _affine(_logistic(c, num_labels)), features, classes, parts, loss)
        return _logistic(c, num_labels)(features, classes)
    plain = {"ridge": _ridge, "lda": _lda, "centroid": _centroid}[classifier](num_labels)
    if classifier == "ridge" and not alone:
        alpha = _select(RIDGE_ALPHAS, lambda a: _affine(_ridge(num_labels, (a,))), features, classes, parts, _square)
        plain = _ridge(num_labels, (alpha,))
    temperature = _temperature(plain, features, classes, parts)
    coef, intercept = plain(features, classes)
    return coef * temperature, intercept * temperature


Fit = Callable[[np.ndarray, np.ndarray], Affine]
Scores = Callable[[np.ndarray], np.ndarray]
"""Features [N, D] to scores [N, C] whose softmax are the labels' probabilities."""


def _affine(fit: Fit) -> Callable[[np.ndarray, np.ndarray], Scores]:
    def fitted(features: np.ndarray, classes: np.ndarray) -> Scores:
        coef, intercept = fit(features, classes)
        return lambda rows: rows @ coef + intercept

    return fitted


def _neighbours(k: int, num_labels: int) -> Callable[[np.ndarray, np.ndarray], Scores]:
    def fitted(features: np.ndarray, classes: np.ndarray) -> Scores:
        from sklearn.neighbors import KNeighborsClassifier

        nearest = min(k, len(features))
        model = KNeighborsClassifier(nearest, metric="cosine", weights="distance").fit(features, classes)

        def scores(rows: np.ndarray) -> np.ndarray:
            votes = np.zeros((len(rows), num_labels))
            votes[:, model.classes_] = model.predict_proba(rows) * nearest
            return np.log((votes + 1 / num_labels) / (nearest + 1))

        return scores

    return fitted


def _logistic(c: float, num_labels: int) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray) -> Affine:
        from sklearn.linear_model import LogisticRegression

        return _columns(LogisticRegression(C=c, max_iter=5000).fit(features, classes), num_labels)

    return fit


def _ridge(num_labels: int, alphas: tuple[float, ...] = RIDGE_ALPHAS) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray) -> Affine:
        from sklearn.linear_model import RidgeClassifierCV

        return _columns(RidgeClassifierCV(alphas=list(alphas)).fit(features, classes), num_labels)

    return fit


def _lda(num_labels: int) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray) -> Affine:
        from sklearn.covariance import LedoitWolf

        seen, place, counts = np.unique(classes, return_inverse=True, return_counts=True)
        means = _means(features, classes, seen)
        within = features - means[place]
        # One row per label tells nothing of their spread: an equal one everywhere is the nearest mean.
        covariance = LedoitWolf(assume_centered=True).fit(within).covariance_ if within.any() else np.eye(len(means.T))
        coef = np.linalg.solve(covariance, means.T)
        return _placed(coef, np.log(counts / len(classes)) - 0.5 * (means.T * coef).sum(axis=0), seen, num_labels)

    return fit


def _centroid(num_labels: int) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray) -> Affine:
        seen = np.unique(classes)
        means = _means(features, classes, seen)
        # -|x - c|^2 up to |x|^2, which all labels share
        return _placed(2 * means.T, -(means**2).sum(axis=1), seen, num_labels)

    return fit


def _majority(num_labels: int) -> Fit:
    def fit(features: np.ndarray, classes: np.ndarray) -> Affine:
        from sklearn.dummy import DummyClassifier

        model = DummyClassifier(strategy="prior").fit(features, classes)
        coef = np.zeros((features.shape[1], len(model.classes_)))
        return _placed(coef, np.log(model.class_prior_), model.classes_, num_labels)

    return fit


def _means(features: np.ndarray, classes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Of each label's rows, [S, D]."""
    return np.stack([features[classes == c].mean(axis=0) for c in seen])


def _columns(model: Any, num_labels: int) -> Affine:
    """A linear scikit-learn classifier with a column per label: two labels share one there."""
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coef = np.vstack([np.zeros_like(coef), coef])
        intercept = np.concatenate([np.zeros(1), intercept])
    return _placed(coef.T, intercept, model.classes_, num_labels)


def _placed(own_coef: np.ndarray, own_intercept: np.ndarray, seen: np.ndarray, num_labels: int) -> Affine:
    """The columns of the labels that were seen among those of all labels; an unseen one has probability 0."""
    coef, intercept = np.zeros((len(own_coef), num_labels)), np.full(num_labels, -np.inf)
    coef[:, seen] = own_coef
    intercept[seen] = own_intercept
    return coef, intercept


def _parts(classes: np.ndarray, regime: Regime, units: Sequence[Hashable] | None) -> Parts:
    """Five folds whatever the number of examples: a light classifier can afford what `auto` spares a trained one."""
    if units is not None and len(set(units)) < 2 <= len(units):
        return []
    if regime.validation == "auto":
        regime = regime.model_copy(update={"validation": 5})
    return folds([str(c) for c in classes], regime, units)


def _held_out(
    fit: Callable[[np.ndarray, np.ndarray], Scores], features: np.ndarray, classes: np.ndarray, parts: Parts
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [V, C] and classes [V] of validation rows; rows whose label the fold has not seen are left out."""
    scores, answers = [], []
    for train, validation in parts:
        seen = np.isin(classes[validation], classes[train])
        if len(set(classes[train])) < 2 or not seen.any():
            continue
        scores.append(fit(features[train], classes[train])(features[validation[seen]]))
        answers.append(classes[validation[seen]])
    if not scores:
        return np.zeros((0, 1)), np.zeros(0, dtype=int)
    return np.concatenate(scores), np.concatenate(answers)


def _log_loss(scores: np.ndarray, classes: np.ndarray) -> float:
    return float(-_log_softmax(scores)[np.arange(len(classes)), classes].mean())


def _square(scores: np.ndarray, classes: np.ndarray) -> float:
    """Squared distance from 1 for the right label and -1 for the others, as ridge learns them."""
    wanted = np.where(np.arange(scores.shape[1]) == classes[:, None], 1.0, -1.0)
    # Nothing is said of a label that the fold has not seen.
    return float(np.square(np.where(np.isfinite(scores), scores - wanted, 0.0)).mean())


def _error(scores: np.ndarray, classes: np.ndarray) -> float:
    return float((scores.argmax(axis=1) != classes).mean())


def _select(
    grid: tuple[Value, ...],
    make: Callable[[Value], Callable[[np.ndarray, np.ndarray], Scores]],
    features: np.ndarray,
    classes: np.ndarray,
    parts: Parts,
    loss: Callable[[np.ndarray, np.ndarray], float] = _log_loss,
) -> Value:
    """The grid's value with the lowest validation loss, the first of equals; its middle where nothing can be validated.

    Args:
        grid: to choose from.
        make: a value to what gives [N, C] scores, once fitted.
        features: [k, D].
        classes: [k].
        parts: the rows, divided.
        loss: of [N, C] scores and [N] classes.
    """
    losses = []
    for value in grid:
        scores, answers = _held_out(make(value), features, classes, parts)
        losses.append(loss(scores, answers) if len(answers) else np.inf)
    return grid[int(np.argmin(losses))] if np.isfinite(losses).any() else grid[len(grid) // 2]


def _temperature(fit: Fit, features: np.ndarray, classes: np.ndarray, parts: Parts) -> float:
    """The factor on the scores with the lowest validation log-loss.

    One more validation row whose label is anyone's guess keeps it finite where few rows are all answered rightly.
    Where nothing can be validated, a row's scores get a standard deviation of 1 (assumption: moderately sure).
    """
    from scipy.optimize import minimize_scalar

    scores, answers = _held_out(_affine(fit), features, classes, parts)
    if not len(answers):
        coef, intercept = fit(features, classes)
        spread = float((features @ coef + intercept).std(axis=1).mean())
        return 1 / spread if np.isfinite(spread) and spread > 0 else 1.0

    def loss(log_factor: float) -> float:
        logs = _log_softmax(scores * np.exp(log_factor))
        guess = -logs[np.isfinite(logs)].mean()
        return float((guess - logs[np.arange(len(answers)), answers].sum()) / (len(answers) + 1))

    return float(np.exp(minimize_scalar(loss, bounds=(-8, 5), method="bounded").x))


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
