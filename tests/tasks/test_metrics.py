import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF
from sklearn import metrics as reference

from graft.errors import DataError
from graft.results.outcomes import run_metric
from graft.tasks.metrics import CLASSIFICATION, GENERATION, classification, generation, rarer_label

RNG = np.random.default_rng(0)


def scored(rows: int, labels: str) -> tuple[list[str], list[str], np.ndarray]:
    """Random targets, log-probabilities that lean towards them, and the argmax."""
    true = RNG.integers(len(labels), size=rows)
    logits = RNG.normal(size=(rows, len(labels))) + 1.5 * np.eye(len(labels))[true]
    log_probabilities = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return [labels[i] for i in true], [labels[i] for i in logits.argmax(1)], log_probabilities


@pytest.mark.parametrize("labels", ["ab", "abc", "abcdefg"])
def test_classification_agrees_with_scikit_learn(labels: str) -> None:
    targets, predictions, log_probabilities = scored(400, labels)
    found = classification(targets, predictions, log_probabilities, list(labels))
    probabilities = np.exp(log_probabilities)
    assert tuple(found) == CLASSIFICATION
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(targets, predictions))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(targets, predictions))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(targets, predictions, average="macro"))
    assert found["log_loss"] == pytest.approx(reference.log_loss(targets, probabilities, labels=list(labels)))
    if len(labels) > 2:
        area = reference.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
        assert found["auroc"] == pytest.approx(area)
        hot = np.eye(len(labels))[[labels.index(target) for target in targets]]
        assert found["auc_pr"] == pytest.approx(reference.average_precision_score(hot, probabilities))


def test_the_metrics_of_free_text_are_those_named() -> None:
    assert {*generation(["a"], ["b"]), "perplexity"} == set(GENERATION)


@pytest.mark.parametrize(("targets", "rarer"), [("aaab", 1), ("abbb", 0), ("aabb", 1)])
def test_the_areas_of_two_labels_are_the_rarer_ones(targets: str, rarer: int) -> None:
    log_probabilities = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = classification(list(targets), list("abab"), log_probabilities, ["a", "b"])
    positive = np.array([target == "ab"[rarer] for target in targets])
    scores = log_probabilities[:, rarer]
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(positive, scores))
    assert found["auc_pr"] == pytest.approx(reference.average_precision_score(positive, scores))


def test_the_areas_of_a_part_are_those_of_the_whole_sets_rarer_label() -> None:
    whole, part = list("aaaabb"), list("abb")
    log_probabilities = np.log([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    assert rarer_label(whole, ["a", "b"]) == "b"
    assert rarer_label(whole, ["a", "b", "c"]) is None
    found = classification(part, part, log_probabilities, ["a", "b"], rarer="b")
    positive = [target == "b" for target in part]
    assert found["auc_pr"] == pytest.approx(reference.average_precision_score(positive, log_probabilities[:, 1]))
    assert found["auc_pr"] != classification(part, part, log_probabilities, ["a", "b"])["auc_pr"]


def test_labels_that_the_test_rows_lack_are_left_out_of_the_means() -> None:
    log_probabilities = np.log([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1]])
    found = classification(list("abab"), list("abab"), log_probabilities, list("abc"))
    assert found["accuracy"] == found["balanced_accuracy"] == found["macro_f1"] == found["auroc"] == 1.0
    predicts_c = classification(list("abab"), list("abcb"), log_probabilities, list("abc"))
    assert predicts_c["balanced_accuracy"] == pytest.approx(0.75)


def test_one_label_among_the_targets_leaves_the_areas_out() -> None:
    found = classification(["a", "a"], ["a", "b"], np.log([[0.5, 0.5], [0.4, 0.6]]), ["a", "b"])
    assert set(found) == {"accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"}


def test_log_loss_is_clipped_where_a_label_was_ruled_out() -> None:
    found = classification(["b"], ["a"], np.array([[0.0, -np.inf]]), ["a", "b"])
    assert found["log_loss"] == pytest.approx(-math.log(1e-15))


def test_scores_are_normalised_first() -> None:
    targets, predictions, log_probabilities = scored(50, "abc")
    shifted = log_probabilities + RNG.normal(size=(50, 1)) * 100
    first, second = (classification(targets, predictions, s, list("abc")) for s in (log_probabilities, shifted))
    assert first == pytest.approx(second)


def test_calibration_error_by_hand() -> None:
    """Two rows at 0.95 of which one is right, two at 0.60 of which both are: (|1.9-1| + |1.2-2|) / 4."""
    log_probabilities = np.log([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6], [0.4, 0.6]])
    found = classification(list("abbb"), list("aabb"), log_probabilities, ["a", "b"])
    assert found["ece"] == pytest.approx((0.9 + 0.8) / 4)


@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 1000))
def test_no_metric_is_ever_nan(rows: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [str(label) for label in range(labels)]
    targets, predictions = (list(rng.choice(names, rows)) for _ in range(2))
    found = classification(targets, predictions, rng.normal(size=(rows, labels)) * 100, names)
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("row", [[np.nan, 0.0], [-np.inf, -np.inf]])
def test_scores_that_are_no_probabilities(row: list) -> None:
    with pytest.raises(DataError, match="scores of row 1 are"):
        classification(["a", "b"], ["a", "b"], np.array([[0.0, -1.0], row]), ["a", "b"])


@pytest.mark.parametrize(
    ("target", "prediction", "exact", "f1"),
    [
        ("The Denver Broncos!", "denver broncos", 1, 1),
        ("in 1920", "1920", 0, 2 / 3),
        ("one two three", "three four", 0, 0.4),
        ("yes yes no", "yes", 0, 0.5),
        ("Paris", "London", 0, 0),
        ("Paris", None, 0, 0),
        ("the", None, 0, 0),
        ("the", "", 1, 1),
        ("No Answer", "no answer.", 1, 1),
        ("No Answer", "there is no answer", 0, 0),
        ("the answer is no", "No Answer", 0, 0),
        ("No Answer", "Paris", 0, 0),
        ("No Answer", None, 0, 0),
        ("no", "no answer", 0, 0),
        ("there is no answer to it", "no", 0, 2 / 7),
    ],
)
def test_answers_are_compared_as_squad_does(target: str, prediction: str | None, exact: float, f1: float) -> None:
    found = generation([target], [prediction])
    assert (found["exact_match"], found["f1"]) == (exact, pytest.approx(f1))
    assert found["parsed"] == float(prediction is not None)


@pytest.mark.parametrize(
    ("parser", "target", "prediction", "exact", "f1"),
    [
        ("number", "15", "1.5", 0, 0),
        ("number", "5", "-5", 0, 0),
        ("number", "18", "1.8", 0, 0),
        ("number", "-$1,050.0", "-1050", 1, 1),
        ("number", "so 6\n#### 1,000", "1000", 1, 1),
        ("number", "1,000", "1", 0, 0),
        ("number", "7", None, 0, 0),
        ("choice", "(A)", "A", 1, 1),  # an article to SQuAD's normalisation
        ("choice", "A", "B", 0, 0),
        ("yes_no", "No.", "no", 1, 1),
        ("python", "x = -1", "x = 1", 0, 1),  # of code a part may be right: f1 is of words
        ("python", "```python\nx = 1\n```", "x = 1", 1, 1),
    ],
)
def test_what_was_read_is_right_as_a_whole(
    parser: str, target: str, prediction: str | None, exact: float, f1: float
) -> None:
    found = generation([target], [prediction], parser)
    assert (found["exact_match"], found["f1"], found["parsed"]) == (exact, f1, float(prediction is not None))
    answers = pa.table({"target": [target], "prediction": pa.array([prediction], pa.string())})
    for metric, value in found.items():
        assert np.asarray(run_metric(answers, metric, parser)).tolist() == [value]


def test_chrf_is_the_mean_of_sacrebleus_sentence_scores() -> None:
    targets, predictions = ["the cat sat", "東京の天気", "lost"], ["a cat sat down", "東京の空", None]
    scores = [CHRF().sentence_score(p, [t]).score if p else 0.0 for t, p in zip(targets, predictions, strict=True)]
    assert generation(targets, predictions)["chrf"] == pytest.approx(np.mean(scores))
    assert generation(["same"], ["same"])["chrf"] == pytest.approx(100)


def test_no_rows_no_metrics() -> None:
    assert classification([], [], np.zeros((0, 2)), ["a", "b"]) == {}
    assert generation([], []) == {}
