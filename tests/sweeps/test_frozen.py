"""What a sweep computes before its runs: every row once, whichever node of whichever run asks for it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graft import execution, models, planning, runner
from graft.errors import ModelError
from graft.execution import no_progress
from graft.methods.explain import Explain
from graft.node import Context
from graft.results.shared import adding, load_shared
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


class KilledError(BaseException):
    """Stands for a signal."""


def test_what_was_computed_before_a_kill_is_in_the_costs(
    section: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(Explain, "chunk_rows", 8)
    plans = [planned(section, tiny_llama, rationale="teacher")]
    usage = models.load(str(tiny_llama)).usage
    known = []

    def kill(what: str, done: int, total: int) -> None:
        if done == 8:
            known.extend(load_shared([str(tmp_path / "killed")]))  # a signal leaves no time to write anything
            raise KilledError

    def start(name: str, progress: Any = no_progress) -> None:
        files = open_storage(tmp_path / name)
        compute_shared(plans, runner.open_store(files), None, progress, adding(files, "."))

    usage = models.load(str(tiny_llama)).usage
    start("whole")
    before = usage.forward_passes
    with pytest.raises(KilledError):
        start("killed", kill)
    assert [cost.teacher_calls for cost in known] == [8], "no row more than was computed"
    start("killed")
    (whole,), (killed,) = (load_shared([str(tmp_path / name)]) for name in ("whole", "killed"))
    assert killed.rows == killed.teacher_calls == 18
    assert killed.forward_passes == usage.forward_passes - before
    assert (killed.tokens, killed.teacher_calls) == (whole.tokens, whole.teacher_calls)


def test_what_failed_has_cost_what_it_has_cost(
    section: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explain, "chunk_rows", 8)
    plans = [planned(section, tiny_llama, rationale="teacher")]

    def fail(what: str, done: int, total: int) -> None:
        if done == 8:
            raise ModelError("the teacher is gone")

    files = open_storage(tmp_path / "out")
    (spent,) = compute_shared(plans, runner.open_store(files), None, fail, adding(files, "."))
    assert spent.teacher_calls == 8
    assert spent.forward_passes > 0
    assert load_shared([str(tmp_path / "out")]) == [spent]
