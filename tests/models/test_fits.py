"""Whether prompts fit, asked beforehand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import graft.models
from graft.errors import ModelError
from graft.spec import ModelSource

PROMPTS = ["Once upon a time", "", "cat " * 40, "a mov"]
LABELS = [" x", " positive", "ing film and more"]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_a_prompt_and_its_candidate_are_one_text(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    longest = [max(model.count_tokens([prompt + label for label in LABELS])) for prompt in PROMPTS]
    # The empty prompt of a model without a start token is given one.
    longest[1] += name == "tiny_gpt2"
    excess = model.excess(PROMPTS, LABELS)
    assert excess.dtype == np.int32
    assert excess.tolist() == [count - 256 for count in longest]
    own = [[f" {'film ' * index}", " x"] for index in range(1, 5)]
    expected = [int(max(model.count_tokens([p + c for c in several]))) for p, several in zip(PROMPTS, own, strict=True)]
    expected[1] += name == "tiny_gpt2"
    assert (model.excess(PROMPTS, own) + 256).tolist() == expected


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_zero_is_the_last_that_is_scored_and_written(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    for words in range(1, 300):
        if model.excess(["cat " * words], [" x"])[0] >= 0:
            break
    (over,) = model.excess(["cat " * words], [" x"])
    fitting, longer = "cat " * (words - int(over > 0)), "cat " * (words + 1)
    assert model.excess([fitting], [" x"])[0] <= 0 < model.excess([longer], [" x"])[0]
    assert np.isfinite(model.score([fitting], [" x"])).all()
    with pytest.raises(ModelError, match="its context holds 256"):
        model.score([longer], [" x"])
    room = -int(model.excess(["cat"], max_new_tokens=0)[0])
    assert model.excess(["cat"], max_new_tokens=room).tolist() == [0]
    assert model.generate(["cat"], max_new_tokens=room)
    with pytest.raises(ModelError, match="its context holds 256"):
        model.generate(["cat"], max_new_tokens=room + 1)


def test_an_encoder_decoder_limits_prompt_and_answer_each(tiny_t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "limited"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 100}))
    model = graft.models.load(str(folder))
    assert model.context_tokens == 100
    prompt = model.cut(["cat " * 100], 73)[0]
    assert model.count_tokens([prompt]) == 73
    assert model.excess([prompt], max_new_tokens=64).tolist() == [-27]
    assert len(model.generate([prompt], max_new_tokens=64)) == 1
    assert model.excess([prompt], max_new_tokens=101).tolist() == [1]
    with pytest.raises(ModelError, match=r"longest answer has 101 tokens, its context holds 100 .*max_new_tokens"):
        model.generate([prompt], max_new_tokens=101)
    answer = "cat " * 120
    tokens = len(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert model.excess([prompt, "a"], [" x", answer]).tolist() == [tokens - 100] * 2
    with pytest.raises(ModelError, match=rf"longest candidate has {tokens} tokens, its context holds 100"):
        model.score([prompt], [" x", answer])
    assert model.excess([prompt], [" x"]).tolist() == [-27]


def test_texts_to_embed(tiny_bert: Path, tiny_llama: Path) -> None:
    texts = ["cat", "cat " * 300]
    model = graft.models.load(str(tiny_bert))
    assert model.excess(texts).tolist() == (model.count_tokens(texts) - 128).tolist()
    dressed = graft.models.load(ModelSource(source=str(tiny_llama), pooling="prompteol"))
    assert (dressed.excess(texts) > dressed.count_tokens(texts) - 256).all()


def test_nothing_to_ask(tiny_t5: Path, tiny_llama: Path, tiny_bert: Path) -> None:
    unlimited = graft.models.load(str(tiny_t5))
    assert unlimited.excess(["cat " * 5000], max_new_tokens=5000).tolist() == [0]
    model = graft.models.load(str(tiny_llama))
    for excess in (model.excess([]), model.excess([], LABELS), model.excess([], max_new_tokens=3)):
        assert excess.shape == (0,)
    with pytest.raises(ModelError, match="candidate '' adds no token"):
        model.excess(["a"], [""])
    for asked in ({"candidates": LABELS}, {"max_new_tokens": 3}):
        with pytest.raises(ModelError, match="an encoder model cannot"):
            graft.models.load(str(tiny_bert)).excess(["a"], **asked)
