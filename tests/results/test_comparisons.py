"""From tables of metrics and predictions to verdicts."""

import dataclasses
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from graft.arrays import answer_columns
from graft.errors import DataError
from graft.results.comparisons import compare, compare_best, compare_named, compare_rungs, compare_with_baseline
from graft.results.outcomes import outcomes
from graft.results.records import METRICS, metric_table
from graft.results.significance import holm
from graft.results.statistics import mean_interval
from graft.results.tables import summary
from graft.tasks.metrics import classification

LABELS = ("no", "yes")
ITEMS = 300


@pytest.fixture
def swept(record):
    """Tables of runs whose items get easier with an arm's `gain`; both in an order that nothing may depend on."""

    def make(gains, seeds=4, sizes=(8,), groups=None, labels=LABELS, share_seeds=True, items=ITEMS):
        random = np.random.default_rng(0)
        true = random.integers(0, len(labels), items)
        hard = random.normal(size=(items, 1))
        tables, answers = [], []
        for number, (method, gain) in enumerate(gains):
            for examples in sizes:
                for seed in range(seeds) if share_seeds else [number * 10]:
                    settings = {"classifier": f"c{number}"}
                    run = record(method, settings, examples=examples, seed=seed)
                    logits = random.normal(size=(items, len(labels)))
                    logits += (gain + hard) * np.eye(len(labels))[true]
                    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
                    rows = answer_columns(logits, labels)
                    targets = [labels[column] for column in true]
                    found = classification(targets, rows["prediction"].to_pylist(), logits, labels)
                    tables.append(metric_table(run, found, items))
                    rows = rows.append_column("target", pa.array(targets))
                    rows = rows.add_column(0, "id", pa.array([f"row {item}" for item in range(items)]))
                    rows = rows.add_column(0, "run_id", pa.array([run.run_id] * items))
                    if groups:
                        rows = rows.append_column("group", pa.array([f"g{item % groups}" for item in range(items)]))
                    answers.append(rows.take(random.permutation(items)))
        return pa.concat_tables(tables), pa.concat_tables(answers[::-1])

    return make


GAINS = (("probe", 0.4), ("probe", 0.8), ("lora", 2.0), ("lora", 0.81), ("icl", 0.1))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "auroc", "auc_pr", "log_loss", "ece"])
def test_outcomes_give_the_means_of_the_table(swept, metric) -> None:
    metrics, predictions = swept(GAINS, sizes=(8, 64))
    found = outcomes(metrics, predictions, metric, draws=50)
    cells = summary(metrics, metric)
    assert [outcome.cell for outcome in found] == cells
    for outcome, cell in zip(found, cells, strict=True):
        assert dict(zip(outcome.spread.seeds, outcome.spread.estimates_S, strict=True)) == pytest.approx(cell.values)
        interval = outcome.interval()
        assert interval.covers == "seeds and items"
        assert interval.mean == pytest.approx(cell.interval.mean)
        assert interval.low < interval.mean < interval.high


def test_the_same_tables_give_the_same_numbers_in_any_order(swept) -> None:
    metrics, predictions = swept(GAINS[:3])
    first = compare_best(outcomes(metrics, predictions, "accuracy"))
    shuffled = predictions.take(np.random.default_rng(1).permutation(len(predictions)))
    assert compare_best(outcomes(metrics, shuffled, "accuracy")) == first


def test_groups_of_the_rows_are_drawn(swept) -> None:
    metrics, predictions = swept(GAINS[:2], groups=8)
    assert {found.interval().covers for found in outcomes(metrics, predictions, "accuracy")} == {"seeds and groups"}
    metrics, predictions = swept(GAINS[:2], groups=3)
    assert {found.interval().covers for found in outcomes(metrics, predictions, "accuracy")} == {"seeds and items"}


def test_what_predictions_do_not_give_is_left_to_the_seeds(swept, caplog) -> None:
    metrics, predictions = swept(GAINS[:2])
    judged = metrics.set_column(
        metrics.column_names.index("metric"), METRICS.field("metric"), pa.array(["pass_at_1"] * len(metrics))
    )
    metric_of = metrics["metric"].to_pylist()
    judged = judged.filter(pa.array([name == "accuracy" for name in metric_of]))
    for table, rows, metric in ((judged, predictions, "pass_at_1"), (metrics, None, "accuracy")):
        for outcome, cell in zip(outcomes(table, rows, metric), summary(table, metric), strict=True):
            assert outcome.interval() == mean_interval(cell.values.values())
            assert outcome.interval().covers == "seeds"
    assert not caplog.records
    # One run's rows are lacking, another's are those of other weights.
    lacking = predictions.filter(
        pa.array([run != metrics["run_id"][0].as_py() for run in predictions["run_id"].to_pylist()])
    )
    assert [found.interval().covers for found in outcomes(metrics, lacking, "accuracy")] == ["seeds", "seeds and items"]
    answers = pa.array(["yes"] * len(predictions))
    altered = predictions.set_column(predictions.column_names.index("prediction"), "prediction", answers)
    with caplog.at_level(logging.WARNING):
        assert {found.interval().covers for found in outcomes(metrics, altered, "accuracy")} == {"seeds"}
    assert "predictions give another accuracy" in caplog.text


def test_programs_that_pass_are_compared_as_answers_that_are_right(swept) -> None:
    metrics, predictions = swept(GAINS[:3])
    accuracies = metrics.filter(pc.equal(metrics["metric"], "accuracy"))
    place = metrics.column_names.index("metric")
    judged = accuracies.set_column(place, METRICS.field("metric"), pa.array(["pass_at_1"] * len(accuracies)))
    passed = pc.equal(predictions["prediction"], predictions["target"])
    programs = predictions.drop_columns(["scores"]).append_column("passed", passed)
    found = compare_best(outcomes(judged, programs, "pass_at_1"))
    expected = compare_best(outcomes(accuracies, predictions, "accuracy"))
    assert [dataclasses.replace(one, metric="accuracy") for one in found] == expected
    assert {len(one.mcnemar) for one in found} == {4}
    assert {one.difference.covers for one in found} == {"seeds and items"}
    # An older graft kept no verdicts: null beside those of others.
    unknown = pc.if_else(pc.equal(programs["run_id"], programs["run_id"][0]), None, passed)
    older = programs.set_column(programs.column_names.index("passed"), "passed", unknown)
    intervals = [one.interval().covers for one in outcomes(judged, older, "pass_at_1")]
    assert sorted(intervals) == ["seeds", "seeds and items", "seeds and items"]


def test_every_arm_stands_against_the_strongest_baseline(swept) -> None:
    metrics, predictions = swept(GAINS, sizes=(8, 64))
    found = compare_with_baseline(outcomes(metrics, predictions, "accuracy"))
    assert {comparison.other for comparison in found} == {"probe classifier=c1"}
    assert len(found) == 2 * 4
    verdicts = {(comparison.arm, comparison.examples): comparison.verdict for comparison in found}
    for size in (8, 64):
        assert verdicts["lora classifier=c2", size] == "better"
        assert verdicts["icl", size] == "worse"
        assert verdicts["lora classifier=c3", size] == "undecided"
    one = next(comparison for comparison in found if comparison.arm.startswith("icl"))
    assert one.corrected_p >= one.p
    assert [test.seed for test in one.mcnemar] == [0, 1, 2, 3]
    gap = np.mean([(test.only_arm - test.only_other) / ITEMS for test in one.mcnemar])
    assert one.difference.mean == pytest.approx(gap)
    assert one.items == ITEMS
    assert one.detectable < abs(one.difference.mean)
    other = compare_with_baseline(outcomes(metrics, predictions, "accuracy"), baselines=("icl",))
    assert {comparison.other for comparison in other} == {"icl"}


def test_where_less_is_better_the_words_are_turned(swept) -> None:
    metrics, predictions = swept(GAINS)
    found = {
        comparison.arm: comparison for comparison in compare_with_baseline(outcomes(metrics, predictions, "log_loss"))
    }
    assert found["lora classifier=c2"].difference.mean < 0
    assert found["lora classifier=c2"].verdict == "better"
    assert found["lora classifier=c2"].mcnemar == ()


def test_the_best_is_compared_with_each_other_arm_from_its_side(swept) -> None:
    metrics, predictions = swept(GAINS)
    measured = outcomes(metrics, predictions, "accuracy")
    found = compare_best(measured)
    assert {comparison.arm for comparison in found} == {"lora classifier=c2"}
    assert {comparison.verdict for comparison in found} == {"better"}
    direct = {outcome.cell.arm: outcome for outcome in measured}
    for comparison in found:
        plain = compare(direct[comparison.arm], direct[comparison.other])
        assert comparison.p == plain.p
        assert comparison.mcnemar == plain.mcnemar
        ours, theirs = comparison.difference, plain.difference
        assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high), abs=0.005)


def test_two_arms_are_equivalent_within_a_margin(swept) -> None:
    metrics, predictions = swept(GAINS[1:4:2] + GAINS[:1], items=900)
    measured = outcomes(metrics, predictions, "accuracy")
    names = [outcome.cell.arm for outcome in measured]
    (narrow,) = compare_named(measured, names[0], names[1], margin=0.001)
    assert narrow.equivalent_p > 0.05
    (same,) = compare_named(measured, names[0], names[0], margin=0.01)
    assert (same.p, same.verdict) == (1, "equivalent")
    (wide,) = compare_named(measured, "lora", "probe classifier=c0", margin=0.2)
    assert (wide.verdict, wide.margin, wide.corrected_p) == ("equivalent", 0.2, wide.p)


def test_one_seed_answers_for_its_items_alone(swept) -> None:
    metrics, predictions = swept(GAINS[:3], seeds=1)
    for comparison in compare_best(outcomes(metrics, predictions, "accuracy")):
        assert comparison.difference.covers == "items"
        assert comparison.verdict == "better"
    for comparison in compare_best(outcomes(metrics, None, "accuracy")):
        assert (comparison.p, comparison.corrected_p, comparison.verdict) == (None, None, "undecided")


def test_arms_that_never_meet_are_refused(swept) -> None:
    metrics, predictions = swept(GAINS[:2], share_seeds=False)
    measured = outcomes(metrics, predictions, "accuracy")
    assert compare_best(measured) == []
    first, second = (outcome.cell.arm for outcome in measured)
    with pytest.raises(DataError, match="no task, number of examples and seed in common"):
        compare_named(measured, first, second)
    with pytest.raises(DataError, match="no seed in common"):
        compare(*measured)
    with pytest.raises(DataError, match=r"no arm 'lara'"):
        compare_named(measured, first, "lara")


def test_the_rungs_of_a_ladder_are_one_family(record) -> None:
    random = np.random.default_rng(0)
    right = {
        name: random.random((5, ITEMS)) < level for name, level in (("full", 0.9), ("1 a=1", 0.75), ("2 b=1", 0.74))
    }
    tables, answers = [], []
    for name, of_seed in right.items():
        for seed, row in enumerate(of_seed):
            settings = {"a": int(name != "full"), "b": int(name.startswith("2"))}
            run = record("lora", settings, seed=seed, ablation=name)
            logits = np.where(row[:, None], np.log([0.1, 0.9]), np.log([0.9, 0.1]))
            rows = answer_columns(logits, LABELS).append_column("target", pa.array(["yes"] * ITEMS))
            rows = rows.add_column(0, "id", pa.array([str(item) for item in range(ITEMS)]))
            answers.append(rows.add_column(0, "run_id", pa.array([run.run_id] * ITEMS)))
            tables.append(metric_table(run, {"accuracy": row.mean()}, ITEMS))
    found = compare_rungs(outcomes(pa.concat_tables(tables), pa.concat_tables(answers), "accuracy"))
    assert [(comparison.arm, comparison.other) for comparison in found] == [
        ("lora - a=1", "lora full"),
        ("lora - b=1", "lora - a=1"),
    ]
    assert [comparison.verdict for comparison in found] == ["worse", "undecided"]
    assert [comparison.corrected_p for comparison in found] == holm([comparison.p for comparison in found])
