import numpy as np
import pytest
from sklearn import datasets

from graft.errors import SpecError
from graft.spec import Experiment, section_class
from graft.tasks.dataset import Dataset

SOURCES = {
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
    "breast-cancer": datasets.load_breast_cancer,
}


def read(name: str, **settings: int) -> Dataset:
    found = section_class("task", name).model_validate({"name": name, **settings}).read()
    assert isinstance(found, Dataset)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_the_rows_are_scikit_learns(name: str) -> None:
    dataset, bunch = read(name), SOURCES[name]()
    rows = dataset.train.num_rows + dataset.test.num_rows
    assert rows == len(bunch.data)
    assert (dataset.kind, dataset.inputs) == ("vector", ("vector",))
    assert dataset.labels == tuple(sorted(map(str, bunch.target_names)))
    assert dataset.test.num_rows == pytest.approx(rows / 3, abs=1)
    assert dataset.train.schema.field("vector").metadata == {b"kind": b"vector"}
    for row in [*dataset.train.slice(0, 20).to_pylist(), *dataset.test.slice(0, 20).to_pylist()]:
        index = int(row["id"])
        np.testing.assert_array_equal(row["vector"], bunch.data[index].astype(np.float32))
        assert row["target"] == str(bunch.target_names[bunch.target[index]])


def test_the_test_set_can_be_smaller() -> None:
    assert read("digits", test_examples=100).test.num_rows == 100


def test_there_is_no_column_to_group_by() -> None:
    spec = {"name": "x", "task": {"name": "wine", "group": "grower"}, "method": {"name": "probe"}}
    with pytest.raises(SpecError, match=r"task: unknown key 'group'"):
        Experiment.from_mapping(spec)
