"""Made-up results: every number is a formula of its arm, size and seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from graft.results.files import write_table
from graft.results.records import Record, failure_table, metric_table
from graft.results.searches import SEARCH
from graft.storage import open_storage
from graft.tasks.metrics import classification, normalised

PROBES = tuple(("probe", {"classifier": name}) for name in ("majority", "centroid", "knn", "ridge", "logistic"))


def made_up_record(
    method: str = "probe",
    settings: Mapping[str, Any] | None = None,
    *,
    task: str = "python-docs",
    examples: int = 8,
    seed: int = 0,
    encoder: str | None = "org/encoder",
    fingerprint: str = "0123456789abcdef",
    run_id: str | None = None,
    **fields: Any,
) -> Record:
    settings = {"classifier": "logistic"} if settings is None else settings
    spec = {
        "name": "quickstart",
        "models": {"encoder": {"source": encoder}} if encoder else {},
        "task": {"name": task, "test_examples": 200},
        "regime": {"examples": examples, "seed": seed},
        "method": {"name": method, **settings},
        "training": {"seed": seed},
    }
    values = "-".join(str(value) for value in settings.values())
    return Record(
        **{
            "run_id": run_id or f"{task}-{method}-{values}-{examples}-{seed}",
            "name": "quickstart",
            "method": method,
            "task": task,
            "examples": examples,
            "seed": seed,
            "spec": spec,
            "versions": {"graft": "0.1.0", "torch": "2.13.0"},
            "models": {"encoder": {"source": encoder, "fingerprint": fingerprint}} if encoder else {},
            "seconds": 1.5,
            "tokens": 1200,
            "store_reads": 208,
            "device": "cpu",
            **fields,
        }
    )


def accuracy_of(arm: int, examples: int, seed: int) -> float:
    """Rises with the arm's place and the examples; the seeds scatter by a percent."""
    return 0.3 + 0.08 * arm + 0.0004 * examples + 0.01 * ((seed * 7 + arm * 3) % 5 - 2)


def made_up_sweep(
    arms: Sequence[tuple[str, Mapping[str, Any]]] = PROBES,
    sizes: Sequence[int] = (8, 64, 512),
    seeds: int = 5,
    tasks: Sequence[str] = ("python-docs",),
    failing: Callable[[int, int, int], str | None] = lambda arm, examples, seed: None,
) -> pa.Table:
    """Metric rows of a whole sweep; `failing` gives the error of an (arm, examples, seed) that fails."""
    tables = []
    for task in tasks:
        for arm, (method, settings) in enumerate(arms):
            for examples, seed in [(examples, seed) for examples in sizes for seed in range(seeds)]:
                error = failing(arm, examples, seed)
                record = made_up_record(method, settings, task=task, examples=examples, seed=seed, error=error)
                accuracy = accuracy_of(arm, examples, seed)
                metrics = {"accuracy": accuracy, "log_loss": 2 * (1 - accuracy), "ece": 0.2 - accuracy / 10}
                tables.append(failure_table(record) if error else metric_table(record, metrics, n=200))
    return pa.concat_tables(tables)


ANSWERED = (
    ("probe", {"classifier": "majority"}, 0.52, 0),
    ("probe", {"classifier": "ridge"}, 0.70, 1_540),
    ("lora", {}, 0.78, 222_080),
    ("head", {}, 0.775, 3_200),
    ("fiat", {}, 0.90, 222_080),
)
"""Method, settings, share that is right with the most examples, and trainable parameters."""

RUNGS = ("full", "1 method.rationale=none", "2 method.instruction=false")
"""The ladder of the method fiat."""


def made_up_answers(
    arms: Sequence[tuple[str, Mapping[str, Any], float, int]] = ANSWERED,
    sizes: Sequence[int] = (16, 64, 256),
    seeds: int = 4,
    items: int = 300,
    rungs: Sequence[str] = RUNGS,
    groups: Sequence[str] = ("de", "en", "fr", "hi", "ja", "sw", "th"),
) -> tuple[pa.Table, pa.Table]:
    """Metrics and predictions that belong together: an item is right where its ease is below the arm's skill.

    The method fiat has a ladder whose rungs lose eight points each, and calls a teacher.
    """
    random = np.random.default_rng(0)
    ease, target = random.random(items), random.integers(0, 2, items)
    group = np.array([groups[place % len(groups)] if groups else "" for place in range(items)])
    metrics, answers = [], []
    members = [
        (method, settings, skill - 0.08 * depth, cost, rung)
        for method, settings, skill, cost in arms
        for depth, rung in (enumerate(rungs) if method == "fiat" else [(0, None)])
    ]
    for arm, (method, settings, skill, cost, rung) in enumerate(members):
        lacks = {"rationale": "teacher", "instruction": True} if method == "fiat" else {}
        for name in rungs[1 : rungs.index(rung) + 1] if rung else ():
            key, _, value = name.rpartition("method.")[2].partition("=")
            lacks[key] = yaml.safe_load(value)
        for size in sizes:
            for seed in range(seeds):
                noise = np.random.default_rng([arm, size, seed])
                level = skill - 0.6 * size**-0.5 + 0.01 * noise.standard_normal()
                right = ease + 0.15 * noise.standard_normal(items) < level
                predicted = np.where(right, target, 1 - target)
                sure = 0.55 + 0.4 * noise.random(items)
                one = np.where(predicted == 1, sure, 1 - sure)
                scores = np.log(np.stack([1 - one, one], axis=1)).astype(np.float32)
                teacher = items + size if lacks.get("rationale") == "teacher" else 0
                spent = 0.4 * (arm + 1) * size**0.5
                made = made_up_record(
                    method,
                    {**settings, **lacks},
                    task="reviews",
                    examples=size,
                    seed=seed,
                    run_id=f"{arm}-{size}-{seed}",
                    parameters_trainable=cost,
                    parameters_total=4_200_000,
                    seconds=spent,
                    teacher_calls=teacher,
                    prompt_sha="abc123",
                    git_commit="0" * 40,
                    ablation=rung,
                )
                labels = ["no", "yes"]
                targets, answered = ([labels[value] for value in values] for values in (target, predicted))
                values = classification(targets, answered, np.log(normalised(scores.astype(np.float64))), labels)
                metrics.append(metric_table(made, values, items))
                shares = {name: float(right[group == name].mean()) for name in groups}
                for name, share in shares.items():
                    metrics.append(metric_table(made, {"accuracy": share}, int((group == name).sum()), f"test/{name}"))
                if groups:
                    macro = {"accuracy": float(np.mean(list(shares.values())))}
                    metrics.append(metric_table(made, macro, len(groups), "test/macro"))
                columns = {
                    "run_id": [made.run_id] * items,
                    "id": [f"row-{place:05}" for place in range(items)],
                    "split": ["test"] * items,
                    "text": ["a text that no report looks at"] * items,
                    **({"group": group.tolist()} if groups else {}),
                    "target": targets,
                    "prediction": answered,
                    "scores": [dict(zip(labels, row, strict=True)) for row in scores.tolist()],
                }
                schema = pa.struct([(label, pa.float32()) for label in labels])
                table = pa.table({**columns, "scores": pa.array(columns["scores"], schema)})
                answers.append(table)
    return pa.concat_tables(metrics), pa.concat_tables(answers)


def made_up_searches(metrics: pa.Table, trials: int = 6) -> pa.Table:
    """Rows of SEARCH, as if every arm that is no probe had been searched for its learning rate."""
    rows: dict[tuple[str, str, int], str] = {}
    for run in metrics.select(["run_id", "method", "ablation", "examples", "seed"]).to_pylist():
        if run["method"] != "probe" and run["seed"] == 0:
            rows[run["method"], run["ablation"] or "", run["examples"]] = run["run_id"]
    found = []
    for (method, ablation, examples), run_id in rows.items():
        values = np.random.default_rng([examples, *f"{method}{ablation}".encode()]).normal(0.6, 0.05, trials).tolist()
        for trial, value in enumerate(values):
            found.append(
                {
                    "method": method,
                    "task": "reviews",
                    "examples": examples,
                    "ablation": ablation or None,
                    "reports": run_id,
                    "trial": trial,
                    "settings": json.dumps({"training.learning_rate": 10.0 ** -(2 + trial / 2)}),
                    "metric": "accuracy",
                    "value": None if trial == 1 else value,
                    "status": "failed" if trial == 1 else "done",
                    "error": "diverged" if trial == 1 else None,
                    "chosen": value == max(values[:1] + values[2:]),
                    "seconds": 2.0,
                    "runs": [f"{run_id}-{trial}"],
                }
            )
    return pa.Table.from_pylist(found, schema=SEARCH)


def write_sweep(folder: Path, metrics: pa.Table, predictions: pa.Table | None = None, searches=None, **sweep) -> None:
    """A sweep's folder as `graft sweep` leaves it."""
    files = open_storage(folder)
    write_table(files, "metrics.parquet", metrics)
    if predictions is not None:
        write_table(files, "predictions.parquet", predictions)
    if searches is not None:
        write_table(files, "search.parquet", searches)
    spec = {"name": "quickstart", "task": {"name": "reviews"}, "sweep": {"margin": None, **sweep}, "runs": ["a", "b"]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))


@pytest.fixture(scope="session")
def answered() -> tuple[pa.Table, pa.Table]:
    return made_up_answers()


@pytest.fixture(scope="session")
def whole_sweep(tmp_path_factory: pytest.TempPathFactory, answered: tuple[pa.Table, pa.Table]) -> Path:
    """The folder of a sweep with everything that a report can show, and one failed arm."""
    folder: Path = tmp_path_factory.mktemp("storage") / "sweeps" / "s"
    metrics, predictions = answered
    failed = made_up_record("icl", {}, task="reviews", examples=256, error="out of memory", task_sha=None)
    write_sweep(folder, pa.concat_tables([metrics, failure_table(failed)]), predictions, made_up_searches(metrics))
    return folder


@pytest.fixture
def record() -> Callable[..., Record]:
    return made_up_record


@pytest.fixture
def sweep() -> Callable[..., pa.Table]:
    return made_up_sweep


@pytest.fixture
def accuracy() -> Callable[[int, int, int], float]:
    return accuracy_of


@pytest.fixture
def answers() -> Callable[..., tuple[pa.Table, pa.Table]]:
    return made_up_answers


@pytest.fixture
def sweep_folder() -> Callable[..., None]:
    return write_sweep
