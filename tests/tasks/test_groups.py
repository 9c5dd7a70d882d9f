import pyarrow as pa
import pytest

from graft.errors import DataError
from graft.tasks.groups import GroupedTask

TEST = pa.table({"id": list("abcd"), "group": ["te", "bn", None, "te"]})


def averaged(macro: object, test: pa.Table = TEST) -> tuple[str, ...]:
    return GroupedTask.model_validate({"name": "x", "macro": macro}).averaged(test)


def test_all_groups_or_the_named_ones_in_their_order() -> None:
    assert averaged(None) == ()
    assert averaged("all") == ("bn", "te")
    assert averaged(["te", "bn", "te"]) == ("te", "bn")


@pytest.mark.parametrize(
    ("macro", "test", "expected"),
    [
        (["tee"], TEST, r"task\.macro: no row belongs to 'tee'; did you mean 'te'\? known: bn, te"),
        ("all", TEST.select(["id"]), "no row belongs to a group"),
        ("all", pa.table({"group": ["macro"]}), "a group is called 'macro'"),
    ],
)
def test_groups_that_cannot_be_averaged(macro: object, test: pa.Table, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        averaged(macro, test)
