"""Probabilities of continuations against the slowest correct way: one sequence at a time, no cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import graft.models
from graft.errors import ModelError
from graft.models.prefixes import PrefixCaches, common_length

DEMONSTRATIONS = "Review: a dull film without a story. Label: negative\nReview: a moving film. Label: positive\n" * 2
REVIEWS = ["beautiful", "the cat sat on the mat and nothing else happened", "", "a 东京 story", "dull, dull, dull"]
PROMPTS = [f"{DEMONSTRATIONS}Review: {review} Label:" for review in REVIEWS]
LABELS = [" positive", " negative", " x", " a label of several words"]


def naive_causal(folder: Path, prompt: str, candidates: list[str]) -> tuple[list[float], list[int]]:
    """Sums of log-probabilities and numbers of scored tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = [tokenizer(prompt + candidate)["input_ids"] for candidate in candidates]
    given = min(common_length(tokenizer(prompt)["input_ids"], tokens) for tokens in whole)
    if given == 0:
        whole, given = [[tokenizer.bos_token_id, *tokens] for tokens in whole], 1
    sums = []
    for tokens in whole:
        with torch.no_grad():
            logits = network(torch.tensor([tokens]), use_cache=False).logits[0]
        chosen = logits.double().log_softmax(-1)[range(given - 1, len(tokens) - 1), tokens[given:]]
        sums.append(float(chosen.sum()))
    return sums, [len(tokens) - given for tokens in whole]


def naive_seq2seq(folder: Path, prompt: str, candidates: list[str]) -> tuple[list[float], list[int]]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    network, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    sums, lengths = [], []
    for candidate in candidates:
        labels = tokenizer(candidate, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = network(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]), labels=labels).loss
        sums.append(-float(loss) * labels.numel())
        lengths.append(labels.numel())
    return sums, lengths


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_t5"])
def any_folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def expected(folder: Path, prompts: list[str], candidates: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    naive = naive_seq2seq if "t5" in folder.name else naive_causal
    found = [naive(folder, prompt, several) for prompt, several in zip(prompts, candidates, strict=True)]
    return np.array([sums for sums, _ in found]), np.array([lengths for _, lengths in found])


def test_equals_one_sequence_at_a_time(any_folder: Path) -> None:
    model = graft.models.load(str(any_folder))
    sums, lengths = expected(any_folder, PROMPTS, [LABELS] * len(PROMPTS))
    scores = model.score(PROMPTS, LABELS)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, sums, atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(model.score(PROMPTS, LABELS, normalize=True), sums / lengths, atol=1e-5, rtol=1e-6)


def test_candidates_of_each_prompt(any_folder: Path) -> None:
    model = graft.models.load(str(any_folder))
    own = [[f" {index}", f" film {index}"] for index in range(len(PROMPTS))]
    np.testing.assert_allclose(model.score(PROMPTS, own), expected(any_folder, PROMPTS, own)[0], atol=1e-5, rtol=1e-6)
    assert model.score([], LABELS).shape[0] == 0


@pytest.mark.parametrize(
    ("prompt", "candidates"),
    [
        ("Label: ", ["positive", "negative"]),  # the space belongs to the candidate's first token
        ("a mov", ["ing film", "x"]),  # the candidate changes the prompt's last token
        ("", ["Once upon", "The cat"]),  # nothing is given but the start token
        ("The", ["re was", " cat"]),
    ],
)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_prompt_and_candidate_become_tokens_together(
    request: pytest.FixtureRequest, name: str, prompt: str, candidates: list[str]
) -> None:
    folder = request.getfixturevalue(name)
    sums, lengths = expected(folder, [prompt], [candidates])
    model = graft.models.load(str(folder))
    np.testing.assert_allclose(model.score([prompt], candidates), sums, atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(model.score([prompt], candidates, normalize=True), sums / lengths, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_cached_equals_uncached(request: pytest.FixtureRequest, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = graft.models.load(str(request.getfixturevalue(name)))
    monkeypatch.setattr(model, "prefixes", PrefixCaches())
    assert model.shares_prefixes
    first, again = model.score(PROMPTS, LABELS), model.score(PROMPTS, LABELS)
    alone = np.concatenate([model.score([prompt], LABELS) for prompt in PROMPTS])
    monkeypatch.setattr(model, "shares_prefixes", False)
    plain = model.score(PROMPTS, LABELS)
    for scores in (first, again, alone):
        np.testing.assert_allclose(scores, plain, atol=1e-5, rtol=1e-6)


def test_order_and_batches_do_not_matter(any_folder: Path) -> None:
    model = graft.models.load(str(any_folder))
    together = model.score(PROMPTS, LABELS)
    np.testing.assert_allclose(model.score(PROMPTS[::-1], LABELS[::-1]), together[::-1, ::-1], atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([model.score([one], LABELS) for one in PROMPTS]), together, atol=1e-5, rtol=1e-6
    )


def test_what_is_shared_is_computed_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = graft.models.load(str(tiny_llama))
    monkeypatch.setattr(model, "prefixes", PrefixCaches())
    prompts = [f"{DEMONSTRATIONS}Review: {name} film. Label:" for name in ("red", "small", "Paris")]
    used = []
    for _ in range(2):
        before = model.usage.tokens
        model.score(prompts, LABELS)
        used.append(model.usage.tokens - before)
    shared, whole = int(model.count_tokens([DEMONSTRATIONS])[0]), int(model.count_tokens(prompts).sum())
    assert used[0] < whole
    assert used[0] - used[1] >= shared


def test_a_single_token_candidate_needs_no_pass_of_its_own(tiny_gpt2: Path) -> None:
    model = graft.models.load(str(tiny_gpt2))
    before = model.usage.forward_passes
    model.score(["one", "the other"], [" a", " b"])
    assert model.usage.forward_passes - before == 2


def test_an_encoder_reads_each_prompt_once(tiny_t5: Path) -> None:
    model = graft.models.load(str(tiny_t5))
    before = model.usage.forward_passes
    model.score(PROMPTS, LABELS)
    assert model.usage.forward_passes - before == len(PROMPTS) + len(PROMPTS) * len(LABELS)


def test_a_model_that_forgets_takes_the_plain_path(tiny_mistral: Path) -> None:
    model: Any = graft.models.load(str(tiny_mistral))
    assert not model.shares_prefixes
    sums, _ = expected(tiny_mistral, PROMPTS[:2], [LABELS] * 2)
    np.testing.assert_allclose(model.score(PROMPTS[:2], LABELS), sums, atol=1e-5, rtol=1e-6)


def test_scores_of_a_rendered_chat_do_not_begin_twice(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    np.testing.assert_allclose(model.score(["<s>The cat"], LABELS), model.score(["The cat"], LABELS), atol=1e-6)


def test_bad_candidates(tiny_llama: Path, tiny_t5: Path) -> None:
    for folder in (tiny_llama, tiny_t5):
        model = graft.models.load(str(folder))
        with pytest.raises(ModelError, match=r"candidate '' .*give it a text"):
            model.score(["a prompt"], [" x", ""])
        with pytest.raises(ModelError, match=r"got 1 lists of .* for 2 prompts"):
            model.score(["a", "b"], [[" x"]])
        with pytest.raises(ModelError, match=r"lists of \[1, 2\]"):
            model.score(["a", "b"], [[" x"], [" x", " y"]])


def test_too_long_prompt_names_its_tokens_and_the_limit(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    long = "cat " * 400
    tokens = int(model.count_tokens([long + " x"])[0])
    with pytest.raises(ModelError, match=rf"{tokens} tokens, its context holds 256 \(1 of 2 .*num_shots"):
        model.score(["cat", long], [" x"])


def test_the_stories_model_knows_how_stories_begin(stories: Path) -> None:
    model = graft.models.load(str(stories))
    scores = model.score(["Once upon a"], [" time", " giraffe", " table"])
    assert scores.argmax() == 0
    assert scores[0, 0] > np.log(0.9)
