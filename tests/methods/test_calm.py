"""Method calm where it differs from other methods: several models, their tokenizers, what they read, wrong input."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from graft import models
from graft.errors import ModelError, SpecError
from graft.graph import Graph
from graft.spec import Experiment
from graft.tasks.dataset import Dataset

sys.path.insert(0, str(Path(__file__).parent))

from trainings import LABELS, SETTINGS, TEST, TRAIN, Fitted, dataset, fit, scores

MODELS = {"anchor": "tiny_llama", "augmenting": "tiny_gpt2"}


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An anchor, another model of its tokens, and one with a tokenizer of its own."""
    found = {name: request.getfixturevalue(name) for name in ("tiny_llama", "tiny_gpt2", "tiny_bert")}
    found["other"] = other_words(tmp_path_factory.mktemp("other"))
    return found


def other_words(folder: Path) -> Path:
    """A tiny GPT-2 that reads characters."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(kinds.BPE({word: place for place, word in enumerate(["</s>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=257, n_embd=16, n_layer=3, n_head=2, n_positions=300, initializer_range=0.3)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def spec(folders: dict[str, Path], roles: dict[str, Any] | None = None, **method: Any) -> Experiment:
    named = {"anchor": "tiny_llama", "augmenting": "other", **(roles or {})}
    sources = {
        role: [{"source": str(folders[one])} for one in names]
        if isinstance(names, list)
        else {"source": str(folders[names])}
        for role, names in named.items()
    }
    fields = {"name": "calm", "connections": [[3, 0], [1, 1]], **method}
    settings = {**SETTINGS, **fields.pop("training", {})}
    return Experiment.from_mapping(
        {
            "name": "x",
            "models": sources,
            "task": {"name": "python-docs"},
            "regime": {"examples": TRAIN.num_rows},
            "method": fields,
            "training": settings,
        }
    )


def fitted(wanted: Experiment, data: Dataset | None = None) -> Fitted:
    """The trained graph, with each role's own model."""
    return fit(wanted, data, handles={role: models.load(source) for role, source in wanted.models.items()})


MODES = {
    "mirror": {"distance_bias": True},
    "prompt": {"mode": "prompt", "distance_bias": True},
    "context": {"mode": "context", "context_template": "it is {text}!", "distance_bias": True},
}


@pytest.fixture(scope="module", params=MODES)
def crossed(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Fitted:
    """With two tokenizers, in every mode."""
    return fitted(spec(folders, **MODES[request.param], training={"max_steps": 30}))


def test_it_learns_and_answers_the_same_in_any_batch(crossed: Fitted) -> None:
    curve = [point["loss"] for point in crossed.states[0].curve]
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])
    together = scores(crossed.after)
    alone = np.concatenate([scores(crossed.after, TEST.slice(place, 1)) for place in range(TEST.num_rows)])
    assert alone == pytest.approx(together, abs=1e-5)


def test_saved_and_loaded_it_answers_the_same(crossed: Fitted, tmp_path: Path) -> None:
    crossed.after.save(tmp_path)
    again = Graph.load(tmp_path, models.load)
    assert again.fingerprint() == crossed.after.fingerprint()
    assert np.array_equal(scores(again), scores(crossed.after))
    assert {path.name for path in (tmp_path / "0-composed").rglob("*")} == {
        "config.json",
        "calm",
        "calm_config.json",
        "bridges.safetensors",
    }


def test_it_travels_as_names_and_bridges(crossed: Fitted) -> None:
    _ = crossed.node.speaker.network
    sent = pickle.dumps(crossed.node)
    bridges = sum(value.nbytes for value in crossed.node.weights.values())
    assert len(sent) < bridges + 20_000
    there = pickle.loads(sent)
    assert there.fingerprint() == crossed.node.fingerprint()
    assert np.array_equal(scores(crossed.graph_with(there)), scores(crossed.after))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("augmenting", ["tiny_gpt2", "other"])
def test_kept_states_give_the_live_loss(mode: str, augmenting: str, folders: dict[str, Path]) -> None:
    settings = {**MODES[mode], "connections": [[2, 0], [1, 1]], "training": {"max_steps": 6}}
    live, kept = (
        fitted(spec(folders, {"augmenting": augmenting}, keep_states=keep, **settings)).states[0].curve
        for keep in (False, True)
    )
    for one, other in zip(live, kept, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-5)


def test_kept_states_are_not_computed_again(folders: dict[str, Path]) -> None:
    done = fitted(spec(folders, keep_states=True, training={"max_steps": 2}))
    loss = done.node.build()
    loss.called.augmenting[0].register_forward_pre_hook(lambda *_: 1 / 0)
    loss.called.augmenting[0].transformer.register_forward_pre_hook(lambda *_: 1 / 0)
    loss(**done.node.collate(done.node.encode(TRAIN.slice(0, 3)))).sum().backward()


def test_several_augmenting_models_are_heard_and_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    wanted = spec(
        folders,
        {"augmenting": ["other", "tiny_gpt2"]},
        connections=[[[3, 0]], [[2, 1], [1, 2]]],
        training={"max_steps": 4},
    )
    assert list(wanted.models) == ["anchor", "augmenting", "augmenting_2"]
    done = fitted(wanted)
    assert list(done.node.handles()) == ["model", "augmenting/0", "augmenting/1"]
    assert {name.split(".")[1] for name in done.node.weights} == {"0", "1", "2"}
    done.after.save(tmp_path)
    again = Graph.load(tmp_path, models.load)
    assert again.fingerprint() == done.after.fingerprint()
    assert np.array_equal(scores(again), scores(done.after))


def test_an_encoder_is_heard_once_the_prompt_is_over(folders: dict[str, Path]) -> None:
    done = fitted(spec(folders, {"augmenting": "tiny_bert"}, mode="prompt", connections=[[2, 1]]))
    assert np.isfinite(scores(done.after)).all()


def test_free_text_is_written_as_it_is_scored(folders: dict[str, Path]) -> None:
    data = dataset(generation=True)
    done = fitted(spec(folders, training={"max_steps": 40}), data)
    answers = done.after.run(data.test.select(["id", "text"]))
    node = done.node
    written = answers["prediction"].to_pylist()
    assert set(written) & set(LABELS)
    asked = data.test.set_column(data.test.column_names.index("target"), "target", pa.array(written))
    others = ["warm" if text == "cold" else "cold" for text in written]
    turned = asked.set_column(asked.column_names.index("target"), "target", pa.array(others))
    own, other = (node.target_log_probabilities(rows)[0] for rows in (asked, turned))
    # A label that is written greedily is the more probable of the two.
    assert all(a >= b for text, a, b in zip(written, own, other, strict=True) if text in LABELS)


@pytest.mark.parametrize("augmenting", ["tiny_gpt2", "other"])
@pytest.mark.parametrize("mode", MODES)
def test_answers_are_as_probable_as_training_made_them(mode: str, augmenting: str, folders: dict[str, Path]) -> None:
    """In a batch of different lengths, one by one, and in the loss."""
    settings = {**MODES[mode], "connections": [[2, 0], [1, 1]], "training": {"max_steps": 6}}
    done = fitted(spec(folders, {"augmenting": augmenting}, **settings), dataset(generation=True))
    node = done.node
    loss = node.build()
    loss.called.bridges.load_state_dict(
        {name.removeprefix("bridges."): torch.from_numpy(value) for name, value in node.weights.items()}
    )
    with torch.no_grad():
        learned = float(loss(**node.collate(node.encode(TRAIN)))[0])
    template = node._template()
    prompts = node._prompts(template, TRAIN)
    targets = [[text + node.model.tokenizer.eos_token] for text in node._targets(template, TRAIN)]
    alone = [node.speaker.score([one], [target])[0] for one, target in zip(prompts, targets, strict=True)]
    assert node.speaker.score(prompts, targets) == pytest.approx(np.array(alone), abs=1e-4)
    assert -float(np.sum(alone)) == pytest.approx(learned, rel=1e-5)
    several = [answer.text for answer in node.speaker.write(prompts[:4], 6)]
    assert several == [node.speaker.write([one], 6)[0].text for one in prompts[:4]]


@pytest.mark.parametrize(
    ("roles", "method", "named"),
    [
        ({}, {"connections": [[4, 0]]}, r"layer 4 of the augmenting model; it has 3 blocks"),
        ({}, {"connections": [[1, 3]]}, r"layer 3 of the anchor model; it has 2 blocks"),
        ({}, {"heads": 5}, r"heads: got 5"),
        ({"augmenting": "tiny_bert"}, {}, r"models\.augmenting: .* both directions.*prompt or context"),
        ({"anchor": "tiny_bert"}, {}, r"models\.anchor: .*encoder"),
        ({}, {"context_template": "{text}"}, r"context_template is read in mode context"),
        ({}, {"mode": "context", "context_template": "{absent}"}, r"absent"),
        ({}, {"training": {"activation_checkpointing": True}}, r"activation_checkpointing"),
    ],
)
def test_what_cannot_be_composed_is_said_before_anything_is_trained(
    folders: dict[str, Path], roles: dict[str, str], method: dict[str, Any], named: str
) -> None:
    with pytest.raises((ModelError, SpecError), match=named):
        fitted(spec(folders, roles, **method))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"models": {"anchor": {"source": "m"}}}, r"models\.augmenting is missing: method calm"),
        ({"models": {"anchor": {"source": "m"}, "augmenting": []}}, "give one to 9 models"),
        ({"method": {"name": "calm", "mode": "mirrored"}}, r"method\.mode"),
        ({"method": {"name": "calm", "connections": "papers"}}, r"method\.connections"),
        ({"method": {"name": "calm", "rank": 0}}, r"method\.rank"),
    ],
)
def test_a_wrong_spec_is_refused(given: dict[str, Any], named: str) -> None:
    whole = {
        "name": "x",
        "models": {"anchor": {"source": "m"}, "augmenting": {"source": "n"}},
        "task": {"name": "python-docs"},
        "method": {"name": "calm"},
    }
    with pytest.raises(SpecError, match=named):
        Experiment.from_mapping({**whole, **given})


def test_a_prompt_longer_than_either_context_is_refused(folders: dict[str, Path]) -> None:
    """The anchor's context holds 256 of its tokens, the other one's 300 characters."""
    done = fitted(spec(folders, training={"max_steps": 1}))
    long = TEST.slice(0, 1).set_column(1, "text", pa.array(["the cat sat on the " * 18]))
    with pytest.raises(ModelError, match=r"an augmenting model reads is \d+ tokens too long; .* holds 300"):
        done.node.check(long)
    longer = TEST.slice(0, 1).set_column(1, "text", pa.array(["ice " * 300]))
    with pytest.raises(ModelError, match=r"the context of .*tiny_llama.* holds 256"):
        done.node.check(longer)
