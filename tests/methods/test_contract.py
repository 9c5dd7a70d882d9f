"""Every method against the laws of the house, on three architectures; a failure names method, model and law.

One small training per method and model is shared by all laws. What a law needs beside it is as short as it can be.
"""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers

from graft import CalmForCausalLM, models
from graft.graph import Graph
from graft.models import loading
from graft.spec import Experiment
from graft.storage import open_storage
from graft.store import ColumnStore

sys.path.insert(0, str(Path(__file__).parent))

from trainings import (
    SETTINGS,
    TEST,
    TRAIN,
    Fitted,
    dataset,
    experiment,
    fit,
    greedy,
    network_digest,
    rows,
    scores,
    target_loss,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

MODELS = ("tiny_llama", "tiny_gpt2", "tiny_t5")

PEFT: dict[str, dict[str, Any]] = {
    "LORA": {"r": 4},
    "IA3": {},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "LN_TUNING": {},
    "ADALORA": {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2, "total_step": SETTINGS["max_steps"]},
}
TUNED: dict[str, dict[str, Any]] = {
    **{kind: {"name": "peft", "adapter": {"peft_type": kind, **fields}} for kind, fields in PEFT.items()},
    "full": {"name": "full"},
    "serial": {"name": "adapter", "adapter": {"kind": "serial", "bottleneck": 4}},
    "parallel": {"name": "adapter", "adapter": {"kind": "parallel", "bottleneck": 4}},
    "instruct": {"name": "instruct"},
    "distill": {"name": "distill", "adapter": {"peft_type": "LORA", "r": 4}},
}
HEARD: dict[str, Any] = {"name": "calm", "connections": [[2, 1]], "distance_bias": True}
CALM: dict[str, dict[str, Any]] = {
    "calm": {**HEARD, "connections": [[2, 0], [1, 1]]},
    "calm-prompt": {**HEARD, "mode": "prompt", "keep_states": True},
    "calm-context": {**HEARD, "mode": "context", "rank": 4, "prenorm": False},
}
FIAT: dict[str, dict[str, Any]] = {
    "fiat": {"name": "fiat", "exemplars": 0, "max_rationale_tokens": 4, "adapter": {"peft_type": "LORA", "r": 4}}
}
LEARNED = {**TUNED, **CALM, **FIAT}
THINKING = {"name": "icl", "max_rationale_tokens": 4}
ICL: dict[str, dict[str, Any]] = {
    "icl": {"name": "icl", "num_shots": 2},
    "icl-bm25": {"name": "icl", "num_shots": 2, "selection": "bm25"},
    "icl-epr": {"name": "icl", "num_shots": 2, "selection": "epr", "epr_candidates": 4},
    "icl-entropy": {"name": "icl", "num_shots": 2, "order": "local_entropy"},
    "icl-thought": {**THINKING, "num_shots": 2, "chain_of_thought": "few_shot"},
    "icl-several": {**THINKING, "chain_of_thought": "zero_shot", "samples": 3},
    "icl-auto": {**THINKING, "num_shots": 2, "chain_of_thought": "auto"},
}
METHODS = {**LEARNED, **ICL, "probe": {"name": "probe"}}

MARKS = {
    "LORA": ("lora_",),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "IA3": ("ia3_",),
    "LN_TUNING": ("ln_tuning",),
    "PREFIX_TUNING": ("prompt_encoder",),
    "PROMPT_TUNING": ("prompt_encoder",),
    "serial": (".adapter.",),
    "parallel": (".adapter.",),
    "full": ("",),
    "instruct": ("",),
    "distill": ("lora_",),
    **dict.fromkeys(CALM, ("bridges.",)),
    "fiat": ("lora_",),
}
"""What the names of trained parameters hold; no frozen one's does."""

SETTLED = ("IA3", "LN_TUNING", "full", "instruct")
"""Methods whose training begins the same whatever the seed."""

NEVER_IDENTITY = ("PREFIX_TUNING", "PROMPT_TUNING")
"""Virtual tokens take attention from the text whatever they are."""


EVERYWHERE = ("LORA", "PREFIX_TUNING", "full", "serial", "calm", "fiat", "icl", "icl-thought", "probe")
"""What is tested on every model every time; the others on the other models in the long tests."""


def over(methods: Iterable[str]) -> Any:
    """Every method on every model that it can be put to: an anchor writes from left to right."""
    pairs = [(method, model) for model in MODELS for method in methods if (method in CALM, model) != (True, "tiny_t5")]
    marked = [
        pytest.param(*pair, marks=[] if pair[0] in EVERYWHERE or pair[1] == MODELS[0] else pytest.mark.long)
        for pair in pairs
    ]
    return pytest.mark.parametrize(("method", "model"), marked, indirect=["model"])


MODEL = pytest.mark.parametrize("model", MODELS, indirect=True)
EVERY = over(METHODS)
EVERY_LEARNED = over(LEARNED)
EVERY_ANSWER = over([*TUNED, "calm", "icl"])
"""Those whose network reads tokens alone; what the other modes of calm read stands beside them."""


@pytest.fixture(scope="module")
def other_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture") / "other.csv"
    path.write_text("q,a\n" + "".join(f"count {i},{i + 1}\n" for i in range(9)))
    return path


@pytest.fixture(scope="module")
def spec(other_task: Path) -> Any:
    """A spec by the name of a method."""
    member = {"task": {"name": "file", "path": str(other_task), "text": "q", "target": "a", "test_examples": 3}}

    def make(method: str, folder: Path, **settings: Any) -> Experiment:
        mixture = {"mixture": [member]} if method == "instruct" else {}
        return experiment(folder, {**METHODS[method], **mixture}, **settings)

    return make


@pytest.fixture(scope="module")
def fitted(spec: Any) -> Any:
    """The shared training of a method on a model's folder."""
    return functools.cache(lambda method, folder: fit(spec(method, folder)))


@pytest.fixture(scope="module")
def pristine() -> Any:
    """The digest of a folder's network as transformers loads it, whatever the tests did to the shared handle."""
    return functools.cache(lambda kind, folder: network_digest(loading.open_network(kind, folder)))


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same model without dropout, which draws other numbers for other batches."""
    rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate")

    @functools.cache
    def copy(model: Path) -> Path:
        folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("still") / "model"))
        config = json.loads((folder / "config.json").read_text())
        without = {**config, **{name: 0.0 for name in rates if name in config}}
        (folder / "config.json").write_text(json.dumps(without))
        return folder

    return copy


@EVERY
def test_1_frozen_stays_frozen(method: str, model: Path, fitted: Any, pristine: Any) -> None:
    done: Fitted = fitted(method, model)
    assert done.unchanged
    assert network_digest(done.handle.network) == pristine(done.handle.kind, model)
    assert not any(parameter.requires_grad for parameter in done.handle.network.parameters())


@EVERY_LEARNED
def test_1_what_has_a_gradient_is_what_is_declared(method: str, model: Path, fitted: Any) -> None:
    node = fitted(method, model).node
    module = node.build()
    names = {name for name, _ in module.named_parameters()}
    declared = {name for name in names if any(mark in name for mark in MARKS[method])}
    assert {name for name, value in module.named_parameters() if value.requires_grad} == declared
    assert len(declared) < len(names) or "full" in getattr(node, "adapter", {})
    module(**node.collate(node.encode(TRAIN.slice(0, 4)))).sum().backward()
    assert {name for name, value in module.named_parameters() if value.grad is not None} == declared


@EVERY_LEARNED
def test_2_an_untrained_adapter_is_the_identity(method: str, model: Path, fitted: Any) -> None:
    done: Fitted = fitted(method, model)
    begun = done.graph_with(done.begun)
    untuned = done.graph_with(dataclasses.replace(done.node, weights={}))
    if method in NEVER_IDENTITY:
        assert np.abs(scores(begun) - scores(untuned)).max() > 1e-3
    else:
        assert scores(begun) == pytest.approx(scores(untuned), abs=1e-6)
    # Training does change the answers.
    assert np.abs(scores(done.after) - scores(begun)).max() > 1e-3


@EVERY
def test_3_the_target_does_not_reach_the_prediction(method: str, model: Path, fitted: Any) -> None:
    graph = fitted(method, model).after
    blind = scores(graph, TEST.drop_columns(["target"]))
    lies = TEST.set_column(TEST.column_names.index("target"), "target", TEST["target"].take(pa.array([1] * 6)))
    assert np.array_equal(scores(graph), blind)
    assert np.array_equal(scores(graph, lies), blind)


@EVERY_LEARNED
def test_3_the_target_does_not_reach_the_context(method: str, model: Path, fitted: Any) -> None:
    node = fitted(method, model).node
    other = TRAIN.set_column(2, "target", pa.array(["warm"] * TRAIN.num_rows))
    one, two = node.encode(TRAIN), node.encode(other)
    assert one["context"].to_pylist() == two["context"].to_pylist()
    assert one["answer"].to_pylist() != two["answer"].to_pylist()


@EVERY_ANSWER
def test_3_what_follows_does_not_reach_what_comes_before(method: str, model: Path, fitted: Any) -> None:
    speaker = fitted(method, model).node.speaker
    first, second = torch.tensor([[7, 8, 9, 20, 21, 22, 23]]), torch.tensor([[7, 8, 9, 30, 31, 32, 33]])

    def logits(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        read = {"input_ids": ids, "attention_mask": mask}
        if speaker.kind == "seq2seq":
            read = {"input_ids": first, "attention_mask": torch.ones_like(first), "decoder_input_ids": ids}
        with torch.no_grad():
            found: torch.Tensor = speaker.network(**read, use_cache=False).logits
        return found[:, found.shape[1] - ids.shape[1] :]

    whole = logits(first, torch.ones_like(first))
    torch.testing.assert_close(logits(second, torch.ones_like(second))[:, :3], whole[:, :3], rtol=0, atol=1e-5)
    assert not torch.allclose(logits(second, torch.ones_like(second))[:, 3:], whole[:, 3:], atol=1e-2)
    # What is masked at the end is not there.
    masked = logits(second, torch.tensor([[1, 1, 1, 0, 0, 0, 0]]))
    torch.testing.assert_close(masked[:, :3], whole[:, :3], rtol=0, atol=1e-5)


LONG = "Input: " + "snow and ice and frost and a cold winter " * 2
PROMPTS = [LONG + end for end in ("\nLabel:", " again\nLabel:", " and sun\nLabel:", "")]


@EVERY_ANSWER
def test_4_scores_with_caches_are_those_without(
    method: str, model: Path, fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = fitted(method, model).node.speaker
    together = speaker.score(PROMPTS, [" cold", " warm", " a longer one"])
    again = speaker.score(PROMPTS[::-1], [" cold", " warm", " a longer one"])[::-1]
    assert again == pytest.approx(together, abs=1e-4)
    if speaker.kind == "causal":
        assert speaker.shares_prefixes == (method not in (*NEVER_IDENTITY, *CALM))
        assert bool(len(speaker.prefixes)) == speaker.shares_prefixes
        monkeypatch.setitem(speaker.__dict__, "shares_prefixes", False)
    else:
        monkeypatch.setitem(speaker.__dict__, "plain", False)
    alone = speaker.score(PROMPTS, [" cold", " warm", " a longer one"])
    assert alone == pytest.approx(together, abs=1e-4)


@EVERY_ANSWER
def test_4_what_is_written_with_caches_is_what_is_written_without(method: str, model: Path, fitted: Any) -> None:
    speaker = fitted(method, model).node.speaker
    prompts = ["Input: ice\nLabel:", "Input: the sun\nLabel:", "Input: hot\nLabel:"]
    assert speaker.generate(prompts, 4) == [greedy(speaker, prompt, 4) for prompt in prompts]


@MODEL
@pytest.mark.parametrize("method", [*ICL, "probe"])
def test_4_stored_columns_are_what_is_computed(method: str, model: Path, fitted: Any, tmp_path: Path) -> None:
    graph = fitted(method, model).after
    store = ColumnStore(open_storage(tmp_path))
    asked = TEST.drop_columns(["target"])
    fresh, kept, read = (graph.run(asked, one)["scores"].to_pylist() for one in (None, store, store))
    assert store.reads
    assert kept == read == fresh


@EVERY
def test_5_neither_order_nor_size_of_a_batch_changes_a_row(method: str, model: Path, fitted: Any) -> None:
    graph = fitted(method, model).after
    together = scores(graph)
    order = [3, 0, 5, 1, 4, 2]
    assert scores(graph, TEST.take(pa.array(order))) == pytest.approx(together[order], abs=1e-5)
    alone = np.concatenate([scores(graph, TEST.slice(place, 1)) for place in range(TEST.num_rows)])
    assert alone == pytest.approx(together, abs=1e-5)


@EVERY
def test_6_saved_and_loaded_it_answers_the_same(method: str, model: Path, fitted: Any, tmp_path: Path) -> None:
    graph = fitted(method, model).after
    graph.save(tmp_path)
    again = Graph.load(tmp_path, models.load)
    assert again.fingerprint() == graph.fingerprint()
    assert np.array_equal(scores(again), scores(graph))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pickle")]


@MODEL
@pytest.mark.parametrize("method", [name for name in TUNED if name not in ("serial", "parallel")])
def test_6_its_library_reads_what_is_saved(method: str, model: Path, fitted: Any, tmp_path: Path) -> None:
    done: Fitted = fitted(method, model)
    done.node.save(tmp_path)
    if "full" in done.node.adapter:
        family = transformers.AutoModelForSeq2SeqLM if done.handle.kind == "seq2seq" else None
        network = (family or transformers.AutoModelForCausalLM).from_pretrained(tmp_path / "model")
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model").vocab == done.handle.tokenizer.vocab
    else:
        base = loading.open_network(done.handle.kind, model)
        network = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(model.resolve())
    ids = torch.tensor([[7, 8, 9, 20, 21]])
    read = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    read |= {"decoder_input_ids": ids[:, :3]} if done.handle.kind == "seq2seq" else {}
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(**read).logits, done.node.speaker.network(**read).logits)


@pytest.mark.parametrize(("method", "model"), [("calm", "tiny_llama"), ("calm", "tiny_gpt2")], indirect=["model"])
def test_6_bridges_are_read_without_graft_s_graph(method: str, model: Path, fitted: Any, tmp_path: Path) -> None:
    done: Fitted = fitted(method, model)
    done.node.save(tmp_path)
    again = CalmForCausalLM.from_pretrained(tmp_path / "calm")
    ids = torch.tensor([[7, 8, 9, 20, 21]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, done.node.speaker.network(input_ids=ids).logits)


@EVERY_LEARNED
def test_7_the_seed_decides(method: str, model: Path, fitted: Any, spec: Any) -> None:
    known = fitted(method, model)
    same, other = (fit(spec(method, model, max_steps=2, seed=seed)) for seed in (0, 1))
    assert same.states[0].curve == known.states[0].curve[:2]
    assert other.states[0].curve[0]["loss"] != known.states[0].curve[0]["loss"]
    begun = known.begun.weights.items()
    assert all(np.array_equal(same.begun.weights[name], value) for name, value in begun)
    assert all(np.array_equal(other.begun.weights[name], value) for name, value in begun) == (method in SETTLED)


@MODEL
@pytest.mark.parametrize("method", [*ICL, "probe"])
def test_7_the_same_examples_give_the_same_node(method: str, model: Path, fitted: Any, spec: Any) -> None:
    known = fitted(method, model).after
    assert fit(spec(method, model)).after.fingerprint() == known.fingerprint()
    if method in ("icl", "icl-entropy"):  # what the seed draws
        assert fit(spec(method, model, regime_seed=1)).after.fingerprint() != known.fingerprint()


@EVERY_LEARNED
def test_7_accumulated_batches_are_whole_ones(method: str, model: Path, still: Any, spec: Any) -> None:
    whole, parts = (
        fit(spec(method, still(model), max_steps=3, tokens_per_device=limit)).states[0].curve for limit in (None, 60)
    )
    for one, other in zip(whole, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)


@EVERY_LEARNED
def test_8_killed_and_taken_up_it_ends_the_same(
    method: str, model: Path, fitted: Any, spec: Any, tmp_path: Path
) -> None:
    done: Fitted = fitted(method, model)

    def kill(_what: str, step: int, _steps: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(spec(method, model), folder=tmp_path, progress=kill)
    again = fit(spec(method, model), folder=tmp_path)
    assert again.states[0].events == [{"step": 4, "reason": "taken up from a checkpoint"}]
    assert again.states[0].curve == done.states[0].curve
    assert again.after.fingerprint() == done.after.fingerprint()
    assert all(np.array_equal(again.node.weights[name], value) for name, value in done.node.weights.items())


@EVERY
def test_9_scrambled_labels_teach_nothing(method: str, model: Path, fitted: Any, spec: Any) -> None:
    done: Fitted = fitted(method, model)
    if method in LEARNED:
        assert target_loss(done.node) < target_loss(done.begun)
    count = 64
    data = dataset(rows(24, "a", scrambled=True), rows(count, "b", scrambled=True))
    graph = fit(spec(method, model, max_steps=3), data).after
    answers = graph.run(data.test)
    right = sum(a == b for a, b in zip(answers["prediction"].to_pylist(), data.test["target"].to_pylist(), strict=True))
    # Four standard deviations of a fair coin.
    assert abs(right - count / 2) <= 4 * np.sqrt(count / 4)
