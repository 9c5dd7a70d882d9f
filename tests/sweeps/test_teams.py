"""A sweep whose runs train with several workers each: nobody waits for places that another run holds."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from graft.errors import PrunedError, from_words, to_words
from graft.spec import Experiment
from graft.sweeps.sweep import run_sweep

LINES = [f"a text about {topic} number {i},{topic}" for i in range(40) for topic in ("rain", "bread")]


def test_what_stopped_a_training_travels_as_data() -> None:
    error = from_words(*to_words(PrunedError({2: 0.5, 4: 0.75})))
    assert isinstance(error, PrunedError)
    assert error.looks == {2: 0.5, 4: 0.75}
    assert "stopped after 4 steps" in str(error)


@pytest.mark.long
def test_each_team_has_its_places(ray_cluster: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """Two CPUs and two trainings of two workers each: one after the other, and each what one process gives."""
    (tmp_path / "rows.csv").write_text("text,topic\n" + "\n".join(LINES) + "\n")
    spec = {
        "name": "teams",
        "task": {"name": "file", "path": str(tmp_path / "rows.csv"), "text": "text", "label": "topic"},
        "models": {"base": {"source": str(tiny_llama)}},
        "method": {"name": "full"},
        "scaling": {"device": "cpu"},
        "regime": {"examples": 16},
        "training": {"max_steps": 4, "tokens_per_batch": 128, "learning_rate": 1e-3},
        "sweep": {"axes": {"scaling.workers": [2, 1], "method": [{"name": "full"}]}, "seeds": 1},
    }
    result = run_sweep(Experiment.from_mapping(spec), tmp_path)
    assert result.failed == 0
    losses = result.metrics.filter(pc.field("metric") == "log_loss")["value"].to_pylist()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
