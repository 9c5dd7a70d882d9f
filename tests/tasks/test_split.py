from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import DataError
from graft.tasks.split import POOL_ROWS, divide, labels_of, reserve, shared_rows, split

LABELS = st.sampled_from(["a", "a", "a", "b", "b", "c"])
ROWS = st.lists(st.tuples(st.integers(0, 40), LABELS), min_size=12, max_size=80)


def table(rows: list[tuple[int, str]], **columns: list) -> pa.Table:
    texts, targets = zip(*rows, strict=True)
    ids = [str(row) for row in range(len(rows))]
    return pa.table({"id": ids, "text": [f"text {text}" for text in texts], "target": list(targets), **columns})


def distinct(rows: int, labels: str) -> pa.Table:
    return table([(row, labels[row % len(labels)]) for row in range(rows)])


@given(ROWS, st.integers(1, 40), st.booleans())
def test_rows_are_dealt_out_once_and_equal_inputs_together(rows: list, count: int, stratified: bool) -> None:
    whole = table(rows)
    try:
        train, test, equal = split(whole, ("text",), count, stratified=stratified)
    except DataError:
        assert len(set(whole["text"].to_pylist())) < len(rows), "only repeated texts can leave no test set"
        return
    ids = [[int(id) for id in part["id"].to_pylist()] for part in (train, test)]
    assert sorted(ids[0] + ids[1]) == list(range(len(rows)))
    assert ids == [sorted(ids[0]), sorted(ids[1])]
    assert 1 <= test.num_rows <= min(count, len(rows) // 3)
    assert not set(train["text"].to_pylist()) & set(test["text"].to_pylist())
    assert equal == sum(n for n in Counter(whole["text"].to_pylist()).values() if n > 1)
    if stratified:
        assert set(train["target"].to_pylist()) == set(whole["target"].to_pylist())


@given(ROWS)
def test_no_draw_takes_a_label_away_that_has_a_text_of_its_own(rows: list) -> None:
    whole = table([(row, label) for row, (_, label) in enumerate(rows)])
    train, test, _ = split(whole, ("text",), 1000)
    assert set(train["target"].to_pylist()) == set(whole["target"].to_pylist())
    assert set(test["target"].to_pylist()) <= set(train["target"].to_pylist())


def test_a_label_all_of_whose_texts_bear_a_rarer_one_too_stays_in_training() -> None:
    # Text i is once `a` and once a label of its own, whose other text has too many rows for the test set.
    rows = [row for i, label in enumerate("bcdef") for row in [(i, "a"), (i, label), *[(10 + i, label)] * 4]]
    train, test, equal = split(table(rows), ("text",), 1000)
    assert set(train["target"].to_pylist()) == set("abcdef")
    assert Counter(test["target"].to_pylist())["a"] == 4
    assert equal == 30
    assert not set(train["text"].to_pylist()) & set(test["text"].to_pylist())


def test_the_test_set_holds_each_label_in_proportion() -> None:
    _, test, _ = split(distinct(300, "aaaaabbbcc"), ("text",), 50)
    assert Counter(test["target"].to_pylist()) == {"a": 25, "b": 15, "c": 10}


def test_free_text_targets_are_not_strata() -> None:
    whole = table([(row, f"answer {row}") for row in range(30)])
    assert split(whole, ("text",), 1000, stratified=False)[1].num_rows == 10


def test_the_split_is_the_same_every_time() -> None:
    first, second = (split(distinct(90, "ab"), ("text",), 20) for _ in range(2))
    assert first[0].equals(second[0])
    assert first[1].equals(second[1])


@pytest.mark.parametrize("whole", [distinct(2, "ab"), distinct(9, "abcdefghi"), table([(1, "a"), (1, "b")] * 5)])
def test_too_few_rows(whole: pa.Table) -> None:
    with pytest.raises(DataError, match=r"rows are too few to give a test set.*give train: and test: files"):
        split(whole, ("text",), 10)


def test_one_label_only() -> None:
    with pytest.raises(DataError, match="every row has the label 'a'; a classification needs at least two"):
        labels_of(distinct(9, "a"))


@pytest.mark.parametrize(("rows", "pool"), [(20, 8), (200, 20), (2000, 64)])
def test_the_pool_is_a_tenth_but_8_to_64(rows: int, pool: int) -> None:
    rest, reserved = reserve(distinct(rows, "ab"), ("text",))
    assert (rest.num_rows, reserved.num_rows) == (rows - pool, pool)
    assert not set(rest["id"].to_pylist()) & set(reserved["id"].to_pylist())
    assert set(rest["target"].to_pylist()) == {"a", "b"}


def test_too_few_rows_for_a_pool() -> None:
    with pytest.raises(DataError, match=f"sets {POOL_ROWS[0]} aside for exemplars"):
        reserve(distinct(8, "ab"), ("text",))


def test_only_a_task_with_rationales_sets_rows_aside() -> None:
    whole = distinct(120, "ab")
    assert divide(whole, ("text",), "text", 30).pool is None
    reasons = whole.append_column("rationale", pa.array(["because"] * 120))
    dataset = divide(reasons, ("text",), "text", 30)
    assert dataset.pool is not None
    assert (dataset.train.num_rows, dataset.test.num_rows, dataset.pool.num_rows) == (81, 30, 9)
    assert dataset.test["id"].equals(divide(whole, ("text",), "text", 30).test["id"])


def test_shared_rows_are_found_by_their_inputs() -> None:
    assert shared_rows(table([(1, "a"), (5, "b"), (6, "a")]), table([(5, "a"), (6, "a")]), ("text",)) == [1, 2]


@given(st.integers(2, 30), st.integers(1, 4), st.integers(1, 60), st.integers(0, 5))
def test_rows_of_one_item_stay_on_one_side_and_leave_with_one_another(
    items: int, languages: int, count: int, repeated: int
) -> None:
    """Item i in some languages; some texts are equal over items, which ties those items together too."""
    rows = [(item, language) for language in range(languages) for item in range(items)]
    texts = [0 if item < repeated and language == 0 else 1 + row for row, (item, language) in enumerate(rows)]
    whole = table([(text, "a") for text in texts])
    names = [f"item {item}" for item, _ in rows]
    try:
        train, test, _ = split(whole, ("text",), count, stratified=False, items=names)
    except DataError:
        return
    sides = [{names[int(id)] for id in part["id"].to_pylist()} for part in (train, test)]
    assert not sides[0] & sides[1]
    assert not set(train["text"].to_pylist()) & set(test["text"].to_pylist())


def test_the_exemplars_items_are_in_no_regime() -> None:
    rows = 300
    whole = table([(row, "a") for row in range(rows)], rationale=["because"] * rows)
    names = [str(row % 100) for row in range(rows)]
    dataset = divide(whole, ("text",), "text", 60, labelled=False, items=names)
    assert dataset.pool is not None
    sides = [{int(id) % 100 for id in part["id"].to_pylist()} for part in (dataset.train, dataset.test, dataset.pool)]
    assert sum(map(len, sides)) == 100
    assert [part.num_rows for part in (dataset.train, dataset.test, dataset.pool)] == [216, 60, 24]
    assert dataset.equal_inputs == 0
