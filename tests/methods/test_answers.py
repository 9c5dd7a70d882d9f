"""Where an answer begins and ends, whatever the model's own habits; and settings that would be without effect."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from graft import models
from graft.arrays import score_matrix
from graft.errors import DataError, ModelError, SpecError
from graft.methods.judging import Judge
from graft.methods.ordering import RetrieveOrdered
from graft.node import Context
from graft.tasks.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parent))

from trainings import LABELS, REASON, TEST, TRAIN, dataset, experiment, fit, peft_spec, target_loss

MODEL = pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2", "tiny_t5"], indirect=True)
NUMBERS = {"cold": "1", "warm": "1 1"}
"""The tokens of one begin those of the other, whatever the tokenizer."""


def renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    found = [names[label] for label in table["target"].to_pylist()]
    return table.set_column(table.column_names.index("target"), "target", pa.array(found))


@MODEL
def test_a_label_that_another_begins_with_can_be_told_from_it(model: Path) -> None:
    labels = tuple(sorted(NUMBERS.values()))
    data = Dataset(renamed(TRAIN, NUMBERS), renamed(TEST, NUMBERS), ("text",), "text", labels)
    done = fit(experiment(model, {"name": "full"}, max_steps=100, learning_rate=5e-3), data)
    answers = done.after.run(data.train)
    assert answers["prediction"].to_pylist() == data.train["target"].to_pylist()
    # The frozen model's opinions can go either way too.
    asked = fit(experiment(model, {"name": "icl", "num_shots": 0}), data).after.run(data.test)
    assert np.isfinite(score_matrix(asked["scores"], labels)).all()


@pytest.mark.parametrize("method", [{"num_shots": 4}, {"num_shots": 2, "chain_of_thought": "auto"}])
def test_fitted_to_a_request_s_labels_a_run_says_what_a_run_of_those_labels_says(
    tiny_llama: Path, method: dict[str, Any]
) -> None:
    numbers = Dataset(renamed(TRAIN, NUMBERS), renamed(TEST, NUMBERS), ("text",), "text", tuple(NUMBERS.values()))
    runs = {LABELS: dataset(), numbers.labels: numbers}
    spec = experiment(tiny_llama, {"name": "icl", "max_rationale_tokens": 4, **method})
    fits = {labels: fit(spec, data).after for labels, data in runs.items()}
    ends = {labels: graph.nodes[-1].label_end for labels, graph in fits.items()}
    assert ends == {LABELS: "", numbers.labels: "\n"}
    for own, graph in fits.items():
        for asked, data in runs.items():
            node = graph.fit(data.train, Context(spec, asked)).nodes[-1]
            assert node.fingerprint() == fits[asked].nodes[-1].fingerprint(), (own, asked)


def test_who_judges_demonstrations_scores_the_end_that_a_request_s_labels_need(tiny_llama: Path) -> None:
    spec = experiment(tiny_llama, {"name": "icl", "num_shots": 4, "order": "global_entropy"})
    retrieve = fit(spec).before.nodes[0]
    assert isinstance(retrieve, RetrieveOrdered)
    for labels, end in {LABELS: "", tuple(NUMBERS.values()): "\n"}.items():
        judge = Judge.of(retrieve.model, retrieve.inputs, retrieve.asked, Context(spec, labels))
        assert (judge.labels, judge.label_end) == (labels, end)


def test_labels_that_differ_from_the_beginning_need_no_end(tiny_llama: Path) -> None:
    assert fit(experiment(tiny_llama, {"name": "full"}, max_steps=1)).node.label_end == ""


@pytest.fixture(scope="module")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """An encoder-decoder whose tokenizer puts a token before every text, which no configuration forces."""
    folder = tmp_path_factory.mktemp("bart")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(folder)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": len(tokenizer)}
    depth = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    ends = {"pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    start = {"decoder_start_token_id": tokenizer.eos_token_id, "forced_bos_token_id": None}
    config = transformers.BartConfig(**sizes, **depth, **ends, **start, max_position_embeddings=128, init_std=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def right(done: Any, learned: list[str]) -> int:
    written = done.after.run(TRAIN)["prediction"].to_pylist()
    return sum(one == target for one, target in zip(written, learned, strict=True))


def reasons() -> tuple[list[str], Dataset]:
    learned = [REASON[label] for label in TRAIN["target"].to_pylist()]
    return learned, dataset(train=TRAIN.set_column(2, "target", pa.array(learned)), generation=True)


def test_what_is_written_begins_as_what_was_learned(tiny_bart: Path) -> None:
    learned, data = reasons()
    spec = experiment(tiny_bart, {"name": "full", "max_new_tokens": 30}, max_steps=200, learning_rate=5e-3)
    done = fit(spec, data)
    assert len(done.handle.decoder_start) == 2
    assert target_loss(done.node, data.train) < 0.1
    assert right(done, learned) >= 22


def test_the_end_that_is_learned_ends_the_writing(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        values["eos_token_id"] = tokenizer.eos_token_id + 1
        (folder / name).write_text(json.dumps(values))
    learned, data = reasons()
    spec = experiment(folder, {"name": "full", "max_new_tokens": 30}, max_steps=60, learning_rate=5e-3)
    assert right(fit(spec, data), learned) >= 20


def test_a_row_without_a_reason_learns_its_label_as_if_it_were_alone(tiny_llama: Path) -> None:
    # Its second prompt is the longest text of the batch.
    spoken = TRAIN.slice(0, 4)
    given = spoken.set_column(3, "rationale", pa.array(["", *spoken["rationale"].to_pylist()[1:]]))
    given = given.set_column(1, "text", pa.array(["snow " * 20, *spoken["text"].to_pylist()[1:]]))
    node = fit(experiment(tiny_llama, {"name": "distill"}, max_steps=1)).node
    module, encoded = node.build().eval(), node.encode(given)
    assert encoded["targets"].to_pylist()[0][1] == 0
    with torch.no_grad():
        together = module(**node.collate(encoded))
        alone = sum(module(**node.collate(encoded.slice(place, 1))) for place in range(4))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_a_batch_is_as_large_as_it_is_said_to_be(tiny_llama: Path) -> None:
    given = TRAIN.set_column(3, "rationale", pa.array(["it is snow and ice " * 5] * TRAIN.num_rows))
    node = fit(experiment(tiny_llama, {"name": "distill"}, max_steps=1)).node
    encoded = node.encode(given)
    batch = node.collate(encoded)
    assert batch["ids_BT"].numel() <= max(encoded["length"].to_pylist()) * given.num_rows
    assert int(batch["mask_BT"].sum()) == sum(encoded["tokens"].to_pylist())


def test_a_teacher_need_not_score(tiny_llama: Path) -> None:
    teacher = models.load("endpoint:http://127.0.0.1:9/v1#any")
    spec = experiment(tiny_llama, {"name": "distill"})
    data = dataset(train=TRAIN.drop_columns(["rationale"]))
    assert spec.method is not None
    graph = spec.method.graph(spec.task, data, {"base": models.load(str(tiny_llama)), "teacher": teacher})
    assert graph.nodes[-1].teacher is teacher


def test_other_numbers_than_float32_are_not_trained_on_a_cpu(tiny_llama: Path) -> None:
    spec = experiment(tiny_llama, {"name": "full"})
    source = spec.models["base"].model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(ModelError, match=r"models\.base\.dtype: got bfloat16, .* leave it null"):
        fit(spec.model_copy(update={"models": {"base": source}}))


@pytest.mark.parametrize("method", [{"name": "icl", "num_shots": 0}, {"name": "full"}])
def test_what_is_for_labels_is_refused_for_free_text(method: dict[str, Any], tiny_llama: Path) -> None:
    fields = ("calibrate", "length_normalize") if method["name"] == "icl" else ("length_normalize",)
    for field in fields:
        with pytest.raises(SpecError, match=rf"method\.{field} is for labels"):
            fit(experiment(tiny_llama, {**method, field: True}), reasons()[1])


def test_another_task_brings_no_rows_of_the_task_itself(tiny_llama: Path, tmp_path: Path) -> None:
    lines = [f"{row['text']},{row['target']}" for row in TRAIN.to_pylist()]
    path = tmp_path / "other.csv"
    path.write_text("text,target\n" + "\n".join(dict.fromkeys([*lines, "hail and sleet,cold", "noon,warm"])) + "\n")
    member = {"task": {"name": "file", "path": str(path), "text": "text", "label": "target", "test_examples": 1}}
    with pytest.raises(DataError, match=r"mixture\.0\.task: \d+ of its rows are (test )?rows of the task itself"):
        fit(experiment(tiny_llama, {"name": "instruct", "mixture": [member]}))


def test_texts_of_another_task_are_cut_too(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"{'hail ' * 30}{place},cold\nnoon {place},warm\n" for place in range(20)))
    member = {"name": "file", "path": str(path), "text": "text", "label": "label", "test_examples": 4}
    lengths = []
    for limit in (None, 10):
        spec = experiment(tiny_llama, {"name": "instruct", "mixture": [{"task": {**member, "max_tokens": limit}}]})
        node = spec.method.graph(spec.task, dataset(), {"base": models.load(str(tiny_llama))}).nodes[0]  # type: ignore[union-attr]
        lengths.append(max(node.member(0, 24, seed=0)["length"].to_pylist()))
    assert lengths[0] > 60 > lengths[1]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 0}, "num_virtual_tokens: got 0; give at least 1"),
        (
            {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "prompt_tuning_init": "TXET"},
            "prompt_tuning_init: got 'TXET'; did you mean 'TEXT'",
        ),
        ({"peft_type": "LORA", "exclude_modules": ["q_porj"]}, "exclude_modules: nothing is named 'q_porj'"),
        ({"peft_type": "LORA", "rank_pattern": {"q_porj": 2}}, "rank_pattern: 'q_porj' fits no module"),
        ({"peft_type": "LORA", "alpha_pattern": {"q_porj": 2}}, "alpha_pattern: 'q_porj' fits no module"),
        ({"peft_type": "XLORA", "adapters": ["x"]}, "adapters: give names and folders"),
        ({"peft_type": "ADALORA", "init_r": "4"}, "init_r: got the text '4'; give a number"),
    ],
)
def test_a_setting_without_effect_is_an_error(adapter: dict[str, Any], message: str, tiny_llama: Path) -> None:
    with pytest.raises((SpecError, ModelError)) as refused:
        fit(peft_spec(tiny_llama, adapter, max_steps=1))
    assert message in str(refused.value)


def test_patterns_that_fit_are_taken(tiny_llama: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 4, "rank_pattern": {"q_proj": 2, r"layers\.0\.self_attn\.v_proj": 1}}
    weights = fit(peft_spec(tiny_llama, adapter, max_steps=1)).node.weights
    ranks = {name: value.shape[0] for name, value in weights.items() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in ranks.items() if "v_proj" in name} == {1, 4}


@pytest.mark.parametrize(
    ("adapter", "added"),
    [
        ({"peft_type": "LN_TUNING"}, 0),
        ({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lora"),
        ({"peft_type": "IA3"}, "all"),
    ],
)
def test_what_was_the_models_own_is_not_added(adapter: dict[str, Any], added: Any, tiny_llama: Path) -> None:
    node = fit(peft_spec(tiny_llama, adapter, max_steps=1)).node
    lora = sum(value.size for name, value in node.weights.items() if "lora_" in name)
    assert node.parameters_trained() > 0
    assert node.parameters_added() == {"lora": lora, "all": node.trained}.get(added, added)
