"""Which demonstrations are shown and in which order, against the libraries and definitions they come from."""

import dataclasses
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from graft import models
from graft.arrays import vector_column
from graft.errors import ModelError, SpecError
from graft.graph import Graph
from graft.methods.bm25 import Bm25, words
from graft.methods.epr import RetrieveEpr
from graft.methods.ordering import DIGITS, Imagine, RetrieveOrdered, entropies, permutations
from graft.methods.retrieving import Retrieve, RetrieveBm25, RetrieveSimilar
from graft.models.model import Candidates, Model
from graft.node import Context
from graft.spec import Experiment, ModelSource
from graft.storage import open_storage
from graft.store import ColumnStore
from graft.tasks.dataset import Dataset
from graft.tasks.templates import template_for

sys.path.insert(0, str(Path(__file__).parent))

from trainings import LABELS, TEST, TRAIN, dataset, experiment, fit, network_digest, scores

SELECTIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "random-similar": {"order": "similar"},
    "global_entropy": {"order": "global_entropy"},
    "local_entropy": {"order": "local_entropy"},
    "similar": {"selection": "similar"},
    "bm25": {"selection": "bm25"},
    "bm25-similar": {"selection": "bm25", "order": "similar"},
    "epr": {"selection": "epr", "epr_candidates": 6},
    "epr-similar": {"selection": "epr", "epr_candidates": 6, "order": "similar"},
}
EVERY = pytest.mark.parametrize("selection", SELECTIONS)


def spec(folder: Path, selection: str, num_shots: int = 3, **settings: Any) -> Experiment:
    return experiment(folder, {"name": "icl", "num_shots": num_shots, **SELECTIONS[selection]}, **settings)


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path) -> Any:
    """The graph of each selection, fitted once."""
    known: dict[str, Any] = {}

    def make(selection: str) -> Any:
        if selection not in known:
            known[selection] = fit(spec(tiny_llama, selection))
        return known[selection]

    return make


def retrieve_of(graph: Graph) -> Any:
    return next(node for node in graph.nodes if isinstance(node, Retrieve))


def shown(graph: Graph, rows: pa.Table) -> list[list[str]]:
    found: list[list[str]] = graph.run(rows)["demonstrations"].to_pylist()
    return found


# ---- every selection ----


@EVERY
def test_a_row_is_never_its_own_demonstration(selection: str, fitted: Any) -> None:
    graph = fitted(selection).after
    text = dict(zip(TRAIN["id"].to_pylist(), TRAIN["text"].to_pylist(), strict=True))
    # An asked row that says what an example says, under another id.
    twins = TRAIN.set_column(0, "id", pa.array([f"twin-{one}" for one in text])).drop_columns(["target"])
    for rows in (TRAIN, twins):
        for own, ids in zip(rows["text"].to_pylist(), shown(graph, rows), strict=True):
            assert len(ids) == len(set(ids)) == 3
            assert own not in [text[one] for one in ids]


@EVERY
def test_the_same_examples_give_the_same_node(selection: str, fitted: Any, tiny_llama: Path) -> None:
    known = fitted(selection).after
    again = fit(spec(tiny_llama, selection)).after
    assert again.fingerprint() == known.fingerprint()
    assert shown(again, TEST) == shown(known, TEST)


@EVERY
def test_saved_and_sent_it_shows_the_same(selection: str, fitted: Any, tmp_path: Path) -> None:
    graph = fitted(selection).after
    expected = shown(graph, TEST)
    graph.save(tmp_path)
    for again in (Graph.load(tmp_path, models.load), pickle.loads(pickle.dumps(graph))):
        assert again.fingerprint() == graph.fingerprint()
        assert shown(again, TEST) == expected
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]


@EVERY
def test_what_travels_are_fields_alone(selection: str, fitted: Any) -> None:
    node = retrieve_of(fitted(selection).after)
    shown(fitted(selection).after, TEST)
    assert set(pickle.loads(pickle.dumps(node)).__dict__) == {field.name for field in dataclasses.fields(node)}


@EVERY
def test_a_row_is_shown_the_same_whatever_is_asked_beside_it(selection: str, fitted: Any) -> None:
    graph = fitted(selection).after
    together = shown(graph, TEST)
    assert [shown(graph, TEST.slice(place, 1))[0] for place in range(TEST.num_rows)] == together


@EVERY
def test_a_fitted_graph_can_be_fitted_to_other_examples(selection: str, fitted: Any, tiny_llama: Path) -> None:
    done = fitted(selection)
    other = TRAIN.slice(0, 10)
    asked = spec(tiny_llama, selection)

    def train(node: Any, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        return {name: value.detach().numpy() for name, value in node.build().named_parameters()}

    again = done.after.fit(other, Context(asked, LABELS, train=train))
    assert {one for ids in shown(again, TEST) for one in ids} <= set(other["id"].to_pylist())


@EVERY
def test_fewer_shots_are_among_more(selection: str, fitted: Any, tiny_llama: Path) -> None:
    more = shown(fitted(selection).after, TEST)
    fewer = shown(fit(spec(tiny_llama, selection, num_shots=2)).after, TEST)
    assert all(set(few) <= set(many) for few, many in zip(fewer, more, strict=True))


@EVERY
def test_without_shots_nothing_is_chosen_and_no_embedding_is_read(selection: str, tiny_llama: Path) -> None:
    graph = fit(spec(tiny_llama, selection, num_shots=0)).after
    assert [type(node).__name__ for node in graph.nodes] == ["Retrieve", "Complete"]
    assert shown(graph, TEST) == [[]] * TEST.num_rows


# ---- words ----


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 3.5 km, İstanbul!", ["it", "s", "3", "5", "km", "i̇stanbul"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京都に行く", ["東京", "京都", "都に", "に行", "行く"]),
        ("สวัสดี ok", ["สว", "วั", "ัส", "สด", "ดี", "ok"]),
        ("猫", ["猫"]),
        ("ﬁne ＡＢＣ", ["fine", "abc"]),
        (" ?! ", []),
        ("", []),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_bm25_ranks_as_its_library_does(fitted: Any) -> None:
    texts = [text.split() for text in TRAIN["text"].to_pylist()]
    index = bm25s.BM25()
    index.index(texts, show_progress=False)
    for row, ids in zip(TEST["text"].to_pylist(), shown(fitted("bm25").after, TEST), strict=True):
        by_library = index.get_scores(row.split())
        own = {place for place, text in enumerate(texts) if text == row.split()}
        ranking = [place for place in np.argsort(-by_library, kind="stable") if place not in own]
        assert ids == [f"a{place}" for place in ranking[:3]][::-1]
        best, _ = index.retrieve([row.split()], k=1, show_progress=False)
        assert by_library[best[0, 0]] == by_library.max()


def test_bm25_is_the_formula() -> None:
    """Robertson's, in Lucene's form: k1 1.5, b 0.75."""
    texts = ["ice ice snow", "snow", "sun and sea and sun", ""]
    counted = [words(text) for text in texts]
    mean = np.mean([len(one) for one in counted])

    def weight(word: str, one: list[str]) -> float:
        having = sum(word in other for other in counted)
        rare = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        return rare * one.count(word) / (one.count(word) + 1.5 * (1 - 0.75 + 0.75 * len(one) / mean))

    expected = [sum(weight(word, one) for word in ("sun", "ice", "sun")) for one in counted]
    assert Bm25(texts).scores("Sun, ice? sun") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("texts", [[""], ["", "?!"], ["ice", ""]])
@pytest.mark.parametrize("asked", ["", "unheard"])
def test_texts_that_share_no_word_score_nothing(texts: list[str], asked: str) -> None:
    assert Bm25(texts).scores(asked).tolist() == [0.0] * len(texts)


def test_scores_do_not_depend_on_the_process(tmp_path: Path) -> None:
    code = "from graft.methods.bm25 import Bm25; print(Bm25(['a b c d', 'b c', 'd d e']).scores('d c b a e').tolist())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_conversations_are_ranked_by_what_they_say(tiny_llama: Path) -> None:
    turns = [[{"role": "user", "content": f"Is {text} cold?"}] for text in ("snow", "sun", "frost", "beach")]
    table = pa.table({"id": list("abcd"), "messages": turns, "target": ["cold", "warm", "cold", "warm"]})
    data = Dataset(table, table, ("messages",), "messages", LABELS)
    method = {"name": "icl", "num_shots": 1, "selection": "bm25"}
    graph = fit(experiment(tiny_llama, method), data).after
    asked = pa.table({"messages": [[{"role": "user", "content": "What of the frost?"}]]})
    assert shown(graph, asked) == [["c"]]


# ---- similarity ----


@pytest.mark.parametrize("selection", ["random-similar", "bm25-similar", "epr-similar"])
def test_order_similar_sorts_what_is_chosen_by_cosine(selection: str, fitted: Any) -> None:
    done = fitted(selection)
    plain = fitted(selection.removesuffix("-similar")).after
    vectors = {}
    for rows in (TRAIN, TEST):
        found = done.handle.embed(rows["text"].to_pylist())
        vectors |= dict(zip(rows["id"].to_pylist(), found / np.linalg.norm(found, axis=1, keepdims=True), strict=True))
    for row, ids, chosen in zip(TEST["id"].to_pylist(), shown(done.after, TEST), shown(plain, TEST), strict=True):
        assert set(ids) == set(chosen)
        cosines = [float(vectors[row] @ vectors[one]) for one in ids]
        assert cosines == pytest.approx(sorted(cosines), abs=1e-6)


# ---- EPR ----


TOPICS, CODES = 6, 8
SIZE = 64


class Oracle(Model):
    """A stand-in for a language model that knows what helps: a demonstration with the question's code."""

    kind = "causal"

    def tokenizer(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def score(self, prompts: Any, candidates: Candidates, normalize: bool = False) -> Any:
        found = []
        for prompt in prompts:
            *before, question = [block.split("\n")[0].removeprefix("Input: ") for block in prompt.split("\n\n")]
            assert len(before) == 1
            assert before[0] != question
            helps = code_of(before[0]) == code_of(question)
            right = f" {LABELS[code_of(question) % 2]}"
            found.append([(-0.1 if helps else -2.0) if one == right else -1.0 for one in candidates])
        return np.array(found)


def code_of(text: str) -> int:
    """The code that a text is about; each of its words for it is used but once, so that no two texts share one."""
    return int(text.split()[-1].partition("x")[0])


def coded(count: int, seed: int) -> pa.Table:
    """Rows of a loud topic, which is of no help, and a quiet code, which is."""
    random = np.random.default_rng(seed)
    topics, codes = random.integers(TOPICS, size=count), random.integers(CODES, size=count)
    texts = [
        f"topic{topic} words{topic} {code}x{seed}x{place}"
        for place, (topic, code) in enumerate(zip(topics, codes, strict=True))
    ]
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    vectors = 1.5 * directions[topics] + 0.6 * directions[TOPICS + codes] + 0.1 * random.standard_normal((count, SIZE))
    return pa.table(
        {
            "id": [f"{seed}-{place}" for place in range(count)],
            "text": texts,
            "target": [LABELS[code % 2] for code in codes],
            "embedding": vector_column(vectors),
        }
    )


def recall(node: Retrieve, rows: pa.Table, known: pa.Table) -> float:
    """Share of demonstrations that have the row's own code."""
    text = dict(zip(known["id"].to_pylist(), known["text"].to_pylist(), strict=True))
    found = node.run(rows.select(node.reads))["demonstrations"].to_pylist()
    right = [
        code_of(text[one]) == code_of(own)
        for own, ids in zip(rows["text"].to_pylist(), found, strict=True)
        for one in ids
    ]
    return float(np.mean(right))


def context_of(tiny_llama: Path, states: list[Any], store: ColumnStore | None = None, **settings: Any) -> Context:
    """A context that trains as a run does."""
    from graft import training
    from graft.training.loop import Loop

    asked = experiment(tiny_llama, {"name": "icl"}, **{"max_steps": 100, "tokens_per_batch": 4096, **settings})

    def train(node: Any, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        assert node.handles() == {}
        result = Loop(training.prepare(node, rows, more, asked)).run()
        assert result is not None
        states.append(result.state)
        return result.weights

    return Context(asked, LABELS, store, train=train)


ASKED = {
    "kind": "text",
    "template": template_for("default", ("text",), "text", False).text,
    "max_tokens": None,
    "generation": False,
    "label_end": "",
    "instruction": None,
    "length_normalize": False,
    "max_new_tokens": 4,
}


def epr(**changes: Any) -> RetrieveEpr:
    oracle = Oracle(ModelSource(source="oracle"), "oracle")
    fields = {"inputs": ("text",), "num_shots": 4, "kind": "text", "candidates": 30, "model": oracle, "asked": ASKED}
    return RetrieveEpr(**{**fields, **changes})


def test_epr_learns_to_find_what_helps(tiny_llama: Path) -> None:
    train, test = coded(200, 1), coded(80, 2)
    states: list[Any] = []
    context = context_of(tiny_llama, states)
    learned = epr(candidates=60).fit(train, context)
    untrained = dataclasses.replace(
        learned, query=np.zeros_like(learned.query), demonstration=np.zeros_like(learned.query)
    )
    plain: dict[str, Any] = {"inputs": ("text",), "num_shots": 4}
    similar = RetrieveSimilar(**plain).fit(train, context)
    lexical = RetrieveBm25(**plain, kind="text").fit(train, context)
    found = {
        name: recall(node, test, train)
        for name, node in {"epr": learned, "untrained": untrained, "similar": similar, "bm25": lexical}.items()
    }
    assert found["untrained"] == found["similar"]
    assert found["bm25"] < 0.3
    assert found["epr"] > max(0.9, found["similar"] + 0.1), found
    losses = [point["loss"] for point in states[0].curve]
    assert losses[-1] < losses[0] / 2
    assert learned.parameters_trained() == 2 * SIZE**2


def test_epr_s_loss_is_that_of_the_paper_with_every_other_example_as_a_negative(tiny_llama: Path) -> None:
    train = coded(20, 1)
    taken: list[tuple[Any, pa.Table]] = []

    def keep(node: Any, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        taken.append((node, rows))
        return {name: np.zeros((SIZE, SIZE)) for name in ("query", "demonstration")}

    context = dataclasses.replace(context_of(tiny_llama, []), train=keep)
    node = epr(candidates=6).fit(train, context)
    learner, lessons = taken[0]
    random = np.random.default_rng(0)
    query, demonstration = (0.1 * random.standard_normal((SIZE, SIZE)) for _ in range(2))
    module = learner.build()
    with torch.no_grad():
        module.query.copy_(torch.from_numpy(query))
        module.demonstration.copy_(torch.from_numpy(demonstration))
        loss = float(module(**learner.collate(learner.encode(lessons)))[0])
    vectors = np.asarray(node.vectors, np.float64)
    expected = 0.0
    for row in lessons.to_pylist():
        asked = vectors[row["own"]] + query @ vectors[row["own"]]
        weights = {p: math.exp(asked @ (v + demonstration @ v) / 0.05) for p, v in enumerate(vectors)}
        negatives = sum(value for place, value in weights.items() if place not in row["spared"])
        assert len(row["positives"]) == 3
        assert sorted(row["spared"]) == sorted([row["own"], *row["positives"]])
        expected += sum(-math.log(weights[p] / (weights[p] + negatives)) for p in row["positives"])
    assert loss == pytest.approx(expected, rel=1e-4)
    assert sum(sum(one) for one in learner.encode(lessons)["targets"].to_pylist()) == 3 * 20


def test_epr_never_learns_from_a_row_that_says_the_same(tiny_llama: Path) -> None:
    """The oracle refuses to judge one, and it is no negative either."""
    once = coded(12, 1)
    twins = once.set_column(0, "id", pa.array([f"twin-{place}" for place in range(12)]))
    taken: list[pa.Table] = []

    def keep(node: Any, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        taken.append(rows)
        return {name: np.zeros((SIZE, SIZE)) for name in ("query", "demonstration")}

    rows = pa.concat_tables([once, twins]).combine_chunks()
    epr().fit(rows, dataclasses.replace(context_of(tiny_llama, []), train=keep))
    for lesson in taken[0].to_pylist():
        both = {lesson["own"], (lesson["own"] + 12) % 24}
        assert both <= set(lesson["spared"])
        assert not both & set(lesson["positives"])


@pytest.mark.parametrize("generation", [False, True])
def test_epr_s_judgements_are_log_probabilities_after_one_demonstration(generation: bool, tiny_llama: Path) -> None:
    rows = TRAIN.slice(0, 4)
    handle = models.load(str(tiny_llama))
    template = template_for("default", ("text",), "text", generation).text
    asked = {**ASKED, "generation": generation, "template": template}
    node = epr(model=handle, asked=asked)
    near = [[1, 2], [0, 3], [3], []]
    labels = None if generation else LABELS
    context = dataclasses.replace(context_of(tiny_llama, []), labels=labels)
    found = iter(node._values(rows, near, context))
    said, word = rows.to_pylist(), "Output" if generation else "Label"
    for own, places in enumerate(near):
        for place in places:
            shot = f"Input: {said[place]['text']}\n{word}: {said[place]['target']}"
            raw = handle.score([f"{shot}\n\nInput: {said[own]['text']}\n{word}:"], [f" {label}" for label in LABELS])[0]
            logs = raw if generation else raw - np.logaddexp.reduce(raw)
            assert next(found) == pytest.approx(logs[LABELS.index(said[own]["target"])], abs=1e-4)


def test_epr_asks_the_model_once_for_what_regimes_have_in_common(tiny_llama: Path, tmp_path: Path) -> None:
    store = ColumnStore(open_storage(tmp_path))
    first = epr(candidates=200).fit(coded(20, 1), context_of(tiny_llama, [], store))
    assert store.reads == 0
    again = epr(candidates=200).fit(coded(20, 1), context_of(tiny_llama, [], store))
    assert store.reads == 20 * 19
    assert again.fingerprint() == first.fingerprint()


def test_epr_s_training_is_validated_and_accumulated_like_any_other(tiny_llama: Path) -> None:
    states: list[Any] = []
    train = coded(60, 1)
    whole, parts, looked = (
        epr().fit(train, context_of(tiny_llama, states, max_steps=5, **settings))
        for settings in ({}, {"tokens_per_device": 50}, {"validate_every_steps": 2})
    )
    assert parts.query == pytest.approx(whole.query, abs=1e-5)
    assert states[2].best_loss is not None
    assert looked.query is not None


def test_epr_needs_rows_to_compare(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match=r"method\.selection: epr got 2 examples; it needs at least 3"):
        epr(num_shots=1).fit(coded(2, 1), context_of(tiny_llama, []))


def test_epr_leaves_the_frozen_models_as_they_are(fitted: Any, tiny_llama: Path) -> None:
    done = fitted("epr")
    assert network_digest(done.handle.network) == network_digest(
        transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    )
    assert done.states[0].step == 8


def test_epr_writes_free_text(tiny_llama: Path) -> None:
    method = {"name": "icl", "num_shots": 1, "max_new_tokens": 3, **SELECTIONS["epr"]}
    answers = fit(experiment(tiny_llama, method, max_steps=2), dataset(generation=True)).after.run(TEST)
    assert len(answers["prediction"]) == TEST.num_rows


# ---- entropy ----


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 40])
def test_permutations_are_all_or_24_different_ones_the_given_first(count: int) -> None:
    found = permutations(count, seed=0)
    assert len(found) == len(set(found)) == min(24, math.factorial(count))
    assert found[0] == tuple(range(count))
    assert all(sorted(one) == list(range(count)) for one in found)
    assert permutations(count, seed=0) == found
    assert (permutations(count, seed=1) == found) == (count <= 4)


def test_entropies_by_their_closed_form() -> None:
    probabilities = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.5, 0.5], [0.2, 0.8]], [[1.0, 0.0], [1.0, 0.0]]])
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    # Predicted: both the first label; one of each (the first of two equal ones); both the first.
    assert entropies("global_entropy", logs) == pytest.approx([0, math.log(2), 0], abs=1e-12)
    binary = {p: -(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.9, 0.6, 0.5, 0.2)}
    expected = [(binary[0.9] + binary[0.6]) / 2, (binary[0.5] + binary[0.2]) / 2, 0]
    assert entropies("local_entropy", logs) == pytest.approx(expected)


BALANCED = ("girl", "red")
"""Labels of which the tiny model now prefers the one, now the other."""


def naive(folder: Path, prompts: list[str]) -> np.ndarray:
    """Probabilities of the labels, one sequence at a time, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = np.zeros((len(prompts), len(BALANCED)))
    for i, prompt in enumerate(prompts):
        start = len(tokenizer(prompt)["input_ids"])
        for j, label in enumerate(BALANCED):
            ids = torch.tensor([tokenizer(f"{prompt} {label}")["input_ids"]])
            with torch.inference_mode():
                logs = model(ids).logits[0].log_softmax(-1)
            found[i, j] = sum(float(logs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    odds = np.exp(found - found.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("which", ["global_entropy", "local_entropy"])
def test_the_order_is_that_of_highest_entropy_on_what_the_model_writes(which: str, tiny_llama: Path) -> None:
    handle = models.load(str(tiny_llama))
    targets = [BALANCED[LABELS.index(target)] for target in TRAIN["target"].to_pylist()]
    train = TRAIN.set_column(2, "target", pa.array(targets))
    data = Dataset(train, TEST, ("text",), "text", BALANCED)
    text = {row["id"]: row for row in train.to_pylist()}
    drawn = shown(fit(spec(tiny_llama, "random"), data).after, TEST)[0]
    blocks = [f"Input: {text[one]['text']}\nLabel: {text[one]['target']}" for one in drawn]
    orders = list(itertools.permutations(range(3)))
    heads = ["\n\n".join(blocks[place] for place in order) for order in orders]
    limit = max(handle.count_tokens([text[one]["text"] for one in drawn]))
    written = handle.generate([f"{head}\n\nInput:" for head in heads], int(limit), stop=("\nLabel:", "\n\n"))
    asked = [one.strip() for one in written if one.strip()]
    assert len(set(asked)) > 1
    found = []
    for head in heads:
        probabilities = naive(tiny_llama, [f"{head}\n\nInput: {one}\nLabel:" for one in asked])
        if which == "global_entropy":
            shares = np.bincount(probabilities.argmax(axis=1), minlength=2) / len(asked)
            found.append(-sum(p * math.log(p) for p in shares if p))
        else:
            found.append(float(np.mean([-sum(p * math.log(p) for p in row) for row in probabilities])))
    best = int(np.argmax(np.round(found, DIGITS)))
    assert found[best] > found[0]  # the order of the draw would be the wrong one
    assert shown(fit(spec(tiny_llama, which), data).after, TEST)[0] == [drawn[place] for place in orders[best]]


def test_no_target_but_those_of_the_demonstrations_decides_the_order(fitted: Any, tiny_llama: Path) -> None:
    known = shown(fitted("local_entropy").after, TEST)[0]
    others = [
        "warm" if target == "cold" and one not in known else target
        for one, target in zip(TRAIN["id"].to_pylist(), TRAIN["target"].to_pylist(), strict=True)
    ]
    data = dataset(TRAIN.set_column(2, "target", pa.array(others)))
    assert shown(fit(spec(tiny_llama, "local_entropy"), data).after, TEST)[0] == known


def test_what_is_written_and_judged_is_kept(tiny_llama: Path, tmp_path: Path) -> None:
    store = ColumnStore(open_storage(tmp_path))
    asked = spec(tiny_llama, "local_entropy")
    handle = models.load(str(tiny_llama))
    assert asked.method is not None
    node = retrieve_of(asked.method.graph(asked.task, dataset(), {"base": handle}))
    first = node.fit(TRAIN, Context(asked, LABELS, store))
    passes = handle.usage.forward_passes
    again = node.fit(TRAIN, Context(asked, LABELS, store))
    assert handle.usage.forward_passes == passes
    assert again.fingerprint() == first.fingerprint()


def test_demonstrations_too_long_to_write_after_say_so(tiny_llama: Path) -> None:
    long = TRAIN.set_column(1, "text", pa.array([f"{text} snow" * 25 for text in TRAIN["text"].to_pylist()]))
    with pytest.raises(ModelError, match=r"tokens too long.*lower method\.num_shots.*order: given"):
        fit(spec(tiny_llama, "local_entropy"), dataset(long))


def test_imagined_conversations_are_a_user_s_turn(tiny_llama: Path) -> None:
    template = template_for("default", ("messages",), "messages", False).text
    asked = {**ASKED, "kind": "messages", "template": template}
    node = Imagine(model=models.load(str(tiny_llama)), inputs=("messages",), **asked)
    assert node.row("user: Is it cold?\nLabel: cold") == {"messages": [{"role": "user", "content": "Is it cold?"}]}


@pytest.mark.parametrize("which", ["global_entropy", "local_entropy"])
def test_conversations_and_encoder_decoders_are_ordered_too(which: str, tiny_t5: Path, tiny_llama: Path) -> None:
    assert len(shown(fit(spec(tiny_t5, which)).after, TEST)[0]) == 3
    turns = [[{"role": "user", "content": f"Is {text} cold?"}] for text in TRAIN["text"].to_pylist()]
    table = TRAIN.select(["id", "target"]).append_column("messages", pa.array(turns))
    data = Dataset(table, table, ("messages",), "messages", LABELS)
    node = retrieve_of(fit(spec(tiny_llama, which), data).after)
    assert isinstance(node, RetrieveOrdered)
    assert sorted(node.ids) == sorted(TRAIN["id"].to_pylist())


# ---- specs ----


@pytest.mark.parametrize("selection", ["similar", "bm25", "epr"])
def test_entropy_orders_one_draw_for_all_rows(selection: str, tiny_llama: Path) -> None:
    method = {"name": "icl", "selection": selection, "order": "local_entropy"}
    with pytest.raises(SpecError, match=r"order local_entropy .* use selection: random, or order: given or similar"):
        experiment(tiny_llama, method)


def test_entropy_is_of_labels(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match=r"method\.order: global_entropy is for labels; .* use given or similar"):
        fit(spec(tiny_llama, "global_entropy"), dataset(generation=True))


@pytest.mark.parametrize(
    ("method", "role"),
    [({"selection": "epr"}, True), ({"order": "similar"}, True), ({"selection": "bm25"}, False), ({}, False)],
)
def test_an_encoder_is_read_where_similarity_is_asked_for(method: dict[str, Any], role: bool, tiny_llama: Path) -> None:
    asked = experiment(tiny_llama, {"name": "icl", **method}).resolved()
    assert ("encoder" in asked.models) == role


@pytest.mark.parametrize(
    ("method", "error", "match"),
    [
        ({"selection": "epr"}, ModelError, r"method\.selection: epr asks how probable .* use similar or bm25"),
        ({"selection": "similar"}, SpecError, r"models\.encoder is missing: selection: similar needs one"),
        ({"selection": "bm25", "order": "similar"}, SpecError, r"models\.encoder is missing: order: similar needs"),
    ],
)
def test_an_endpoint_says_too_little(
    method: dict[str, Any], error: type[Exception], match: str, tiny_llama: Path
) -> None:
    endpoint = models.load("endpoint:http://127.0.0.1:9#none")
    asked = experiment(tiny_llama, {"name": "icl", **method})
    assert asked.method is not None
    with pytest.raises(error, match=match):
        asked.method.graph(asked.task, dataset(generation=True), {"base": endpoint})


def test_answers_follow_the_demonstrations(fitted: Any) -> None:
    """Other demonstrations, other answers: what is chosen reaches the prompt."""
    answers = [scores(fitted(selection).after) for selection in ("random", "similar", "bm25", "epr")]
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one - other).max() > 1e-4
