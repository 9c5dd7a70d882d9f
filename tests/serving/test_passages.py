"""How the pieces of several texts become what a request is told; the pieces are given here, and no model runs."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from graft.errors import ModelError
from graft.models.asked import Asked, Piece, Token
from graft.serving.asking import _beyond
from graft.serving.passages import Passages
from graft.serving.schemas import Refusal
from graft.serving.shapes import Shape
from graft.serving.text_schemas import ChatRequest
from graft.serving.wire import Manner, Place, Segment, Writing

PLACE = Place("run", fs.SubTreeFileSystem("/", fs.LocalFileSystem()), "run")
ROW = pa.table({"id": ["a"], "text": ["b"]})


class Spoken:
    """An engine that says of every prompt what was given for it."""

    def __init__(self, texts: dict[str, Sequence[str | Exception]]) -> None:
        self.texts, self.asked, self.left = texts, list[Asked](), 0

    async def write(self, asked: Asked) -> AsyncGenerator[Piece]:
        self.asked.append(asked)
        pieces = self.texts[asked.prompt]
        try:
            for place, text in enumerate(pieces):
                await asyncio.sleep(0)
                if isinstance(text, Exception):
                    raise text
                last = place == len(pieces) - 1
                yield Piece(text, 1, finish="stop" if last else None, prompt_tokens=0 if place else 3)
        finally:
            self.left += 1


def node(parser: str | None = None) -> Any:
    return SimpleNamespace(
        ends=("\n",), max_new_tokens=7, parser=parser, verbatim=str, read=lambda text: text.strip().upper() or None
    )


def told(
    engine: Spoken, manner: Manner, *, rows: pa.Table | None = None, parser: str | None = None, slow: bool = False
) -> list[Any]:
    async def run() -> list[Any]:
        writing = Writing(PLACE, Segment("d", 0, 1, ()), manner, tuple(engine.texts), rows)
        passages = Passages(node(parser), writing, list(engine.texts))
        messages = []
        async for found in passages.pieces(engine):  # type: ignore[arg-type]
            messages.append(found)
            for _ in range(20 if slow else 0):
                await asyncio.sleep(0)
        return messages

    return asyncio.run(run())


def joined(messages: list[Any], number: int) -> str:
    return "".join(piece.text for message in messages for at, piece in message if at == number)


def test_several_prompts_and_choices_are_numbered_and_each_has_a_seed_of_its_own() -> None:
    engine = Spoken({"p": ["a", "b"], "q": ["c", "d"]})
    messages = told(engine, Manner(choices=2, seed=5, temperature=1.0, whole=False, max_new_tokens=9))
    assert [joined(messages, number) for number in range(4)] == ["ab", "ab", "cd", "cd"]
    assert [one.prompt for one in engine.asked] == ["p", "p", "q", "q"]
    assert engine.asked[0].seed == 5
    assert len({one.seed for one in engine.asked}) == 4
    assert {one.max_new_tokens for one in engine.asked} == {9}
    assert {one.stop for one in engine.asked} == {()}


def test_an_answer_to_a_row_ends_where_the_run_ends_it_and_is_read_as_the_run_reads_it() -> None:
    engine = Spoken({"p": [" yes", " it", " is "]})
    ((found,),) = told(engine, Manner(stop=("x",)), rows=ROW)
    assert found == (0, Piece("YES IT IS", 3, finish="stop", prompt_tokens=3))
    assert engine.asked[0].stop == ("\n", "x")
    assert engine.asked[0].max_new_tokens == 7


def test_a_stream_has_no_white_space_around_it_and_all_of_that_between() -> None:
    messages = told(Spoken({"p": ["  ", " a ", "", " b", "\n ", " "]}), Manner(whole=False), rows=ROW)
    assert joined(messages, 0) == "a  b"
    assert sum(piece.tokens for message in messages for _, piece in message) == 6


def test_what_has_piled_up_of_a_text_is_one_piece() -> None:
    engine = Spoken({"p": list("abcdefgh"), "q": list("ijklmnop")})
    messages = told(engine, Manner(whole=False), slow=True)
    assert len(messages) < 8
    for message in messages:
        assert len({number for number, _ in message}) == len(message)
    assert [joined(messages, number) for number in range(2)] == ["abcdefgh", "ijklmnop"]
    assert {number for message in messages for number, piece in message if piece.finish} == {0, 1}
    assert sum(piece.tokens for message in messages for _, piece in message) == 16


def test_what_a_parser_reads_is_told_when_it_is_whole() -> None:
    messages = told(Spoken({"p": ["so ", "it is ", "4"]}), Manner(whole=False), rows=ROW, parser="number")
    pieces = [piece for message in messages for _, piece in message]
    assert [piece.text for piece in pieces] == ["", "", "SO IT IS 4"]
    assert [piece.tokens for piece in pieces] == [1, 1, 1], "whoever leaves early has caused those before"


def test_verbatim_texts_stay_as_they_are() -> None:
    assert joined(told(Spoken({"p": [" a ", " b "]}), Manner()), 0) == " a  b "


@pytest.mark.parametrize("whole", [True, False])
def test_where_one_text_fails_the_others_are_left(whole: bool) -> None:
    engine = Spoken({"p": ["a"] * 1000, "q": ["b", ModelError("too long")]})
    with pytest.raises(ModelError, match="too long"):
        told(engine, Manner(whole=whole))
    assert engine.left == 2


def test_a_part_of_a_character_has_no_bytes() -> None:
    token = Token("\ufffd", -1.0, (("é", -1.0),))
    shape = Shape(True, "run", "f" * 12, "id", 0)
    event = shape.event((0, Piece("", 1, (token,))), set())
    (content,) = event["choices"][0]["logprobs"]["content"]
    assert content["bytes"] is None
    assert content["top_logprobs"][0]["bytes"] == [0xC3, 0xA9]


def test_the_likeliest_of_tokens_that_are_named_alike_is_told() -> None:
    tokens = (Token("\ufffd", -1.0, (("\ufffd", -1.0), ("a", -2.0), ("\ufffd", -5.0)), offset=4),)
    choice = Shape(False, "run", "f" * 12, "id", 0).event((0, Piece("", 1, tokens)), set())["choices"][0]
    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -1.0, "a": -2.0}]
    assert choice["logprobs"]["text_offset"] == [4]


@pytest.mark.parametrize("chat", [True, False])
def test_what_is_impossible_is_a_number_too(chat: bool) -> None:
    piece = Piece("a", 1, (Token("a", -math.inf, (("b", 0.0), ("a", -math.inf), ("c", math.nan))),), "stop")
    answer = Shape(chat, "run", "f" * 12, "id", 0).whole([(0, piece)], {})
    told = json.dumps(answer["choices"][0]["logprobs"], allow_nan=False)
    assert told.count("-9999.0") == 3


def test_the_servers_own_answer_may_be_sent_back() -> None:
    whole = Shape(True, "run", "f" * 12, "id", 0).whole([(0, Piece("it is 4", 3, finish="stop"))], {})
    question = {"role": "user", "content": "what is it?"}
    messages = [question, whole["choices"][0]["message"], question]
    asked = ChatRequest.model_validate({"model": "run", "messages": messages})
    assert [turn.content for turn in asked.messages] == ["what is it?", "it is 4", "what is it?"]
    with pytest.raises(Refusal, match="tool_calls"):
        ChatRequest.model_validate({"model": "run", "messages": [{**question, "tool_calls": [{}]}]})


def test_what_is_written_again_is_told_from_where_it_was() -> None:
    behind = {0: Piece("hello wor", 3)}
    again = [_beyond(Piece(text, 1, (Token(text, -1.0, ()),)), behind, 0) for text in ("he", "llo ", "world", "!")]
    assert [piece.text for piece in again] == ["", "", "ld", "!"]
    assert [piece.tokens for piece in again] == [0, 0, 0, 1]
    assert [len(piece.logprobs) for piece in again] == [0, 0, 0, 1]
    assert _beyond(Piece("a", 1), {0: Piece("b", 1)}, 1) == Piece("a", 1)
    behind = {0: Piece("a", 1, prompt_tokens=5)}
    assert _beyond(Piece("ab", 2, prompt_tokens=5), behind, 0) == Piece("b", 1)
    with pytest.raises(Refusal, match="came out otherwise"):
        _beyond(Piece("help", 1), {0: Piece("hello", 2)}, 0)
