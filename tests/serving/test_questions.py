from typing import Any

import pyarrow as pa
import pytest

from graft.errors import DataError
from graft.serving.questions import question_table


def test_plain_values_and_objects_give_the_same_rows() -> None:
    plain = question_table(["a", "ä 東"], ("text",), "text")
    assert plain.column_names == ["id", "text"]
    assert plain.equals(question_table([{"text": "a"}, {"text": "ä 東"}], ("text",), "text"))


def test_one_of_several_fields_may_be_empty() -> None:
    table = question_table([{"head": "a", "body": None}, {"head": "", "body": "b"}], ("head", "body"), "text")
    assert table["body"].to_pylist() == ["", "b"]


def test_vectors_and_conversations() -> None:
    vectors = question_table([[1, 2.5], [3, 4]], ("vector",), "vector")
    assert vectors["vector"].type == pa.list_(pa.float32(), 2)
    turns = [{"role": "user", "content": "hello"}]
    talks = question_table([turns, {"chat": turns}], ("chat",), "messages")
    assert talks["chat"].to_pylist() == [turns, turns]


def test_what_stands_beside_the_input_is_text() -> None:
    turns = [{"role": "user", "content": "hello"}]
    table = question_table(
        [{"chat": turns, "group": "sw", "rationale": "so"}], ("chat", "rationale", "group"), "messages"
    )
    assert table.to_pylist() == [{"id": "question-0", "chat": turns, "rationale": "so", "group": "sw"}]
    assert table.schema.field("group").metadata is None


@pytest.mark.parametrize(
    ("items", "inputs", "kind", "expected"),
    [
        ([{"text": " ", "group": "sw"}], ("text", "group"), "text", r"input\[0\]: is empty"),
        ([{"chat": [], "group": "sw"}], ("chat", "group"), "messages", r"input\[0\]: is empty"),
        (["a", 3], ("text",), "text", "row 1: give text, got int"),
        (["a", " "], ("text",), "text", r"input\[1\]: is empty"),
        ([None], ("text",), "text", "is empty"),
        (["\ud800"], ("text",), "text", "not text"),
        (["a"], ("head", "body"), "text", "give an object with head, body"),
        ([{"head": "a"}], ("head", "body"), "text", "'body' is missing"),
        ([{"txet": "a", "text": "b"}], ("text",), "text", "did you mean 'text'"),
        ([{"head": "", "body": " "}], ("head", "body"), "text", "is empty"),
        ([[1, "2"]], ("vector",), "vector", "row 0: give a list of finite numbers"),
        ([[1.0, float("nan")]], ("vector",), "vector", "finite"),
        ([[1e39]], ("vector",), "vector", "finite"),
        ([[10**400]], ("vector",), "vector", "finite"),
        ([[1], [1, 2]], ("vector",), "vector", "vector"),
        ([[]], ("vector",), "vector", "is empty"),
        (["hello"], ("chat",), "messages", "chat"),
        ([[{"role": "owner", "content": "x"}]], ("chat",), "messages", "role"),
        ([[{"role": "user", "content": 3}]], ("chat",), "messages", "content"),
        ([[1, {"role": "user"}]], ("chat",), "messages", "chat"),
        (["x"], ("image",), "image", "data URI"),
    ],
)
def test_what_is_no_row_is_refused_by_its_place(
    items: list[Any], inputs: tuple[str, ...], kind: str, expected: str
) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        question_table(items, inputs, kind)
    assert str(caught.value).startswith("input")
    assert "\n" not in str(caught.value)
