"""Completions and chat: what a request asks of the models, and the texts in OpenAI's shapes, whole or as they come.

POST /v1/completions        the run's answering model goes on with a prompt, verbatim
POST /v1/chat/completions   the whole graph answers a row, which is the last word of the conversation
"""

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pyarrow as pa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from graft.errors import DataError
from graft.models.asked import Piece
from graft.serving.asking import Models
from graft.serving.gate import Limits
from graft.serving.layout import ServedRun
from graft.serving.questions import question_table
from graft.serving.schemas import Refusal
from graft.serving.shapes import Counted, Numbered, Shape, event_line
from graft.serving.text_schemas import ChatRequest, CompletionRequest, Message, TextRequest
from graft.serving.wire import Manner


async def complete(
    run: ServedRun, asked: CompletionRequest, models: Models, limits: Limits, request: Request
) -> Response:
    """Answer a request for completions.

    Raises:
        Refusal: the run writes no text, or what is asked is too much.
    """
    if not run.writes:
        raise Refusal(
            400, f"model: {run.run_id} holds no model that writes text; ask it by /v1/classify", "no_text", "model"
        )
    prompts = (asked.prompt,) if isinstance(asked.prompt, str) else tuple(asked.prompt)
    manner = _manner(asked, asked.max_tokens, "max_tokens", asked.logprobs, limits, request)
    shape = _shape(False, run, asked, request)
    written = models.write(run, manner, prompts=prompts, request_id=shape.request_id)
    return await _told(shape, written, manner, asked, request)


async def chat(run: ServedRun, asked: ChatRequest, models: Models, limits: Limits, request: Request) -> Response:
    """Answer a conversation.

    Raises:
        Refusal: the run cannot read it as a row, or what is asked is too much or has no meaning for it.
    """
    try:
        rows = question_table([_item(run, asked.messages)], run.inputs, run.kind)
    except DataError as error:
        raise Refusal(422, str(error).replace("input[0]", "messages", 1), "invalid_input", "messages") from error
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal(
            422, "top_logprobs: is told beside logprobs; set logprobs to true too", "invalid_field", "top_logprobs"
        )
    name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    manner = _manner(asked, asked.max_completion_tokens or asked.max_tokens, name, logprobs, limits, request)
    shape = _shape(True, run, asked, request)
    if run.streams:
        written = models.write(run, manner, rows=rows, request_id=shape.request_id)
    else:
        _refuse_manners(run, asked)
        written = _answered(run, rows, models, shape.request_id)
    return await _told(shape, written, manner, asked, request)


async def _answered(run: ServedRun, rows: pa.Table, models: Models, request_id: str) -> AsyncGenerator[Numbered]:
    """An answer that is not written after one prompt, as a text in one piece."""
    answers, tokens = await models.run(run, rows, request_id=request_id)
    yield [(0, Piece(answers["prediction"][0].as_py() or "", 0, finish="stop", prompt_tokens=tokens))]


def _refuse_manners(run: ServedRun, asked: ChatRequest) -> None:
    """Refuse to draw or cut what is not written freely."""
    what = "one of its labels" if run.classifies else "what follows from its reasoning"
    ways = {"temperature": asked.temperature, "n": (asked.n or 1) - 1, "logprobs": asked.logprobs, "stop": asked.stops}
    for name, value in ways.items():
        if value:
            message = f"{name}: {run.run_id} answers with {what}, which is not drawn or cut; leave it out"
            raise Refusal(422, message, "not_supported", name)


def _item(run: ServedRun, messages: Sequence[Message]) -> Any:
    """The row that a conversation asks about, as `question_table` reads it."""
    if run.kind == "messages" and len(run.inputs) == 1:
        return [{"role": _role(turn.role), "content": _text(turn.content)} for turn in messages]
    if len(messages) != 1 or messages[0].role != "user":
        message = (
            f"messages: {run.run_id} was measured on single rows, not on conversations; send one message of the user"
        )
        raise Refusal(422, message, "not_supported", "messages")
    content = messages[0].content
    if run.kind in ("image", "audio"):
        return _media(content, run.kind)
    if len(run.inputs) == 1 and run.kind == "text":
        return _text(content)
    try:
        return json.loads(_text(content))
    except (ValueError, RecursionError) as error:
        what = f"several columns ({', '.join(run.inputs)}): send an object of them" if len(run.inputs) > 1 else run.kind
        raise Refusal(422, f"messages: this run reads {what}, as JSON", "invalid_input", "messages") from error


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    texts = [part.get("text") if part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise Refusal(
            422, "messages: this run reads text; every part must be of type text", "invalid_input", "messages"
        )
    return "".join(map(str, texts))


def _media(content: str | list[dict[str, Any]], kind: str) -> str:
    """The one image or sound of a message, as a data URI."""
    if isinstance(content, str):
        return content
    part = content[0] if len(content) == 1 else {}
    inner = part.get(str(part.get("type")))
    if kind == "image" and part.get("type") == "image_url" and isinstance(inner, dict):
        return str(inner.get("url"))
    if kind == "audio" and part.get("type") == "input_audio" and isinstance(inner, dict):
        return f"data:audio/{inner.get('format', 'wav')};base64,{inner.get('data')}"
    raise Refusal(
        422, f"messages: this run reads one {kind}; send it alone, as a data URI", "invalid_input", "messages"
    )


def _manner(
    asked: TextRequest, tokens: int | None, field: str, logprobs: int | None, limits: Limits, request: Request
) -> Manner:
    """How the texts are to be written.

    Raises:
        Refusal: they are too many or too long.
    """
    choices = asked.n or 1
    if choices > limits.choices:
        raise Refusal(422, f"n: got {choices}; this server writes at most {limits.choices} at once", "too_large", "n")
    if tokens is not None and tokens > limits.output_tokens:
        message = f"{field}: got {tokens}; this server writes at most {limits.output_tokens}"
        raise Refusal(422, message, "too_large", field)
    if asked.stream_options is not None and not asked.stream:
        raise Refusal(422, "stream_options: are for streams; set stream to true too", "invalid_field", "stream_options")
    return Manner(
        max_new_tokens=tokens,
        stop=asked.stops,
        temperature=asked.temperature or 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        # Every text has a seed, so that another process can write it again where this one dies.
        seed=secrets.randbits(31) if asked.seed is None else asked.seed % 2**31,
        choices=choices,
        logprobs=logprobs,
        # Whose tokens are limited pays for what has been written until it leaves; so that is told on the way.
        whole=not asked.stream and not hasattr(request.state, "spent"),
    )


def _shape(is_chat: bool, run: ServedRun, asked: TextRequest, request: Request) -> Shape:
    request_id = getattr(request.state, "request_id", None) or secrets.token_hex(16)
    return Shape(is_chat, run.run_id, run.fingerprint, request_id, int(time.time()))


async def _told(
    shape: Shape, written: AsyncGenerator[Numbered], manner: Manner, asked: TextRequest, request: Request
) -> Response:
    """The texts as one answer, or as events."""
    counted = Counted(manner.choices)
    if asked.stream:
        # What is refused before the first piece has a status of its own.
        first = await anext(written)
        options = asked.stream_options
        events = _events(shape, first, written, counted, options is not None and options.include_usage, request)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    pieces: dict[int, Piece] = {}
    try:
        async with aclosing(written) as told:
            async for found in told:
                counted.add(found)
                for number, piece in found:
                    pieces[number] = pieces[number].followed(piece) if number in pieces else piece
    finally:
        spend(request, counted.total)
    return JSONResponse(shape.whole(sorted(pieces.items()), counted.usage))


async def _events(
    shape: Shape, first: Numbered, rest: AsyncGenerator[Numbered], counted: Counted, usage: bool, request: Request
) -> AsyncIterator[str]:
    begun: set[int] = set()
    try:
        counted.add(first)
        async with aclosing(rest) as told:
            for one in first:
                yield event_line(shape.event(one, begun))
            async for found in told:
                counted.add(found)
                for one in found:
                    yield event_line(shape.event(one, begun))
        if usage:
            yield event_line(shape.counted(counted.usage))
        yield "data: [DONE]\n\n"
    finally:
        spend(request, counted.total)


def spend(request: Request, tokens: int) -> None:
    """Charge tokens to the key that has asked."""
    charge = getattr(request.state, "spent", None)
    if charge is not None:
        charge(tokens)
