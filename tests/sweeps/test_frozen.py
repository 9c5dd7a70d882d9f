"""What a sweep computes before its runs: every row once, whichever node of whichever run asks for it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graft import models, planning, runner
from graft.execution import no_progress
from graft.node import Context
from graft.spec import Experiment
from graft.storage import open_storage
from graft.sweeps.frozen import compute_shared


@pytest.fixture
def section(tmp_path: Path) -> dict[str, Any]:
    lines = [f"snow {i},cold" if i % 2 else f"sun {i},warm" for i in range(40)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    path = str(tmp_path / "rows.csv")
    return {"name": "file", "path": path, "text": "text", "label": "label", "test_examples": 10}


def planned(section: dict[str, Any], model: Path, seed: int = 0, **method: Any) -> planning.Plan:
    fiat = {"name": "fiat", "exemplars": 0}
    values = {
        "name": "x",
        "models": {role: {"source": str(model)} for role in ("base", "teacher", "student")},
        "task": section,
        "regime": {"examples": 8, "seed": seed},
        "method": {**(fiat if "rationale" in method else {"name": "distill"}), "max_rationale_tokens": 3, **method},
    }
    return planning.plan(Experiment.from_mapping(values))


def test_what_a_node_asks_before_it_is_fitted_is_there_too(
    section: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    plans = [planned(section, tiny_llama, seed) for seed in (0, 1)]
    plans += [planned(section, tiny_llama, rationale=mode) for mode in ("distilled", "self", "teacher")]
    store = runner.open_store(open_storage(tmp_path / "out"))
    (spent,) = compute_shared(plans, store, None, no_progress)
    needed = {row for plan in plans for row in plan.examples["id"].to_pylist()} | set(plans[-1].test["id"].to_pylist())
    assert (spent.rows, spent.teacher_calls) == (len(needed), len(needed))

    def train(node: Any, rows: pa.Table, more: pa.Table | None = None) -> Any:
        raise InterruptedError

    usage = models.load(str(tiny_llama)).usage
    before = usage.forward_passes
    for plan in plans:
        with pytest.raises(InterruptedError):
            plan.graph.fit(plan.examples, Context(plan.experiment, ("cold", "warm"), store, train=train))
    assert usage.forward_passes == before
    assert store.tallies["teacher_calls"] == len(needed)
