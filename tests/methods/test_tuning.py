"""What tuning learns and how it answers: the loss against transformers' own, tokens, free text, chats, perplexity."""

import dataclasses
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
from graft.errors import ModelError, SpecError
from graft.models.objective import NO_TARGET, NextTokenLoss, batch_of
from graft.node import Context
from graft.spec import Experiment
from graft.tasks.dataset import Dataset
from graft.tasks.metrics import perplexity
from graft.training.loop import Loop
from graft.training.states import Job

sys.path.insert(0, str(Path(__file__).parent))

from trainings import REASON, TEST, TRAIN, dataset, experiment, fit, scores

MODEL = pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2", "tiny_t5"], indirect=True)

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def gemma2() -> Any:
    """A network that caps its logits softly and forgets what is far away."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma2Config(
        **sizes,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=60,
        sliding_window=4,
        final_logit_softcapping=3.0,
        initializer_range=0.5,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Gemma2ForCausalLM(config).eval()


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_t5", "gemma2"])
def network(request: pytest.FixtureRequest) -> Any:
    """A frozen network of each family."""
    if request.param == "gemma2":
        return gemma2()
    return models.load(str(request.getfixturevalue(request.param))).network


CONTEXTS = [[7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]
ANSWERS = [[20, 21], [22, 23, 24], [25]]


def own_loss(network: Any, context: list[int], answer: list[int]) -> float:
    """The sum of a row's losses as transformers computes them from labels, alone and without padding."""
    if network.config.is_encoder_decoder:
        read, labels = torch.tensor([context]), torch.tensor([answer])
    else:
        read = torch.tensor([context + answer])
        labels = torch.tensor([[NO_TARGET] * len(context) + answer])
    with torch.no_grad():
        return float(network(input_ids=read, labels=labels).loss) * len(answer)


def test_the_loss_is_transformers_own_whatever_the_padding(network: Any) -> None:
    start = [0] if network.config.is_encoder_decoder else None
    terms = [0, 1, 0]
    with torch.no_grad():
        sums = NextTokenLoss(network, terms=2)(**batch_of(CONTEXTS, ANSWERS, terms, start))
    rows = [own_loss(network, context, answer) for context, answer in zip(CONTEXTS, ANSWERS, strict=True)]
    assert sums.tolist() == pytest.approx([rows[0] + rows[2], rows[1]], rel=1e-5)


def test_the_head_is_computed_where_there_is_a_target_and_nowhere_else(network: Any) -> None:
    start = [0] if network.config.is_encoder_decoder else None
    seen: list[int] = []
    hook = network.get_output_embeddings().register_forward_hook(
        lambda _head, inputs, _output: seen.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    with torch.no_grad():
        NextTokenLoss(network)(**batch_of(CONTEXTS, ANSWERS, [0, 0, 0], start))
    hook.remove()
    assert seen == [sum(map(len, ANSWERS))]
    # The network's own way is as it was.
    read = torch.tensor([CONTEXTS[0]])
    inputs = {"decoder_input_ids": read} if start else {}
    assert network(input_ids=read, **inputs).logits.shape[1] == len(CONTEXTS[0])


@MODEL
@pytest.mark.parametrize("adapter", [{"full": True}, {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}])
def test_what_is_learned_is_what_is_scored(adapter: dict[str, Any], model: Path) -> None:
    """The loss of the untrained module is minus the score of the targets after their prompts."""
    spec = experiment(model, {"name": "full"} if "full" in adapter else {"name": "peft", "adapter": adapter})
    done = fit(spec.model_copy(update={"training": spec.training.model_copy(update={"max_steps": 1})}))
    node = done.begun
    encoded = node.encode(TRAIN)
    module = node.build().eval()
    with torch.no_grad():
        loss = float(module(**node.collate(encoded))[0])
    sums, counts = node.target_log_probabilities(TRAIN)
    assert loss == pytest.approx(-sums.sum(), rel=1e-5)
    assert [sum(one) for one in encoded["targets"].to_pylist()] == counts.tolist()


@MODEL
def test_tokens_are_those_of_the_whole_text(model: Path) -> None:
    node = fit(experiment(model, {"name": "full"}, max_steps=1)).node
    encoded, tokenizer = node.encode(TRAIN), node.model.tokenizer
    for row, contexts, answers, length in zip(
        TRAIN.to_pylist(), *(encoded[name].to_pylist() for name in ("context", "answer", "length")), strict=True
    ):
        prompt, target = f"Input: {row['text']}\nLabel:", f" {row['target']}"
        if node.model.kind == "seq2seq":
            assert contexts[0] == tokenizer(prompt)["input_ids"]
            assert answers[0] == tokenizer(target, add_special_tokens=False)["input_ids"]
        else:
            assert contexts[0] + answers[0] == tokenizer(prompt + target)["input_ids"]
        # The last token is never read.
        assert length == len(contexts[0]) + len(answers[0]) - 1


@pytest.mark.parametrize("generation", [False, True])
def test_a_free_text_learns_where_it_ends_and_a_label_does_not(generation: bool, tiny_llama: Path) -> None:
    spec = experiment(tiny_llama, {"name": "full"}, max_steps=1)
    node = fit(spec, dataset(generation=generation)).node
    end = node.model.tokenizer.eos_token_id
    answers = [row[0] for row in node.encode(TRAIN)["answer"].to_pylist()]
    assert all((answer[-1] == end) == generation for answer in answers)
    assert all(end not in answer[:-1] for answer in answers)


def test_a_row_that_is_too_long_names_the_cure(tiny_llama: Path) -> None:
    long = pa.table({"id": ["x"], "text": ["snow " * 200], "target": ["cold"]})
    data = dataset(train=pa.concat_tables([TRAIN.drop_columns(["rationale"]), long]))
    spec = experiment(tiny_llama, {"name": "full"}, max_steps=1)
    with pytest.raises(ModelError, match=r"has \d{3,} tokens, the context of .* holds 256; shorten .*task\.max_tokens"):
        fit(spec, data)
    cut = spec.model_copy(update={"task": spec.task.model_copy(update={"max_tokens": 30})})
    assert fit(cut, data).states[0].step == 1


@MODEL
def test_it_learns_to_write_an_answer_and_to_stop(model: Path) -> None:
    learned = [REASON[label] for label in TRAIN["target"].to_pylist()]
    train = TRAIN.set_column(2, "target", pa.array(learned))
    method = {"name": "full", "max_new_tokens": 30}
    done = fit(experiment(model, method, max_steps=60, learning_rate=5e-3), dataset(train=train, generation=True))
    before = done.handle.usage.forward_passes
    written = done.after.run(TRAIN)["prediction"].to_pylist()
    right = sum(one == target for one, target in zip(written, learned, strict=True))
    assert right >= 20
    # The end token ends the writing: far fewer tokens than allowed.
    assert done.handle.usage.forward_passes - before < TRAIN.num_rows * 15


def test_chats_are_trained_and_scored_with_their_template(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "chatty"))
    (folder / "chat_template.jinja").write_text(CHAT)
    turns = [[{"role": "user", "content": f"Is {text} cold?"}] for text in TRAIN["text"].to_pylist()]
    table = TRAIN.select(["id", "target"]).append_column("messages", pa.array(turns))
    data = Dataset(table, table.slice(0, 4), ("messages",), "messages", ("cold", "warm"))
    spec = experiment(folder, {"name": "peft", "adapter": {"peft_type": "LORA", "r": 4}, "instruction": "Say it."})
    done = fit(spec, data)
    node, tokenizer = done.node, done.handle.tokenizer
    context, answer = (node.encode(table)[name].to_pylist()[0][0] for name in ("context", "answer"))
    said = f"<s>[system] Say it.\n[user] {turns[0][0]['content']}\n[assistant]"
    assert tokenizer.decode(context + answer) == said + table["target"][0].as_py()
    assert context.count(tokenizer.bos_token_id) == 1
    assert done.states[0].curve[-1]["loss"] < done.states[0].curve[0]["loss"]
    raw = node.speaker.score([said], [["cold", "warm"]])
    assert scores(done.after, table.slice(0, 1)) == pytest.approx(raw - np.logaddexp.reduce(raw, axis=1), abs=1e-6)


@MODEL
def test_perplexity_is_that_of_transformers_alone(model: Path, tmp_path: Path) -> None:
    learned = [REASON[label] for label in TRAIN["target"].to_pylist()]
    data = dataset(TRAIN.set_column(2, "target", pa.array(learned)), generation=True)
    done = fit(experiment(model, {"name": "full"}), data)
    done.node.save(tmp_path)
    seq2seq = done.handle.kind == "seq2seq"
    family = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    network = family.from_pretrained(tmp_path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    losses, count = 0.0, 0
    for row in TEST.to_pylist():
        prompt, target = f"Input: {row['text']}\nOutput:", f" {row['target']}"
        whole = tokenizer(prompt + target)["input_ids"]
        context = tokenizer(prompt)["input_ids"]
        answer = tokenizer(target, add_special_tokens=False)["input_ids"] if seq2seq else whole[len(context) :]
        losses += own_loss(network, context, answer)
        count += len(answer)
    assert perplexity(*done.node.target_log_probabilities(TEST)) == pytest.approx(np.exp(losses / count), rel=1e-4)


def test_labels_may_be_scored_by_the_mean_of_their_tokens(tiny_llama: Path) -> None:
    done = fit(experiment(tiny_llama, {"name": "full", "length_normalize": True}, max_steps=1))
    other = done.graph_with(dataclasses.replace(done.node, length_normalize=False))
    raw = done.node.speaker.score([f"Input: {text}\nLabel:" for text in TEST["text"].to_pylist()], [" cold", " warm"])
    lengths = [len(answer) for _, answer in done.handle.continuations(["Label:"] * 2, [" cold", " warm"])]
    mean = raw / lengths
    assert scores(done.after) == pytest.approx(mean - np.logaddexp.reduce(mean, axis=1, keepdims=True), abs=1e-5)
    assert np.abs(scores(other) - scores(done.after)).max() > 1e-2


def test_an_instruction_stands_before_every_prompt(tiny_llama: Path) -> None:
    done = fit(experiment(tiny_llama, {"name": "full", "instruction": "Cold or warm?"}, max_steps=1))
    context = done.node.encode(TRAIN)["context"].to_pylist()[0][0]
    assert done.handle.tokenizer.decode(context, skip_special_tokens=True).startswith("Cold or warm?\n\nInput: ")


def test_the_numbers_that_training_set_are_counted(tiny_llama: Path) -> None:
    full = fit(experiment(tiny_llama, {"name": "full"}, max_steps=1)).node
    assert (full.parameters_trained(), full.parameters_added()) == (full.model.parameters, 0)
    setting = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    adapted = fit(experiment(tiny_llama, {"name": "peft", "adapter": setting}, max_steps=1)).node
    assert adapted.parameters_trained() == adapted.parameters_added() == 2 * (4 * 32 + 32 * 4)


def test_it_does_not_learn_without_a_loop(tiny_llama: Path) -> None:
    spec = experiment(tiny_llama, {"name": "full"})
    assert spec.method is not None
    graph = spec.method.graph(spec.task, dataset(), {"base": models.load(str(tiny_llama))})
    with pytest.raises(Exception, match=r"learns by gradients; carry it out with graft\.Experiment"):
        graph.fit(TRAIN, Context(spec, ("cold", "warm")))


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "peft"}, {"name": "adapter"}], ids=lambda m: m["name"])
def test_quantised_weights_need_a_gpu(method: dict[str, Any], tiny_llama: Path) -> None:
    spec = quantised(tiny_llama, method)
    with pytest.raises(ModelError, match=r"quantization: got 8bit for .*"):
        fit(spec)


def quantised(folder: Path, method: dict[str, Any]) -> Experiment:
    spec = experiment(folder, method, max_steps=1)
    source = spec.models["base"].model_copy(update={"quantization": "8bit"})
    return spec.model_copy(update={"models": {"base": source}})


def test_quantised_weights_are_never_tuned_whole(tiny_llama: Path) -> None:
    handle = models.load(str(tiny_llama)).around(lambda: models.load(str(tiny_llama)).network, "mark")
    handle.source = handle.source.model_copy(update={"quantization": "4bit"})
    node = dataclasses.replace(fit(experiment(tiny_llama, {"name": "full"}, max_steps=1)).node, model=handle)
    with pytest.raises(ModelError, match=r"quantization: quantised weights cannot be trained; .*use peft"):
        node.build()


@pytest.mark.parametrize("name", ["full", "peft", "adapter", "instruct"])
def test_what_cannot_be_tuned_is_refused_before_any_work(name: str, tiny_bert: Path, tiny_llama: Path) -> None:
    spec = experiment(tiny_bert, {"name": name})
    with pytest.raises(ModelError, match=r"models\.base: .* is an encoder.*name a causal or encoder-decoder"):
        fit(spec)
    vectors = dataclasses.replace(dataset(), kind="vector")
    with pytest.raises(SpecError, match=f"method {name} reads text, the task's inputs are vector"):
        fit(experiment(tiny_llama, {"name": name}), vectors)


def test_what_goes_through_the_model_is_counted(tiny_llama: Path) -> None:
    done = fit(experiment(tiny_llama, {"name": "full"}, max_steps=3, tokens_per_batch=10_000))
    lengths = done.node.encode(TRAIN)["length"].to_pylist()
    assert done.states[0].sequences == 3 * TRAIN.num_rows
    assert done.states[0].tokens == 3 * sum(lengths)


@MODEL
@pytest.mark.parametrize(
    "method",
    [
        {"name": "full"},
        {"name": "adapter"},
        {"name": "adapter", "adapter": {"kind": "parallel"}},
        {"name": "peft", "adapter": {"peft_type": "LORA", "r": 4}},
        {"name": "peft", "adapter": {"peft_type": "IA3"}},
        {"name": "peft", "adapter": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}},
    ],
    ids=lambda method: "-".join(map(str, method.get("adapter", method).values())),
)
def test_activations_that_are_computed_twice_give_the_same_gradients(method: dict[str, Any], model: Path) -> None:
    spec = experiment(model, method, max_steps=1)
    node = fit(spec).begun
    found = []
    for twice in (False, True):
        settings = spec.training.model_copy(update={"activation_checkpointing": twice})
        loop = Loop(Job(node, settings, node.encode(TRAIN)))
        loop.run()
        found.append({name: value.grad for name, value in loop.parameters.items()})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "CARTRIDGE"])
def test_what_lives_in_a_cache_is_not_computed_twice(kind: str, tiny_llama: Path) -> None:
    method = {"name": "peft", "adapter": {"peft_type": kind, "num_virtual_tokens": 3}}
    with pytest.raises(SpecError, match=rf"activation_checkpointing: {kind} lives in a cache"):
        fit(experiment(tiny_llama, method, activation_checkpointing=True))
