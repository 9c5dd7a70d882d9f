"""What a sweep takes away: which experiments that makes, what they are called, and what is refused."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from graft import planning, runner
from graft.errors import SpecError
from graft.results.ablations import FULL, label, rung_of
from graft.spec import Experiment
from graft.sweeps.ablations import ablations
from graft.sweeps.axes import Member, expand, expand_members
from graft.sweeps.roster import Roster, plan_sweep
from graft.sweeps.status import Status, Watcher
from graft.sweeps.sweep import run_sweep
from graft.swept import Ablations

MINIMAL = {"name": "x", "task": {"name": "digits", "test_examples": 100}, "method": {"name": "probe"}}
KNN, LESS, FOLDS = "method.classifier=knn", "regime.examples=32", "regime.validation=3"


def swept(kind: str, *items: Any, **sweep: Any) -> Experiment:
    return Experiment.from_mapping({**MINIMAL, "sweep": {"ablations": {kind: list(items)}, **sweep}})


def told(members: list[Member]) -> list[tuple[Any, ...]]:
    """Name, classifier, examples and validation of each."""
    return [
        (
            member.ablation.name,
            member.experiment.to_mapping()["method"]["classifier"],
            member.experiment.regime.examples,
            member.experiment.regime.validation,
        )
        for member in members
    ]


def roster(experiment: Experiment) -> Roster:
    return plan_sweep(experiment, expand_members(experiment))


def fault(kind: str, *items: Any, **sweep: Any) -> str:
    with pytest.raises(SpecError) as caught:
        expand(swept(kind, *items, **sweep))
    return str(caught.value)


def test_a_rung_lacks_what_those_above_it_lack() -> None:
    assert told(expand_members(swept("ladder", KNN, LESS, FOLDS))) == [
        ("full", "logistic", 64, "auto"),
        (f"1 {KNN}", "knn", 64, "auto"),
        (f"2 {LESS}", "knn", 32, "auto"),
        (f"3 {FOLDS}", "knn", 32, 3),
    ]


def test_leave_one_out_takes_each_item_alone() -> None:
    assert told(expand_members(swept("leave_one_out", KNN, LESS, FOLDS))) == [
        ("full", "logistic", 64, "auto"),
        (KNN, "knn", 64, "auto"),
        (LESS, "logistic", 32, "auto"),
        (FOLDS, "logistic", 64, 3),
    ]


def test_a_factorial_takes_every_combination() -> None:
    assert told(expand_members(swept("factorial", KNN, LESS))) == [
        ("full", "logistic", 64, "auto"),
        (KNN, "knn", 64, "auto"),
        (LESS, "logistic", 32, "auto"),
        (f"{KNN} {LESS}", "knn", 32, "auto"),
    ]


def test_axes_ablations_and_seeds_are_crossed_with_seeds_innermost() -> None:
    experiment = swept("ladder", KNN, FOLDS, axes={"regime.examples": [16, 32]}, seeds=2)
    members = expand_members(experiment)
    assert [member.experiment for member in members] == expand(experiment)
    assert [(m.experiment.regime.examples, m.ablation.name, m.experiment.regime.seed) for m in members] == list(
        itertools.product((16, 32), ("full", f"1 {KNN}", f"2 {FOLDS}"), (0, 1))
    )
    assert all(member.experiment.training.seed == member.experiment.regime.seed for member in members)


def test_a_value_is_yaml_and_a_key_reaches_into_models() -> None:
    values = {
        "name": "x",
        "task": {"name": "python-docs"},
        "models": {"base": {"source": "somewhere", "variant": "instruct"}},
        "method": {"name": "peft", "adapter": {"peft_type": "LORA", "r": 8}},
    }
    items = ["method.adapter={peft_type: IA3}", "models.base.variant=null", "models.base.source=elsewhere"]
    found = [
        member.to_mapping()
        for member in expand(Experiment.from_mapping({**values, "sweep": {"ablations": {"ladder": items}}}))
    ]
    assert [member["method"]["adapter"]["peft_type"] for member in found] == ["LORA", "IA3", "IA3", "IA3"]
    assert [member["models"]["base"]["variant"] for member in found] == ["instruct", "instruct", None, None]
    assert found[3]["models"]["base"]["source"] == "elsewhere"


def test_the_same_key_twice_is_a_ladder_of_its_values() -> None:
    found = told(expand_members(swept("ladder", "regime.examples=32", "regime.examples=16")))
    assert [examples for _, _, examples, _ in found] == [64, 32, 16]


ITEMS = st.lists(st.sampled_from([f"training.{key}=9" for key in "abcdefghijkl"]), min_size=1, max_size=10, unique=True)


@given(items=ITEMS, kind=st.sampled_from(["ladder", "leave_one_out", "factorial"]))
def test_every_combination_is_there_once_under_a_name_of_its_own(items: list[str], kind: str) -> None:
    found = ablations(Ablations.model_validate({kind: items}))
    count = {"ladder": len(items) + 1, "leave_one_out": len(items) + 1, "factorial": 2 ** len(items)}[kind]
    assert (len(found), len({one.name for one in found}), len({one.items for one in found})) == (count, count, count)
    assert (found[0].name, found[0].items) == (FULL, ())
    for one in found:
        assert list(one.items) == [item for item in items if item in one.items]
    if kind == "ladder":
        names = [one.name or "" for one in found[1:]]
        assert names == sorted(names)
        assert [rung_of(name) for name in names] == list(range(1, count))
        assert [label(name) for name in names] == [f"- {item}" for item in items]


def test_long_values_are_cut_in_a_name_and_stay_apart() -> None:
    items = [f"method.instruction={'Say which label fits the text best. ' * 3}{end}" for end in "ab"]
    names = [one.name or "" for one in ablations(Ablations(leave_one_out=tuple(items)))]
    assert len(set(names)) == 3
    assert max(len(name) for name in names) < 70


def test_an_experiment_is_one_run_however_it_is_reached() -> None:
    by_ablation = roster(swept("leave_one_out", KNN, seeds=2))
    values = {**MINIMAL, "sweep": {"axes": {"method.classifier": ["logistic", "knn"]}, "seeds": 2}}
    by_axis = roster(Experiment.from_mapping(values))
    alone = planning.plan(Experiment.from_mapping({**MINIMAL, "method": {"name": "probe", "classifier": "knn"}}))
    assert list(by_ablation.plans) == list(by_axis.plans)
    assert by_ablation.ablations[alone.run_id] == KNN
    assert by_axis.ablations[alone.run_id] is None
    assert by_ablation.sweep_id != by_axis.sweep_id, "their tables say different things"


def test_what_an_ablation_and_an_axis_reach_runs_once_under_the_shorter_name() -> None:
    found = roster(swept("factorial", KNN, FOLDS, axes={"method.classifier": ["logistic", "knn"]}))
    assert list(found.ablations.values()) == ["full", "full", FOLDS, FOLDS]
    assert len(found.plans) == 4


def test_the_plan_says_how_many_runs_each_rung_has() -> None:
    experiment = swept("ladder", KNN, FOLDS, seeds=2)
    assert experiment.sweep is not None
    assert roster(experiment).describe(experiment.sweep).splitlines()[:-1] == [
        "ablations  ladder",
        "           full: 2 runs",
        f"           1 {KNN}: 2 runs",
        f"           2 {FOLDS}: 2 runs",
    ]


@pytest.mark.parametrize(
    ("ablated", "expected"),
    [
        ({"ladder": ["method.classifier"]}, ["sweep.ablations.ladder: ", "'method.classifier'", "key.path=value"]),
        ({"ladder": [{"method.classifier": "knn"}]}, ["write method.classifier=knn instead"]),
        ({"ladder": [7]}, ["7 is no key=value item"]),
        ({"ladder": ["regime.examples=["]}, ["sweep.ablations.ladder: ", "not a YAML value"]),
        ({"ladder": []}, ["sweep.ablations.ladder: ", "give a list"]),
        ({"ladder": KNN}, ["sweep.ablations.ladder: ", "give a list"]),
        ({"leave_one_out": [KNN, LESS, KNN]}, [f"{KNN}: is written twice"]),
        ({"leave_one_out": [KNN, "method.classifier= knn"]}, ["is written twice"]),
        ({"ladder": [KNN], "factorial": [KNN]}, ["sweep.ablations: ", "got ladder and factorial"]),
        ({}, ["sweep.ablations: ", "ladder, leave_one_out, factorial", "got none"]),
        ({"lader": [KNN]}, ["sweep.ablations: ", "did you mean 'ladder'"]),
        ({"factorial": [f"training.max_steps={n}" for n in range(11)]}, ["11 items make 2,048", "at most 10"]),
        ({"factorial": [KNN, "method={name: probe}"]}, ["method and method.classifier", "no combination"]),
        ({"ladder": ["regime.seed=3"]}, ["regime.seed: ", "sweep.seeds"]),
        ({"ladder": ["name=y"]}, ["name: ", "not a field of a single experiment"]),
    ],
)
def test_ablations_that_cannot_be_are_refused_with_the_spec(ablated: Any, expected: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        Experiment.from_mapping({**MINIMAL, "sweep": {"ablations": ablated}})
    assert len(str(caught.value).splitlines()) == 1
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["ladder", "leave_one_out", "factorial"])
def test_a_key_that_names_no_field_is_named_in_full_with_the_cure(kind: str) -> None:
    message = fault(kind, LESS, "method.clasifier=knn")
    for part in (f"sweep.ablations.{kind}: ", "method.clasifier=knn: ", "did you mean 'classifier'?"):
        assert part in message
    assert "regime.examples=8, sweep.ablations" in fault(kind, "method.x=1", axes={"regime.examples": [8]})


def test_a_key_inside_a_value_is_no_field() -> None:
    message = fault("ladder", LESS, "regime.examples.most=3")
    assert message.startswith(f"sweep.ablations.ladder: {LESS} regime.examples.most=3: ")
    assert message.endswith("'examples' is 32, which has no keys inside")


@pytest.mark.parametrize("kind", ["ladder", "leave_one_out", "factorial"])
@pytest.mark.parametrize(
    "item", ["regime.examples=64", "method.classifier=logistic", "models.encoder={source: unread}"]
)
def test_an_item_that_changes_nothing_is_named(kind: str, item: str) -> None:
    message = fault(kind, FOLDS, item)
    assert f"sweep.ablations.{kind}: {item!r} changes nothing" in message


def test_a_rung_that_goes_back_and_two_items_that_do_the_same_are_refused() -> None:
    assert "changes nothing: the experiment is that of 'full'" in fault("ladder", KNN, "method.classifier=logistic")
    assert f"is that of '{KNN}'" in fault("leave_one_out", KNN, "method={name: probe, classifier: knn}")


class Counts(Watcher):
    """How many runs were done when the sweep began, and when it ended."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def update(self, status: Status) -> None:
        self.done.append(len(status.done))


def test_a_sweep_names_its_rows_and_goes_on_where_it_was_interrupted(ray_cluster: Any, tmp_path: Path) -> None:
    experiment = swept("ladder", "method.classifier=centroid", "regime.examples=24", seeds=2)
    rung = expand_members(experiment)[4].experiment
    alone = runner.run(rung, tmp_path)
    assert alone.metrics["ablation"].null_count == alone.metrics.num_rows, "a run does not know who reaches it"
    first = Counts()
    result = run_sweep(experiment, tmp_path, watcher=first)
    assert (first.done[0], first.done[-1], result.failed) == (1, 6, 0)
    rows = result.metrics.select(["run_id", "ablation", "seed"]).to_pylist()
    names = ["full", "1 method.classifier=centroid", "2 regime.examples=24"]
    assert list(dict.fromkeys((row["ablation"], row["seed"]) for row in rows)) == list(itertools.product(names, (0, 1)))
    assert {row["ablation"] for row in rows if row["run_id"] == alone.run_id} == {names[2]}
    # As if it had been killed with two runs to go and before its table was written.
    (folder,) = (tmp_path / "sweeps").iterdir()
    table, report = parquet.read_table(folder / "metrics.parquet"), (folder / "report.md").read_text()
    assert table.equals(result.metrics)
    assert "### Ladder: probe, 64 labelled examples" in report
    for run_id in {row["run_id"] for row in rows if row["ablation"] == names[1]}:
        shutil.rmtree(tmp_path / "runs" / run_id)
    (folder / "metrics.parquet").unlink()
    again = Counts()
    resumed = run_sweep(experiment, tmp_path, watcher=again)
    assert (again.done[0], again.done[-1]) == (4, 6)
    columns = ["run_id", "metric", "value", "ablation", "seed", "status"]
    assert resumed.metrics.select(columns).equals(table.select(columns))
    own = pa.concat_tables([parquet.read_table(file) for file in (tmp_path / "runs").glob("*/metrics.parquet")])
    assert own["ablation"].null_count == own.num_rows
