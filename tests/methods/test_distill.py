"""Distilling step by step: the two losses, and where rationales come from."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graft import Experiment, models, planning
from graft.errors import SpecError
from graft.methods.distill import Distilled
from graft.node import Context
from graft.storage import open_storage
from graft.store import ColumnStore
from graft.training import prepare
from graft.training.loop import Loop


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"snow {i},cold,because of snow" if i % 2 else f"sun {i},warm,because of sun" for i in range(40)]
    path.write_text("text,label,why\n" + "\n".join(lines) + "\n")
    return path


def spec(
    csv: Path, model: Path, task: dict[str, Any] | None = None, teacher: bool = False, **method: Any
) -> Experiment:
    sources = {"base": {"source": str(model)}, **({"teacher": {"source": str(model)}} if teacher else {})}
    section = {"name": "file", "path": str(csv), "text": "text", "label": "label", "test_examples": 10, **(task or {})}
    return Experiment.from_mapping(
        {
            "name": "x",
            "models": sources,
            "task": section,
            "regime": {"examples": 12},
            "method": {"name": "distill", **method},
            "training": {"max_steps": 4, "tokens_per_batch": 256},
        }
    )


def node_and_rows(experiment: Experiment) -> tuple[Distilled, pa.Table]:
    plan = planning.plan(experiment)
    node = plan.graph.nodes[0]
    assert isinstance(node, Distilled)
    return node, plan.examples


def test_each_row_teaches_its_label_and_its_reason(csv: Path, tiny_llama: Path) -> None:
    node, rows = node_and_rows(spec(csv, tiny_llama, {"rationale": "why"}, alpha=0.5))
    # A teacher may have had nothing to say.
    reasons = pa.array(["", *rows["rationale"].to_pylist()[1:]])
    rows = rows.set_column(rows.column_names.index("rationale"), "rationale", reasons)
    encoded, tokenizer = node.encode(rows), models.load(str(tiny_llama)).tokenizer
    assert node.terms == (1.0, 0.5)
    for row, contexts, answers, counts in zip(
        rows.to_pylist(), *(encoded[name].to_pylist() for name in ("context", "answer", "targets")), strict=True
    ):
        label, reason = (tokenizer.decode(one, skip_special_tokens=True) for one in contexts)
        assert label.startswith("predict\n\n")
        assert reason.startswith("explain\n\n")
        assert tokenizer.decode(answers[0]).strip() == row["target"]
        assert tokenizer.decode(answers[1], skip_special_tokens=True).strip() == (row["rationale"] or "")
        assert counts[1] == len(answers[1])
        assert bool(counts[1]) == bool(row["rationale"])  # no reason, nothing to learn of it


def test_the_loss_is_that_of_the_labels_and_alpha_times_that_of_the_reasons(csv: Path, tiny_llama: Path) -> None:
    def first_loss(alpha: float) -> float:
        experiment = spec(csv, tiny_llama, {"rationale": "why"}, alpha=alpha)
        node, rows = node_and_rows(experiment)
        trained = Loop(prepare(node, rows, None, experiment)).run()
        assert trained is not None
        return trained.state.curve[0]["loss"]

    a, b, c = first_loss(1e-6), first_loss(1.0), first_loss(2.0)
    assert b > a
    assert c - b == pytest.approx(b - a, rel=1e-4)


def test_a_teacher_writes_each_reason_once(csv: Path, tiny_llama: Path, tmp_path: Path) -> None:
    experiment = spec(csv, tiny_llama, teacher=True, max_rationale_tokens=4)
    node, rows = node_and_rows(experiment)
    assert "rationale" not in rows.column_names
    seen: list[list[str | None]] = []

    class Stop(Exception):
        pass

    def train(node: Any, rows: pa.Table, more: pa.Table | None = None) -> Any:
        seen.append(rows["rationale"].to_pylist())
        raise Stop

    store = ColumnStore(open_storage(tmp_path / "store"))
    usage = models.load(str(tiny_llama)).usage
    counts = []
    for _ in range(2):
        before = usage.forward_passes
        with pytest.raises(Stop):
            node.fit(rows, Context(experiment, ("cold", "warm"), store, train=train))
        counts.append(usage.forward_passes - before)
    assert seen[0] == seen[1]
    assert counts[0] > 0
    assert counts[1] == 0


def test_without_reasons_and_without_a_teacher_it_is_refused(csv: Path, tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match=r"task\.rationale.*models\.teacher"):
        planning.plan(spec(csv, tiny_llama))


def test_the_fitted_node_needs_no_teacher(csv: Path, tiny_llama: Path, tmp_path: Path) -> None:
    result = spec(csv, tiny_llama, teacher=True, max_rationale_tokens=4).run(tmp_path / "out")
    node = result.graph.nodes[0]
    assert isinstance(node, Distilled)
    assert set(node.handles()) == {"model"}
