"""How good predictions are: one number per metric, from the rows of one test set.

A metric that is undefined for these rows (the area under a curve when only one label occurs) is left out of
the result, so no metric is ever NaN.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.errors import DataError
from graft.tasks.parsers import SINGLE, parse

LEAST_PROBABILITY = 1e-15
"""Probabilities are clipped here before their logarithm is taken: one sure mistake does not decide all."""
ECE_BINS = 15

ABSTENTION = "no answer"
"""`No Answer`, as SQuAD's normalisation leaves it: the text does not say, in QA that allows for that."""

Floats = npt.NDArray[np.float64]
RowScore = Callable[[str, str | None], float]


def perplexity(log_probabilities: Iterable[float], tokens: Iterable[int]) -> float:
    """How many equally likely tokens the targets are worth to the model: exp of the mean surprise per target token.

    Args:
        log_probabilities: of each target, nats, summed over its tokens.
        tokens: of each target, as the model cuts it: models with other vocabularies have other perplexities.
    """
    sums, counts = np.asarray(log_probabilities, np.float64), np.asarray(tokens, np.int64)
    return float(np.exp(-sums.sum() / counts.sum()))


CLASSIFICATION = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auc_pr", "log_loss", "ece")
"""Metrics of a classification."""
GENERATION = ("exact_match", "f1", "chrf", "parsed", "perplexity")
"""Metrics of free text."""


def classification(
    targets: Sequence[str],
    predictions: Sequence[str],
    log_probabilities: Floats,
    labels: Sequence[str],
    rarer: str | None = None,
) -> dict[str, float]:
    """The metrics of a classification; all are shares between 0 and 1 except `log_loss` (nats).

    - `accuracy`, `balanced_accuracy` (mean recall of the labels that occur among the targets) and `macro_f1`
      (over the labels that occur among targets or predictions);
    - `auroc` and `auc_pr` (average precision): of the rarer label where there are two (of the second where both
      are as frequent), else the mean over the labels of one against the rest; left out where no label splits
      the targets in two;
    - `log_loss`: of probabilities clipped at 1e-15 and scaled to sum to one;
    - `ece`: the gap between confidence (the predicted label's probability) and accuracy in 15 equal-width bins,
      weighted by their rows.

    Args:
        targets: the N true labels, all of them in `labels`.
        predictions: the N predicted labels.
        log_probabilities: [N, C], natural logarithms; rows need not be normalised.
        labels: the C labels, in the order of the columns.
        rarer: the label of two whose areas are asked for; None finds it among these targets. Rows that are a part of a
            test set are given the whole set's.

    Raises:
        DataError: a row has a NaN among its log-probabilities, or nothing but minus infinity.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    if not len(targets):
        return {}
    column = {label: index for index, label in enumerate(labels)}
    true = np.array([column[target] for target in targets])
    predicted = np.array([column[prediction] for prediction in predictions])
    probabilities = normalised(np.asarray(log_probabilities, np.float64))
    rows = np.arange(len(true))
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "balanced_accuracy": float(
            recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
        ),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
        **_areas(true, probabilities, None if rarer is None else column[rarer]),
        "log_loss": float(log_losses(probabilities, true).mean()),
        "ece": _ece(probabilities[rows, predicted], true == predicted),
    }


def rarer_label(targets: Sequence[str], labels: Sequence[str]) -> str | None:
    """The label of two whose areas are asked for; None where there are more."""
    if len(labels) != 2:
        return None
    first, second = (sum(target == label for target in targets) for label in labels)
    return labels[0 if first < second else 1]


def generation(
    targets: Sequence[str], predictions: Sequence[str | None], parser: str | None = None
) -> dict[str, float]:
    """The metrics of a free-text answer; a prediction of None could not be parsed and counts as wrong.

    - `exact_match` and `f1` (of words), 0 to 1, after SQuAD's normalisation: lower case, without punctuation,
      without English articles. What a parser has read matches where it is the same string ("1.5" is not "15"), and of
      a single value `f1` is `exact_match`;
    - `chrf`, 0 to 100: the mean over rows of sacrebleu's sentence chrF2, so that rows can be resampled;
    - `parsed`: the share of predictions that are not None.

    Args:
        targets: as the task has them; the parser reads them.
        predictions: as the parser has read them.
        parser: `task.parser`.
    """
    if not len(targets):
        return {}
    pairs = list(zip(targets, predictions, strict=True))
    scores = {name: row_score(name, parser) for name in ("exact_match", "f1", "chrf", "parsed")}
    return {name: _mean(score(target, answer) for target, answer in pairs) for name, score in scores.items()}


def abstains(text: str) -> bool:
    """Whether an answer says that there is none."""
    return _normal(text) == ABSTENTION


def normalised(log_probabilities: Floats) -> Floats:
    """Probabilities [N, C] that add up to one in every row, from log-probabilities [N, C].

    Raises:
        DataError: a row has a NaN, or nothing but minus infinity.
    """
    highest = log_probabilities.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        row = int(np.flatnonzero(~np.isfinite(highest[:, 0]))[0])
        raise DataError(
            f"the scores of row {row} are {log_probabilities[row].tolist()}: no probabilities can be made of them; "
            "the model's output is not finite, try float32"
        )
    weights = np.exp(log_probabilities - highest)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _areas(true: npt.NDArray[np.int64], probabilities: Floats, rarer: int | None) -> dict[str, float]:
    """`auroc` and `auc_pr`, or nothing where all targets are equal."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    counts = np.bincount(true, minlength=probabilities.shape[1])
    columns = np.flatnonzero(counts)
    if len(columns) < 2:
        return {}
    if len(counts) == 2:
        columns = np.array([(0 if counts[0] < counts[1] else 1) if rarer is None else rarer])
    areas = {"auroc": roc_auc_score, "auc_pr": average_precision_score}
    return {
        name: _mean(area(true == index, probabilities[:, index]) for index in columns) for name, area in areas.items()
    }


def log_losses(probabilities: Floats, true: npt.NDArray[np.int64]) -> Floats:
    """The loss [N] of each row in nats, from probabilities [N, C] and the true columns [N]."""
    clipped = np.clip(probabilities, LEAST_PROBABILITY, None)
    chosen = clipped[np.arange(len(true)), true] / clipped.sum(axis=1)
    return np.asarray(-np.log(chosen))


def confidence_bins(confidence: Floats) -> npt.NDArray[np.int64]:
    """The bin of `ece` that each confidence [N] falls into."""
    return np.asarray(np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1))


def _ece(confidence: Floats, correct: npt.NDArray[np.bool_]) -> float:
    gaps = np.bincount(confidence_bins(confidence), weights=confidence - correct, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def row_score(metric: str, parser: str | None = None) -> RowScore:
    """What one answer is worth to a metric of ROW_SCORES, from the target as it is and the answer as it was read."""
    same = parser is not None and (metric == "exact_match" or (metric == "f1" and parser in SINGLE))
    score = _same if same else ROW_SCORES[metric]
    # A target that the parser cannot read was refused when the rows were read.
    return lambda target, answer: score(parse(target, parser) or target, answer)


def _same(target: str, answer: str | None) -> float:
    return float(target == answer)


def _exact_match(target: str, answer: str | None) -> float:
    return float(answer is not None and _normal(answer) == _normal(target))


def _f1(target: str, answer: str | None) -> float:
    return 0.0 if answer is None else _word_f1(_words(target), _words(answer))


def _chrf(target: str, answer: str | None) -> float:
    return 0.0 if answer is None else float(_chrf_metric().sentence_score(answer, [target]).score)


@functools.cache
def _chrf_metric() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _parsed(target: str, answer: str | None) -> float:
    return float(answer is not None)


def _boolean_accuracy(target: str, answer: str | None) -> float:
    return float(abstains(target) == abstains(answer or ""))


ROW_SCORES: Mapping[str, RowScore] = {
    "exact_match": _exact_match,
    "f1": _f1,
    "chrf": _chrf,
    "parsed": _parsed,
    "boolean_accuracy": _boolean_accuracy,
}
"""What one answer is worth to a metric that is a mean over rows of free text, where no parser has read it."""


def _normal(text: str) -> str:
    """SQuAD's normalisation of an answer."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _words(text: str) -> list[str]:
    """The normalised words; an abstention is one word that no other text has."""
    return [ABSTENTION] if abstains(text) else _normal(text).split()


def _word_f1(target: list[str], prediction: list[str]) -> float:
    if not target or not prediction:
        return float(target == prediction)
    common = sum((Counter(target) & Counter(prediction)).values())
    return 2 * common / (len(target) + len(prediction))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
