"""In-context learning against its definition, spelled out with transformers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from graft import models
from graft.arrays import score_matrix
from graft.errors import ModelError, SpecError
from graft.graph import Graph
from graft.methods.completing import CONTENT_FREE, Complete
from graft.node import Context
from graft.spec import Experiment
from graft.tasks.dataset import Dataset

LABELS = ("cold", "warm")
TRAIN = [("snow and ice", "cold"), ("the sun is out", "warm"), ("frost at night", "cold"), ("a hot summer", "warm")]
TEST = ["ice in the river", "summer sun", "the night"]


def rows(texts: list[str], prefix: str, targets: list[str] | None = None) -> pa.Table:
    columns: dict[str, list[str]] = {"id": [f"{prefix}{i}" for i in range(len(texts))], "text": texts}
    return pa.table(columns | ({"target": targets} if targets else {}))


def dataset(generation: bool = False) -> Dataset:
    train = rows([text for text, _ in TRAIN], "a", [target for _, target in TRAIN])
    test = rows(TEST, "b", ["cold", "warm", "cold"])
    return Dataset(train, test, ("text",), "text", None if generation else LABELS)


def fitted(folder: Path, generation: bool = False, encoder: Path | None = None, **method: Any) -> Graph:
    values = {
        "name": "x",
        "models": {"base": {"source": str(folder)}},
        "task": {"name": "python-docs", "max_tokens": method.pop("max_tokens", None)},
        "method": {"name": "icl", **method},
        "regime": {"examples": len(TRAIN)},
    }
    experiment = Experiment.from_mapping(values)
    handles = {"base": models.load(str(folder))} | ({"encoder": models.load(str(encoder))} if encoder else {})
    data = dataset(generation)
    assert experiment.method is not None
    graph = experiment.method.graph(experiment.task, data, handles)
    return graph.fit(data.train, Context(experiment, data.labels))


def scores(answers: pa.Table) -> np.ndarray:
    return score_matrix(answers["scores"], LABELS)


def naive_scores(folder: Path, prompts: list[str], normalize: bool = False) -> np.ndarray:
    """log P(" " + label | prompt), one sequence at a time, no cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = np.zeros((len(prompts), len(LABELS)))
    for i, prompt in enumerate(prompts):
        start = len(tokenizer(prompt)["input_ids"])
        for j, label in enumerate(LABELS):
            ids = torch.tensor([tokenizer(f"{prompt} {label}")["input_ids"]])
            with torch.inference_mode():
                logs = model(ids).logits[0].log_softmax(-1)
            steps = [float(logs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]
            found[i, j] = np.mean(steps) if normalize else np.sum(steps)
    return found


def normalised(raw: np.ndarray) -> np.ndarray:
    return raw - np.logaddexp.reduce(raw, axis=1, keepdims=True)


def prompt_of(text: str, shown: list[int]) -> str:
    demonstrations = [f"Input: {TRAIN[i][0]}\nLabel: {TRAIN[i][1]}" for i in shown]
    return "\n\n".join([*demonstrations, f"Input: {text}\nLabel:"])


def shown_ids(answers: pa.Table) -> list[list[int]]:
    return [[int(one[1:]) for one in ids] for ids in answers["demonstrations"].to_pylist()]


@pytest.mark.parametrize("normalize", [False, True])
def test_scores_are_the_labels_log_probabilities_after_the_shown_prompt(tiny_llama: Path, normalize: bool) -> None:
    answers = fitted(tiny_llama, num_shots=2, length_normalize=normalize).run(rows(TEST, "b"))
    prompts = [prompt_of(text, shown) for text, shown in zip(TEST, shown_ids(answers), strict=True)]
    assert scores(answers) == pytest.approx(normalised(naive_scores(tiny_llama, prompts, normalize)), abs=1e-4)


def test_calibration_divides_by_content_free_inputs(tiny_llama: Path) -> None:
    answers = fitted(tiny_llama, num_shots=2, calibrate=True).run(rows(TEST, "b"))
    shown = shown_ids(answers)
    raw = naive_scores(tiny_llama, [prompt_of(text, ids) for text, ids in zip(TEST, shown, strict=True)])
    empty = naive_scores(tiny_llama, [prompt_of(text, shown[0]).rstrip(" ") for text in CONTENT_FREE])
    bias = np.log(np.exp(normalised(empty)).mean(axis=0))
    assert scores(answers) == pytest.approx(normalised(raw - bias), abs=1e-4)


def test_random_demonstrations_are_one_draw_and_never_the_row_itself(tiny_llama: Path) -> None:
    graph = fitted(tiny_llama, num_shots=2)
    test_shown = shown_ids(graph.run(rows(TEST, "b")))
    assert all(shown == test_shown[0] for shown in test_shown)
    train_shown = shown_ids(graph.run(dataset().train.drop_columns(["target"])))
    assert all(len(shown) == 2 and own not in shown for own, shown in enumerate(train_shown))


def test_similar_demonstrations_are_the_nearest_with_the_most_similar_last(tiny_llama: Path, tiny_bert: Path) -> None:
    answers = fitted(tiny_llama, encoder=tiny_bert, selection="similar", num_shots=3).run(rows(TEST, "b"))
    encoder = models.load(str(tiny_bert))
    unit = [
        v / np.linalg.norm(v, axis=1, keepdims=True)
        for v in (encoder.embed(TEST), encoder.embed([t for t, _ in TRAIN]))
    ]
    nearest = np.argsort(unit[0] @ unit[1].T, axis=1)[:, -3:]
    assert shown_ids(answers) == nearest.tolist()


def test_zero_shots_keep_no_examples_so_all_regimes_share_one_answer(tiny_llama: Path) -> None:
    graph = fitted(tiny_llama, num_shots=0)
    complete = graph.nodes[-1]
    assert isinstance(complete, Complete)
    assert complete.examples == ()
    raw = naive_scores(tiny_llama, [prompt_of(text, []) for text in TEST])
    assert scores(graph.run(rows(TEST, "b"))) == pytest.approx(normalised(raw), abs=1e-4)


def test_the_stories_model_continues_a_free_text_prompt(stories: Path) -> None:
    answers = fitted(stories, generation=True, num_shots=0, max_new_tokens=8).run(rows(["Once upon a time"], "b"))
    assert answers["prediction"].to_pylist()[0]
    assert "scores" not in answers.column_names


def test_a_prompt_that_does_not_fit_names_the_largest_number_of_shots(tiny_llama: Path) -> None:
    graph = fitted(tiny_llama, num_shots=4)
    count = models.load(str(tiny_llama)).count_tokens
    words = max(n for n in range(150) if count([prompt_of("ice " * n, [0])])[0] < 220)
    long = rows(["ice " * words], "b")
    with pytest.raises(
        ModelError, match=r"num_shots: a prompt with 4 demonstrations and its answer is \d+ tokens too long.*holds 256"
    ) as caught:
        graph.run(long)
    cure = str(caught.value).rpartition("; ")[2]
    assert cure.startswith("method.num_shots=")
    fits = int(cure.removeprefix("method.num_shots=").split()[0])
    fitted(tiny_llama, num_shots=fits).run(long)
    with pytest.raises(ModelError, match="num_shots"):
        fitted(tiny_llama, num_shots=fits + 1).run(long)


def test_a_row_too_long_by_itself_is_cut_where_the_task_allows_it(tiny_llama: Path) -> None:
    long = rows(["ice " * 400], "b")
    with pytest.raises(ModelError, match=r"task\.max_tokens"):
        fitted(tiny_llama, num_shots=1).run(long)
    answers = fitted(tiny_llama, num_shots=1, max_tokens=50).run(long)
    assert answers["prompt_tokens_cut"].to_pylist()[0] > 0


def test_an_encoder_cannot_complete(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match=r"models\.base.*causal"):
        fitted(tiny_bert)


def test_vectors_cannot_be_put_into_a_prompt(tiny_llama: Path) -> None:
    values = {
        "name": "x",
        "models": {"base": {"source": str(tiny_llama)}},
        "task": {"name": "digits"},
        "method": {"name": "icl"},
    }
    experiment = Experiment.from_mapping(values)
    assert experiment.method is not None
    with pytest.raises(SpecError, match="reads text"):
        experiment.method.graph(experiment.task, experiment.task.read(), {"base": models.load(str(tiny_llama))})


def test_saved_and_loaded_it_answers_the_same(tiny_llama: Path, tmp_path: Path) -> None:
    graph = fitted(tiny_llama, num_shots=2, calibrate=True)
    graph.save(tmp_path)
    again = Graph.load(tmp_path, models.load)
    assert again.fingerprint() == graph.fingerprint()
    assert scores(again.run(rows(TEST, "b"))) == pytest.approx(scores(graph.run(rows(TEST, "b"))), abs=1e-6)
