"""The search inside a sweep: what it tries, what it chooses by, and that a killed one ends like any other."""

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from pyarrow import parquet

from graft import runner, runs
from graft.errors import PrunedError, SpecError
from graft.results.arms import arms
from graft.results.searches import expected_best, load_searches
from graft.spec import Experiment
from graft.storage import open_storage
from graft.sweeps.agenda import Agenda, Group
from graft.sweeps.axes import expand, expand_members
from graft.sweeps.looks import Looks
from graft.sweeps.roster import plan_sweep
from graft.sweeps.search import CellSearch, Journal
from graft.sweeps.sweep import run_sweep

CHOICES = {"method.classifier": {"choice": ["ridge", "centroid", "knn", "majority"]}}


def swept(search: dict[str, Any], **values: Any) -> Experiment:
    sweep = {"seeds": 2, "search": {"trials": 3, "space": CHOICES, **search}, **values.pop("sweep", {})}
    base = {"name": "wines", "task": {"name": "wine"}, "method": {"name": "probe"}, "regime": {"examples": 24}}
    return Experiment.from_mapping({**base, **values, "sweep": sweep})


def agenda(experiment: Experiment, folder: Path) -> Agenda:
    """What a sweep has to do in this storage."""
    assert experiment.sweep is not None
    assert experiment.sweep.search is not None
    files = open_storage(folder)
    roster, journal = plan_sweep(experiment, expand_members(experiment)), Journal(files, "optuna.log")
    groups = []
    for place, arm in enumerate(roster.arms):
        assert arm.cell is not None
        storage, run_id = journal.storage, arm.plans[0].run_id
        search = CellSearch(arm.cell, experiment.sweep.search, arm.space, storage, place, run_id) if arm.space else None
        groups.append(Group(list(arm.plans), None, search))

    def read(run_id: str) -> Any:
        if not runs.is_done(files, f"runs/{run_id}"):
            return None
        return runs.read_result(files, f"runs/{run_id}").values, 1.0

    datasets = {plan.experiment.task.model_dump_json(): plan.dataset for plan in roster.plans.values()}
    return Agenda(groups, read, datasets, Looks(files, "sweeps/s"))


def drain(todo: Agenda, folder: Path, most: int = 10_000, shuffle: int | None = None) -> int:
    """Carry out what is due, at most so many runs; in another order of endings where `shuffle` is given."""
    files, rng, count = open_storage(folder), random.Random(shuffle), 0
    while count < most:
        taken = []
        while (plan := todo.next()) is not None:
            taken.append(plan)
        if not taken:
            break
        if shuffle is not None:
            rng.shuffle(taken)
        for plan in taken[: most - count]:
            count += 1
            try:
                result = runner.carry_out(plan, files, None, worst=todo.worst(plan.run_id))
            except PrunedError as error:
                todo.pruned(plan.run_id, error.looks)
            else:
                todo.ended(plan.run_id, result.values)
    return count


def tried(todo: Agenda) -> list[list[tuple[Any, ...]]]:
    searches = [group.search for group in todo.groups if group.search is not None]
    return [[(one.number, str(one.settings), one.value, one.status) for one in search.attempts] for search in searches]


def test_a_search_chooses_on_held_out_examples_of_other_seeds_alone(tmp_path: Path) -> None:
    todo = agenda(swept({"trials": 5}), tmp_path)
    before = todo.total
    drain(todo, tmp_path)
    (group,) = todo.groups
    search = group.search
    assert search is not None
    assert search.over
    assert before == 5 * 5 + 2  # five settings on five folds each, and two reporting seeds
    different = {str(attempt.settings) for attempt in search.attempts}
    assert len(todo.known) == todo.total == 5 * len(different) + 2  # what is proposed twice runs once
    assert [plan.experiment.regime.seed for plan in group.plans] == [0, 1]
    judged = [plan for plan in todo.known.values() if plan.split == "validation"]
    assert {plan.experiment.regime.seed for plan in judged} == {1000}
    for plan in judged:
        held = set(plan.test["id"].to_pylist())
        assert not held & set(plan.dataset.test["id"].to_pylist())
        assert not held & set(plan.examples["id"].to_pylist())
        assert len(held) + plan.examples.num_rows == 24
    for attempt in search.attempts:
        assert attempt.value == pytest.approx(sum(todo.done[run]["accuracy"] or 0 for run in attempt.runs) / 5)
    best = search.best
    assert best is not None
    assert best.value == max(attempt.value or 0 for attempt in search.attempts)
    assert {plan.experiment.to_mapping()["method"]["classifier"] for plan in group.plans} == set(best.settings.values())


def test_the_specs_own_setting_is_the_first_where_the_space_has_it(tmp_path: Path) -> None:
    method = {"name": "probe", "classifier": "knn"}
    todo = agenda(swept({}, method=method), tmp_path)
    assert todo.groups[0].search is not None
    assert todo.groups[0].search.attempts[0].settings == {"method.classifier": "knn"}


def test_what_is_proposed_depends_on_no_path_and_on_no_order(tmp_path: Path, tiny_llama: Path) -> None:
    space = {"training.weight_decay": {"uniform": [0, 1]}, "training.learning_rate": {"loguniform": [1e-4, 1e-2]}}

    def proposed(folder: str, sizes: list[int], keys: list[str]) -> tuple[str, dict[int, list[Any]]]:
        path = tmp_path / folder / "rows.csv"
        path.parent.mkdir()
        path.write_text("q,a\n" + "".join(f"row {i},{i % 2}\n" for i in range(120)))
        experiment = swept(
            {"trials": 4, "together": 4, "sampler": "random", "space": {key: space[key] for key in keys}},
            method={"name": "peft"},
            task={"name": "file", "path": str(path), "text": "q", "label": "a", "test_examples": 20},
            models={"base": {"source": str(shutil.copytree(tiny_llama, path.parent / "model"))}},
            regime={"validation": 0.2},
            sweep={"axes": {"regime.examples": sizes}},
        )
        searches = [group.search for group in agenda(experiment, path.parent).groups if group.search is not None]
        found = {search.base.regime.examples: [one.settings for one in search.attempts] for search in searches}
        return plan_sweep(experiment, expand_members(experiment)).sweep_id, found

    here = proposed("here", [32, 64], list(space))
    assert proposed("there", [64, 32], list(reversed(space))) == here
    assert here[1][32] != here[1][64]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_search_that_was_killed_proposes_the_same(tmp_path: Path, sampler: str) -> None:
    experiment = swept({"trials": 6, "sampler": sampler})
    whole = agenda(experiment, tmp_path / "whole")
    drain(whole, tmp_path / "whole")
    for most in (1, 7, 11):
        drain(agenda(experiment, tmp_path / "killed"), tmp_path / "killed", most)
    resumed = agenda(experiment, tmp_path / "killed")
    assert resumed.was_done == 19
    drain(resumed, tmp_path / "killed")
    assert tried(resumed) == tried(whole)
    again = agenda(experiment, tmp_path / "killed")
    assert again.next() is None
    assert tried(again) == tried(whole)


def test_the_order_in_which_runs_end_changes_nothing(tmp_path: Path) -> None:
    experiment = swept({"trials": 6, "together": 3}, sweep={"axes": {"regime.examples": [16, 24]}})
    found = []
    for seed in (1, 2):
        todo = agenda(experiment, tmp_path / str(seed))
        drain(todo, tmp_path / str(seed), shuffle=seed)
        found.append(tried(todo))
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_setting_that_fails_is_counted_and_not_chosen(tmp_path: Path) -> None:
    space = {"regime.validation": {"choice": ["auto", 2]}}
    with pytest.raises(SpecError, match=r"regime\.validation: a search looks for a better answer to one question"):
        swept({"space": space})
    todo = agenda(swept({"trials": 4}), tmp_path)
    first = [todo.next() for _ in range(5)]
    for plan in first:
        assert plan is not None
        todo.ended(plan.run_id, None, "out of memory")
    drain(todo, tmp_path)
    (group,) = todo.groups
    assert group.search is not None
    assert [attempt.status for attempt in group.search.attempts] == ["failed", "done", "done", "done"]
    assert group.search.best is not group.search.attempts[0]
    rows = group.search.rows("r")
    assert [row["error"] for row in rows] == ["out of memory", None, None, None]
    assert [row["chosen"] for row in rows].count(True) == 1


def test_an_arm_whose_settings_all_fail_says_why(tmp_path: Path) -> None:
    todo = agenda(swept({"trials": 2}), tmp_path)
    while (plan := todo.next()) is not None:
        todo.ended(plan.run_id, None, "no such luck")
    (group,) = todo.groups
    assert group.error == "each of the 2 settings failed: no such luck"
    assert group.settled


@pytest.fixture
def pruned(tmp_path: Path, tiny_llama: Path) -> Experiment:
    """A search over learning rates, most of which learn nothing, that stops what is behind."""
    rows = tmp_path / "rows.csv"
    pairs = (("cold", "ice"), ("hot", "fire"))
    rows.write_text("q,a\n" + "".join(f"{q} {i},{a}\n" for i in range(100) for q, a in pairs))
    return Experiment.from_mapping(
        {
            "name": "pruned",
            "models": {"base": {"source": str(tiny_llama)}},
            "task": {"name": "file", "path": str(rows), "text": "q", "label": "a", "test_examples": 20},
            "regime": {"examples": 100},
            "method": {"name": "peft", "adapter": {"peft_type": "LORA", "r": 4}},
            "training": {"max_steps": 9, "tokens_per_batch": 256, "validate_every_steps": 1, "learning_rate": 0.03},
            "sweep": {
                "search": {
                    "trials": 6,
                    "pruner": "asha",
                    "sampler": "random",
                    "space": {"training.learning_rate": {"choice": [0.03, 1e-7, 2e-7, 3e-7, 4e-7]}},
                }
            },
        }
    )


def test_what_is_behind_at_its_looks_is_stopped(pruned: Experiment, tmp_path: Path) -> None:
    todo = agenda(pruned, tmp_path / "whole")
    drain(todo, tmp_path / "whole")
    (group,) = todo.groups
    search = group.search
    assert search is not None
    assert search.rungs == [1, 3]
    states = [attempt.status for attempt in search.attempts]
    assert states[:2] == ["done", "done"]  # with less than three nobody is behind
    assert "pruned" in states
    assert search.best is not None
    assert search.best.settings == {"training.learning_rate": 0.03}
    for attempt in search.attempts:
        if attempt.pruned:
            assert list(attempt.looks) in ([1], [1, 2, 3])
            assert not (tmp_path / "whole" / "runs" / attempt.runs[0]).exists()
        else:
            assert list(attempt.looks) == list(range(1, 10))
    # Killed on the way, it stops the same and runs nothing twice.
    count = drain(agenda(pruned, tmp_path / "killed"), tmp_path / "killed", 4)
    resumed = agenda(pruned, tmp_path / "killed")
    count += drain(resumed, tmp_path / "killed")
    assert tried(resumed) == tried(todo)
    assert count == len(resumed.known) == len(todo.known)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"training": {"max_steps": 9}}, r"there are none; set training\.validate_every_steps"),
    ],
)
def test_a_pruner_without_looks_is_refused(pruned: Experiment, values: dict[str, Any], said: str) -> None:
    mapping = pruned.to_mapping()
    experiment = Experiment.from_mapping({**mapping, **values})
    members = expand_members(experiment)
    with pytest.raises(SpecError, match=said):
        plan_sweep(experiment, members)


def test_a_metric_that_the_task_has_not_is_refused() -> None:
    experiment = swept({"metric": "accuracies", "space": {"method.classifier": {"choice": ["knn", "lda"]}}})
    with pytest.raises(SpecError, match=r"sweep\.search\.metric: \w+ has no 'accuracies'; did you mean 'accuracy'\?"):
        plan_sweep(experiment, expand_members(experiment))


class TestKeys:
    def test_arms_without_the_field_have_nothing_to_search(self, tmp_path: Path) -> None:
        methods = [{"name": "probe"}, {"name": "tart"}]
        experiment = swept({}, sweep={"axes": {"method": methods}})
        assert [bool(arm.space) for arm in plan_sweep(experiment, expand_members(experiment)).arms] == [True, False]

    def test_a_key_may_count_for_one_method_alone(self) -> None:
        methods = [{"name": "probe"}, {"name": "tart"}]
        space = {"tart.components": {"int": [2, 8]}, "probe.classifier": {"choice": ["ridge", "knn"]}}
        experiment = swept({"space": space}, sweep={"axes": {"method": methods}})
        found = [list(arm.space) for arm in plan_sweep(experiment, expand_members(experiment)).arms]
        assert found == [["method.classifier"], ["method.components"]]

    def test_a_methods_own_key_takes_the_place_of_one_of_all_methods_wherever_it_stands(self) -> None:
        own, of_all = {"choice": ["ridge", "knn"]}, {"choice": ["lda", "centroid"]}
        for keys in (["probe.classifier", "method.classifier"], ["method.classifier", "probe.classifier"]):
            experiment = swept({"space": {key: own if key.startswith("probe") else of_all for key in keys}})
            (arm,) = plan_sweep(experiment, expand_members(experiment)).arms
            assert arm.space["method.classifier"].ends == ("ridge", "knn")

    @pytest.mark.parametrize("item", ["method.classifier=majority", "method={name: probe, classifier: majority}"])
    def test_what_an_ablation_sets_is_not_searched_for(self, tmp_path: Path, item: str) -> None:
        ladder = {"ladder": ["regime.validation=3", item]}
        todo = agenda(swept({"trials": 4}, sweep={"ablations": ladder}), tmp_path)
        assert [group.search is not None for group in todo.groups] == [True, True, False]
        assert {plan.experiment.to_mapping()["method"]["classifier"] for plan in todo.groups[2].plans} == {"majority"}
        drain(todo, tmp_path)
        assert {json.loads(group.searched or "{}").get("method.classifier") for group in todo.groups[:2]} != {None}
        assert todo.groups[2].searched is None

    def test_an_ablation_that_gives_another_method_leaves_its_other_fields_to_the_search(self) -> None:
        space = {**CHOICES, "tart.components": {"int": [2, 8]}}
        experiment = swept({"space": space}, sweep={"ablations": {"leave_one_out": ["method={name: tart}"]}})
        found = [list(arm.space) for arm in plan_sweep(experiment, expand_members(experiment)).arms]
        assert found == [["method.classifier"], ["method.components"]]

    @pytest.mark.parametrize(
        ("axis", "key"),
        [
            ("method.classifier", "method.classifier"),
            ("probe.classifier", "method.classifier"),
            ("method.classifier", "probe.classifier"),
            ("method.classifier", "method"),
        ],
    )
    def test_an_axis_over_what_is_searched_for_is_refused(self, axis: str, key: str) -> None:
        search = {"space": {key: {"choice": ["ridge", "knn"]}}}
        said = rf"sweep\.axes: {axis}: .*\(sweep\.search\.space: {key}\); take it out of the axes or out of the space"
        with pytest.raises(SpecError, match=said):
            expand_members(swept(search, sweep={"axes": {axis: ["lda", "centroid"]}}))
        of_another = swept(
            {"space": {"tart.components": {"int": [2, 8]}}}, sweep={"axes": {"probe.classifier": ["lda"]}}
        )
        assert expand_members(of_another)

    def test_arms_that_only_the_search_tells_apart_are_refused(self) -> None:
        methods = [{"name": "probe"}, {"name": "probe", "classifier": "knn"}]
        experiment = swept({}, sweep={"axes": {"method": methods}})
        said = (
            r"'classifier': 'knn'.*: differs from another arm \(sweep method=.*\) only in .*space: method\.classifier\)"
        )
        with pytest.raises(SpecError, match=said):
            plan_sweep(experiment, expand_members(experiment))

    @pytest.mark.parametrize(
        ("space", "said"),
        [
            ({"training.learning_rate": {"loguniform": [1e-4, 1e-2]}}, "is a field of no arm .*none of them trains"),
            ({"method.clasifier": {"choice": ["knn", "lda"]}}, r"method\.clasifier is .*did you mean 'classifier'\?"),
            (
                {"probe.clasifier": {"choice": ["knn", "lda"]}},
                r"no arm \(methods: probe\); did you mean 'classifier'\?",
            ),
            ({"prob.classifier": {"choice": ["knn", "lda"]}}, r"prob\.classifier: unknown key 'prob'; .* 'probe'\?"),
            ({"peft.adapter.r": {"int": [1, 8]}}, r"peft\.adapter\.r is a field of no arm \(methods: probe"),
            ({"method.classifier": {"choice": ["knn", "lad"]}}, r"method\.classifier=lad: .*did you mean 'lda'|lad"),
            ({"method.classifier": {"uniform": [0, 1]}}, r"sweep\.search\.space: method\.classifier=0"),
            ({"sweep.seeds": {"int": [1, 2]}}, r"sweep\.seeds: not a field of a single experiment"),
            ({"training.seed": {"int": [1, 2]}}, "seeds are set by sweep.seeds, not by a search"),
        ],
    )
    def test_a_field_that_cannot_be_searched_is_named(self, space: dict[str, Any], said: str) -> None:
        def planned() -> None:
            experiment = swept({"space": space})
            plan_sweep(experiment, expand_members(experiment))

        with pytest.raises(SpecError, match=said):
            planned()

    @pytest.mark.parametrize(
        ("dimension", "said"),
        [
            ({"loguniform": [0, 1]}, "a logarithm needs positive ends"),
            ({"uniform": [1, 1]}, "the first end must be below the second"),
            ({"choice": ["a", "a"]}, "at least two different values"),
            ({"int": [1, 2], "uniform": [0, 1]}, "give one of .*; got uniform and int"),
            ({}, "got none"),
            ({"int": [1.5, 2]}, "valid integer"),
        ],
    )
    def test_a_range_that_is_none_is_refused(self, dimension: dict[str, Any], said: str) -> None:
        with pytest.raises(SpecError, match=said):
            swept({"space": {"method.classifier": dimension}})

    def test_an_axis_of_one_method_alone(self) -> None:
        methods = [{"name": "probe"}, {"name": "tart"}]
        axes = {"method": methods, "regime.examples": [16, 32], "probe.classifier": ["ridge", "knn"]}
        base = {"name": "wines", "task": {"name": "wine"}, "method": {"name": "probe"}, "sweep": {"axes": axes}}
        found = [
            (one.method.name, one.regime.examples, one.to_mapping()["method"].get("classifier"))
            for one in expand(Experiment.from_mapping(base))
            if one.method is not None
        ]
        probes = [("probe", size, classifier) for size in (16, 32) for classifier in ("ridge", "knn")]
        assert found == [*probes, ("tart", 16, None), ("tart", 32, None)]
        axes = {"regime.examples": [16], "tart.head": ["hybrid"]}
        with pytest.raises(SpecError, match=r"an axis of tart alone, and no arm has that method \(probe\)"):
            expand(Experiment.from_mapping({**base, "sweep": {"axes": axes}}))

    def test_an_amount_of_data_may_have_its_own_number_of_seeds(self) -> None:
        sweep: dict[str, Any] = {"axes": {"regime.examples": [16, 32]}, "seeds": {16: 3, 32: 1}}
        base = {"name": "wines", "task": {"name": "wine"}, "method": {"name": "probe"}, "sweep": sweep}
        found = [(one.regime.examples, one.regime.seed) for one in expand(Experiment.from_mapping(base))]
        assert found == [(16, 0), (16, 1), (16, 2), (32, 0)]
        assert Experiment.from_mapping(Experiment.from_mapping(base).to_mapping()).sweep is not None
        for seeds in (1001, {16: 3, 32: 1001}):
            with pytest.raises(
                SpecError, match=r"sweep\.seeds: seeds from 1000 on are for tuning .* at most 1,000, got"
            ):
                Experiment.from_mapping({**base, "sweep": {**sweep, "seeds": seeds}})
        assert Experiment.from_mapping({**base, "sweep": {**sweep, "seeds": 1000}}).sweep is not None
        sweep["seeds"] = {16: 3}
        with pytest.raises(SpecError, match=r"sweep\.seeds: 32 examples are not listed \(those that are: 16\)"):
            expand(Experiment.from_mapping(base))


def test_a_sweep_with_a_search_reports_on_what_it_chose(ray_cluster: Any, tmp_path: Path) -> None:
    experiment = swept({"trials": 3}, sweep={"axes": {"regime.examples": [16, 100]}})
    result = run_sweep(experiment, tmp_path)
    assert result.failed == 0
    folder = tmp_path / "sweeps" / result.sweep_id
    rows = load_searches([str(folder)]).to_pylist()
    assert [(row["examples"], row["trial"]) for row in rows] == [(size, one) for size in (16, 100) for one in range(3)]
    assert {len(row["runs"]) for row in rows if row["examples"] == 16} == {5}
    assert {len(row["runs"]) for row in rows if row["examples"] == 100} == {1}
    metrics = result.metrics.to_pylist()
    assert {row["split"] for row in metrics} == {"test"}
    assert {row["seed"] for row in metrics} == {0, 1}
    for row in rows:
        if row["chosen"]:
            own = [run for run in metrics if run["run_id"] == row["reports"]]
            assert own[0]["examples"] == row["examples"]
            assert json.loads(own[0]["searched"]) == json.loads(row["settings"])
            assert (
                json.loads(own[0]["spec"])["method"]["classifier"] == json.loads(row["settings"])["method.classifier"]
            )
    # One arm, whatever was chosen for its two amounts of data.
    assert len({arm.name for arm in arms(result.metrics).values()}) == 1
    studies = optuna.get_all_study_summaries(
        optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "optuna.log")))
    )
    assert [study.n_trials for study in studies] == [3, 3]
    # The same command runs nothing and gives the same.
    again = run_sweep(experiment, tmp_path)
    assert again.metrics.equals(result.metrics)
    assert load_searches([str(folder)]).to_pylist() == rows
    predictions = parquet.read_table(folder / "predictions.parquet")
    assert set(predictions["split"].to_pylist()) == {"test"}


def test_the_expected_best_of_k() -> None:
    values = [0.3, 0.9, 0.5, 0.5, 0.1]
    for lower, best in ((False, max), (True, min)):
        brute = [
            sum(best(drawn) for drawn in itertools.combinations(values, k))
            / len(list(itertools.combinations(values, k)))
            for k in range(1, 6)
        ]
        assert expected_best(values, lower) == pytest.approx(brute)
    assert expected_best([]) == []
