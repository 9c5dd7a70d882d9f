"""The mixture of an instructed model: how many rows each task gives, how they are asked, and what is refused."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from graft import Experiment, models, planning
from graft.errors import DataError, SpecError
from graft.methods.instruct import Instructed
from graft.node import Context
from graft.tasks.regimes import draw

OWN = [(f"snow {i}", "cold") if i % 2 else (f"sun {i}", "warm") for i in range(30)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "own.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in OWN))
    (tmp_path / "qa.csv").write_text("q,a\n" + "".join(f"what is {i},it is {i}\n" for i in range(60)))
    return tmp_path


def spec(files: Path, model: Path, member: dict[str, Any] | None = None, **method: Any) -> Experiment:
    qa = {"name": "file", "path": str(files / "qa.csv"), "text": "q", "target": "a", "test_examples": 20}
    own = {"name": "file", "path": str(files / "own.csv"), "text": "text", "label": "label", "test_examples": 10}
    mixture = [{"task": qa, "instruction": "Answer.", **(member or {})}]
    return Experiment.from_mapping(
        {
            "name": "x",
            "models": {"base": {"source": str(model)}},
            "task": own,
            "regime": {"examples": 10},
            "method": {"name": "instruct", "mixture": mixture, "instruction": "Cold or warm?", **method},
            "training": {"max_steps": 3, "tokens_per_batch": 256},
        }
    )


def learned(experiment: Experiment) -> tuple[Instructed, pa.Table]:
    """The node, and what it asks its context to learn beside its own rows."""
    plan = planning.plan(experiment)
    asked: list[pa.Table] = []

    class Stop(Exception):
        pass

    def train(node: Any, rows: pa.Table, more: pa.Table | None = None) -> Any:
        asked.append(more)
        raise Stop

    context = Context(plan.experiment, plan.dataset.labels, train=train)
    node = plan.graph.nodes[0]
    assert isinstance(node, Instructed)
    with pytest.raises(Stop):
        node.fit(draw(plan.dataset, plan.experiment.regime), context)
    return node, asked[0]


@pytest.mark.parametrize(
    ("balancing", "rows"), [("proportional", 40), ("equal", 10), ("temperature", 20)], ids=lambda value: str(value)
)
def test_balancing_decides_how_many_rows_another_task_gives(
    files: Path, tiny_llama: Path, balancing: str, rows: int
) -> None:
    assert learned(spec(files, tiny_llama, balancing=balancing))[1].num_rows == rows


def test_a_limit_and_a_weight_change_the_share(files: Path, tiny_llama: Path) -> None:
    assert learned(spec(files, tiny_llama, limit=12))[1].num_rows == 12
    assert learned(spec(files, tiny_llama, {"weight": 2.5}))[1].num_rows == 100  # its 40 rows, two and a half times


def test_rows_are_asked_in_all_of_their_ways(files: Path, tiny_llama: Path) -> None:
    templates = ["Q: {q}\nA: {target}", "{q}? {target}"]
    _, more = learned(spec(files, tiny_llama, {"templates": templates}))
    tokenizer = models.load(str(tiny_llama)).tokenizer
    texts = [tokenizer.decode(ids[0]) for ids in more["context"].to_pylist()]
    assert all("Answer." in text and "Cold or warm?" not in text for text in texts)
    for mark in ("Q: what", "Input: what"):
        assert any(mark in text for text in texts)
    assert any(text.endswith("?") for text in texts)
    end = tokenizer.eos_token_id
    assert all(ids[0][-1] == end for ids in more["answer"].to_pylist())  # free text learns where it ends


def test_test_rows_of_the_task_are_refused_in_the_mixture(files: Path, tiny_llama: Path) -> None:
    same = {"name": "file", "path": str(files / "own.csv"), "text": "text", "label": "label", "test_examples": 1}
    with pytest.raises(DataError, match=r"mixture\.0\.task: \d+ of its rows are test rows"):
        planning.plan(spec(files, tiny_llama, {"task": same}))


def test_vectors_are_refused_in_the_mixture(files: Path, tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match="a language model reads text"):
        planning.plan(spec(files, tiny_llama, {"task": {"name": "wine"}}))


def test_the_id_follows_the_contents_of_the_mixture_and_not_its_place(files: Path, tiny_llama: Path) -> None:
    first = planning.plan(spec(files, tiny_llama)).run_id
    (files / "qa.csv").rename(files / "moved.csv")
    moved = {"name": "file", "path": str(files / "moved.csv"), "text": "q", "target": "a", "test_examples": 20}
    assert planning.plan(spec(files, tiny_llama, {"task": moved})).run_id == first
    with (files / "moved.csv").open("a") as file:
        file.write("what is more,it is more\n")
    assert planning.plan(spec(files, tiny_llama, {"task": moved})).run_id != first


def test_a_run_forgets_the_mixture_and_answers_alike_when_it_is_loaded(files: Path, tiny_llama: Path) -> None:
    result = spec(files, tiny_llama, adapter={"kind": "serial", "bottleneck": 4}).run(files / "out")
    graph = result.graph
    assert graph.nodes[0].mixture == ()  # type: ignore[attr-defined]
    rows = result.predictions.select(["id", "text"])
    assert graph.run(rows)["prediction"].to_pylist() == result.predictions["prediction"].to_pylist()
