"""What a user may write, and what they are told when it is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import SpecError
from graft.spec import Experiment
from graft.specfile import override, read_yaml, replaced
from graft.sweeps.axes import expand

MINIMAL = {"name": "x", "task": {"name": "digits"}, "method": {"name": "probe"}}


def fault(values: dict[str, object]) -> str:
    with pytest.raises(SpecError) as caught:
        Experiment.from_mapping(values)
    return str(caught.value)


def test_a_minimal_spec_is_filled_with_defaults() -> None:
    experiment = Experiment.from_mapping(MINIMAL)
    assert experiment.regime.examples == 64
    assert experiment.method is not None
    assert experiment.to_mapping()["method"] == {"name": "probe", "classifier": "logistic"}


def test_yaml_round_trip(tmp_path: Path) -> None:
    experiment = Experiment.from_mapping({**MINIMAL, "sweep": {"axes": {"regime.examples": [16, 32]}, "seeds": 2}})
    path = tmp_path / "spec.yaml"
    path.write_text(experiment.to_yaml())
    assert Experiment.from_yaml(path) == experiment


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method.clasifier", "ridge", ["method: ", "'clasifier'", "did you mean 'classifier'"]),
        ("nmae", "y", ["'nmae'", "did you mean 'name'"]),
        ("probe.classifier", "ridge", ["'probe'", "write method.KEY"]),
        ("regime.exmples", 3, ["regime: ", "did you mean 'examples'"]),
        ("method.name", "prob", ["method: ", "unknown method 'prob'", "did you mean 'probe'"]),
        ("task.name", "digit", ["task: ", "did you mean 'digits'"]),
        ("regime.examples", "many", ["regime.examples: ", "integer", "'many'"]),
        ("regime.examples", 0, ["regime.examples: ", "greater than or equal to 1", "0"]),
        ("regime.validation", 1, ["regime.validation", "share between 0 and 1"]),
        ("method.classifier", "svm", ["method.classifier: ", "'logistic'", "'svm'"]),
        ("models.encodr", {"source": "x"}, ["models: ", "did you mean 'encoder'"]),
        ("models.encoder.souce", "x", ["models.encoder: ", "did you mean 'source'"]),
        ("scaling.device", "gpu", ["scaling.device", "cuda:N"]),
        ("name", "Not A Slug", ["name: ", "'Not A Slug'"]),
        ("training.learning_rate", -1, ["training.learning_rate: ", "greater than 0"]),
    ],
)
def test_every_fault_names_its_path_and_the_cure(key: str, value: object, expected: list[str]) -> None:
    message = fault(replaced(MINIMAL, key, value))
    assert "\n" not in message.replace("did you mean", "")
    for part in expected:
        assert part in message


def test_several_faults_are_several_lines() -> None:
    message = fault({**MINIMAL, "regime": {"examples": 0, "seed": -1}})
    assert len(message.splitlines()) == 2


def test_a_missing_model_and_a_missing_method_say_what_to_add() -> None:
    text_task = {"name": "python-docs"}
    assert "models: {encoder: {source: ...}}" in fault({**MINIMAL, "task": text_task})
    assert "method is missing" in fault({"name": "x", "task": {"name": "digits"}})


def test_overrides_are_yaml_values_by_dotted_key() -> None:
    values = override(MINIMAL, ["regime.examples=128", "method.classifier=ridge", "training.learning_rate=1e-3"])
    experiment = Experiment.from_mapping(values)
    assert experiment.regime.examples == 128
    assert experiment.training.learning_rate == 1e-3
    assert experiment.to_mapping()["method"]["classifier"] == "ridge"


@pytest.mark.parametrize("word", ["regime.examples", "=3", "a=[", "name.x=1"])
def test_a_bad_override_is_explained(word: str) -> None:
    with pytest.raises(SpecError, match=r"override|YAML|keys inside"):
        override(MINIMAL, [word])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: 1\na: 2", "written twice"), ("- 1", "a spec is a mapping"), ("a: [", "not valid YAML"), ("\xff", "mapping")],
)
def test_a_bad_file_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=expected):
        read_yaml(path)


def test_a_missing_file_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")


@given(
    keys=st.lists(st.sampled_from(["a", "b", "a.b", "a.c", "b.a.c"]), max_size=5),
    value=st.integers() | st.text(max_size=3),
)
def test_replaced_sets_one_key_and_nothing_else(keys: list[str], value: object) -> None:
    before = {"a": {"b": 1, "z": 2}, "c": 3}
    copy = {"a": {"b": 1, "z": 2}, "c": 3}
    for key in keys:
        if key != "a" and not key.startswith("b"):
            after = replaced(before, key, value)
            assert after["c"] == 3
            assert after["a"]["z"] == 2
    assert before == copy


def test_a_sweep_expands_to_the_grid_with_seeds_innermost() -> None:
    axes = {"method.classifier": ["ridge", "lda"], "regime.examples": [16, 32]}
    members = expand(Experiment.from_mapping({**MINIMAL, "sweep": {"axes": axes, "seeds": 3}}))
    assert len(members) == 12
    assert [member.regime.seed for member in members[:4]] == [0, 1, 2, 0]
    assert all(member.training.seed == member.regime.seed and member.sweep is None for member in members)
    assert [member.regime.examples for member in members] == [16, 16, 16, 32, 32, 32] * 2


def test_an_axis_may_give_whole_methods_and_another_vary_their_fields() -> None:
    axes = {
        "method.classifier": ["ridge", "lda"],
        "method": [{"name": "probe"}, {"name": "probe", "classifier": "knn"}],
    }
    values = {"name": "x", "task": {"name": "digits"}, "sweep": {"axes": axes}}
    classifiers = [member.to_mapping()["method"]["classifier"] for member in expand(Experiment.from_mapping(values))]
    assert classifiers == ["ridge", "ridge", "lda", "lda"]


def test_an_impossible_member_names_its_axis_value() -> None:
    experiment = Experiment.from_mapping({**MINIMAL, "sweep": {"axes": {"method.clasifier": ["ridge"]}}})
    with pytest.raises(SpecError, match=r"sweep method.clasifier=ridge: method: .*did you mean 'classifier'"):
        expand(experiment)


def test_seeds_are_not_an_axis() -> None:
    assert "sweep.seeds" in fault({**MINIMAL, "sweep": {"axes": {"regime.seed": [1, 2]}}})


def test_a_resolved_experiment_keeps_only_the_models_it_reads() -> None:
    models = {"encoder": {"source": "a"}, "base": {"source": "b"}}
    values = {"name": "x", "models": models, "task": {"name": "python-docs"}}
    assert set(Experiment.from_mapping({**values, "method": {"name": "probe"}}).resolved().models) == {"encoder"}
    assert set(Experiment.from_mapping({**values, "method": {"name": "icl"}}).resolved().models) == {"base"}
    similar = {"name": "icl", "selection": "similar"}
    assert set(Experiment.from_mapping({**values, "method": similar}).resolved().models) == {"encoder", "base"}


def test_importing_and_validating_a_spec_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, graft, graft.spec\n"
        f"graft.Experiment.from_mapping({MINIMAL!r})\n"
        "print([name for name in ('torch', 'transformers', 'ray', 'sklearn', 'datasets') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
