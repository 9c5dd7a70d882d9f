"""What tells runs apart: the question that a run answers, and the answer that it tries.

An arm is a method and those settings of the spec that differ between the compared runs; the number of examples
is its axis, the seeds are its repetitions. Rows and models are compared by content: a path says where they lie.
An ablation is named after the arm that it takes something away from, and after what it lacks.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from graft.errors import SpecError
from graft.hashing import digest
from graft.results.ablations import FULL, label
from graft.spec import section_class
from graft.specfile import inside

NOT_AN_ARM = ("name", "task.", "method.name", "regime.examples", "regime.seed", "training.seed", "sweep")
"""Keys of a spec that never tell two arms apart: the question, the axis and the repetitions."""

LONGEST_VALUE = 40
"""Characters of a spec's value inside an arm's name; the rest is replaced by a hash."""

SHORT_HASH = 6
"""Hex digits that tell two contents of one name apart."""

Run = Mapping[str, Any]
"""The columns of a run; `spec` has dotted keys, `models` is role to {source, fingerprint}."""


class Arm(NamedTuple):
    """Where a run stands: the question it answers and the answer it tries."""

    task: str
    name: str
    whole: str | None = None
    """The name, without `full`, of the arm that this is an ablation of; None where there are no ablations."""
    ablation: str | None = None
    """What it lacks, as `graft.results.ablations` names it."""


def arms(metrics: pa.Table) -> dict[str, Arm]:
    """Each run_id's arm: `probe classifier=logistic`, `icl num_shots=8`, or `probe` where nothing differs.

    Settings of a method are named where they differ among its runs, and beside other methods where they differ from
    their defaults; models where they differ among all runs that have the role.
    Runs share a task where its name, its settings and its rows are the same; rows that differ under one name are
    told apart by a hash: `file path=reviews.csv #1a2b3c`.

    A sweep with ablations has `probe full` and, for what it lacks, `probe - classifier=ridge`: what the items set is no
    other setting of the arm, and a rung of a ladder is named by its last item alone. Where that would give two
    experiments one name, as a ladder beside leave-one-out does, it is all that differs from the whole.
    """
    columns = ["run_id", "method", "task", "status", "spec", "models", "task_sha", "seed", "ablation", "searched"]
    once = {row["run_id"]: row for row in metrics.select(columns).to_pylist()}
    runs = _named_by_content([_read(row) for row in once.values()])
    wholes = _wholes(runs)
    found = _arms([run for run in runs if run["run_id"] not in wholes])
    found |= _ablated([run for run in runs if run["run_id"] in wholes], wholes, found)
    return {run["run_id"]: found[run["run_id"]] for run in runs}


def _arms(runs: Sequence[Run]) -> dict[str, Arm]:
    """The arms of runs that lack nothing."""
    models = {key for key in _varying([run["spec"] for run in runs]) if key.startswith("models.")}
    methods = _grouped(runs, "method")
    of_method = {
        name: models | _settings(specs) | (_chosen(name, specs) if len(methods) > 1 else set())
        for name, specs in methods.items()
    }
    tasks = _tasks(runs)
    found = {
        run["run_id"]: Arm(
            tasks[run["run_id"]], _label(run["method"], run["spec"], of_method[run["method"]], "method.")
        )
        for run in runs
    }
    # An equal run of another sweep, which has no ablations, is more of the same.
    wholes = {found[run["run_id"]] for run in runs if run["ablation"] == FULL}
    return {
        run_id: Arm(arm.task, f"{arm.name} {FULL}", arm.name, FULL) if arm in wholes else arm
        for run_id, arm in found.items()
    }


def _wholes(runs: Sequence[Run]) -> dict[str, Run]:
    """run_id of each ablation to the run that lacks nothing: on the same rows and seeds, the one most like it.

    Of the wholes of several axis values, the others differ from it in the axis too; where taking something away makes
    the axis void (two teachers, and no rationale), it stands with the first. An ablation whose whole is not here, or
    has other rows, is a run like any other.
    """
    wholes: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run["ablation"] == FULL:
            wholes[run["task_sha"], run["seed"]].append(run)
    return {
        run["run_id"]: min(near, key=lambda whole: len(_difference(run, whole)))
        for run in runs
        if run["ablation"] not in (None, FULL) and (near := wholes[run["task_sha"], run["seed"]])
    }


def _difference(run: Run, whole: Run) -> set[str]:
    """Keys whose values differ, or that only one of the two has."""
    own, other = run["spec"], whole["spec"]
    return {key for key in own.keys() | other.keys() if own.get(key, ...) != other.get(key, ...)}


def _ablated(runs: Sequence[Run], wholes: Mapping[str, Run], found: Mapping[str, Arm]) -> dict[str, Arm]:
    """The arms of ablations, from those of their wholes."""
    lacks: dict[str, tuple[Arm, str]] = {}
    names: dict[tuple[Arm, str], str] = {}
    for run in runs:
        whole = wholes[run["run_id"]]
        lack = found[whole["run_id"]], _label("-", run["spec"], _difference(run, whole), "")
        lacks[run["run_id"]] = lack
        names[lack] = min(run["ablation"], names.get(lack, run["ablation"]))
    bearers = Counter((whole, label(name)) for (whole, _), name in names.items())
    return {
        run_id: Arm(
            whole.task,
            f"{whole.whole} {all_of_it if bearers[whole, label(name)] > 1 else label(name)}",
            whole.whole,
            name,
        )
        for run_id, (whole, all_of_it) in lacks.items()
        if (name := names[whole, all_of_it])
    }


def _read(row: Mapping[str, Any]) -> dict[str, Any]:
    searched = json.loads(row["searched"] or "{}")
    spec = {
        key: value
        for key, value in flatten(json.loads(row["spec"] or "{}"))
        # What a search chose is an arm's own affair; what it chose among several values may have keys of its own.
        if not any(inside(key, one) for one in searched)
    }
    return {**row, "spec": spec, "models": json.loads(row["models"] or "{}")}


def _named_by_content(runs: Sequence[Run]) -> list[Run]:
    """The same runs, the spec of each naming every model by its fingerprint.

    One fingerprint under several names is given the first of them; a name with several fingerprints is given a
    short one of each. A failed run may have none: it takes the only one that its model has elsewhere.
    """
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    marks: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        for role, model in run["models"].items():
            name = _model(run["spec"], role)
            names[role, model["fingerprint"]].add(name)
            marks[role, name].add(model["fingerprint"])
    first = {key: min(found) for key, found in names.items()}
    bearers = Counter((role, name) for (role, _), name in first.items())
    named: list[Run] = []
    for run in runs:
        spec = dict(run["spec"])
        for role in {key.split(".")[1] for key in spec if key.startswith("models.")}:
            own = run["models"].get(role)
            found = {own["fingerprint"]} if own else marks.get((role, _model(spec, role)), set())
            if len(found) == 1:
                (mark,) = found
                name = first[role, mark]
                spec |= json.loads(name)
                if bearers[role, name] > 1:
                    spec[f"models.{role}.source"] += f" #{mark[:SHORT_HASH]}"
        named.append({**run, "spec": spec})
    return named


def _model(spec: Mapping[str, Any], role: str) -> str:
    """JSON of what a spec says of one model."""
    return json.dumps({k: v for k, v in spec.items() if k.startswith(f"models.{role}.")}, sort_keys=True)


def _tasks(runs: Sequence[Run]) -> dict[str, str]:
    """Each run_id's task with the settings that differ, and a short hash where one name stands for several rows."""
    varying = {
        name: {key for key in _varying(specs, or_missing=True) if key.startswith("task.")}
        for name, specs in _grouped(runs, "task").items()
    }
    labels = {run["run_id"]: _label(run["task"], run["spec"], varying[run["task"]], "task.") for run in runs}
    shas: dict[str, set[str | None]] = defaultdict(set)
    for run in runs:
        if run["task_sha"] or run["status"] != "failed":  # a run may fail before its rows are known
            shas[labels[run["run_id"]]].add(run["task_sha"])
    return {
        run["run_id"]: f"{label} #{run['task_sha'][:SHORT_HASH]}" if run["task_sha"] and len(shas[label]) > 1 else label
        for run, label in zip(runs, labels.values(), strict=True)
    }


def _grouped(runs: Iterable[Run], column: str) -> dict[str, list[Mapping[str, Any]]]:
    """The specs of the runs that share a method or a task."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        found[run[column]].append(run["spec"])
    return found


def _settings(specs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys that tell the arms of one method apart, its models left out.

    In a section of which all arms have a key that differs, as the type of an adapter, what only some have follows from
    that, as the rank of one type: it is named where the arms would not be told apart otherwise.
    """
    keys = [key for key in _varying(specs, or_missing=True) if not key.startswith(("models.", *NOT_AN_ARM))]
    shared = {key for key in keys if all(key in spec for spec in specs)}
    sections = {_section(key) for key in shared} - {"method"}
    told = {key for key in keys if key in shared or _section(key) not in sections}
    for key in sorted(set(keys) - told):
        if _kinds(specs, told | {key}) > _kinds(specs, told):
            told.add(key)
    return told


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _kinds(specs: Sequence[Mapping[str, Any]], keys: set[str]) -> int:
    """How many of the specs these keys tell apart."""
    return len({json.dumps({key: spec[key] for key in keys if key in spec}, sort_keys=True) for spec in specs})


def _chosen(method: str, specs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys of a method whose value is not the default: without them `classifier: knn` would read as a plain probe."""
    try:
        fields = section_class("method", method).model_fields
    except SpecError:
        return set()  # the package that it came from is not installed here
    values = {key.removeprefix("method."): value for key, value in specs[0].items() if key.startswith("method.")}
    return {
        f"method.{key}"
        for key, value in values.items()
        if key in fields and key != "name" and value != fields[key].default
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; lists are values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _varying(specs: Iterable[Mapping[str, Any]], or_missing: bool = False) -> set[str]:
    """Keys with more than one value; `or_missing`: not having the key counts as a value."""
    specs = list(specs)
    seen: dict[str, set[str]] = defaultdict(set)
    count: dict[str, int] = defaultdict(int)
    for spec in specs:
        for key, value in spec.items():
            seen[key].add(json.dumps(value, sort_keys=True))
            count[key] += 1
    return {key for key, values in seen.items() if len(values) > 1 or (or_missing and count[key] < len(specs))}


def _label(name: str, spec: Mapping[str, Any], keys: set[str], prefix: str) -> str:
    words = [f"{key.removeprefix(prefix)}={value_text(value)}" for key, value in spec.items() if key in keys]
    return " ".join([name, *words])


def value_text(value: Any) -> str:
    """A spec's value inside a name: on one line, and short."""
    whole = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    text = " ".join(whole.split())
    text = text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 8]}…"
    # The hash keeps two values apart that begin alike, or that differ in white space alone.
    return text if text == whole else f"{text} #{digest(whole)[:4]}"
