"""Sums of names: what may be learned, and what is asked."""

import re
from typing import Any

import numpy as np
import pytest

from graft.errors import SpecError
from graft.spec import Experiment
from graft.tasks.key_value import ASKED, KeyValueTask, KeyValueWorld


def task(**fields: Any) -> KeyValueTask:
    return KeyValueTask(**{"name": "key-value", "keys": 200, "rows": 2000, "test_examples": 400, **fields})


def answer(world: KeyValueWorld, expression: str) -> str:
    words = [str(world.value_of.get(word, word)) for word in expression.split()]
    sign = words.pop()
    assert all(re.fullmatch(r"\d+|[+-]", word) for word in words)
    return " ".join(words) if sign == "->" else str(eval("".join(words)))


def test_every_row_is_true_and_no_test_row_could_be_learned() -> None:
    data = task(operands=3).read()
    world = KeyValueWorld.of(task(operands=3))
    for rows in (data.train, data.test):
        for row in rows.to_pylist():
            assert answer(world, row["expression"]) == row["target"]
    assert not set(data.train["expression"].to_pylist()) & set(data.test["expression"].to_pylist())
    assert len(set(data.test["expression"].to_pylist())) == data.test.num_rows


def test_names_of_the_test_were_never_learned_about() -> None:
    data, world = task().read(), KeyValueWorld.of(task())
    learned = {word for text in data.train["expression"].to_pylist() for word in text.split()} & set(world.names)
    assert learned == world.held_in_names
    assert len(learned) == 40
    for group in ASKED:
        rows = [row for row in data.test.to_pylist() if row["group"] == group]
        asked = {word for row in rows for word in row["expression"].split()} & set(world.names)
        assert bool(asked & learned) == (group == "solve-held-in")
        assert bool(asked) == (group != "numbers")
        assert len(rows) == 100 or (group == "numbers" and 50 < len(rows) <= 100)


def test_the_parts_are_shared_out_as_asked() -> None:
    groups = task(parts={"solve": 1, "substitute": 1, "numbers": 2}, rows=4000).read().train["group"].to_pylist()
    shares = {group: np.mean([one == group for one in groups]) for group in set(groups)}
    assert shares == {
        name: pytest.approx(want, abs=0.04) for name, want in (("solve", 0.25), ("substitute", 0.25), ("numbers", 0.5))
    }


def test_the_same_world_gives_the_same_rows_and_another_one_others() -> None:
    assert task().read().fingerprint == task().read().fingerprint
    assert task().read().fingerprint != task(world=1).read().fingerprint


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"parts": {}}, "parts"),
        ({"parts": {"pairs": 1}}, "parts"),
        ({"held_in": 1.0}, "held_in"),
        ({"keys": 2}, "keys"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], named: str) -> None:
    spec = {"name": "x", "models": {"base": {"source": "m"}}, "method": {"name": "icl"}}
    with pytest.raises(SpecError, match=rf"task\.{named}"):
        Experiment.from_mapping({**spec, "task": {"name": "key-value", **fields}})
