"""Tokens across tokenizers: what is seen is known, in training, scoring and writing alike."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.errors import ModelError
from graft.models.calm.reading import WORD, Interpreter, Listener, same_tokenizer

TEXTS = [
    "Once upon a time there was a little girl, who loved the unhappy cat.",
    "naïve café, Ångström — “quoted” isn't  double-spaced\n\nnew\tline   ",
    "emoji 👩‍👩‍👧 and 🇫🇷 flags 👍🏽 end",
    "东京は日本の首都です。Мосвка हिन्दी ที่นี่",
    "x = foo.bar(baz)[0] + 3.14e-5; // done",
    "  leading spaces",
    "",
]


@pytest.fixture(scope="module")
def pairs(other_tokenizer: Any, tiny: Any) -> dict[str, Interpreter]:
    """Byte-level BPE beside spaces as signs with bytes for what is unknown, in both directions."""
    return {"to signs": Interpreter(tiny, other_tokenizer), "to bytes": Interpreter(other_tokenizer, tiny)}


DIRECTIONS = pytest.mark.parametrize("direction", ["to signs", "to bytes"])


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@given(st.text(max_size=40), st.integers(0, 40))
def test_words_that_are_over_stay_as_they_are(text: str, length: int) -> None:
    words, before = WORD.findall(text), WORD.findall(text[:length])
    assert "".join(words) == text
    assert before[:-1] == words[: max(0, len(before) - 1)]


@DIRECTIONS
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_read_is_the_text(direction: str, text: str, pairs: dict[str, Interpreter]) -> None:
    interpreter = pairs[direction]
    tokens = ids(interpreter.anchor, text)
    found, seen = interpreter.read(tokens, len(tokens))
    assert len(seen) == len(tokens)
    assert seen == sorted(seen)
    assert not tokens or seen[-1] == len(found)
    written = interpreter.augmenting.backend_tokenizer.decode(found, skip_special_tokens=True)
    assert written.strip() == interpreter.text(tokens).strip()


@DIRECTIONS
@settings(max_examples=60)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)), data=st.data())
def test_what_follows_changes_nothing_that_was_seen(
    direction: str, text: str, data: st.DataObject, pairs: dict[str, Interpreter]
) -> None:
    interpreter = pairs[direction]
    tokens = ids(interpreter.anchor, text)
    cut = data.draw(st.integers(0, len(tokens)))
    other = data.draw(st.lists(st.integers(5, 300), max_size=6))
    whole, seen = interpreter.read(tokens)
    changed, seen_there = interpreter.read([*tokens[:cut], *other])
    assert seen[:cut] == seen_there[:cut]
    known = seen[cut - 1] if cut else 0
    assert whole[:known] == changed[:known]


@DIRECTIONS
@pytest.mark.parametrize("text", TEXTS)
def test_no_token_is_seen_before_its_text_has_ended(direction: str, text: str, pairs: dict[str, Interpreter]) -> None:
    interpreter = pairs[direction]
    encoded = interpreter.anchor(text, add_special_tokens=False, return_offsets_mapping=True)
    found, seen = interpreter.read(encoded["input_ids"])
    for count, (_, end) in zip(seen, encoded["offset_mapping"], strict=True):
        read = interpreter.augmenting.backend_tokenizer.decode(found[:count], skip_special_tokens=True)
        assert text[:end].strip().startswith(read.strip())


@DIRECTIONS
@pytest.mark.parametrize("text", TEXTS)
def test_heard_token_by_token_it_is_what_is_read_at_once(
    direction: str, text: str, pairs: dict[str, Interpreter]
) -> None:
    interpreter = pairs[direction]
    tokens = ids(interpreter.anchor, text)
    prompt = len(tokens) // 2
    listener, found, counts = Listener(interpreter), list(interpreter.lead), []
    for token in tokens:
        twin = listener.copied()
        own = listener.hear(token, prompt)
        assert twin.hear(token, prompt) == own
        found += own
        counts.append(len(found))
    assert (found, counts) == interpreter.read(tokens, prompt)


@DIRECTIONS
def test_plain_text_becomes_the_tokens_that_its_own_model_knows(direction: str, pairs: dict[str, Interpreter]) -> None:
    interpreter = pairs[direction]
    text = "Once upon a time there was a little girl who loved to play outside."
    tokens = ids(interpreter.anchor, text)
    assert interpreter.read(tokens, len(tokens))[0] == list(interpreter.augmenting(text)["input_ids"])


def test_a_word_is_seen_once_another_begins_or_the_prompt_ends(pairs: dict[str, Interpreter]) -> None:
    interpreter = pairs["to signs"]
    tokens = ids(interpreter.anchor, "the cat sat")
    ends = [len(ids(interpreter.anchor, text)) for text in ("the", "the cat")]
    _, seen = interpreter.read(tokens)
    lead = len(interpreter.lead)
    assert seen[ends[0] - 1] == lead  # "the" may become "then"
    assert seen[ends[0]] == lead + len(ids(interpreter.augmenting, "the"))
    _, at_end = interpreter.read(tokens, ends[1])
    assert at_end[ends[1] - 1] == lead + len(ids(interpreter.augmenting, "the cat"))
    assert at_end[: ends[1] - 1] == seen[: ends[1] - 1]


def test_special_tokens_are_not_heard(pairs: dict[str, Interpreter]) -> None:
    interpreter = pairs["to signs"]
    tokens = ids(interpreter.anchor, "a small red ball")
    start, end = interpreter.anchor.bos_token_id, interpreter.anchor.eos_token_id
    assert interpreter.read([start, *tokens, end], len(tokens) + 1)[0] == interpreter.read(tokens, len(tokens))[0]


def test_tokenizers_are_told_apart_by_what_they_do(tiny: Any, other_tokenizer: Any, tiny_llama: Any) -> None:
    import transformers

    framed = transformers.AutoTokenizer.from_pretrained(tiny_llama)  # the same, with a begin token before each text
    assert same_tokenizer(tiny, framed)
    assert not same_tokenizer(tiny, other_tokenizer)
    assert same_tokenizer(None, None)
    assert not same_tokenizer(None, tiny)


def test_a_slow_tokenizer_is_refused(tiny: Any) -> None:
    class Slow:
        is_fast = False

    for pair in ((tiny, Slow()), (Slow(), tiny)):
        with pytest.raises(ModelError, match="cannot say where its tokens end"):
            Interpreter(*pair)
