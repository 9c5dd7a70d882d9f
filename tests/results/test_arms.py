import pyarrow as pa

from graft.results.arms import Arm, arms
from graft.results.records import failure_table, metric_table


def of(*records) -> list[Arm]:
    tables = [failure_table(run) if run.error else metric_table(run, {"accuracy": 0.5}, n=200) for run in records]
    return list(arms(pa.concat_tables(tables)).values())


def names(*records) -> list[str]:
    return [arm.name for arm in of(*records)]


def test_an_arm_is_named_by_what_differs(record) -> None:
    assert names(record(), record("icl", {"num_shots": 8})) == ["probe", "icl"]
    assert names(record(settings={"classifier": "knn"}), record()) == [
        "probe classifier=knn",
        "probe classifier=logistic",
    ]
    many = {"num_shots": 8, "selection": "similar", "calibrate": True, "order": "given"}
    assert names(record("icl", many), record("icl", many | {"num_shots": 4, "selection": "random"})) == [
        "icl num_shots=8 selection=similar",
        "icl num_shots=4 selection=random",
    ]


def test_seeds_and_examples_make_no_arm(record) -> None:
    runs = [record(seed=seed, examples=examples) for seed in (0, 1) for examples in (8, 64)]
    assert set(names(*runs)) == {"probe"}


def test_nested_settings_and_those_that_only_some_have_are_named(record) -> None:
    lora = {"adapter": {"peft_type": "LORA", "r": 8}}
    assert names(record("fiat", lora), record("fiat", {"adapter": "full"})) == [
        "fiat adapter.peft_type=LORA adapter.r=8",
        "fiat adapter=full",
    ]


def test_what_follows_from_the_kind_of_an_adapter_is_not_named(record) -> None:
    lora, prefix = {"peft_type": "LORA", "r": 8}, {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 16}
    runs = [record("peft", {"adapter": adapter}) for adapter in (lora, prefix)]
    assert names(*runs) == ["peft adapter.peft_type=LORA", "peft adapter.peft_type=PREFIX_TUNING"]
    assert names(*runs, record("peft", {"adapter": lora | {"r": 2}})) == [
        "peft adapter.peft_type=LORA adapter.r=8",
        "peft adapter.peft_type=PREFIX_TUNING",
        "peft adapter.peft_type=LORA adapter.r=2",
    ]


def test_models_are_compared_across_methods(record) -> None:
    b = record("tart", {}, encoder="org/b", fingerprint="b" * 16)
    runs = [record(encoder="org/a"), b, record("icl", {}, encoder=None)]
    assert names(*runs) == ["probe models.encoder.source=org/a", "tart models.encoder.source=org/b", "icl"]
    assert names(record(encoder="org/a"), record("icl", {}, encoder=None)) == ["probe", "icl"]


def test_long_values_are_cut_and_stay_apart(record) -> None:
    text = "Say which label fits the following text best, and nothing " + "else " * 20
    first, second = names(record(settings={"instruction": text + "a"}), record(settings={"instruction": text + "b"}))
    assert first != second
    assert max(len(first), len(second)) < 70


def test_two_files_are_two_tasks(record) -> None:
    runs = [record(task="file", run_id=name) for name in ("a", "b")]
    for run in runs:
        run.spec["task"]["path"] = f"{run.run_id}.csv"
    assert set(of(*runs)) == {Arm("file path=a.csv", "probe"), Arm("file path=b.csv", "probe")}


def test_values_that_differ_in_white_space_alone_stay_apart(record) -> None:
    assert len(set(names(*(record(settings={"instruction": text}) for text in ("Say why.", "Say  why."))))) == 2


def test_the_same_task_on_other_rows_is_another_task(record) -> None:
    runs = [record(task_sha=sha, run_id=sha) for sha in ("1a2b3c4d", "1a2b3cff", "99999999")]
    assert [arm.task for arm in of(runs[0], runs[2])] == ["python-docs #1a2b3c", "python-docs #999999"]
    assert [arm.task for arm in of(runs[0], record(task_sha="1a2b3c4d", seed=1))] == ["python-docs"] * 2
    assert len({arm.task for arm in of(runs[0], record(seed=1))}) == 2, "rows that nobody knows are not the same"


def test_a_failure_before_its_rows_are_known_stays_with_its_task(record) -> None:
    failed = record(seed=1, error="DataError: no rows")
    assert [arm.task for arm in of(record(task_sha="1a2b3c4d"), failed)] == ["python-docs"] * 2


def test_one_source_with_two_fingerprints_is_two_arms(record) -> None:
    runs = [record(fingerprint=mark, run_id=mark) for mark in ("aaaaaaaaaa", "bbbbbbbbbb")]
    assert names(*runs) == [
        "probe models.encoder.source=org/encoder #aaaaaa",
        "probe models.encoder.source=org/encoder #bbbbbb",
    ]


def test_two_sources_with_one_fingerprint_are_one_arm(record) -> None:
    here, there = record(encoder="org/a", seed=0), record(encoder="/models/a", seed=1)
    assert names(here, there) == ["probe", "probe"]
    other = record(encoder="org/b", seed=2, fingerprint="f" * 16)
    assert names(here, there, other) == [
        *["probe models.encoder.source=/models/a"] * 2,
        "probe models.encoder.source=org/b",
    ]


def test_models_that_differ_in_a_setting_are_named_by_it(record) -> None:
    runs = [record(fingerprint=str(layer) * 16, run_id=str(layer)) for layer in (3, 4)]
    for run in runs:
        run.spec["models"]["encoder"]["layer"] = int(run.run_id)
    assert names(*runs) == ["probe models.encoder.layer=3", "probe models.encoder.layer=4"]


def test_a_failed_run_without_fingerprints_stands_with_its_model(record) -> None:
    failed = record(encoder="org/a", seed=1, error="out of memory", models={})
    done = [record(encoder="org/a"), record(encoder="/models/a", seed=2)]
    other = record(encoder="org/b", seed=3, fingerprint="f" * 16)
    assert names(*done, other, failed)[3] == "probe models.encoder.source=/models/a"


def test_beside_another_method_a_setting_that_is_not_the_default_is_named(record) -> None:
    assert names(record(settings={"classifier": "knn"}), record("icl", {"num_shots": 8})) == [
        "probe classifier=knn",
        "icl",
    ]


WHOLE = {"rationale": "teacher", "instruction": True, "adapter": {"peft_type": "LORA", "r": 8}}
NONE, PLAIN, FULL = {"rationale": "none"}, {"instruction": False}, {"adapter": "full"}
RUNGS = {
    "full": WHOLE,
    "1 method.rationale=none": WHOLE | NONE,
    "2 method.instruction=false": WHOLE | NONE | PLAIN,
    "3 method.adapter=full": WHOLE | NONE | PLAIN | FULL,
}
ALONE = {"full": WHOLE, "method.rationale=none": WHOLE | NONE, "method.instruction=false": WHOLE | PLAIN}


def ablated(record, rungs=RUNGS, seeds=(0,), **fields):
    """Runs of a sweep with ablations."""
    mark = fields.get("encoder", "")
    return [
        record(
            "fiat",
            settings,
            ablation=name,
            seed=seed,
            run_id=f"{mark}{sorted(map(str, settings.items()))}{seed}",
            **fields,
        )
        for name, settings in rungs.items()
        for seed in seeds
    ]


def test_an_ablation_is_named_after_its_whole_and_what_it_lacks(record) -> None:
    assert names(*ablated(record)) == [
        "fiat full",
        "fiat - method.rationale=none",
        "fiat - method.instruction=false",
        "fiat - method.adapter=full",
    ]
    assert names(*ablated(record, ALONE)) == [
        "fiat full",
        "fiat - method.rationale=none",
        "fiat - method.instruction=false",
    ]
    first, *_, last = of(*ablated(record))
    assert (first.whole, first.ablation) == ("fiat", "full")
    assert (last.whole, last.ablation) == ("fiat", "3 method.adapter=full")


def test_each_axis_value_has_its_own_ablations(record) -> None:
    models = [ablated(record, encoder=f"org/{size}", fingerprint=size * 16) for size in ("a", "b")]
    found = of(*models[0], *models[1], record("icl", {}))
    wholes = [f"fiat models.encoder.source=org/{size}" for size in ("a", "b")]
    assert [arm.whole for arm in found] == [wholes[0]] * 4 + [wholes[1]] * 4 + [None]
    assert found[6].name == f"{wholes[1]} - method.instruction=false"


def test_an_ablation_that_makes_an_axis_void_stands_with_the_first_whole(record) -> None:
    wholes = [ablated(record, encoder=f"org/{size}", fingerprint=size * 16)[0] for size in ("a", "b")]
    found = of(*wholes, record("fiat", WHOLE | NONE, encoder=None, ablation="1 method.rationale=none"))
    assert [arm.whole for arm in found] == [f"fiat models.encoder.source=org/{size}" for size in ("a", "b", "a")]


def test_an_ablation_of_the_method_or_the_template_stands_with_its_whole(record) -> None:
    runs = [
        *ablated(record, task_sha="1" * 32)[:2],
        record("icl", {}, ablation="2 method={name: icl}", task_sha="1" * 32),
    ]
    runs[1].spec["task"]["template"] = "question"
    assert of(*runs)[1:] == [
        Arm("python-docs", f"fiat - {item}", "fiat", f"{number} {item}")
        for number, item in ((1, "method.rationale=none"), (2, "method={name: icl}"))
    ]


def test_a_ladder_beside_leave_one_out_says_all_that_differs(record) -> None:
    both = {**RUNGS, "method.instruction=false": WHOLE | PLAIN}
    assert names(*ablated(record, both)) == [
        "fiat full",
        "fiat - method.rationale=none",
        "fiat - method.instruction=false method.rationale=none",
        "fiat - method.adapter=full",
        "fiat - method.instruction=false",
    ]


def test_an_ablation_under_two_names_is_one_arm(record) -> None:
    runs = [*ablated(record, seeds=(0, 1)), *ablated(record, ALONE, seeds=(2,))[:2]]
    assert len({arm for arm in of(*runs) if arm.name == "fiat - method.rationale=none"}) == 1


def test_an_equal_run_of_a_sweep_without_ablations_is_more_of_the_whole(record) -> None:
    assert names(*ablated(record), record("fiat", WHOLE, seed=7))[-1] == "fiat full"


def test_an_ablation_without_its_whole_or_on_other_rows_is_a_run_like_any_other(record) -> None:
    assert names(*ablated(record)[1:3]) == ["fiat instruction=true", "fiat instruction=false"]
    runs = [*ablated(record, task_sha="1" * 32)[:1], *ablated(record, task_sha="2" * 32)[1:2]]
    assert [arm.whole for arm in of(*runs)] == ["fiat rationale=teacher", None]
