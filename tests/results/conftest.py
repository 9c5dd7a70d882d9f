"""Made-up results: every number is a formula of its arm, size and seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from graft.results.records import Record, failure_table, metric_table

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


@pytest.fixture
def record() -> Callable[..., Record]:
    return made_up_record


@pytest.fixture
def sweep() -> Callable[..., pa.Table]:
    return made_up_sweep


@pytest.fixture
def accuracy() -> Callable[[int, int, int], float]:
    return accuracy_of
