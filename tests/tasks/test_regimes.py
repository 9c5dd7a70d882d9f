from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.errors import DataError
from graft.spec import Regime
from graft.tasks.dataset import Dataset
from graft.tasks.regimes import draw, folds

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
