"""graft's methods as scikit-learn estimators."""

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from graft import models
from graft.errors import ModelError
from graft.models.heads import deviations, open_head, shuffled


class TartClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A reasoning module that reads labelled rows and answers others: calibrated probabilities, no training.

    Bhatia et al. 2023 (TART, arXiv:2306.07536). Works in pipelines, `cross_val_score` and joblib. It keeps the labelled
    rows, and never a network: a pickle is small and opens where graft is installed.

    Args:
        encoder: a frozen text model (folder, package, hub name or `recipe:NAME`), for rows that are texts; None for
            rows of numbers, each column divided by its own deviation.
        head: `hybrid`, `tart`, or the folder of a head that graft pretrain made.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: columns of numeric rows.
    """

    def __init__(self, encoder: str | None = None, head: str = "hybrid") -> None:
        self.encoder = encoder
        self.head = head

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Keep the labelled rows.

        Args:
            X: texts [k], or numbers [k, D].
            y: labels [k].

        Raises:
            ValueError: numbers that are not finite, rows that are no texts, a row without a label, or fewer than two
                classes.
            ModelError: there is no such encoder or head.
            DataError: the head cannot read so many rows.
        """
        labels = column_or_1d(y, warn=True)
        if missing := [at for at, label in enumerate(labels.tolist()) if _is_missing(label)]:
            raise ValueError(f"y: row {missing[0]} has no label; fill it in or leave the row out")
        if self.encoder is None:
            features, labels = validate_data(self, X, labels, dtype=np.float64)
        else:
            check_consistent_length(X, labels)
        check_classification_targets(labels)
        self.classes_, self.labels_ = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds {len(self.classes_)} class; a classifier needs examples of at least two classes")
        if self.encoder is not None:
            self._encoder = models.load(self.encoder)
            self.encoder_fingerprint_ = self._encoder.fingerprint
            features = self._embedded(X)
        self.head_fingerprint_ = open_head(self.head).fingerprint
        self.scale_ = deviations(features) if self.encoder is None else np.ones(features.shape[1])
        order = shuffled(len(features), seed=0)
        self.memory_, self.labels_ = (features / self.scale_)[order], self.labels_[order]
        self._read()
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities [N, C], in the order of `classes_`.

        Raises:
            ValueError: there are no rows, or rows of another kind than those of the fit.
        """
        check_is_fitted(self)
        numbers = self.encoder is None
        features = validate_data(self, X, reset=False, dtype=np.float64) if numbers else self._embedded(X)
        if not hasattr(self, "_reasoner"):
            self._read()
        probabilities: NDArray[np.float64] = np.exp(self._reasoner.log_probabilities(features / self.scale_))
        return probabilities / probabilities.sum(axis=1, keepdims=True)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable label of each row [N]."""
        check_is_fitted(self)
        best: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return best

    def _read(self) -> None:
        from graft.models.heads.reasoner import reasoner

        head = _same(open_head(self.head), self.head_fingerprint_)
        with head.lock:
            self._reasoner = reasoner(head.network, self.memory_, self.labels_, len(self.classes_))

    def _embedded(self, X: ArrayLike) -> NDArray[np.float64]:
        """Texts as vectors [N, D], at least one; what is longer than the encoder reads is cut, with a warning."""
        given = np.asarray(X, dtype=object)
        if given.ndim > 2 or (given.ndim == 2 and given.shape[1] != 1):
            raise ValueError(f"X has shape {given.shape}; with an encoder, give one column of texts")
        texts = given.ravel().tolist()
        if not texts:
            raise ValueError("X: found 0 samples, while a minimum of 1 is required by TartClassifier")
        if wrong := [at for at, text in enumerate(texts) if not isinstance(text, str)]:
            raise ValueError(f"X: row {wrong[0]} holds {texts[wrong[0]]!r}, no text; fill it in or leave it out")
        if not hasattr(self, "_encoder"):
            self._encoder = _same(models.load(str(self.encoder)), self.encoder_fingerprint_)
        read = _beginnings(self._encoder, texts)
        if cut := sum(one != text for one, text in zip(read, texts, strict=True)):
            longest = self._encoder.context_tokens
            warnings.warn(
                f"{cut} of {len(texts)} texts are cut to {longest} tokens, all the encoder reads", stacklevel=3
            )
        return self._encoder.embed(read).astype(np.float64)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_encoder", "_reasoner")}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = self.encoder is not None
        return tags


def _is_missing(label: Any) -> bool:
    """None, NaN, NaT, or pandas' NA, which alone will not say whether it equals itself."""
    try:
        return label is None or bool(label != label)
    except TypeError:
        return True


def _beginnings(encoder: Any, texts: list[str]) -> list[str]:
    """Each text as far as the encoder reads it, with what it puts around it; how far is no matter of the others."""
    read = list(texts)
    # A beginning alone may have more tokens than it had inside the text, so the first one can be too long.
    while len(long := np.flatnonzero((excess := encoder.excess(read)) > 0)):
        for at, count in zip(long, encoder.count_tokens([read[at] for at in long]), strict=True):
            (read[at],) = encoder.cut([read[at]], int(count - excess[at]))
    return read


def _same(model: Any, fingerprint: str) -> Any:
    """The model, unless its name has come to stand for another one since the fit."""
    if model.fingerprint != fingerprint:
        raise ModelError(f"{model.source.source}: has changed since this classifier was fitted; fit it again")
    return model
