"""Finished runs to serve: three that share an encoder, one on vectors without any model, two of several models, and
three that answer with free text, two of these after training."""

from pathlib import Path
from typing import Any

import pytest

from graft.spec import Experiment

TOPICS = ("rain", "bread")
NAMES = ("centroid", "ridge", "tart", "vectors", "calm", "fiat", "words", "lora", "told", "heard", "other")


def carry_out(storage: Path, **values: Any) -> str:
    return Experiment.from_mapping({"name": "topics", **values}).run(storage).run_id


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path, tiny_gpt2: Path) -> Path:
    """A storage whose runs are named by what they are: NAMES, of which the last five write free text."""
    folder = tmp_path_factory.mktemp("serving")
    lines = [f"a text about {topic} number {i},{topic}" for i in range(30) for topic in TOPICS]
    (folder / "rows.csv").write_text("text,topic\n" + "\n".join(lines) + "\n")
    rows = {"name": "file", "path": str(folder / "rows.csv"), "text": "text"}
    encoder, base = {"source": str(tiny_bert)}, {"source": str(tiny_llama)}
    probes = {name: {"name": "probe", "classifier": name} for name in ("centroid", "ridge")}
    for name, method in {**probes, "tart": {"name": "tart"}}.items():
        run_id = carry_out(
            folder,
            models={"encoder": encoder},
            task={**rows, "label": "topic"},
            method=method,
            regime={"examples": 12},
        )
        (folder / name).write_text(run_id)
    vectors = carry_out(folder, task={"name": "wine"}, method={"name": "probe", "classifier": "ridge"})
    (folder / "vectors").write_text(vectors)
    calm = carry_out(
        folder,
        models={"anchor": base, "augmenting": {"source": str(tiny_gpt2)}},
        task={**rows, "label": "topic"},
        method={"name": "calm", "connections": [[2, 0], [1, 1]]},
        regime={"examples": 12},
        training={"max_steps": 4, "learning_rate": 1e-2},
    )
    (folder / "calm").write_text(calm)
    fiat = carry_out(
        folder,
        models={"teacher": base, "student": {"source": str(tiny_gpt2)}},
        task={**rows, "label": "topic"},
        method={"name": "fiat", "exemplars": 0, "max_rationale_tokens": 4},
        regime={"examples": 12},
        training={"max_steps": 4, "learning_rate": 1e-2},
    )
    (folder / "fiat").write_text(fiat)
    words = carry_out(
        folder,
        models={"encoder": encoder, "base": base},
        task={**rows, "target": "topic", "test_examples": 2},
        method={"name": "icl", "num_shots": 1, "selection": "similar", "max_new_tokens": 2},
        regime={"examples": 2},
    )
    (folder / "words").write_text(words)
    few = {**rows, "target": "topic", "test_examples": 6}
    training = {"max_steps": 4, "learning_rate": 1e-2}
    lora = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    texts: dict[str, dict[str, Any]] = {
        "lora": {"models": {"base": base}, "method": {"name": "peft", "adapter": lora}},
        "other": {"models": {"base": base}, "method": {"name": "peft", "adapter": {**lora, "r": 2}}},
        "told": {
            "models": {"teacher": base, "student": {"source": str(tiny_gpt2)}},
            "method": {"name": "fiat", "exemplars": 0, "max_rationale_tokens": 4},
        },
        "heard": {
            "models": {"anchor": base, "augmenting": {"source": str(tiny_gpt2)}},
            "method": {"name": "calm", "connections": [[2, 0], [1, 1]]},
        },
    }
    for name, values in texts.items():
        values["method"]["max_new_tokens"] = 8
        run_id = carry_out(folder, task=few, regime={"examples": 12}, training=training, **values)
        (folder / name).write_text(run_id)
    return folder


@pytest.fixture(scope="session")
def run_ids(storage: Path) -> dict[str, str]:
    """What a run is to its run_id."""
    return {name: (storage / name).read_text() for name in NAMES}
