from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.errors import DataError
from graft.spec import Regime
from graft.tasks.dataset import Dataset
from graft.tasks.regimes import draw, folds, hold_out
from graft.tasks.split import units

TARGETS = st.lists(st.sampled_from("aaaaabbbc"), min_size=10, max_size=60).filter(lambda t: len(set(t)) > 1)
SEEDS = st.integers(0, 1000)


def dataset(targets: list[str], labelled: bool = True, tested: list[str] | None = None) -> Dataset:
    train = pa.table({"id": [f"{i}" for i in range(len(targets))], "text": targets, "target": targets})
    test = pa.table({"id": ["t"], "text": ["t"], "target": (tested or targets)[:1]})
    return Dataset(train, test, ("text",), "text", tuple(sorted(set(targets))) if labelled else None)


def drawn(data: Dataset, examples: int, seed: int) -> list[str]:
    return draw(data, Regime(examples=examples, seed=seed))["id"].to_pylist()


@given(TARGETS, SEEDS, st.booleans(), st.data())
def test_smaller_regimes_are_the_beginning_of_larger_ones(
    targets: list, seed: int, labelled: bool, data: st.DataObject
) -> None:
    rows, least = dataset(targets, labelled), len(set(targets))
    small = data.draw(st.integers(least, len(targets)))
    large = data.draw(st.integers(small, len(targets)))
    assert drawn(rows, small, seed) == drawn(rows, large, seed)[:small]
    assert len(set(drawn(rows, large, seed))) == large


@given(TARGETS, SEEDS, st.data())
def test_every_prefix_is_near_proportional(targets: list, seed: int, data: st.DataObject) -> None:
    labels = Counter(targets)
    examples = data.draw(st.integers(len(labels), len(targets)))
    table = draw(dataset(targets), Regime(examples=examples, seed=seed))
    order = table["target"].to_pylist()
    assert set(order[: len(labels)]) == set(labels), "one row of each label comes first"
    for label, rows in labels.items():
        taken, share = order.count(label), examples * rows / len(targets)
        assert share - len(labels) < taken < share + 1 + 1e-9
    if examples == len(targets):
        assert Counter(order) == labels


@given(SEEDS)
def test_a_seed_draws_the_same_rows_again_and_another_seed_others(seed: int) -> None:
    rows = dataset(["a", "b"] * 100)
    assert drawn(rows, 50, seed) == drawn(rows, 50, seed)
    assert drawn(rows, 50, seed) != drawn(rows, 50, seed + 1)


def test_which_label_comes_first_depends_on_the_seed() -> None:
    rows = dataset(["a", "b"] * 10)
    assert {draw(rows, Regime(examples=2, seed=seed))["target"][0].as_py() for seed in range(20)} == {"a", "b"}


@pytest.mark.parametrize(
    ("data", "examples", "message"),
    [
        (dataset(["a", "b"] * 5), 11, r"regime.examples is 11, but there are 10 training rows; give at most 10"),
        (dataset(["a", "b"], labelled=False), 3, r"give at most 2"),
        (dataset(["a", "b", "c"]), 2, r"there are 3 labels and a regime holds one row of each; give at least 3"),
        (dataset(["a", "b"], tested=["z"]), 2, r"no training row has the label 'z' of the test rows"),
    ],
)
def test_regimes_that_cannot_be_drawn(data: Dataset, examples: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw(data, Regime(examples=examples))


VALIDATION = st.sampled_from(["auto", 0.2, 0.5, 2, 5, 12])


@settings(max_examples=60)
@given(st.lists(st.sampled_from("aaabbc"), min_size=2, max_size=150), SEEDS, VALIDATION)
def test_folds_divide_the_rows(targets: list, seed: int, validation: float) -> None:
    regime = Regime(examples=len(targets), seed=seed, validation=validation)
    parts = folds(targets, regime)
    for train, held_out in parts:
        assert len(train)
        assert len(held_out)
        assert sorted([*train, *held_out]) == list(range(len(targets)))
    every = np.concatenate([held_out for _, held_out in parts])
    assert len(set(every)) == len(every)
    if validation in (2, 5, 12):
        assert len(parts) == min(int(validation), len(targets))
        assert len(every) == len(targets), "every row validates once"
    for (train, held_out), (again, _) in zip(parts, folds(targets, regime), strict=True):
        assert np.array_equal(train, again)
        for label in set(targets):
            share = targets.count(label) * len(held_out) / len(targets)
            assert abs(sum(targets[row] == label for row in held_out) - share) < len(set(targets))


@pytest.mark.parametrize(("rows", "parts", "held_out"), [(99, 5, 19), (100, 1, 20)])
def test_auto_is_five_folds_below_100_examples_and_one_hold_out_from_there(
    rows: int, parts: int, held_out: int
) -> None:
    found = folds(["a", "b"] * (rows // 2) + ["a"] * (rows % 2), Regime(examples=rows))
    assert len(found) == parts
    assert min(len(validation) for _, validation in found) == held_out


def test_a_hold_out_and_every_fold_are_stratified() -> None:
    targets = ["a"] * 60 + ["b"] * 40
    for validation in (0.2, 5):
        for _, held_out in folds(targets, Regime(examples=100, validation=validation)):
            assert Counter(targets[row] for row in held_out) == {"a": 12, "b": 8}


def test_a_hold_out_leaves_single_rows_of_a_label_in_training() -> None:
    targets = ["a"] * 60 + ["b"] * 60 + ["c"]
    for seed in range(10):
        [(train, _)] = folds(targets, Regime(examples=121, seed=seed))
        assert 120 in train


def test_texts_that_are_all_different_can_be_held_out() -> None:
    [(train, held_out)] = folds([f"answer {row}" for row in range(200)], Regime(examples=200))
    assert (len(train), len(held_out)) == (160, 40)


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="validation needs at least 2 examples, got 1"):
        folds(["a"], Regime(examples=1))


@pytest.mark.parametrize(
    ("validation", "seed", "held_out"),
    [
        (0.2, 1000, [[4, 13, 15, 22, 26, 29]]),
        (
            3,
            0,
            [
                [5, 8, 15, 16, 21, 22, 23, 25, 26, 28],
                [3, 4, 6, 7, 10, 13, 14, 17, 19, 20],
                [0, 1, 2, 9, 11, 12, 18, 24, 27, 29],
            ],
        ),
    ],
)
@pytest.mark.parametrize("alone", [None, range(30), [f"unit {-row}" for row in range(30)]])
def test_examples_that_stand_for_themselves_are_held_out_as_ever(
    validation: float, seed: int, held_out: list[list[int]], alone: Any
) -> None:
    found = folds(list("aabacabbca" * 3), Regime(examples=30, seed=seed, validation=validation), alone)
    assert [part.tolist() for _, part in found] == held_out


UNITS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("aaabbc")), min_size=2, max_size=80).filter(
    lambda rows: len({unit for unit, _ in rows}) > 1
)


@settings(max_examples=60)
@given(UNITS, SEEDS, VALIDATION)
def test_a_unit_is_trained_on_or_validated_on(rows: list, seed: int, validation: float) -> None:
    unit_of, targets = map(list, zip(*rows, strict=True))
    regime = Regime(examples=len(rows), seed=seed, validation=validation)
    parts = folds(targets, regime, unit_of)
    for train, held_out in parts:
        assert len(train)
        assert len(held_out)
        assert sorted([*train, *held_out]) == list(range(len(rows)))
        assert not {unit_of[row] for row in train} & {unit_of[row] for row in held_out}
    every = [row for _, held_out in parts for row in held_out]
    if validation in (2, 5, 12):
        assert len(parts) == min(int(validation), len(set(unit_of)))
        assert sorted(every) == list(range(len(rows)))
    elif validation in (0.2, 0.5):
        assert len(every) <= max(round(len(rows) * validation), min(Counter(unit_of).values()))


def test_units_of_several_rows_keep_the_labels_in_proportion() -> None:
    # Of `a` each text stands four times, of `b` once.
    unit_of = [*(row // 4 for row in range(200)), *range(50, 150)]
    targets = ["a"] * 200 + ["b"] * 100
    for seed in range(5):
        [(_, held_out)] = folds(targets, Regime(examples=300, seed=seed), unit_of)
        assert Counter(targets[row] for row in held_out) == {"a": 40, "b": 20}
        for _, held_out in folds(targets, Regime(examples=300, seed=seed, validation=5), unit_of):
            assert Counter(targets[row] for row in held_out) == {"a": 40, "b": 20}


def test_folds_of_unequal_units_are_of_like_size() -> None:
    unit_of = [unit for unit in range(12) for _ in range(unit + 1)]
    for seed in range(5):
        found = folds(["a"] * 78, Regime(examples=78, seed=seed, validation=3), unit_of)
        assert all(20 <= len(held_out) <= 32 for _, held_out in found)


def test_a_unit_too_large_to_be_held_out_stays_and_without_smaller_ones_is_held_out() -> None:
    [(train, _)] = folds(["a"] * 100, Regime(examples=100), [max(row, 50) for row in range(100)])
    assert set(range(51)) <= set(train)
    [(train, held_out)] = folds(["a"] * 100, Regime(examples=100), [int(row < 60) for row in range(100)])
    assert (len(train), len(held_out)) == (60, 40)


def test_one_unit_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"at least 2 different inputs and items, got 3 of one; raise regime\.examples"):
        folds(["a", "b", "a"], Regime(examples=3), [7, 7, 7])


def asked_often(items: bool) -> Dataset:
    """Twelve questions in ten languages, or twelve texts ten times each."""
    rows = [(question, language) for question in range(12) for language in range(10)]
    texts = [f"question {question}" + f" in {language}" * items for question, language in rows]
    ids, targets = [str(row) for row in range(120)], ["ab"[question % 2] for question, _ in rows]
    train = pa.table({"id": ids, "text": texts, "target": targets})
    about = {id: str(question) for id, (question, _) in zip(ids, rows, strict=True)}
    return Dataset(train, train.slice(0, 1), ("text",), "text", ("a", "b"), items=about if items else None)


@pytest.mark.parametrize("items", [True, False])
@pytest.mark.parametrize(("examples", "fold"), [(120, 0), (60, 4)])
def test_what_is_held_out_is_not_learned_from_in_another_language_or_copy(
    items: bool, examples: int, fold: int
) -> None:
    data = asked_often(items)
    regime = Regime(examples=examples, seed=1000, fold=fold)
    parts = hold_out(data, draw(data, regime), regime)
    assert sum(part.num_rows for part in parts) == examples
    sides = [{int(id) // 10 for id in part["id"].to_pylist()} for part in parts]
    assert not sides[0] & sides[1]
    assert all(sides)


def test_fewer_units_than_folds_are_named() -> None:
    data = asked_often(items=True)
    regime = Regime(examples=60, validation=20, fold=12)
    message = (
        "60 examples of 12 different inputs and items give the folds 0 to 11: raise regime.examples, or give fewer"
    )
    with pytest.raises(DataError, match=message):
        hold_out(data, draw(data, regime), regime)


def test_rows_are_of_one_unit_over_any_number_of_rows_between() -> None:
    rows = pa.table({"id": list("vwxyz"), "text": ["one", "two", "two", "three", "four"]})
    assert units(rows, ("text",)) == {"v": 0, "w": 1, "x": 1, "y": 2, "z": 3}
    items = {"v": "p", "w": "q", "x": "p", "y": "r", "z": "q"}
    assert units(rows, ("text",), items) == {"v": 0, "w": 0, "x": 0, "y": 1, "z": 0}
