"""From a recipe to a folder: trained once, whatever is killed, and an ordinary model for everyone else."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from pyarrow import parquet
from safetensors.numpy import load_file

from graft import models, planning, pretraining, runner
from graft.errors import DataError, ModelError, SpecError, StoreError
from graft.models import heads, recipes
from graft.pretraining import corpus
from graft.pretraining.evaluation import bits_per_byte
from graft.pretraining.recipe import Recipe, Text
from graft.spec import Experiment, ModelSource

TOLD = "the rain falls on the sea and the wind blows over the hill while a ship sails to the far white shore"
WORDS = TOLD.split()


def write_corpus(folder: Path, documents: int = 60) -> Path:
    """Sentences of few words, each document its own."""
    random = np.random.default_rng(3)
    texts = [
        ". ".join(" ".join(random.choice(WORDS, 6)) for _ in range(12)) + f". This was number {at}."
        for at in range(documents)
    ]
    parquet.write_table(pa.table({"text": texts}), folder / "corpus.parquet")
    return folder / "corpus.parquet"


def write_wet_and_dry(folder: Path) -> Path:
    """Rows for the second stage."""
    rows = folder / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"rain {at},wet\nwind {at},dry\n" for at in range(30)))
    return rows


def recipe(path: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"kind": "causal", "width": 32, "layers": 2, "heads": 2, "context": 64},
        "data": {"kind": "text", "path": str(path), "vocabulary": 320, "held_out": 0.1},
        "training": {"max_steps": 40, "tokens_per_batch": 512, "learning_rate": 1e-2, "checkpoint_steps": 5},
    }
    return Recipe.from_mapping({**values, **changes})


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's models lie."""
    folder = tmp_path_factory.mktemp("models")
    monkeypatch.setenv("GRAFT_MODELS", str(folder))
    monkeypatch.setattr(recipes, "SHIPPED", folder / "none")
    monkeypatch.setattr(recipes, "RECIPES", folder / "none")
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def test_a_language_model_is_made_and_everyone_can_use_it(path: Path, home: Path, tmp_path: Path) -> None:
    said: list[str] = []
    spec = recipe(path, weights="float16", blocks=[[32, 0.5], [64, 0.5]])
    folder = pretraining.pretrain(spec, lambda what, *_: said.append(what))
    assert folder == home / "tiny" / pretraining.identity(spec)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = tokenizer("the rain", return_tensors="pt")
    written = network.generate(**asked, max_new_tokens=12, do_sample=False)
    words = tokenizer.decode(written[0], skip_special_tokens=True).split()
    assert sum(word.strip(".") in WORDS for word in words) >= len(words) - 2
    assert {str(value.dtype) for value in load_file(folder / "model.safetensors").values()} == {"float16"}
    manifest = recipes.read_manifest(folder)
    assert manifest["evaluation"]["bits_per_byte"] < 2
    assert manifest["tokens"] == 40 * 512
    curve = parquet.read_table(folder / "training.parquet")
    assert curve["loss"][0].as_py() == pytest.approx(math.log(320), rel=0.1)
    assert curve["loss"][-1].as_py() < 4
    page = (folder / "README.md").read_text()
    assert "bits_per_byte" in page
    kept = Recipe.from_yaml(folder / "recipe.yaml", f"data.path={path}")
    assert kept == spec
    assert str(tmp_path) not in (folder / "recipe.yaml").read_text() + page
    assert not (folder / "checkpoints").exists()
    # By its name, in an experiment.
    handle = models.load("recipe:tiny")
    assert handle.context_tokens == 64
    assert handle.dtype == "torch.float32"
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"rain {at},wet\nwind {at},dry\n" for at in range(20)))
    task = {"name": "file", "path": str(rows), "text": "text", "label": "label"}
    base = {"base": {"source": "recipe:tiny"}}
    training = {"max_steps": 3, "tokens_per_batch": 256}
    for method in ({"name": "icl", "num_shots": 0}, {"name": "full"}, {"name": "peft"}):
        spec_of = {"name": "x", "models": base, "task": task, "regime": {"examples": 8}, "method": method}
        result = Experiment.from_mapping({**spec_of, "training": training}).run(tmp_path / "out")
        assert result.values["accuracy"] >= 0
    # What is there is read, and what a kill has left is cleared away.
    said.clear()
    (folder / "checkpoints").mkdir()
    assert pretraining.pretrain(spec, lambda what, *_: said.append(what)) == folder
    assert not said
    assert not (folder / "checkpoints").exists()


def test_the_identity_is_what_is_learned_and_not_where_it_lies(path: Path, tmp_path: Path) -> None:
    mark = pretraining.identity(recipe(path))
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(path.read_bytes())
    assert pretraining.identity(recipe(moved)) == mark
    assert pretraining.identity(recipe(path, name="other", scaling={"workers": 2})) == mark
    seconds = {
        "max_steps": 40,
        "tokens_per_batch": 512,
        "learning_rate": 1e-2,
        "checkpoint_steps": 5,
        "checkpoint_seconds": 3,
    }
    assert pretraining.identity(recipe(path, training=seconds)) == mark
    others = [
        recipe(path, training={"max_steps": 41}),
        recipe(path, weights="float16"),
        recipe(path, blocks=[[32, 1.0]]),
        recipe(write_corpus(tmp_path, 61)),
    ]
    assert len({mark, *map(pretraining.identity, others)}) == 5


def graft(*words: str, **changes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "graft.cli", "pretrain", *words]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **changes)


def until(what: Any, process: subprocess.Popen[str]) -> None:
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


SLOWLY = {
    "max_steps": 120,
    "tokens_per_batch": 2048,
    "learning_rate": 1e-2,
    "checkpoint_steps": 10,
    "checkpoint_seconds": 0,
}


@pytest.mark.long
def test_killed_in_both_stages_it_ends_with_the_weights_of_an_undisturbed_training(
    path: Path, home: Path, tmp_path: Path
) -> None:
    rows = write_wet_and_dry(tmp_path)
    task = {"name": "file", "path": str(rows), "text": "text", "label": "label"}
    spec = recipe(path, training=SLOWLY, instruct={"mixture": [{"task": task}], "training": SLOWLY})
    (tmp_path / "spec.yaml").write_text(spec.to_yaml())
    last = f"{SLOWLY['max_steps']:09d}"
    for steps in (["000000020"], ["000000060"], [last, "000000020"]):
        process = graft(str(tmp_path / "spec.yaml"))
        until(lambda steps=steps: all([*home.glob(f"tiny/*/checkpoints/*/last-{step}.*")] for step in steps), process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(ModelError, match=r"recipe:tiny: no such model"):
            models.load("recipe:tiny")
    process = graft(str(tmp_path / "spec.yaml"))
    told, error = process.communicate()
    assert process.returncode == 0, error
    assert "bits_per_byte" in told
    killed = recipes.find("tiny", "pretrained")
    log = (killed / "run.log").read_text()
    assert log.count("training goes on from step") == 4  # the first stage three times, the second once
    os.environ["GRAFT_MODELS"] = str(tmp_path / "other")
    undisturbed = pretraining.pretrain(spec)
    for file in ("model.safetensors", "instruct/model.safetensors"):
        one, other = load_file(killed / file), load_file(undisturbed / file)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_of_two_processes_one_trains_and_the_other_reads(path: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(recipe(path, training=SLOWLY).to_yaml())
    first = graft(str(tmp_path / "spec.yaml"))
    until(lambda: [*home.glob("tiny/*/checkpoints/*/last-*")], first)
    second = graft(str(tmp_path / "spec.yaml"))
    told = [process.communicate() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), told
    assert told[0][0] == told[1][0]
    assert "another process trains it; this one waits" in told[1][1]
    [log] = home.glob("tiny/*/run.log")
    assert log.read_text().count("tiny begins") == 1


def test_damaged_weights_are_noticed(path: Path, tmp_path: Path) -> None:
    folder = pretraining.pretrain(recipe(path))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"recipe:tiny: .*model\.safetensors is damaged: .* graft pretrain"):
        models.load("recipe:tiny")
    with pytest.raises(ModelError, match="is damaged"):
        pretraining.pretrain(recipe(path))


def test_a_name_that_nobody_trained(path: Path) -> None:
    with pytest.raises(ModelError, match=r"recipe:tni: no such model; nothing is known here; graft pretrain SPEC"):
        models.load("recipe:tni")
    pretraining.pretrain(recipe(path))
    with pytest.raises(ModelError, match=r"recipe:tinny: no such model; did you mean 'tiny'"):
        models.load("recipe:tinny")
    with pytest.raises(ModelError, match="has no variant instruct"):
        models.load(ModelSource(source="recipe:tiny", variant="instruct"))
    assert models.locate(ModelSource(source="recipe:tiny", variant="pretrained")).is_dir()


def test_the_last_one_trained_is_the_one_that_the_name_means(path: Path) -> None:
    first = pretraining.pretrain(recipe(path))
    second = pretraining.pretrain(recipe(path, training={"max_steps": 2, "tokens_per_batch": 512}))
    assert models.locate(ModelSource(source="recipe:tiny")) == second
    pretraining.pretrain(recipe(path))
    assert models.locate(ModelSource(source="recipe:tiny")) == first


def test_little_data_and_looks_at_what_is_held_out(path: Path) -> None:
    training = {"max_steps": 20, "tokens_per_batch": 128, "learning_rate": 1e-2, "validate_every_steps": 10}
    data = {"kind": "text", "path": str(path), "vocabulary": 320}
    found = []
    for tokens in (200, None):
        folder = pretraining.pretrain(recipe(path, training=training, data={**data, "tokens": tokens}))
        assert len(parquet.read_table(folder / "training.parquet")["validation_loss"].drop_null()) == 2
        found.append(recipes.read_manifest(folder)["evaluation"]["bits_per_byte"])
    assert found[0] > found[1]


def test_an_encoder_that_fills_gaps(path: Path) -> None:
    model = {"kind": "masked", "width": 32, "layers": 2, "heads": 2, "context": 64}
    training = {"max_steps": 120, "tokens_per_batch": 1024, "learning_rate": 1e-2, "validate_every_steps": 60}
    folder = pretraining.pretrain(recipe(path, name="gaps", model=model, training=training))
    nats = recipes.read_manifest(folder)["evaluation"]["masked_nats"]
    assert nats < 0.8 * math.log(320)
    network = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the rain falls on the sea", return_tensors="pt")
    assert network(**ids).logits.shape[-1] == 320
    handle = models.load("recipe:gaps")
    assert handle.kind == "encoder"
    assert handle.embed(["the rain", "the sea"]).shape == (2, 32)


@pytest.mark.slow
def test_a_model_of_a_little_world(home: Path) -> None:
    training = {"max_steps": 250, "tokens_per_batch": 512, "learning_rate": 1e-2}
    data = {"kind": "key-value", "keys": 12, "values": 4, "parts": {"pairs": 1, "numbers": 1}}
    model = {"kind": "causal", "width": 32, "layers": 2, "heads": 2, "context": 16}
    spec = Recipe.from_mapping({"name": "sums", "model": model, "data": data, "training": training})
    folder = pretraining.pretrain(spec)
    assert set(recipes.read_manifest(folder)["evaluation"]) == {"numbers"}  # pairs are all learned
    handle = models.load("recipe:sums")
    from graft.tasks.key_value import KeyValueWorld

    known = KeyValueWorld.of(spec.data).value_of  # type: ignore[arg-type]
    written = handle.generate([f"{name} =" for name in known], max_new_tokens=3)
    assert [text.strip() for text in written] == [str(value) for value in known.values()]


def test_the_order_of_parts_is_no_part_of_a_recipe() -> None:
    model = {"kind": "causal", "width": 32, "layers": 2, "heads": 2, "context": 16}
    found = []
    for parts in ({"pairs": 1, "numbers": 2}, {"numbers": 2, "pairs": 1}):
        data = {"kind": "key-value", "keys": 12, "values": 4, "parts": parts}
        spec = Recipe.from_mapping({"name": "x", "model": model, "data": data})
        found.append((pretraining.identity(spec), pretraining._generated(spec).batches.batch(0)))
    assert found[0][0] == found[1][0]
    assert found[0][1].equals(found[1][1])


def test_what_a_world_has_no_others_of_is_asked_and_said_so(home: Path) -> None:
    data = {"kind": "key-value", "keys": 8, "values": 2, "parts": {"pairs": 1}}
    model = {"kind": "causal", "width": 32, "layers": 2, "heads": 2, "context": 16}
    training = {"max_steps": 2, "tokens_per_batch": 64}
    spec = Recipe.from_mapping({"name": "all", "model": model, "data": data, "training": training})
    assert set(recipes.read_manifest(pretraining.pretrain(spec))["evaluation"]) == {"learned.pairs"}


def test_a_text_never_becomes_a_special_token(path: Path) -> None:
    tokenizer = corpus.learn_tokenizer(corpus.read(Text(path=str(path))).learned, 320, 64)
    ids = corpus.encode(tokenizer, ("a <s> b <mask> </s>",))
    assert [number for number in ids if number < 4] == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_a_folder_that_cannot_be_written_is_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFT_MODELS", str(tmp_path / "file"))
    with pytest.raises(StoreError):
        pretraining.pretrain(recipe(path))


def test_a_template_that_does_not_suit_is_found_before_training(path: Path, home: Path, tmp_path: Path) -> None:
    rows = write_wet_and_dry(tmp_path)
    member = {
        "task": {"name": "file", "path": str(rows), "text": "text", "label": "label"},
        "templates": ["{nosuch}? {target}"],
    }
    with pytest.raises(SpecError, match="nosuch"):
        pretraining.pretrain(recipe(path, instruct={"mixture": [member]}))
    assert not [*home.glob("*/*/checkpoints")]


def test_a_reasoning_module(home: Path) -> None:
    data = {"kind": "logistic-tasks", "dimensions": 2, "points": 12, "tasks_per_batch": 16, "first_dimensions": 2}
    model = {"kind": "tart", "width": 16, "layers": 1, "heads": 2}
    training = {"max_steps": 30, "learning_rate": 3e-3, "validate_every_steps": 10}
    spec = Recipe.from_mapping({"name": "head", "model": model, "data": data, "training": training})
    folder = pretraining.pretrain(spec)
    assert 0.4 < recipes.read_manifest(folder)["evaluation"]["accuracy"] <= 1
    assert heads.open_head("head").network.settings["points"] == 12


def test_a_second_stage_on_instructions_is_a_variant(path: Path, tmp_path: Path) -> None:
    rows = write_wet_and_dry(tmp_path)
    task = {"name": "file", "path": str(rows), "text": "text", "label": "label"}
    training = {"max_steps": 100, "tokens_per_batch": 512, "learning_rate": 5e-3}
    member = {"task": task, "templates": ["{text}? It is {target}"], "instruction": "Wet or dry?"}
    spec = recipe(path, name="told", instruct={"mixture": [member], "training": training})
    pretraining.pretrain(spec)
    before, after = (
        models.load(ModelSource(source="recipe:told", variant=variant)) for variant in ("pretrained", "instruct")
    )
    assert before.fingerprint != after.fingerprint
    asked = [f"Wet or dry?\n\nInput: {word} {at}\nLabel:" for word in ("rain", "wind") for at in (3, 8)]
    said = [one.generate(asked, max_new_tokens=6) for one in (before, after)]
    assert all(text.strip().startswith(("wet", "dry")) for text in said[1])
    assert not any(text.strip().startswith(("wet", "dry")) for text in said[0])
    assert models.locate(ModelSource(source="recipe:told")).name == "instruct"
    folder = recipes.find("told", "pretrained")
    assert str(tmp_path) not in (folder / "recipe.yaml").read_text() + (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_two_workers_train_the_same_model(path: Path, tmp_path: Path) -> None:
    one = pretraining.pretrain(recipe(path))
    os.environ["GRAFT_MODELS"] = str(tmp_path / "two")
    two = pretraining.pretrain(recipe(path, scaling={"workers": 2}))
    assert one.name == two.name
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-2, atol=1e-3)


def test_bits_per_byte_are_those_of_transformers_loss_and_windows_count_every_token_once(path: Path) -> None:
    folder = pretraining.pretrain(recipe(path, training={"max_steps": 5, "tokens_per_batch": 512}))
    handle = models.load("recipe:tiny")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = "the rain falls on the sea"
    ids = torch.tensor([handle.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        nats = float(network(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert bits_per_byte(handle, [text]) == pytest.approx(nats / len(text) / math.log(2), rel=1e-5)
    long = " ".join(WORDS * 12)
    tokens = handle.tokenizer(long)["input_ids"]
    assert len(tokens) > 3 * 64
    before = handle.usage.tokens
    found = bits_per_byte(handle, [long])
    assert handle.usage.tokens - before > len(tokens)
    sums = 0.0
    with torch.no_grad():
        for at in range(1, len(tokens)):
            begin = 0 if at < 64 else (at - 32) // 32 * 32
            logits = network(input_ids=torch.tensor([tokens[begin:at]])).logits[0, -1]
            sums -= float(logits.log_softmax(-1)[tokens[at]])
    assert found == pytest.approx(sums / len(long) / math.log(2), rel=1e-4)


def test_documents_from_files_and_folders_and_a_single_text(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for at in range(4):
        (tmp_path / "books" / f"{at}.txt").write_text(f"book {at}\nits second line\n\nits second paragraph\n")
    found = corpus.read(Text(path=str(tmp_path / "books"), held_out=0.25))
    assert (len(found.learned), len(found.held_out)) == (3, 1)
    assert "book 0\nits second" in "".join([*found.learned, *found.held_out])
    joined = corpus.read(Text(path=str(tmp_path / "books"), held_out=0.25, join_lines=True))
    assert joined.learned[0].splitlines()[0].endswith("its second line")
    assert joined.learned[0].count("\n\n") == 1
    single = tmp_path / "one.txt"
    single.write_text("\n\n".join(f"paragraph {at} " + "word " * 200 for at in range(50)))
    parts = corpus.read(Text(path=str(single)))
    assert len(parts.learned) > 5
    assert sorted("".join([*parts.learned, *parts.held_out])) == sorted(single.read_text())
    # The same documents are held out, whatever their order.
    turned = tmp_path / "turned.parquet"
    parquet.write_table(pa.table({"text": [*reversed(parts.learned), *parts.held_out]}), turned)
    assert set(corpus.read(Text(path=str(turned))).held_out) == set(parts.held_out)


def test_wrong_input_names_the_cure_and_leaves_nothing(path: Path, tmp_path: Path, home: Path) -> None:
    with pytest.raises(DataError, match=r"data\.vocabulary: got 9000; the corpus supports \d+ tokens: lower it"):
        pretraining.pretrain(recipe(path, data={"kind": "text", "path": str(path), "vocabulary": 9000}))
    with pytest.raises(DataError, match=r"fewer than one batch of 1000000 .* lower training\.tokens_per_batch"):
        pretraining.pretrain(recipe(path, training={"tokens_per_batch": 1_000_000}))
    with pytest.raises(DataError, match=r"none\.parquet: no such file"):
        pretraining.pretrain(recipe(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        pretraining.pretrain(recipe(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="column"):
        pretraining.pretrain(recipe(path, data={"kind": "text", "path": str(path), "column": "texts"}))
    assert not [*home.glob("tiny/[!.]*")]
    (tmp_path / "little.txt").write_text("one line\n")
    with pytest.raises(DataError, match="has 1 texts: some are learned and some held out"):
        pretraining.pretrain(recipe(tmp_path / "little.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"kind": "causal", "width": 30, "layers": 1, "heads": 4}},
            "width 30 is no even multiple of heads 4",
        ),
        (
            {"model": {"kind": "causal", "width": 32, "layers": 1, "heads": 4, "kv_heads": 3}},
            "no multiple of kv_heads 3",
        ),
        ({"blocks": [[128, 1.0]]}, "a piece is longer than model.context, which is 64"),
        ({"blocks": [[32, 0.5]]}, "the shares of the steps do not add up to 1"),
        ({"data": {"kind": "logistic-tasks"}}, "data.kind: causal learns from text or key-value or world"),
        ({"blocks": [[0, 1.0]]}, "blocks.0.0"),
        ({"blocks": [[32, 1.5], [64, -0.5]]}, "blocks.1.1"),
        ({"data": {"kind": "key-value", "parts": {"pairs": 0}}}, "parts.pairs"),
        ({"training": {"batch_ramp_steps": 5}}, "batches from scratch are whole from the first step"),
        ({"modelx": {}}, "unknown key 'modelx'; did you mean 'model'"),
        ({"name": "No Slug"}, "give a slug"),
        ({"model": {"kind": "causall"}}, "model: no kind 'causall'; did you mean 'causal'?"),
        (
            {"scaling": {"strategy": "fsdp"}, "training": {"optimizer": "adafactor"}},
            "adafactor's state cannot be sharded",
        ),
    ],
)
def test_a_wrong_recipe_says_what_and_where(changes: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        recipe(path, **changes)
    assert message in str(refused.value)


def test_a_run_trains_the_model_whose_recipe_comes_with_graft(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "sums.yaml").write_text(
        "name: sums\nmodel: {kind: causal, width: 32, layers: 1, heads: 2, context: 64}\n"
        "data: {kind: key-value, keys: 12, values: 4, parts: {numbers: 1}}\n"
        "training: {max_steps: 3, tokens_per_batch: 64}\n"
    )
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "recipes")
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{at % 4} + {at // 4} ,{(at * 7) % 2}\n" for at in range(16)))
    spec = Experiment.from_mapping(
        {
            "name": "asked",
            "models": {"base": {"source": "recipe:sums"}},
            "task": {"name": "file", "path": str(rows), "text": "text", "label": "label"},
            "regime": {"examples": 4},
            "method": {"name": "icl", "num_shots": 0},
        }
    )
    with pytest.raises(ModelError, match=r"recipe:sums: is not trained yet; graft run and graft sweep train it first"):
        planning.plan(spec)
    said: list[str] = []
    result = runner.run(spec, tmp_path, progress=lambda what, *_: said.append(what))
    assert any("train" in what for what in said)
    assert result.metric("accuracy") is not None
    trained = recipes.find("sums", None)
    assert trained.parent == home / "sums"
    said.clear()
    runner.run(spec.model_copy(update={"name": "again"}), tmp_path, progress=lambda what, *_: said.append(what))
    assert not any("train" in what for what in said)


def test_every_recipe_that_comes_with_graft_can_be_read() -> None:
    known = sorted((Path(pretraining.__file__).parent / "recipes").glob("*.yaml"))
    assert known
    for one in known:
        spec = Recipe.from_yaml(one)
        assert spec.name == one.stem
        pretraining.identity(spec)  # nothing from outside is needed
