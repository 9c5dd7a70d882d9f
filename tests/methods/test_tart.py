"""TART: labelled rows are read and nothing is trained; what cannot matter does not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import graft
from graft import planning, runner
from graft.arrays import score_matrix, vector_column
from graft.errors import DataError, ModelError, SpecError
from graft.models.heads.hybrid import HybridHead
from graft.models.heads.tart import TartHead
from graft.models.in_context import InContext
from graft.node import Context
from graft.spec import Experiment
from graft.storage import open_storage
from graft.store import ColumnStore

FIRST = ["the film was", "we found it", "a story that is", "this evening was", "the actors are"]
SECOND = {
    "good": ["moving and beautiful", "a joy", "warm and funny", "full of charm", "worth every minute"],
    "bad": ["dull and slow", "a bore", "cold and empty", "full of holes", "a waste of time"],
    "odd": ["about a purple fish", "told backwards", "sung in Latin", "upside down", "all in green"],
}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid head that has learned something, though nothing sensible."""
    folder = tmp_path_factory.mktemp("heads")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for kind, network in (("hybrid", HybridHead(4, 16, 1, 2)), ("tart", TartHead(4, 30, 16, 1, 2))):
            for weight in network.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
            network.save(folder / kind)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [f"{a} {b},{label}" for label, several in SECOND.items() for b in several for a in FIRST]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return tmp_path / "rows.csv"


def spec(rows: Path, encoder: Path, heads: Path, examples: int = 6, **method: Any) -> Experiment:
    return Experiment.from_mapping(
        {
            "name": "read",
            "models": {"encoder": {"source": str(encoder)}},
            "task": {"name": "file", "path": str(rows), "text": "text", "label": "label", "test_examples": 20},
            "regime": {"examples": examples},
            "method": {"name": "tart", "head": str(heads / "hybrid"), **method},
        }
    )


@pytest.mark.parametrize("protocol", ["stream", "vanilla", "loo"])
@pytest.mark.parametrize("kind", ["hybrid", "tart"])
def test_every_protocol_answers_and_is_kept(
    protocol: str, kind: str, rows: Path, tiny_llama: Path, head: Path, tmp_path: Path
) -> None:
    one = spec(rows, tiny_llama, head, protocol=protocol, head=str(head / kind))
    result = runner.run(one, tmp_path)
    graph = graft.load(tmp_path / "runs" / result.run_id)
    texts = pa.table({"text": ["the film was a joy", "told backwards", "a bore"]})
    whole = score_matrix(graph.run(texts)["scores"], ("bad", "good", "odd"))
    alone = [score_matrix(graph.run(texts.slice(at, 1))["scores"], ("bad", "good", "odd"))[0] for at in range(3)]
    np.testing.assert_allclose(np.stack(alone), whole, atol=1e-4)  # alone and among others


def test_its_answers_are_those_of_its_parts(rows: Path, tiny_llama: Path, head: Path, tmp_path: Path) -> None:
    """Leave-one-out by the letter: every labelled row's vector from a prompt of all the others, no cache."""
    planned = planning.plan(spec(rows, tiny_llama, head, protocol="loo", faithful_order=True))
    graph = runner.carry_out(planned, open_storage(tmp_path), None)
    fitted = graft.load(tmp_path / "runs" / graph.run_id)
    embed, reason = fitted.nodes
    blocks = embed._shown(embed._template())
    naive = InContext(planned.models["encoder"], blocks, share=False).left_out(True)
    np.testing.assert_allclose(reason.memory, naive, atol=2e-5)
    assert [example["target"] for example in embed.examples] == [reason.labels[at] for at in reason.memory_labels]


def test_a_labelled_row_never_sees_its_own_label_and_an_asked_one_sees_all(
    rows: Path, tiny_llama: Path, head: Path
) -> None:
    experiment = spec(rows, tiny_llama, head, protocol="loo")
    planned = planning.plan(experiment)
    embed = planned.graph.nodes[0]
    context = Context(experiment, planned.dataset.labels)
    fitted = embed.fit(planned.examples, context)
    other = planned.examples.set_column(
        planned.examples.column_names.index("target"),
        "target",
        pa.array(["odd" if at == 0 else label for at, label in enumerate(planned.examples["target"].to_pylist())]),
    )
    relabelled = embed.fit(other, context)
    read = planned.examples.select(["id", "text"])
    before, after = (np.stack(node.run(read)["embedding"].to_pylist()) for node in (fitted, relabelled))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1:] - after[1:]).max(axis=1).min() > 1e-6
    asked = planned.dataset.test.select(["id", "text"])
    before, after = (np.stack(node.run(asked)["embedding"].to_pylist()) for node in (fitted, relabelled))
    assert np.abs(before - after).max(axis=1).min() > 1e-6


def test_an_asked_row_with_the_id_of_a_labelled_one_is_still_asked(
    rows: Path, tiny_llama: Path, head: Path, tmp_path: Path
) -> None:
    result = runner.run(spec(rows, tiny_llama, head, protocol="loo"), tmp_path)
    graph = graft.load(tmp_path / "runs" / result.run_id)
    taken = [example["id"] for example in graph.nodes[0].examples]
    texts = [f"an evening of number {at}" for at in range(len(taken))]
    with_ids = graph.run(pa.table({"id": taken, "text": texts}))
    assert with_ids["scores"].equals(graph.run(pa.table({"text": texts}))["scores"])


def test_faithful_switches_are_other_vectors(rows: Path, tiny_llama: Path, head: Path) -> None:
    found, ids = {}, set()
    for name, switches in {
        "ours": {},
        "span": {"faithful_span": True},
        "order": {"faithful_order": True},
        "components": {"components": 2},
    }.items():
        planned = planning.plan(spec(rows, tiny_llama, head, protocol="loo", **switches))
        embed = planned.graph.nodes[0].fit(planned.examples, Context(planned.experiment, planned.dataset.labels))
        found[name] = np.stack(embed.run(planned.examples.select(["id", "text"]))["embedding"].to_pylist())
        ids.add(planned.run_id)
    assert len(ids) == 4
    np.testing.assert_array_equal(found["components"], found["ours"])
    assert np.abs(found["span"] - found["ours"]).max(axis=1).min() > 1e-3
    assert np.abs(found["order"] - found["ours"]).max() > 1e-3


def test_the_authors_span_takes_the_words_around_a_text(rows: Path, tiny_llama: Path, head: Path) -> None:
    planned = planning.plan(spec(rows, tiny_llama, head, protocol="vanilla", faithful_span=True))
    embed = planned.graph.nodes[0].fit(planned.examples, Context(planned.experiment, planned.dataset.labels))
    template, tokenizer = embed._template(), planned.models["encoder"].tokenizer
    row = {"text": "the film was a joy"}
    shown, asked = embed._block(template, {**row, "target": "good"}), embed._block(template, row)
    said = tokenizer.decode(shown.ids[shown.begin : shown.end])
    assert said == template.query(row)  # with the words before the text, and those between it and the label
    assert tokenizer.decode(asked.ids[asked.begin : asked.end]).strip().endswith("the film was a joy")


def test_a_head_is_known_by_its_weights_and_not_by_its_place(
    rows: Path, tiny_llama: Path, head: Path, tmp_path: Path
) -> None:
    shutil.copytree(head / "hybrid", tmp_path / "elsewhere" / "hybrid")
    assert (
        planning.plan(spec(rows, tiny_llama, head)).run_id
        == planning.plan(spec(rows, tiny_llama, tmp_path / "elsewhere")).run_id
    )


def test_rows_of_numbers_need_no_encoder(head: Path, tmp_path: Path) -> None:
    one = Experiment.from_mapping(
        {
            "name": "wine",
            "task": {"name": "wine"},
            "regime": {"examples": 30},
            "method": {"name": "tart", "head": str(head / "hybrid")},
        }
    )
    assert (runner.run(one, tmp_path).metric("accuracy") or 0) > 0.8


def test_the_store_gives_what_was_computed(rows: Path, tiny_llama: Path, head: Path, tmp_path: Path) -> None:
    files = open_storage(tmp_path)
    store = ColumnStore(files, 1 << 30)
    planned = planning.plan(spec(rows, tiny_llama, head, protocol="vanilla"))
    runner.carry_out(planned, files, store)
    before = planned.models["encoder"].usage.tokens
    again = planning.plan(spec(rows, tiny_llama, head, protocol="vanilla", components=2))
    runner.carry_out(again, files, store)
    assert planned.models["encoder"].usage.tokens == before
    assert store.reads >= 26


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ({"head": "hybrit"}, ModelError, "recipe:hybrit: no such model"),
        ({"head": "/nowhere/at/all"}, ModelError, "no such model"),
        ({"faithful_span": True}, SpecError, "faithful_span is for protocol vanilla or loo"),
        ({"protocol": "lou"}, SpecError, "protocol"),
        ({"components": 9}, SpecError, "got 9; head .* reads 4"),
    ],
)
def test_a_wrong_spec_names_the_cure(
    method: dict[str, Any], error: type[Exception], message: str, rows: Path, tiny_llama: Path, head: Path
) -> None:
    with pytest.raises(error, match=message):
        planning.plan(spec(rows, tiny_llama, head, **method))


def test_an_encoder_cannot_be_shown_rows(rows: Path, tiny_bert: Path, head: Path) -> None:
    with pytest.raises(ModelError, match="is an encoder model; labelled rows are shown to a causal one"):
        planning.plan(spec(rows, tiny_bert, head, protocol="loo"))


def test_prompts_that_do_not_fit_name_the_largest_number_that_does(
    rows: Path, tiny_llama: Path, head: Path, tmp_path: Path
) -> None:
    message = r"a prompt that shows \d+ labelled rows has \d+ tokens, the context of .* holds \d+; \d+ fit"
    with pytest.raises(ModelError, match=message) as error:
        runner.run(spec(rows, tiny_llama, head, examples=50, protocol="vanilla"), tmp_path)
    fit = int(str(error.value).split("; ")[1].split()[0])
    runner.run(spec(rows, tiny_llama, head, examples=fit, protocol="vanilla"), tmp_path)
    with pytest.raises(ModelError, match=message):
        runner.run(spec(rows, tiny_llama, head, examples=fit + 1, protocol="vanilla"), tmp_path)


def test_numbers_that_are_not_finite_and_one_label_only_are_refused(head: Path) -> None:
    wine = Experiment.from_mapping(
        {"name": "x", "task": {"name": "wine"}, "method": {"name": "tart", "head": str(head / "hybrid")}}
    )
    reason = planning.plan(wine).graph.nodes[0]
    vectors = vector_column(np.array([[1, 2], [np.nan, 4]], np.float32))
    rows = pa.table({"id": ["r0", "r1"], "vector": vectors, "target": ["a", "b"]})
    with pytest.raises(DataError, match="row r1 holds a number that is not finite"):
        reason.fit(rows, Context(wine, ("a", "b")))
    with pytest.raises(DataError, match="one label only, 'a'"):
        reason.fit(rows, Context(wine, ("a",)))
