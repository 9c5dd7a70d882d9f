"""Chains of thought: what the model reads, what it answers after its reasons, how several vote, wrong wishes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from graft import models
from graft.arrays import score_matrix
from graft.errors import DataError, SpecError
from graft.graph import Graph
from graft.methods.reasoning import STEP_BY_STEP, Reason, RetrieveAuto, drawing
from graft.node import Context
from graft.tasks.dataset import Dataset
from graft.tasks.templates import concluding

sys.path.insert(0, str(Path(__file__).parent))

from trainings import LABELS, TEST, TRAIN, dataset, experiment

FEW = {"num_shots": 2, "chain_of_thought": "few_shot"}


def fitted(folder: Path, data: Dataset | None = None, **method: Any) -> Graph:
    data = data or dataset()
    spec = experiment(folder, {"name": "icl", "max_rationale_tokens": 5, "max_new_tokens": 6, **method})
    assert spec.method is not None
    made = spec.method.graph(spec.task, data, {"base": models.load(str(folder)), "encoder": models.load(str(folder))})
    return made.fit(data.train, Context(spec, data.labels))


def reason(graph: Graph) -> Reason:
    node = graph.nodes[-1]
    assert isinstance(node, Reason)
    return node


def asked(graph: Graph, table: pa.Table = TEST) -> pa.Table:
    """Rows as the last node reads them."""
    return Graph(graph.nodes[:-1], graph.inputs).run(table.select(["id", "text"]))


def test_demonstrations_reason_before_their_labels(tiny_llama: Path) -> None:
    graph = fitted(tiny_llama, **FEW)
    rows = asked(graph).slice(0, 1)
    known = {one["id"]: one for one in TRAIN.to_pylist()}
    shown = [known[one] for one in rows["demonstrations"][0].as_py()]
    blocks = [f"Input: {s['text']}\nExplanation: {s['rationale']} The answer is {s['target']}." for s in shown]
    (prompt,) = reason(graph)._prompts(reason(graph)._template(), rows)
    assert prompt == "\n\n".join([*blocks, f"Input: {rows['text'][0].as_py()}\nExplanation:"])


def test_blank_lines_in_a_shown_rationale_end_no_rationale(tiny_llama: Path) -> None:
    place = TRAIN.column_names.index("rationale")
    gaps = TRAIN.set_column(place, "rationale", pa.array(["first.\n\nthen."] * TRAIN.num_rows))
    graph = fitted(tiny_llama, dataset(train=gaps), **FEW)
    (prompt,) = reason(graph)._prompts(reason(graph)._template(), asked(graph).slice(0, 1))
    assert "Explanation: first.\nthen. The answer is" in prompt


def test_labels_are_scored_after_the_models_own_reasons(tiny_llama: Path) -> None:
    graph = fitted(tiny_llama, **FEW)
    node, rows = reason(graph), asked(graph)
    found = node.run(rows.select(node.reads))
    handle = node.model
    for place, prompt in enumerate(node._prompts(node._template(), rows)):
        (thought,) = handle.generate([prompt], 5, stop=["\n\n"])
        assert found["rationale"][place].as_py() == thought.strip()
        scores = handle.score([concluding(prompt, thought, chat=False)], [f" {label}" for label in LABELS])[0]
        wanted = scores - np.logaddexp.reduce(scores)
        assert score_matrix(found["scores"], LABELS)[place] == pytest.approx(wanted, abs=1e-5)
    assert found["prediction"].to_pylist() == [LABELS[at] for at in score_matrix(found["scores"], LABELS).argmax(1)]


def test_without_demonstrations_it_thinks_step_by_step(tiny_llama: Path) -> None:
    graph = fitted(tiny_llama, chain_of_thought="zero_shot")
    node, rows = reason(graph), asked(graph)
    prompts = node._prompts(node._template(), rows)
    assert prompts[0] == f"Input: {TEST['text'][0].as_py()}\nExplanation: {STEP_BY_STEP}"
    assert all(text.startswith(STEP_BY_STEP) for text in node.run(rows.select(node.reads))["rationale"].to_pylist())


class TestVotes:
    def test_every_server_takes_the_seeds(self) -> None:
        rows = pa.table({"text": [str(row) for row in range(200)]})
        sampling = drawing(rows, 3, 1.0)
        assert sampling is not None
        assert all(0 <= seed < 2**31 for seed in sampling.seeds)
        assert len(set(sampling.seeds)) == 600

    def test_the_label_of_most_chains_wins(self, tiny_llama: Path) -> None:
        graph = fitted(tiny_llama, **FEW, samples=5, temperature=1.0)
        node, rows = reason(graph), asked(graph)
        found = node.run(rows.select(node.reads))
        prompts = [prompt for prompt in node._prompts(node._template(), rows) for _ in range(5)]
        drawn = node.model.write(prompts, 5, ("\n\n",), drawing(rows.select(["text"]), 5, 1.0))
        ends = [concluding(prompt, one.text, chat=False) for prompt, one in zip(prompts, drawn, strict=True)]
        scores = node.model.score(ends, [f" {label}" for label in LABELS]).reshape(-1, 5, 2)
        for place, own in enumerate(scores):
            votes = np.bincount(own.argmax(1), minlength=2)
            assert found["prediction"][place].as_py() == LABELS[int(votes.argmax())]
            assert found["votes"][place].as_py() == votes.max() / 5
            texts = [drawn[place * 5 + at].text.strip() for at in range(5) if own[at].argmax() == votes.argmax()]
            assert found["rationale"][place].as_py() == texts[0]
        assert np.exp(score_matrix(found["scores"], LABELS)).sum(1) == pytest.approx(1)
        alone = node.run(rows.select(node.reads).slice(3, 1))
        assert alone["rationale"][0] == found["rationale"][3]

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            (["7", "8", "8."], ("8", 2 / 3)),
            (["8", "7", "it is 7", "8"], ("8", 0.5)),  # a tie: what was drawn first
            (["?", "?", "3"], ("3", 1 / 3)),  # what cannot be read has no vote
            (["?", "?", "?"], (None, 0.0)),
        ],
    )
    def test_free_text(
        self, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str], expected: tuple[str | None, float]
    ) -> None:
        graph = fitted(tiny_llama, dataset(generation=True), **FEW, samples=len(answers))
        node = dataclasses.replace(reason(graph), parser="number")
        monkeypatch.setattr(node.model, "generate", lambda *_, **__: [f" {one}" for one in answers])
        found, chosen, votes = node._texts(["?"] * len(answers))
        assert (found["prediction"][0].as_py(), float(votes[0])) == pytest.approx(expected)
        assert found["written"][0].as_py() == answers[int(chosen[0])].removesuffix(".")


def test_free_text_is_as_probable_as_after_its_rationale(tiny_llama: Path) -> None:
    data = dataset(generation=True)
    graph = fitted(tiny_llama, data, **FEW)
    node = reason(graph)
    answered = graph.run(TEST.select(["id", "text"])).append_column("target", TEST["target"])
    sums, tokens = node.target_log_probabilities(answered)
    prompts = node._prompts(node._template(), answered)
    ends = [concluding(*pair, chat=False) for pair in zip(prompts, answered["rationale"].to_pylist(), strict=True)]
    wanted = [
        node.model.score([end], [f" {target}"])[0, 0]
        for end, target in zip(ends, TEST["target"].to_pylist(), strict=True)
    ]
    assert sums == pytest.approx(wanted, abs=1e-5)
    assert (tokens > 0).all()


class TestAuto:
    def test_one_of_each_cluster_with_the_models_own_words(self, tiny_llama: Path) -> None:
        graph = fitted(tiny_llama, num_shots=2, chain_of_thought="auto")
        retrieve, node = graph.nodes[-2], reason(graph)
        assert isinstance(retrieve, RetrieveAuto)
        rows = asked(graph)
        assert len({tuple(shown) for shown in rows["demonstrations"].to_pylist()}) <= 3
        texts = dict(zip(TRAIN["id"].to_pylist(), TRAIN["text"].to_pylist(), strict=True))
        for text, shown in zip(TEST["text"].to_pylist(), rows["demonstrations"].to_pylist(), strict=True):
            assert all(texts[one] != text for one in shown)
        zero = fitted(tiny_llama, chain_of_thought="zero_shot")
        for one in node.examples:
            row = TRAIN.filter(pa.array([other == one["id"] for other in TRAIN["id"].to_pylist()])).select(
                ["id", "text"]
            )
            own = zero.run(row)
            assert one["rationale"] == own["rationale"][0].as_py()
            assert one["target"] == own["prediction"][0].as_py()  # not the row's label: it is not looked at

    def test_a_cluster_without_an_answer_that_can_be_read_shows_nothing(
        self, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = {TRAIN["text"][place].as_py() for place in range(0, TRAIN.num_rows, 3)}
        run = Reason.run

        def mute(self: Reason, rows: pa.Table) -> pa.Table:
            found = run(self, rows)
            known = [text in read for text in rows["text"].to_pylist()]
            said = pa.array([one if k else None for one, k in zip(found["prediction"].to_pylist(), known, strict=True)])
            return found.set_column(found.column_names.index("prediction"), "prediction", said)

        monkeypatch.setattr(Reason, "run", mute)
        graph = fitted(tiny_llama, num_shots=4, chain_of_thought="auto")
        texts = dict(zip(TRAIN["id"].to_pylist(), TRAIN["text"].to_pylist(), strict=True))
        shown = {one for several in asked(graph)["demonstrations"].to_pylist() for one in several}
        assert shown
        assert {texts[one] for one in shown} <= read
        assert reason(graph)._prompts(reason(graph)._template(), asked(graph))
        read.clear()
        with pytest.raises(DataError, match=r"none of its \d+ answers can be read; use zero_shot"):
            fitted(tiny_llama, num_shots=4, chain_of_thought="auto")

    def test_targets_are_not_read(self, tiny_llama: Path) -> None:
        other = TRAIN.set_column(
            2, "target", pa.array([LABELS[1 - LABELS.index(t)] for t in TRAIN["target"].to_pylist()])
        )
        found = [
            fitted(tiny_llama, data, num_shots=2, chain_of_thought="auto").run(TEST.select(["id", "text"]))
            for data in (dataset(), dataset(train=other))
        ]
        assert found[0]["prediction"] == found[1]["prediction"]


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ({"samples": 3}, "samples are of rationales"),
        ({"chain_of_thought": "zero_shot", "num_shots": 2}, "shows no demonstrations"),
        ({"chain_of_thought": "zero_shot", "calibrate": True}, "leave it false"),
        ({"chain_of_thought": "auto", "selection": "bm25"}, "itself"),
        ({"chain_of_thought": "few_shot", "temperature": 0}, "temperature"),
    ],
)
def test_wrong_wishes(tiny_llama: Path, method: dict[str, Any], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        experiment(tiny_llama, {"name": "icl", **method})


def test_few_shot_needs_rationales(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match=r"task\.rationale"):
        fitted(tiny_llama, dataset(train=TRAIN.drop_columns(["rationale"])), **FEW)


def test_few_shot_is_not_fitted_to_a_request_s_examples_which_have_no_rationales(tiny_llama: Path) -> None:
    context = Context(experiment(tiny_llama, {"name": "icl"}), LABELS)
    with pytest.raises(SpecError, match="leave a request's examples null"):
        fitted(tiny_llama, **FEW).fit(TRAIN.drop_columns(["rationale"]), context)
