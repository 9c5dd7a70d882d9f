"""Greedy text against transformers' own generate."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import graft.models
from graft.errors import ModelError
from graft.models.model import Sampling

PROMPTS = ["Once upon a time", "The cat", "", "Review: a dull film without a story. Label:"]


def reference(folder: Path, prompt: str, new_tokens: int) -> str:
    """One prompt, no padding, by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
    with torch.no_grad():
        output = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)[0]
    before, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (output[: len(ids)], output))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(output[len(ids) :])


def test_the_stories_model_writes_what_transformers_writes(stories: Path) -> None:
    model = graft.models.load(str(stories))
    texts = model.generate(["Once upon a time", "The little dog was very"], max_new_tokens=60)
    assert texts[0] == reference(stories, "Once upon a time", 60)
    assert texts[1] == reference(stories, "The little dog was very", 60)
    assert texts[0].startswith(", there was a little girl named Lily. She loved to play")


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_padding_does_not_change_the_text(request: pytest.FixtureRequest, name: str) -> None:
    folder = request.getfixturevalue(name)
    assert graft.models.load(str(folder)).generate(PROMPTS, 12) == [reference(folder, one, 12) for one in PROMPTS]


def test_encoder_decoder_writes_its_answer(tiny_t5: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    network, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval(), AutoTokenizer.from_pretrained(tiny_t5)
    expected = []
    for prompt in PROMPTS:
        output = network.generate(torch.tensor([tokenizer(prompt)["input_ids"]]), do_sample=False, max_new_tokens=12)
        expected.append(tokenizer.decode(output[0], skip_special_tokens=True))
    assert graft.models.load(str(tiny_t5)).generate(PROMPTS, 12) == expected
    assert any(expected)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_text_ends_before_the_first_stop_string(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    (whole,) = model.generate(PROMPTS[:1], 30)
    stop = whole[len(whole) // 2 :][:3]
    before = model.usage.forward_passes
    (text,) = model.generate(PROMPTS[:1], 30, stop=["never written", stop])
    assert text == whole[: whole.index(stop)]
    assert 0 < model.usage.forward_passes - before < 30


def test_a_story_stops_at_its_first_sentence(stories: Path) -> None:
    text = graft.models.load(str(stories)).generate(["Once upon a time"], 60, stop=[".", "Lily"])[0]
    assert text == ", there was a little girl named "


def test_authors_sampling_is_ignored_in_silence(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "sampling"))
    sampling = {"do_sample": True, "temperature": 0.1, "top_p": 0.5, "repetition_penalty": 9.0, "eos_token_id": 2}
    forced = {"forced_bos_token_id": 7, "forced_eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps({**sampling, **forced}))
    model = graft.models.load(str(folder))
    with caplog.at_level(logging.WARNING):
        texts = model.generate(PROMPTS, 12)
        alone = [model.generate([one], 12)[0] for one in PROMPTS]
    assert texts == alone == graft.models.load(str(tiny_llama)).generate(PROMPTS, 12)
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_no_room_for_new_tokens(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    with pytest.raises(ModelError, match=r"prompt with max_new_tokens has 30\d tokens, its context holds 256"):
        model.generate(["cat"], max_new_tokens=300)


def test_nothing_to_write(tiny_llama: Path) -> None:
    assert graft.models.load(str(tiny_llama)).generate([], 5) == []


SHARED = "Once upon a time there was a little girl named Lily. She loved to play outside with her big red ball. " * 2
ENDS = ["One day", "Her mom", "The dog ran away and Lily", "It", "Then they all", "A cat"]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_what_prompts_begin_with_is_computed_once_and_changes_nothing(
    request: pytest.FixtureRequest, name: str
) -> None:
    folder = request.getfixturevalue(name)
    model = graft.models.load(str(folder))
    start = SHARED[:101]
    prompts = [f"{start} {end}" for end in ENDS] + ["The cat"]
    before = model.usage.tokens
    assert model.generate(prompts, 12) == [reference(folder, one, 12) for one in prompts]
    shared = len(model.tokenizer(start)["input_ids"])
    alone = sum(len(model.tokenizer(one)["input_ids"]) for one in prompts)
    assert model.usage.tokens - before < alone - 4 * shared + 12 * len(prompts)


def test_a_text_that_the_limit_ends_says_so(stories: Path) -> None:
    model = graft.models.load(str(stories))
    (cut,) = model.write(["Once upon a time"], 3)
    (whole,) = model.write(["Once upon a time"], 60, stop=["."])
    assert (cut.whole, whole.whole) == (False, True)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_a_drawn_text_depends_on_its_own_seed_alone(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    prompts = ["The cat", "Once upon a time there was", "The cat"]
    together = model.write(prompts, 8, sampling=Sampling(1.0, [5, 6, 7]))
    alone = [
        model.write([one], 8, sampling=Sampling(1.0, [seed]))[0] for one, seed in zip(prompts, [5, 6, 7], strict=True)
    ]
    assert together == alone
    assert together[0] != together[2]
    assert [one.text for one in model.write(prompts, 8, sampling=Sampling(1e-6, [5, 6, 7]))] == model.generate(
        prompts, 8
    )


def test_texts_are_drawn_by_their_probability(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    prompt, count = "The cat", 600
    drawn = model.write([prompt] * count, 1, sampling=Sampling(0.7, list(range(count))))
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (model.network(ids).logits[0, -1] / 0.7).softmax(-1).numpy()
    texts = [model.tokenizer.decode([token]) for token in range(len(expected))]
    best = int(expected.argmax())
    share = sum(one.text == texts[best] for one in drawn) / count
    wanted = sum(p for text, p in zip(texts, expected, strict=False) if text == texts[best])
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5 + 1e-3
