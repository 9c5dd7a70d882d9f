"""Embeddings against transformers and sentence-transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graft.models
from graft.errors import ModelError
from graft.models.batching import batches
from graft.models.pooling import PROMPT_EOL
from graft.spec import ModelSource

TEXTS = ["The cat sat.", "a", "Once upon a time there was a little girl who loved to play outside.", "naïve 东京", ""]


def reference_states(folder: Path, text: str) -> tuple[torch.Tensor, ...]:
    """Every hidden state [T, D] of one text by transformers itself, the final output last."""
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        output = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return (*(state[0] for state in output.hidden_states), output.last_hidden_state[0])


def test_minilm_equals_sentence_transformers(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = graft.models.load("sentence-transformers/all-MiniLM-L6-v2")
    reference = SentenceTransformer(str(graft.models.locate(model.source)), device="cpu")
    texts = [*TEXTS, "Cats and dogs are unbelievably different animals. " * 60]
    expected = reference.encode(texts, show_progress_bar=False)
    ours = model.embed(texts, max_tokens=256)
    assert ours.dtype == np.float32
    assert (model.context_tokens, model.dimensions, model.kind) == (256, 384, "encoder")
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling_files_are_read_as_sentence_transformers_reads_them(tiny_bert: Path, tmp_path: Path, mode: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    pooling = Pooling(32, (mode, "mean") if mode == "max" else mode)
    width = 64 if mode == "max" else 32
    steps = [Transformer(str(tiny_bert)), pooling, Dense(width, 7), Normalize()]
    reference = SentenceTransformer(
        modules=steps,
        device="cpu",
        prompts={"query": "query: "},
        default_prompt_name="query" if mode == "cls" else None,
    )
    reference.save(str(tmp_path), create_model_card=False)
    model = graft.models.load(str(tmp_path))
    assert model.dimensions == 7
    np.testing.assert_allclose(model.embed(TEXTS[:4]), reference.encode(TEXTS[:4], show_progress_bar=False), atol=1e-5)


@pytest.mark.parametrize(("pooling", "row"), [("mean", None), ("last", -1), ("cls", 0)])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_pooling_of_the_source(request: pytest.FixtureRequest, name: str, pooling: str, row: int | None) -> None:
    folder = request.getfixturevalue(name)
    model = graft.models.load(ModelSource(source=str(folder), pooling=pooling))
    for text, vector in zip(TEXTS[:4], model.embed(TEXTS[:4]), strict=True):
        states = reference_states(folder, text)[-1]
        expected = states.mean(0) if row is None else states[row]
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_plain_folder_is_mean_pooled_and_an_encoder_decoder_is_its_encoder(tiny_t5: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    network, tokenizer = T5EncoderModel.from_pretrained(tiny_t5).eval(), AutoTokenizer.from_pretrained(tiny_t5)
    model = graft.models.load(str(tiny_t5))
    for text, vector in zip(TEXTS[:3], model.embed(TEXTS[:3]), strict=True):
        with torch.no_grad():
            states = network(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        np.testing.assert_allclose(vector, states.mean(0).numpy(), atol=1e-5)


def test_prompteol_reads_the_last_token_of_its_template(tiny_llama: Path) -> None:
    model = graft.models.load(ModelSource(source=str(tiny_llama), pooling="prompteol"))
    expected = reference_states(tiny_llama, PROMPT_EOL.replace("{text}", TEXTS[0]))[-1][-1]
    np.testing.assert_allclose(model.embed(TEXTS[:1])[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_layers_are_counted_as_hidden_states(request: pytest.FixtureRequest, name: str) -> None:
    folder = request.getfixturevalue(name)
    states = reference_states(folder, TEXTS[2])
    for layer in (0, 1):
        model = graft.models.load(ModelSource(source=str(folder), layer=layer))
        np.testing.assert_allclose(model.embed(TEXTS[2:3])[0], states[layer].mean(0).numpy(), atol=1e-5)


def test_the_last_layer_is_before_the_final_norm(tiny_llama: Path) -> None:
    model = graft.models.load(ModelSource(source=str(tiny_llama), layer=2, pooling="last"))
    vector = torch.from_numpy(model.embed(TEXTS[:1]))
    after = reference_states(tiny_llama, TEXTS[0])[-1][-1]
    assert not torch.allclose(vector[0], after, atol=1e-2)
    torch.testing.assert_close(model.network.base_model.norm(vector)[0], after, atol=1e-5, rtol=0)


def test_order_and_batches_do_not_matter(tiny_bert: Path) -> None:
    model = graft.models.load(str(tiny_bert))
    texts = [("word " * (index % 37)).strip() for index in range(150)]
    together = model.embed(texts)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(model.embed([texts[index] for index in shuffled]), together[shuffled], atol=1e-5)
    np.testing.assert_allclose(np.stack([model.embed([text])[0] for text in texts[:40]]), together[:40], atol=1e-5)


def test_usage_counts_tokens_without_padding(tiny_bert: Path) -> None:
    model = graft.models.load(ModelSource(source=str(tiny_bert), dtype="float32"))
    before = (model.usage.tokens, model.usage.forward_passes)
    model.embed(TEXTS)
    tokens, passes = model.usage.tokens - before[0], model.usage.forward_passes - before[1]
    assert (tokens, passes) == (int(model.count_tokens(TEXTS).sum()), len(TEXTS))


def test_nothing_to_embed(tiny_bert: Path) -> None:
    model = graft.models.load(str(tiny_bert))
    assert model.embed([]).shape == (0, 32)
    assert model.count_tokens([]).shape == (0,)


def test_empty_text_of_a_model_without_special_tokens_is_its_start_token(tiny_gpt2: Path) -> None:
    model = graft.models.load(str(tiny_gpt2))
    np.testing.assert_allclose(model.embed([""]), model.embed(["<s>"]), atol=1e-6)


def test_too_long_text_names_its_tokens_the_limit_and_the_cure(tiny_bert: Path) -> None:
    model = graft.models.load(str(tiny_bert))
    long = "cat " * 300
    tokens = int(model.count_tokens([long])[0])
    with pytest.raises(ModelError, match=rf"{tokens} tokens, its context holds 128 \(1 of 2 .*task\.max_tokens"):
        model.embed(["cat", long])
    with pytest.raises(ModelError, match="200 tokens, its context holds 128"):
        model.embed([long], max_tokens=200)
    assert model.embed([long], max_tokens=128).shape == (1, 32)
    assert model.tokens_over(["cat", long], 128).tolist() == [0, tokens - 128]
    assert model.tokens_over(["cat", long], None).tolist() == [0, 0]


@pytest.mark.parametrize(("name", "context"), [("tiny_roberta", 63), ("tiny_mpnet", 62)])
def test_positions_that_begin_after_the_padding_row(request: pytest.FixtureRequest, name: str, context: int) -> None:
    folder = request.getfixturevalue(name)
    model = graft.models.load(str(folder))
    assert model.context_tokens == context
    text = model.cut(["cat " * 100], context)[0]
    assert model.count_tokens([text]) == context
    expected = reference_states(folder, text)[-1].mean(0)
    np.testing.assert_allclose(model.embed([text])[0], expected.numpy(), atol=1e-5)
    with pytest.raises(ModelError, match=f"its context holds {context} "):
        model.embed(["cat " * 100], max_tokens=context + 1)


def test_a_stated_length_that_the_positions_lack(tiny_roberta: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_roberta, tmp_path / "stated"))
    for stated, context in ((64, 63), (20, 20)):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stated}))
        assert graft.models.load(str(folder)).context_tokens == context


@pytest.mark.parametrize("word", ["cat ", "!? ", '" ', "naïve"])
def test_the_cure_leaves_room_for_the_template(tiny_llama: Path, tmp_path: Path, word: str) -> None:
    model = graft.models.load(ModelSource(source=str(tiny_llama), pooling="prompteol"))
    with pytest.raises(ModelError, match=r"its context holds 256 .* set task\.max_tokens to \d+ or less") as caught:
        model.embed([word * 300])
    limit = int(str(caught.value).rpartition("max_tokens to ")[2].removesuffix(" or less"))
    assert limit > 200
    assert model.embed([word * 300], max_tokens=limit).shape == (1, 32)


def test_a_template_that_fills_the_context(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "narrow"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    with pytest.raises(ModelError, match=r"leaves no room: set models\.ROLE\.pooling"):
        graft.models.load(ModelSource(source=str(folder), pooling="prompteol")).embed(["cat"])


def test_cutting_keeps_special_tokens(tiny_bert: Path) -> None:
    model = graft.models.load(str(tiny_bert))
    (cut,) = model.cut([TEXTS[2]], 8)
    assert model.count_tokens([cut])[0] == 8
    np.testing.assert_array_equal(model.embed([TEXTS[2]], max_tokens=8), model.embed([cut]))
    with pytest.raises(ModelError, match=r"task\.max_tokens: got 2"):
        model.cut([TEXTS[2]], 2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60), limit=st.integers(3, 30))
def test_a_cut_text_is_a_beginning_that_fits(tiny_bert: Path, text: str, limit: int) -> None:
    model = graft.models.load(str(tiny_bert))
    (cut,) = model.cut([text], limit)
    assert text.startswith(cut)
    assert model.count_tokens([cut])[0] <= limit
    assert cut == text or model.count_tokens([text])[0] > limit


def test_a_layer_that_does_not_exist(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match=r"models\.ROLE\.layer: got 3; .* has 2 blocks; give 0 to 2"):
        graft.models.load(ModelSource(source=str(tiny_llama), layer=3))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"path": ""}, {"path": "1_LSTM", "type": "a.b.LSTM"}], "step 'LSTM' is not supported.*models.ROLE.pooling"),
        ([{"path": "../elsewhere"}], "not a list of steps"),
        ({"path": ""}, "not a list of steps"),
    ],
)
def test_steps_that_are_not_supported(tiny_bert: Path, tmp_path: Path, steps: object, message: str) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "stepped"))
    (folder / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(ModelError, match=message):
        graft.models.load(str(folder))


@pytest.mark.parametrize("padding", [None, 0, 7, 100])
def test_a_batch_holds_no_more_padding_than_it_may(padding: int | None) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 200)
    found = batches(lengths, tokens=300, padding=padding)
    assert sorted(np.concatenate(found)) == list(range(200))
    waste = [int((lengths[batch].max() - lengths[batch]).sum()) for batch in found]
    assert max(waste) <= (300 if padding is None else padding)
    assert max(len(batch) * lengths[batch].max() for batch in found) <= 300
