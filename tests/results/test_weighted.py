"""Weighted metrics against the metrics themselves, on rows that are repeated as often as they weigh."""

import numpy as np
import pyarrow as pa
import pytest

from graft.arrays import answer_columns
from graft.results import weighted
from graft.results.outcomes import run_metric
from graft.results.resampling import weights_of
from graft.tasks.metrics import ROW_SCORES, classification, generation, perplexity, rarer_label

N = 150
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auc_pr", "log_loss", "ece")


def answers(labels: int, decimals: int, share: float = 0.5) -> tuple[pa.Table, np.ndarray, list[str]]:
    """Predictions of a run; few decimals give tied scores."""
    random = np.random.default_rng(labels)
    names = [f"label {number}" for number in range(labels)]
    weights = np.r_[share, np.full(labels - 1, (1 - share) / (labels - 1))]
    true = random.choice(labels, N, p=weights)
    logits = np.round(random.normal(size=(N, labels)) + np.eye(labels)[true], decimals)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows = answer_columns(logits, names).append_column("target", pa.array([names[column] for column in true]))
    return rows, logits, names


def function(rows: pa.Table, metric: str) -> weighted.Weighted:
    made = run_metric(rows, metric)
    assert made is not None
    return weighted.mean(made) if isinstance(made, np.ndarray) else made


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("labels", "decimals", "share"), [(2, 6, 0.5), (2, 0, 0.1), (5, 6, 0.2), (5, 0, 0.6)])
def test_a_draw_is_worth_what_its_rows_are(labels, decimals, share, metric) -> None:
    rows, logits, names = answers(labels, decimals, share)
    targets, predictions = rows["target"].to_pylist(), rows["prediction"].to_pylist()
    value, rarer = function(rows, metric), rarer_label(targets, names)
    assert value(np.ones((N, 1)))[0] == pytest.approx(classification(targets, predictions, logits, names)[metric])
    weights = next(weights_of(N, draws=20))
    values = value(weights)
    assert len(values) == 20
    for draw, found in enumerate(values):
        drawn = np.repeat(np.arange(N), weights[:, draw].astype(int))
        expected = classification(
            [targets[row] for row in drawn], [predictions[row] for row in drawn], logits[drawn], names, rarer
        )
        assert found == pytest.approx(expected[metric], rel=2e-5)


@pytest.mark.parametrize("metric", ["auroc", "auc_pr"])
def test_an_area_of_one_label_is_undefined(metric) -> None:
    for labels in (2, 3):
        rows, _, _ = answers(labels, 6)
        for label in rows["target"].unique().to_pylist():
            only = np.array([[float(target == label)] for target in rows["target"].to_pylist()])
            assert np.isnan(function(rows, metric)(only)[0])


def test_of_two_thousand_draws_each_item_is_drawn_once_on_average() -> None:
    weights = np.concatenate(list(weights_of(100, draws=2000)), axis=1)
    assert (weights.sum(axis=0) == 100).all()
    assert weights.mean(axis=1) == pytest.approx(np.ones(100), abs=0.1)
    assert weights.var(axis=1) == pytest.approx(np.full(100, 0.99), abs=0.25)
    np.testing.assert_array_equal(weights, np.concatenate(list(weights_of(100, draws=2000)), axis=1))


def test_a_groups_items_are_drawn_together() -> None:
    clusters = np.repeat(np.arange(8), np.arange(1, 9))
    weights = np.concatenate(list(weights_of(len(clusters), clusters, 300)), axis=1)
    of_group = [weights[clusters == group] for group in range(8)]
    assert all((rows == rows[0]).all() for rows in of_group)
    assert (sum(rows[0] for rows in of_group) == 8).all()


def test_free_text_is_scored_as_its_metrics_are() -> None:
    targets = ["the answer is 4", "Paris", "No Answer", "a red fox", "answer: 10"]
    predictions = ["4", "paris, France", "no answer", None, "10"]
    rows = pa.table({"target": targets, "prediction": predictions})
    for metric, expected in generation(targets, predictions).items():
        assert function(rows, metric)(np.ones((5, 1)))[0] == pytest.approx(expected)
    np.testing.assert_array_equal(run_metric(rows, "boolean_accuracy"), [1, 1, 1, 1, 1])
    assert set(generation(targets, predictions)) < set(ROW_SCORES)
    # A task's parser reads the targets, as it does where they are judged.
    np.testing.assert_array_equal(run_metric(rows.take([0, 4]), "exact_match", "number"), [1, 1])
    np.testing.assert_array_equal(run_metric(rows.take([0, 4]), "exact_match"), [0, 0])


def test_perplexity_is_drawn_with_its_tokens() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(1, 9, N)
    sums = -random.gamma(2, tokens)
    rows = pa.table(
        {"target": ["x"] * N, "prediction": ["x"] * N, "target_log_probability": sums, "target_tokens": tokens}
    )
    weights = next(weights_of(N, draws=5))
    for draw, found in enumerate(function(rows, "perplexity")(weights)):
        drawn = np.repeat(np.arange(N), weights[:, draw].astype(int))
        assert found == pytest.approx(perplexity(sums[drawn], tokens[drawn]), rel=1e-5)


def test_what_only_the_task_can_judge_is_not_known() -> None:
    rows = pa.table({"target": ["x"], "prediction": ["x"]})
    assert run_metric(rows, "pass_at_1") is None
    assert run_metric(rows, "perplexity") is None
    assert run_metric(answers(2, 6)[0], "pass_at_1") is None
