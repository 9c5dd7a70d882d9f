"""One experiment from spec to files: identity, resumption, and the laws that hold for every method."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs, parquet
from rich.console import Console

import graft
from graft import execution, models, planning, runner, runs
from graft.errors import DataError, GraftError, ModelError, SpecError
from graft.methods.answering import Answer
from graft.prediction import predict_file
from graft.results.listing import details, run_table
from graft.results.outcomes import outcomes
from graft.results.records import METRICS
from graft.results.tables import main_metric, summary
from graft.spec import Experiment, Regime
from graft.storage import open_storage
from graft.tasks.evaluation import by_group, evaluate
from graft.tasks.groups import GroupedTask

WORDS = {
    "weather": ["rain", "snow", "storm", "cloud"],
    "food": ["bread", "soup", "apple", "cheese"],
    "sea": ["wave", "ship", "fish", "tide"],
}

METHODS: dict[str, dict[str, Any]] = {
    **{
        name: {"name": "probe", "classifier": name}
        for name in ("majority", "centroid", "knn", "lda", "ridge", "logistic")
    },
    "tart": {"name": "tart"},
    "tart-head": {"name": "tart", "head": "tart"},
    "tart-loo": {"name": "tart", "protocol": "loo"},
    "tart-vanilla": {"name": "tart", "protocol": "vanilla"},
    "icl": {"name": "icl", "num_shots": 2},
    "icl-calibrated": {"name": "icl", "num_shots": 1, "calibrate": True},
    "icl-similar": {"name": "icl", "num_shots": 2, "selection": "similar"},
    "icl-bm25": {"name": "icl", "num_shots": 2, "selection": "bm25", "order": "similar"},
    "icl-epr": {"name": "icl", "num_shots": 2, "selection": "epr", "epr_candidates": 4},
    "icl-entropy": {"name": "icl", "num_shots": 2, "order": "global_entropy"},
}


def write_csv(path: Path, rows: int = 150, scrambled: bool = False) -> Path:
    """Sentences of which one word tells the label; scrambled labels tell nothing."""
    random = np.random.default_rng(5)
    labels = [str(label) for label in random.choice(list(WORDS), size=rows)]
    texts = [f"{random.choice(WORDS[label])} number {i} of {random.integers(99)}" for i, label in enumerate(labels)]
    shown = [str(label) for label in random.permutation(labels)] if scrambled else labels
    path.write_text("text,topic\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, shown, strict=True)))
    return path


def experiment(csv: Path, method: dict[str, Any], encoder: Path, base: Path, **changes: Any) -> Experiment:
    if "protocol" in method:  # labelled rows are shown to a causal model; six of them fit its context
        encoder, changes = base, {**changes, "regime": {"examples": 6}}
    values = {
        "name": "topics",
        "models": {"encoder": {"source": str(encoder)}, "base": {"source": str(base)}},
        "task": {"name": "file", "path": str(csv), "text": "text", "label": "topic"},
        "regime": {"examples": 30},
        "method": method,
        "training": {"max_steps": 20},
    }
    return Experiment.from_mapping({**values, **changes})


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "topics.csv")


@pytest.fixture
def logistic(csv: Path, tiny_bert: Path, tiny_llama: Path) -> Experiment:
    return experiment(csv, METHODS["logistic"], tiny_bert, tiny_llama)


def test_a_run_writes_the_files_of_the_surface(logistic: Experiment, tmp_path: Path) -> None:
    result = logistic.run(tmp_path / "out")
    folder = tmp_path / "out" / "runs" / result.run_id
    assert {path.name for path in folder.iterdir()} == {
        "spec.yaml",
        "graph",
        "metrics.parquet",
        "predictions.parquet",
        "run.log",
    }
    metrics = parquet.read_table(folder / "metrics.parquet")
    assert metrics.schema.names == METRICS.names
    assert set(metrics["metric"].to_pylist()) == {
        *("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auc_pr", "log_loss", "ece")
    }
    assert set(metrics["n"].to_pylist()) == {50}
    row = metrics.slice(0, 1).to_pylist()[0]
    assert row["examples"] == 30
    assert row["forward_passes"] == 80
    assert row["parameters_trainable"] > 0
    assert json.loads(row["spec"])["method"]["classifier"] == "logistic"
    predictions = parquet.read_table(folder / "predictions.parquet")
    assert predictions.column_names == ["id", "split", "text", "target", "prediction", "scores"]
    accuracy = np.mean(
        [a == b for a, b in zip(*(predictions[c].to_pylist() for c in ("target", "prediction")), strict=True)]
    )
    assert result.metric("accuracy") == pytest.approx(accuracy)


def test_the_run_id_hashes_contents_and_never_paths(
    csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    first = planning.plan(experiment(csv, METHODS["logistic"], tiny_bert, tiny_llama)).run_id
    moved_csv = Path(shutil.copy(csv, tmp_path / "moved.csv"))
    moved_model = Path(shutil.copytree(tiny_bert, tmp_path / "moved-model"))
    assert planning.plan(experiment(moved_csv, METHODS["logistic"], moved_model, tiny_llama)).run_id == first
    moved_csv.write_text(moved_csv.read_text().replace("number 3 ", "number 4 "))
    assert planning.plan(experiment(moved_csv, METHODS["logistic"], tiny_bert, tiny_llama)).run_id != first
    assert planning.plan(experiment(csv, METHODS["ridge"], tiny_bert, tiny_llama)).run_id != first
    assert planning.plan(experiment(csv, METHODS["logistic"], tiny_llama, tiny_llama)).run_id != first


def test_a_done_run_is_read_and_not_run_again(logistic: Experiment, tmp_path: Path) -> None:
    first = logistic.run(tmp_path)
    written = (tmp_path / "runs" / first.run_id / "metrics.parquet").stat().st_mtime_ns
    again = logistic.run(tmp_path)
    assert again.metrics.equals(first.metrics)
    assert again.predictions.equals(first.predictions)
    assert (tmp_path / "runs" / first.run_id / "metrics.parquet").stat().st_mtime_ns == written


def test_the_same_spec_gives_the_same_numbers_stored_or_recomputed(logistic: Experiment, tmp_path: Path) -> None:
    first = logistic.run(tmp_path / "a")
    fresh = logistic.run(tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "runs")
    stored = logistic.run(tmp_path / "a")
    assert fresh.predictions.equals(first.predictions)
    assert stored.predictions.equals(first.predictions)
    assert stored.metrics["forward_passes"][0].as_py() == 0
    assert stored.metrics["store_reads"][0].as_py() == 80


def test_another_amount_of_data_embeds_only_the_rows_that_are_new(
    csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    for examples, passes in ((30, 80), (40, 10), (20, 0)):
        spec = experiment(csv, METHODS["ridge"], tiny_bert, tiny_llama, regime={"examples": examples})
        assert spec.run(tmp_path).metrics["forward_passes"][0].as_py() == passes


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_a_graph_answers_what_was_evaluated(
    method: str, csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    result = experiment(csv, METHODS[method], tiny_bert, tiny_llama).run(tmp_path)
    answers = graft.load(tmp_path / "runs" / result.run_id).run(result.predictions.select(["id", "text"]))
    assert answers["prediction"].to_pylist() == result.predictions["prediction"].to_pylist()
    for got, expected in zip(answers["scores"].to_pylist(), result.predictions["scores"].to_pylist(), strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_scrambled_labels_give_chance(method: str, tiny_bert: Path, tiny_llama: Path, tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "scrambled.csv", rows=450, scrambled=True)
    result = experiment(csv, METHODS[method], tiny_bert, tiny_llama, regime={"examples": 60}).run(tmp_path)
    # 150 test rows, 3 labels: four standard errors around a third.
    assert abs(result.metric("accuracy") - 1 / 3) < 4 * (2 / 9 / 150) ** 0.5


@pytest.mark.parametrize("method", METHODS)
def test_frozen_stays_frozen_and_the_test_targets_reach_nothing(
    method: str, csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    spec = experiment(csv, METHODS[method], tiny_bert, tiny_llama)
    plan = planning.plan(spec)
    before = {role: models.fingerprint(source) for role, source in plan.experiment.models.items()}
    weights = {role: _weights(handle) for role, handle in plan.models.items()}
    result = runner.carry_out(plan, open_storage(tmp_path / "a"), None)
    assert {role: models.fingerprint(source) for role, source in plan.experiment.models.items()} == before
    assert {role: _weights(handle) for role, handle in plan.models.items()} == weights
    test = plan.dataset.test
    place = test.column_names.index("target")
    turned = test.set_column(place, "target", pa.array(test["target"].to_pylist()[::-1]))
    other = planning.Plan(
        **{**vars(plan), "dataset": type(plan.dataset)(**{**_fields(plan.dataset), "test": turned}), "test": turned}
    )
    blind = runner.carry_out(other, open_storage(tmp_path / "b"), None)
    assert blind.predictions.select(["prediction", "scores"]).equals(
        result.predictions.select(["prediction", "scores"])
    )


def _fields(dataset: Any) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in type(dataset).__dataclass_fields__}


def _weights(handle: Any) -> float:
    _ = handle.network  # loaded when it is asked for
    modules = [value for value in vars(handle).values() if hasattr(value, "parameters") and callable(value.parameters)]
    assert modules
    assert not any(weight.requires_grad for module in modules for weight in module.parameters())
    return sum(float(weight.double().abs().sum()) for module in modules for weight in module.parameters())


@pytest.mark.parametrize("method", ["logistic", "icl", "icl-similar"])
def test_order_and_batch_of_rows_do_not_matter(
    method: str, csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    result = experiment(csv, METHODS[method], tiny_bert, tiny_llama).run(tmp_path)
    rows = result.predictions.select(["id", "text"])
    order = np.random.default_rng(0).permutation(rows.num_rows)[:7]
    answers = result.graph.run(rows.take(order))
    for got, place in zip(answers["scores"].to_pylist(), order, strict=True):
        assert got == pytest.approx(result.predictions["scores"][int(place)].as_py(), rel=1e-4, abs=1e-5)


def test_free_text_targets_are_generated_and_scored_as_text(tiny_llama: Path, tmp_path: Path) -> None:
    csv = tmp_path / "qa.csv"
    csv.write_text("question,answer\n" + "".join(f"what is {i},it is {i}\n" for i in range(30)))
    values = {
        "name": "qa",
        "models": {"base": {"source": str(tiny_llama)}},
        "task": {"name": "file", "path": str(csv), "text": "question", "target": "answer"},
        "regime": {"examples": 4},
        "method": {"name": "icl", "num_shots": 2, "max_new_tokens": 5},
    }
    result = Experiment.from_mapping(values).run(tmp_path)
    assert set(result.metrics["metric"].to_pylist()) == {"exact_match", "f1", "chrf", "parsed", "perplexity"}


def test_a_fold_and_a_training_hold_out_no_copy_of_what_is_learned(tiny_llama: Path, tmp_path: Path) -> None:
    lines = [f"text {row // 4},{'ab'[row // 4 % 2]}" for row in range(160)]
    (tmp_path / "copies.csv").write_text("text,topic\n" + "\n".join(lines) + "\n")
    training = {"max_steps": 1, "validate_every_steps": 1}
    asked = experiment(tmp_path / "copies.csv", {"name": "full"}, tiny_llama, tiny_llama, training=training)
    for examples in (30, 100):
        plan = planning.plan(asked.model_copy(update={"regime": Regime(examples=examples, fold=0)}))
        assert not set(plan.test["text"].to_pylist()) & set(plan.examples["text"].to_pylist())
    (tmp_path / "one.csv").write_text("text,topic\n" + "a text,a\na text,b\n" * 4)
    (tmp_path / "test.csv").write_text("text,topic\nanother,a\n")
    task = {"name": "file", "text": "text", "label": "topic"}
    task |= {name: str(tmp_path / f"{file}.csv") for name, file in (("train", "one"), ("test", "test"))}
    one = experiment(tmp_path, {"name": "full"}, tiny_llama, tiny_llama, training=training, task=task)
    with pytest.raises(DataError, match="at least 2 different inputs and items, got 8 of one"):
        one.model_copy(update={"regime": Regime(examples=8)}).run(tmp_path / "out")


def test_why_a_run_failed_is_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"what is {i},it is {i}\n" for i in range(20)))
    values = {
        "name": "unanswered",
        "models": {"base": {"source": "endpoint:http://127.0.0.1:1/v1#nobody"}},
        "task": {"name": "file", "path": str(tmp_path / "rows.csv"), "text": "question", "target": "answer"},
        "regime": {"examples": 4},
        "method": {"name": "icl", "num_shots": 1, "max_new_tokens": 3},
    }
    with pytest.raises(ModelError, match="gave up after 3 attempts") as caught:
        Experiment.from_mapping(values).run(tmp_path)
    (log,) = tmp_path.glob("runs/*/run.log")
    lines = log.read_text().splitlines()
    assert any(line.endswith(f"the run stopped: {caught.value}") for line in lines)
    assert any("WARNING" in line and "asking again after" in line for line in lines)


def test_a_target_too_long_to_be_scored_costs_the_perplexity_alone(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question,answer\n" + "".join(f"what is {i},it is {i}\n" for i in range(9)))
    (tmp_path / "test.csv").write_text(f"question,answer\nand this,{'word ' * 300}\nand that,that\n")
    places = {key: str(tmp_path / f"{key}.csv") for key in ("train", "test")}
    values = {
        "name": "long",
        "models": {"base": {"source": str(tiny_llama)}},
        "task": {"name": "file", **places, "text": "question", "target": "answer"},
        "regime": {"examples": 4},
        "method": {"name": "icl", "num_shots": 1, "max_new_tokens": 3},
    }
    result = Experiment.from_mapping(values).run(tmp_path)
    assert set(result.metrics["metric"].to_pylist()) == {"exact_match", "f1", "chrf", "parsed"}
    assert result.predictions.num_rows == 2
    assert (tmp_path / "runs" / result.run_id / "run.log").read_text().count("no perplexity") == 1


def test_equal_questions_get_equal_answers_whatever_their_place(
    csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    result = experiment(csv, METHODS["icl-similar"], tiny_bert, tiny_llama).run(tmp_path)
    (tmp_path / "asked.csv").write_text("text\n" + "rain number 3 of 7\n" * 60)
    assert predict_file(result.run_id, tmp_path / "asked.csv", tmp_path / "out.parquet", str(tmp_path)) == 60
    answers = parquet.read_table(tmp_path / "out.parquet")
    assert len({tuple(shown) for shown in answers["demonstrations"].to_pylist()}) == 1
    assert len(set(answers["prediction"].to_pylist())) == 1


def test_a_run_that_lost_its_predictions_is_run_again(logistic: Experiment, tmp_path: Path) -> None:
    first = logistic.run(tmp_path)
    (tmp_path / "runs" / first.run_id / "predictions.parquet").unlink()
    assert logistic.run(tmp_path).predictions.equals(first.predictions)


def test_a_sweep_is_not_run_as_a_single_experiment(logistic: Experiment, tmp_path: Path) -> None:
    sweep = Experiment.from_mapping({**logistic.to_mapping(), "sweep": {"axes": {"regime.examples": [12, 24]}}})
    with pytest.raises(GraftError, match="graft sweep"):
        sweep.run(tmp_path)


def test_a_probe_refuses_free_text_targets(csv: Path, tiny_bert: Path, tiny_llama: Path) -> None:
    task = {"name": "file", "path": str(csv), "text": "text", "target": "topic"}
    with pytest.raises(GraftError, match="free text"):
        planning.plan(experiment(csv, METHODS["ridge"], tiny_bert, tiny_llama, task=task))


def test_more_shots_than_examples_are_refused(csv: Path, tiny_bert: Path, tiny_llama: Path, tmp_path: Path) -> None:
    spec = experiment(csv, {"name": "icl", "num_shots": 9}, tiny_bert, tiny_llama, regime={"examples": 4})
    with pytest.raises(GraftError, match=r"num_shots: got 9; .* which is 4"):
        spec.run(tmp_path)


def test_any_file_system_holds_runs_and_columns(logistic: Experiment) -> None:
    memory = fs.SubTreeFileSystem("/desk", fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem())))
    planned = planning.plan(logistic)
    first = runner.carry_out(planned, memory, runner.open_store(memory))
    shown = runs.read_result(memory, f"runs/{planned.run_id}")
    assert shown.metrics.equals(first.metrics)
    assert shown.graph.run(first.predictions.select(["id", "text"]))["prediction"].equals(
        first.predictions["prediction"]
    )
    memory.delete_dir(f"runs/{planned.run_id}")
    again = runner.carry_out(planned, memory, runner.open_store(memory))
    assert again.metrics["forward_passes"][0].as_py() == 0


def test_gold_columns_of_test_rows_go_nowhere(tiny_llama: Path, tmp_path: Path) -> None:
    lines = [f"what is {i},it is {i},because {i},g{i % 2}" for i in range(60)]
    (tmp_path / "qa.csv").write_text("question,answer,why,part\n" + "\n".join(lines) + "\n")
    task = {"name": "file", "path": str(tmp_path / "qa.csv"), "text": "question", "target": "answer"}
    values = {
        "name": "qa",
        "models": {"base": {"source": str(tiny_llama)}},
        "task": {**task, "rationale": "why", "group": "part"},
        "regime": {"examples": 4},
        "method": {"name": "icl", "num_shots": 1, "max_new_tokens": 2},
    }
    predictions = Experiment.from_mapping(values).run(tmp_path).predictions
    assert "rationale" not in predictions.column_names
    assert set(predictions["group"].to_pylist()) == {"g0", "g1"}


def test_wrong_input_leaves_nothing_half_written(csv: Path, tiny_llama: Path, tiny_bert: Path, tmp_path: Path) -> None:
    spec = experiment(csv, {"name": "icl", "num_shots": 28}, tiny_bert, tiny_llama)
    with pytest.raises(ModelError, match="num_shots"):
        spec.run(tmp_path / "out")
    assert list((tmp_path / "out").glob("runs/*")) == []
    too_few = experiment(csv, METHODS["ridge"], tiny_bert, tiny_llama, regime={"examples": 2})
    with pytest.raises(DataError, match="labels"):
        too_few.run(tmp_path / "out")


def test_a_changed_model_is_noticed_when_a_run_is_loaded(logistic: Experiment, tiny_bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    spec = Experiment.from_mapping({**logistic.to_mapping(), "models": {"encoder": {"source": str(copy)}}})
    result = spec.run(tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    with pytest.raises(ModelError, match="has changed"):
        graft.load(tmp_path / "runs" / result.run_id)


def test_an_unknown_run_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="graft ls"):
        runs.load("nothing", tmp_path)


def tuned(path: Path, base: Path, **training: Any) -> Experiment:
    values = {
        "name": "tuned",
        "models": {"base": {"source": str(base)}},
        "task": {"name": "file", "path": str(path), "text": "text", "target": "topic"},
        "regime": {"examples": 12},
        "method": {"name": "full", "max_new_tokens": 3},
        "training": {
            "max_steps": 12,
            "tokens_per_batch": 200,
            "checkpoint_steps": 2,
            "checkpoint_seconds": 0,
            **training,
        },
    }
    return Experiment.from_mapping(values)


@pytest.mark.parametrize("column", ["text", "topic"])
def test_a_test_row_that_does_not_fit_is_found_before_training(column: str, tiny_llama: Path, tmp_path: Path) -> None:
    row = {"text": "rain again", "topic": "weather", column: "snow " * 200}
    (tmp_path / "test.csv").write_text(f"text,topic\n{row['text']},{row['topic']}\n")
    spec = tuned(write_csv(tmp_path / "rows.csv"), tiny_llama)
    places = {"path": None, "train": str(tmp_path / "rows.csv"), "test": str(tmp_path / "test.csv")}
    spec = Experiment.from_mapping({**spec.to_mapping(), "task": {**spec.task.model_dump(), **places}})
    begun: list[str] = []
    with pytest.raises(ModelError, match="tokens too long; the context"):
        runner.run(spec, tmp_path / "out", progress=lambda what, *_: begun.append(what))
    assert not begun
    assert list((tmp_path / "out").glob("runs/*")) == []


def test_what_fails_after_training_leaves_what_was_trained(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tuned(write_csv(tmp_path / "rows.csv"), tiny_llama)

    def fails(*_: Any) -> Any:
        raise GraftError("the answers are wrong")

    monkeypatch.setattr(runner, "evaluate", fails)
    with pytest.raises(GraftError, match="the answers are wrong"):
        spec.run(tmp_path / "out")
    monkeypatch.undo()
    [folder] = (tmp_path / "out" / "runs").iterdir()
    assert list(folder.glob("checkpoints/*/last-*"))
    result = spec.run(tmp_path / "out")
    curve = parquet.read_table(folder / "training.parquet")
    assert "taken up" in curve["event"].drop_null()[0].as_py()
    assert set(curve["node"].to_pylist()) == {f"tuned({tiny_llama}, full)"}
    assert not (folder / "checkpoints").exists()
    # A process killed between its last two deeds leaves them; reading the run clears that up.
    (folder / "checkpoints").mkdir()
    spec.run(tmp_path / "out")
    assert not (folder / "checkpoints").exists()
    assert result.metrics["seconds"][0].as_py() > 0


def test_metrics_are_averaged_over_the_chosen_groups(tiny_bert: Path, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "topics.csv", rows=240)
    lines = path.read_text().splitlines()
    languages = [("bn", "te", "te", "de")[row % 4] for row in range(len(lines) - 1)]
    path.write_text("\n".join(f"{line},{cell}" for line, cell in zip(lines, ["lang", *languages], strict=True)))
    task = {"name": "file", "path": str(path), "text": "text", "label": "topic", "group": "lang", "macro": ["te", "bn"]}
    values = {"name": "topics", "models": {"encoder": {"source": str(tiny_bert)}}, "regime": {"examples": 30}}
    result = Experiment.from_mapping({**values, "task": task, "method": {"name": "probe"}}).run(tmp_path)
    rows = {(row["split"], row["metric"]): row for row in result.metrics.to_pylist()}
    assert {split for split, _ in rows} == {"test", "test/te", "test/bn", "test/macro"}
    answers = result.predictions.to_pylist()
    for group in ("te", "bn"):
        right = [row["prediction"] == row["target"] for row in answers if row["group"] == group]
        assert rows[f"test/{group}", "accuracy"]["value"] == pytest.approx(np.mean(right))
        assert rows[f"test/{group}", "accuracy"]["n"] == len(right)
    for metric in ("accuracy", "log_loss", "ece"):
        mean = np.mean([result.metric(metric, f"test/{group}") for group in ("te", "bn")])
        assert result.metric(metric, "test/macro") == pytest.approx(mean)
        assert rows["test/macro", metric]["n"] == 2
    assert result.values["accuracy"] == result.metric("accuracy") == rows["test", "accuracy"]["value"]
    assert [cell.n for cell in summary(result.metrics, "accuracy")] == [len(answers)]
    assert [cell.n for cell in summary(result.metrics, "accuracy", "test/macro")] == [2]
    shown = "\n".join(str(part) for part in details(result.run_id, str(tmp_path)))
    assert f"{'accuracy':<20} {result.metric('accuracy'):.4f}\n" in shown
    assert f"{result.metric('accuracy', 'test/macro'):.4f}  (test/macro, n=2)" in shown
    console = Console(record=True, width=300)
    console.print(run_table(str(tmp_path)))
    assert f"{result.metric('accuracy'):.4f}" in console.export_text()
    with pytest.raises(DataError, match=r"no split 'test/tee'; did you mean 'test/te'\?"):
        result.metric("accuracy", "test/tee")


def test_rows_that_are_one_item_are_marked_and_intervals_take_them_for_one(tiny_bert: Path, tmp_path: Path) -> None:
    lines = [
        f"{lang},{item},the word {('rain' if item % 2 else 'bread')} {item} in {lang},{'wet' if item % 2 else 'dry'}"
        for item in range(60)
        for lang in ("bn", "de")
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["lang,number,text,label", *lines]))
    values = {
        "name": "items",
        "models": {"encoder": {"source": str(tiny_bert)}},
        "task": {
            **{"name": "file", "path": str(tmp_path / "rows.csv"), "text": "text", "label": "label"},
            **{"group": "lang", "item": "number", "test_examples": 24},
        },
        "regime": {"examples": 20},
        "method": {"name": "probe", "classifier": "centroid"},
    }
    result = Experiment.from_mapping(values).run(tmp_path)
    rows = result.predictions.to_pylist()
    assert len({row["together"] for row in rows}) == len(rows) // 2
    assert len({(row["together"], row["id"].partition("/")[2]) for row in rows}) == len(rows) // 2
    named = result.predictions.append_column("run_id", pa.array([result.run_id] * len(rows)))
    (found,) = outcomes(result.metrics, named, "accuracy")
    assert found.spread.distinct == len(rows) // 2
    assert found.spread.items == len(rows)


def test_a_metric_that_one_group_lacks_has_no_mean_over_groups() -> None:
    targets, groups = ["a", "b", "b", "b"], ["x", "x", "y", "y"]
    scores = [{"a": float(np.log(p)), "b": float(np.log(1 - p))} for p in (0.6, 0.3, 0.2, 0.9)]
    predicted = [max(row, key=lambda label: row[label]) for row in scores]
    answers = pa.table({"target": targets, "prediction": predicted, "scores": scores, "group": groups})
    found = by_group(answers, ("a", "b"), GroupedTask(name="x", macro="all"))
    assert [split for split, _, _ in found] == ["test/x", "test/y", "test/macro"]
    (_, of_x, _), (_, of_y, _), (_, means, count) = found
    assert "auroc" in of_x
    assert "auroc" not in of_y
    assert "auroc" not in means
    assert (means["accuracy"], count) == (0.75, 2)


def test_targets_are_read_as_answers_are() -> None:
    task = GroupedTask(name="x", parser="number")
    targets = ["51.0", "so 6\n#### 1,000", "7", "15", "5"]
    answers = pa.table({"target": targets, "prediction": ["51", "1000", None, "1.5", "-5"]})
    found = evaluate(answers, None, task)
    assert (found["exact_match"], found["f1"], found["parsed"]) == pytest.approx((2 / 5, 2 / 5, 4 / 5))


def test_labels_have_no_parser(tiny_bert: Path) -> None:
    values = {"name": "x", "models": {"encoder": {"source": str(tiny_bert)}}, "method": {"name": "probe"}}
    with pytest.raises(SpecError, match=r"task\.parser: number reads free text; the answers are labels"):
        planning.plan(Experiment.from_mapping({**values, "task": {"name": "python-docs", "parser": "number"}}))


@pytest.mark.parametrize(("fold", "split"), [(None, "test"), (0, "validation")])
def test_programs_are_judged_and_what_judges_is_written_nowhere(
    fold: int | None, split: str, tiny_llama: Path, tmp_path: Path
) -> None:
    problem = {"entry_point": "f", "canonical_solution": "    return 1\n"}
    problem["test"] = "def check(candidate):\n    assert candidate() == 1\n"
    prompts = [f"# {row}\ndef f():\n" for row in range(5)]
    lines = [json.dumps({**problem, "task_id": f"a/{row}", "prompt": prompts[row]}) for row in range(5)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    values = {
        "name": "programs",
        "models": {"base": {"source": str(tiny_llama)}},
        "task": {"name": "humaneval", "path": str(tmp_path / "problems.jsonl"), "test_examples": 3},
        "regime": {"examples": 2, "fold": fold},
        "method": {"name": "icl", "num_shots": 1, "max_new_tokens": 5},
    }
    result = Experiment.from_mapping(values).run(tmp_path)
    assert result.metric("pass_at_1", split) == 0.0
    assert set(result.predictions["target"].to_pylist()) == {"    return 1\n"}
    assert result.predictions["passed"].to_pylist() == [False] * result.predictions.num_rows
    assert "checks" not in result.predictions.column_names
    saved = "".join(path.read_text() for path in Path(result.folder, "graph").rglob("*.json"))
    assert "return 1" in saved
    assert "candidate" not in saved
    assert main_metric(result.metrics) == "pass_at_1"


def test_a_run_asks_its_teacher_once_for_every_row_and_the_next_one_reads(tiny_llama: Path, tmp_path: Path) -> None:
    rows = "".join(f"a text about {topic} number {i},{topic},so\n" for i in range(40) for topic in ("rain", "bread"))
    (tmp_path / "rows.csv").write_text(f"text,topic,why\n{rows}")
    base = {"source": str(tiny_llama)}
    values = {
        "name": "explained",
        "models": {"teacher": base, "student": base},
        "task": {
            "name": "file",
            "path": str(tmp_path / "rows.csv"),
            "text": "text",
            "label": "topic",
            "rationale": "why",
            "test_examples": 10,
        },
        "regime": {"examples": 8},
        "method": {"name": "fiat", "exemplars": 0, "max_rationale_tokens": 3},
        "training": {"max_steps": 2},
    }
    found = []
    for instruction in (True, False):
        method = {**values["method"], "instruction": instruction}
        result = Experiment.from_mapping({**values, "method": method}).run(tmp_path)
        row = result.metrics.to_pylist()[0]
        found.append((row["teacher_calls"], row["teacher_reads"], row["store_reads"]))
    assert found == [(18, 0, 0), (0, 18, 18)]


class KilledError(BaseException):
    """Stands for a signal."""


def test_a_run_that_was_killed_says_what_all_its_attempts_have_cost(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(Answer, "chunk_rows", 8)
    rows = "".join(f"a text about {topic} number {i},{topic}\n" for i in range(40) for topic in ("rain", "bread"))
    (tmp_path / "rows.csv").write_text(f"text,topic\n{rows}")
    base = {"source": str(tiny_llama)}
    task = {"name": "file", "path": str(tmp_path / "rows.csv"), "text": "text", "label": "topic", "test_examples": 10}
    values = {
        "name": "explained",
        "models": {"teacher": base, "student": base},
        "task": task,
        "regime": {"examples": 9},
        "method": {"name": "fiat", "exemplars": 0, "max_rationale_tokens": 3},
        "training": {"max_steps": 2},
    }
    plan = planning.plan(Experiment.from_mapping(values))

    def attempt(name: str, killed: tuple[str, int] | None = None) -> dict[str, Any]:
        def watch(what: str, done: int, total: int) -> None:
            if (what.split("(")[0], done) == killed:
                raise KilledError

        files = open_storage(tmp_path / name)
        row: dict[str, Any] = runner.carry_out(plan, files, runner.open_store(files), watch).metrics.to_pylist()[0]
        return row

    attempt("before")  # a model remembers what its prompts begin with, in every attempt that follows
    whole = attempt("whole")
    assert whole["teacher_calls"] == 19
    # In its test rows, in its examples, and while it trains.
    for killed_at in (("explain", 8), ("explain", 8), ("train student", 1)):
        with pytest.raises(KilledError):
            attempt("killed", killed_at)
    killed = attempt("killed")
    names = ("tokens", "forward_passes", "teacher_calls")
    assert {name: killed[name] for name in names} == {name: whole[name] for name in names}
    assert not (tmp_path / "killed" / "runs" / plan.run_id / "spent.json").exists()


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("text", {"rationale": "oracle"}),
        ("messages", {"exemplars": 1, "exemplars_per_group": True, "max_rationale_tokens": 2}),
    ],
)
def test_the_file_of_a_run_is_answered_as_it_is(
    key: str, method: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    rows = [
        {"id": i, "lang": lang, "q": f"{lang} {i}", "topic": ("rain", "bread")[i % 2], "why": f"so {i}"}
        for i in range(30)
        for lang in ("de", "sw")
    ]
    if key == "messages":
        rows = [{**row, "q": [{"role": "user", "content": row["q"]}]} for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "file", "path": str(path), key: "q", "label": "topic", "rationale": "why", "test_examples": 8}
    values = {
        "name": "beside",
        "models": {role: {"source": str(tiny_llama)} for role in ("teacher", "student")},
        "task": {**task, "group": "lang", "item": "id"},
        "regime": {"examples": 8},
        "method": {"name": "fiat", **method},
        "training": {"max_steps": 2},
    }
    result = Experiment.from_mapping(values).run(tmp_path)
    assert predict_file(result.run_id, path, tmp_path / "out.parquet", str(tmp_path)) == 60
    found = {row["id"]: row["prediction"] for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()}
    expected = {row["id"]: row["prediction"] for row in result.predictions.to_pylist()}
    assert {id: found[id] for id in expected} == expected
    # A run's own table calls them as graft does.
    asked = result.graph.inputs
    parquet.write_table(
        planning.plan(Experiment.from_mapping(values)).test.select(["id", *asked]), tmp_path / "b.parquet"
    )
    assert predict_file(result.run_id, tmp_path / "b.parquet", tmp_path / "c.parquet", str(tmp_path)) == 8


def test_who_agreed_and_what_was_written_is_kept(csv: Path, tiny_llama: Path, tmp_path: Path) -> None:
    values = {
        "name": "voted",
        "models": {"base": {"source": str(tiny_llama)}},
        "task": {"name": "file", "path": str(csv), "text": "text", "label": "topic", "test_examples": 4},
        "regime": {"examples": 3},
    }
    thinking = {"name": "icl", "chain_of_thought": "zero_shot", "samples": 2, "max_rationale_tokens": 2}
    voted = Experiment.from_mapping({**values, "method": thinking}).run(tmp_path)
    assert set(voted.predictions["votes"].to_pylist()) <= {0.5, 1.0}
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("text,sum\n" + "".join(f"what is {i} and {i}?,{2 * i}\n" for i in range(30)))
    words = {"name": "file", "path": str(numbers), "text": "text", "target": "sum", "parser": "number"}
    values |= {"task": {**words, "test_examples": 4}, "method": {"name": "icl", "num_shots": 1, "max_new_tokens": 3}}
    read = Experiment.from_mapping(values).run(tmp_path)
    assert all(isinstance(text, str) for text in read.predictions["written"].to_pylist())
