"""Probes against scikit-learn itself."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from graft import models
from graft.arrays import score_matrix, vector_column
from graft.methods import probe
from graft.methods.probe import LOGISTIC_C, RIDGE_ALPHAS, Classify
from graft.node import Context
from graft.spec import Experiment
from graft.tasks.regimes import folds

CLASSIFIERS = ("majority", "centroid", "knn", "lda", "ridge", "logistic", "logistic_by_accuracy")


class Pooled(BaseEstimator):
    """Gives scikit-learn's LDA the covariance of all rows around their labels' means, whichever label it asks for."""

    def __init__(self, features: np.ndarray, targets: list[str]):
        self.features = features
        self.targets = targets

    def fit(self, _: np.ndarray) -> "Pooled":
        names = np.array(self.targets)
        within = self.features - np.stack([self.features[names == name].mean(axis=0) for name in names])
        self.covariance_ = LedoitWolf(assume_centered=True).fit(within).covariance_
        return self


def context(examples: int, labels: tuple[str, ...]) -> Context:
    values = {"name": "x", "task": {"name": "digits"}, "method": {"name": "probe"}, "regime": {"examples": examples}}
    return Context(Experiment.from_mapping(values), labels)


def blobs(rows: int, classes: int, seed: int = 0, width: int = 12) -> tuple[np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    answers = np.concatenate([np.arange(classes), random.integers(classes, size=rows - classes)])
    return (centres[answers] + random.normal(size=(rows, width))).astype(np.float32), [f"c{a}" for a in answers]


def table(features: np.ndarray, targets: list[str]) -> pa.Table:
    return pa.table(
        {"id": [str(i) for i in range(len(targets))], "embedding": vector_column(features), "target": targets}
    )


def fitted(
    classifier: Any, examples: int, classes: int, standardise: bool = False
) -> tuple[Classify, np.ndarray, list[str]]:
    features, targets = blobs(examples, classes)
    labels = tuple(f"c{c}" for c in range(classes))
    node = Classify(classifier, standardise=standardise)
    return node.fit(table(features, targets), context(examples, labels)), features, targets


def scores(node: Classify, features: np.ndarray) -> np.ndarray:
    return score_matrix(node.run(pa.table({"embedding": vector_column(features)}))["scores"], node.labels)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 5])
def test_probabilities_are_probabilities_and_the_answer_is_the_most_probable(classifier: str, classes: int) -> None:
    node, _, _ = fitted(classifier, 60, classes)
    features, _ = blobs(40, classes, seed=1)
    log_probabilities = scores(node, features)
    assert np.exp(log_probabilities).sum(axis=1) == pytest.approx(1)
    answers = node.run(pa.table({"embedding": vector_column(features)}))["prediction"].to_pylist()
    assert answers == [node.labels[c] for c in log_probabilities.argmax(axis=1)]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("standardise", [False, True])
def test_predictions_equal_scikit_learns(classes: int, standardise: bool) -> None:
    features, targets = blobs(80, classes)
    centre, spread = features.mean(axis=0, dtype=float), features.std(axis=0, dtype=float)
    scale = spread if standardise else (features - centre).std()
    scaled, fresh = (features - centre) / scale, (blobs(60, classes, seed=1)[0] - centre) / scale
    references = {
        "centroid": NearestCentroid(),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Pooled(scaled, targets)),
        "ridge": RidgeClassifierCV(alphas=RIDGE_ALPHAS),
        "knn": KNeighborsClassifier(
            fitted("knn", 80, classes, standardise)[0].neighbours, metric="cosine", weights="distance"
        ),
    }
    for classifier, reference in references.items():
        node, _, _ = fitted(classifier, 80, classes, standardise)
        expected = reference.fit(scaled, targets).predict(fresh)
        got = node.run(pa.table({"embedding": vector_column(blobs(60, classes, seed=1)[0])}))["prediction"].to_pylist()
        assert got == list(expected), classifier


@pytest.mark.parametrize("classes", [2, 5])
def test_lda_and_logistic_give_scikit_learns_probabilities(classes: int) -> None:
    features, targets = blobs(120, classes)
    features = features.astype(float)
    answers = np.array([int(t[1:]) for t in targets])
    for c in (1e-2, 1.0):
        coef, intercept = probe._logistic(c, classes)(features, answers)
        expected = LogisticRegression(C=c, max_iter=5000).fit(features, answers).predict_log_proba(features)
        assert probe._log_softmax(features @ coef + intercept) == pytest.approx(expected, abs=1e-8)
    coef, intercept = probe._lda(classes)(features, answers)
    reference = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Pooled(features, targets))
    expected = reference.fit(features, answers).predict_proba(features)
    assert np.exp(probe._log_softmax(features @ coef + intercept)) == pytest.approx(expected, abs=1e-8)


def test_logistic_is_no_worse_in_log_loss_than_any_fixed_c_by_much() -> None:
    """Selection inside the examples comes close to the best C in hindsight."""
    features, targets = blobs(60, 3)
    fresh, answers = blobs(500, 3, seed=1)
    node, _, _ = fitted("logistic", 60, 3)
    scale = (features - features.mean(axis=0)).std()
    own = log_loss(answers, np.exp(scores(node, fresh)))
    fixed = [
        log_loss(
            answers, LogisticRegression(C=c, max_iter=5000).fit(features / scale, targets).predict_proba(fresh / scale)
        )
        for c in LOGISTIC_C
    ]
    assert own <= min(fixed) + 0.05


@pytest.mark.parametrize(("classifier", "loss"), [("logistic", log_loss), ("logistic_by_accuracy", None)])
def test_c_is_the_one_with_the_lowest_loss_of_rows_left_out(classifier: str, loss: Any) -> None:
    """By accuracy the most regularised of equals; the two differ on these rows."""
    node, features, targets = fitted(classifier, 40, 3)
    z = (features - features.mean(axis=0)).astype(float)
    z /= z.std()
    answers, losses = np.array(targets), {}
    for c in LOGISTIC_C:
        scored, right = [], []
        for train, validation in folds(targets, context(40, ("c0", "c1", "c2")).experiment.regime):
            model = LogisticRegression(C=c, max_iter=5000).fit(z[train], answers[train])
            scored.append(model.predict_proba(z[validation]))
            right.extend(answers[validation])
        shares = np.concatenate(scored)
        losses[c] = loss(right, shares) if loss else 1 - np.mean(np.unique(targets)[shares.argmax(axis=1)] == right)
    best = LogisticRegression(C=min(losses, key=losses.__getitem__), max_iter=5000).fit(z, answers)
    assert np.exp(scores(node, features)) == pytest.approx(best.predict_proba(z), abs=1e-3)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("examples", [5, 6, 9])
def test_one_row_per_label_is_enough(classifier: str, examples: int) -> None:
    node, _, _ = fitted(classifier, examples, 5)
    assert np.isfinite(scores(node, blobs(10, 5, seed=1)[0])).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_saved_and_loaded_it_answers_the_same_bit_for_bit(classifier: str, tmp_path: Path) -> None:
    node, _, _ = fitted(classifier, 40, 3)
    node.save(tmp_path)
    again = Classify.load(tmp_path, models.load)
    features, _ = blobs(20, 3, seed=1)
    assert again.fingerprint() == node.fingerprint()
    assert scores(again, features).tobytes() == scores(node, features).tobytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_constant_features_give_the_prior() -> None:
    features, targets = np.ones((30, 4), dtype=np.float32), ["a"] * 20 + ["b"] * 10
    node = Classify("logistic").fit(table(features, targets), context(30, ("a", "b")))
    assert np.exp(scores(node, features[:1]))[0] == pytest.approx([2 / 3, 1 / 3], abs=0.02)


def noise_four_times() -> tuple[pa.Table, dict[str, int]]:
    """Noise whose labels mean nothing, each row four times; and which rows are equal."""
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(60, 24)), 4, axis=0).astype(np.float32)
    targets = np.repeat(random.choice(["a", "b"], 60), 4).tolist()
    return table(features, targets), {str(row): row // 4 for row in range(240)}


@pytest.mark.parametrize("classifier", ["ridge", "logistic", "logistic_by_accuracy", "lda", "centroid"])
def test_nothing_is_selected_by_copies_of_what_was_learned(classifier: Any) -> None:
    rows, units = noise_four_times()
    plain = context(240, ("a", "b"))
    fresh = blobs(200, 2, width=24)[0]
    leaked, own = (
        scores(Classify(classifier).fit(rows, dataclasses.replace(plain, units=known)), fresh)
        for known in (None, units)
    )
    assert np.diff(own).std() < 0.5 * np.diff(leaked).std(), "noise says nothing beyond how often each label is"


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_units_of_one_row_change_nothing(classifier: Any) -> None:
    features, targets = blobs(60, 3)
    plain = context(60, ("c0", "c1", "c2"))
    alone = dataclasses.replace(plain, units={str(row): row for row in range(60)})
    first, second = (Classify(classifier).fit(table(features, targets), known) for known in (plain, alone))
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_examples_of_one_unit_are_learned_from_and_select_nothing(classifier: Any) -> None:
    features, targets = blobs(12, 3)
    units = dict.fromkeys(map(str, range(12)), 0)
    node = Classify(classifier).fit(
        table(features, targets), dataclasses.replace(context(12, ("c0", "c1", "c2")), units=units)
    )
    assert np.isfinite(scores(node, blobs(10, 3, seed=1)[0])).all()


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_features_that_are_all_equal_tell_nothing_apart(classifier: str) -> None:
    features, targets = np.ones((8, 4), dtype=np.float32), ["a", "b"] * 4
    node = Classify(classifier).fit(table(features, targets), context(8, ("a", "b")))
    assert np.exp(scores(node, features[:1]))[0] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("classifier", CLASSIFIERS)
@pytest.mark.parametrize("standardise", [False, True])
def test_rows_of_one_label_alone_give_that_label(classifier: str, standardise: bool) -> None:
    """A search's folds leave out the only row of a rare label."""
    features, _ = blobs(7, 2)
    node = Classify(classifier, standardise=standardise)
    node = node.fit(table(features, ["b"] * 7), context(8, ("a", "b", "c")))
    fresh = blobs(5, 2, seed=1)[0]
    answers = node.run(pa.table({"embedding": vector_column(fresh)}))
    assert answers["prediction"].to_pylist() == ["b"] * 5
    assert np.exp(scores(node, fresh)).sum(axis=1) == pytest.approx(1)
