"""Text that comes token by token, against decoding everything at once."""

import random
from pathlib import Path
from typing import Any

import pytest

import graft.models
from graft.models.asked import PART, Asked, Token
from graft.models.detokenizing import Spelling, Text
from graft.models.growing import Growing
from graft.models.writing import completion

PROMPTS = ["", "The cat", "Die Katze saß auf der Matte; 东京", "东京" * 9, " ", "a\n", "\ufffd", "👍🏽"]


def tokenizer_of(request: pytest.FixtureRequest, kind: str) -> Any:
    if kind == "words in pieces":
        return word_pieces()
    return graft.models.load(str(request.getfixturevalue(kind))).tokenizer


def word_pieces() -> Any:
    """Marks what continues a word, and writes spaces between words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "</s>", "the", "cat", "##s", "##ly", ".", ",", "'", "n", "##t", "a", "##京", "东", "do"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>")


def draws(tokenizer: Any, draw: random.Random) -> list[int]:
    """Tokens as a model might write them: any, words of real texts, and bytes that make characters or do not."""
    found: list[int] = []
    for _ in range(draw.randint(1, 24)):
        kind = draw.random()
        if kind < 0.4:
            found.append(draw.randrange(len(tokenizer)))
        elif kind < 0.7:
            text = draw.choice(["东京 is", "naïve", " a cat.", "👍🏽", "  ", "ß", "é"])
            found += tokenizer(text, add_special_tokens=False)["input_ids"]
        elif kind < 0.95:
            octets = tokenizer("a东京é", add_special_tokens=False)["input_ids"][1:]
            found += octets[: draw.choice([len(octets), draw.randint(0, len(octets))])]
        else:
            found += [tokenizer.eos_token_id] * draw.randint(1, 40)
    return found


@pytest.mark.parametrize("kind", ["tiny_llama", "stories", "words in pieces"])
def test_pieces_add_up_to_the_whole(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = tokenizer_of(request, kind)
    spelling, draw = Spelling(tokenizer), random.Random(kind)
    windows = []
    for turn in range(120):
        prompt = tokenizer(PROMPTS[turn % len(PROMPTS)])["input_ids"]
        new = draws(tokenizer, draw)
        text = Text(spelling, prompt)
        told = ""
        for place, token in enumerate(new):
            told += text.add(token)
            windows.append(len(text.window))
            # What is told is what every longer text begins with, this one among them.
            assert place % 5 or completion(tokenizer, prompt, new[: place + 1]).startswith(told)
        assert told + text.rest() == completion(tokenizer, prompt, new)
    assert sum(windows) / len(windows) < 40


@pytest.mark.parametrize("kind", ["tiny_llama", "stories"])
def test_characters_come_whole_and_at_once(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = tokenizer_of(request, kind)
    text = Text(Spelling(tokenizer), tokenizer("The cat")["input_ids"])
    new = tokenizer(" 东京 is a city, and naïve a word" * 5, add_special_tokens=False)["input_ids"]
    pieces = [text.add(token) for token in new]
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > len(new) / 3
    assert len(text.window) < 50


@pytest.mark.parametrize("kind", ["tiny_llama", "stories", "words in pieces"])
def test_every_token_has_its_place_in_the_text(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = tokenizer_of(request, kind)
    spelling, draw = Spelling(tokenizer), random.Random(kind)
    prompt = tokenizer("the cat")["input_ids"]
    for _ in range(40):
        new = draws(tokenizer, draw)
        text, tokens = written(spelling, prompt, new)
        assert [token.text for token in tokens] == list(map(spelling.name, new))
        offsets = [token.offset for token in tokens]
        assert offsets == sorted(offsets)
        for token, one in zip(new, tokens, strict=True):
            # Bytes that are no text in the end are parts as well.
            part = PART in one.text or text.startswith(PART, one.offset)
            assert part or token in spelling.special or text.startswith(one.text, one.offset)


@pytest.mark.parametrize("kind", ["tiny_llama", "stories"])
def test_parts_of_a_character_have_one_place(request: pytest.FixtureRequest, kind: str) -> None:
    tokenizer = tokenizer_of(request, kind)
    new = tokenizer("a鱼龙ab\n\n", add_special_tokens=False)["input_ids"]
    text, tokens = written(Spelling(tokenizer), tokenizer("The cat")["input_ids"], new)
    start = text.index("a鱼")
    parts = [token.offset - start for token in tokens if token.text == PART]
    assert parts == [1, 1, 1, 2, 2, 2]
    assert [token.offset - start for token in tokens[-4:]] == [3, 4, 5, 6]


def written(spelling: Spelling, prompt: list[int], new: list[int]) -> tuple[str, list[Token]]:
    """The text that a model writes after a prompt, and what is told of its tokens."""
    text = Growing(Asked("", len(new), logprobs=0), prompt, prompt, spelling, set())
    pieces = [text.add(token, Token(spelling.name(token), -1.0, ())) for token in new]
    told = [piece for piece in pieces if piece is not None]
    return "".join(piece.text for piece in told), [token for piece in told for token in piece.logprobs]


def test_names_of_tokens(stories: Path, tiny_llama: Path) -> None:
    spelling = Spelling(graft.models.load(str(stories)).tokenizer)
    lily = spelling.tokenizer(" Lily", add_special_tokens=False)["input_ids"]
    assert "".join(map(spelling.name, lily)).strip() == "Lily"
    assert spelling.name(lily[0]).startswith(" ")
    assert spelling.name(2) == "</s>"
    assert len(spelling.octets) == 256
    assert Spelling(graft.models.load(str(tiny_llama)).tokenizer).octets == set()
