"""The deployments of a layout as the HTTP process asks them: rows walk through their segments, texts come in pieces."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
from ray import exceptions, serve

from graft.models.asked import Piece
from graft.serving.batches import Batches
from graft.serving.layout import Deployment, ServedRun
from graft.serving.schemas import Refusal
from graft.serving.wire import Examples, Manner, Pieces, Reply, Work, Writing

log = logging.getLogger(__name__)

READY_SECONDS = 2.0
ATTEMPTS = 3
"""Answering changes nothing, so what a dying replica has not answered is asked again."""

SILENCE = Piece("", 0)
"""Nothing is new of a text that is written again."""

GONE = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.NodeDiedError,
    serve.exceptions.DeploymentUnavailableError,
    serve.exceptions.ReplicaUnavailableError,
)


@dataclass(frozen=True)
class Way:
    """How a deployment is asked."""

    spread: bool
    """Its replicas hold different runs, and a request goes to one that holds its own."""
    most: int
    """Requests in one message."""
    at_once: int
    """Messages that have no answer yet."""

    @classmethod
    def to(cls, deployment: Deployment) -> Self:
        """What its hosting asks for."""
        hosting = deployment.hosting
        spread = len(deployment.places) > hosting.max_runs
        if hosting.max_replicas is not None:
            # Serve adds replicas by the messages in the hands of those there are.
            return cls(spread, 1, hosting.max_requests * hosting.max_replicas)
        # A second one is on its way while the first is answered.
        return cls(spread, hosting.max_batch_size, 2 * hosting.replicas)


class Models:
    """The deployments behind the routes.

    Args:
        handles: of each deployment, by name.
        ways: how each of them is asked.
    """

    def __init__(self, handles: Mapping[str, Any], ways: Mapping[str, Way]) -> None:
        self.handles, self.ways = handles, ways
        self.batches: dict[tuple[str, str], Batches[Work, Reply]] = {}

    async def run(
        self,
        run: ServedRun,
        rows: pa.Table,
        *,
        examples: Examples | None = None,
        column: str | None = None,
        segments: int | None = None,
        request_id: str = "",
    ) -> tuple[pa.Table, int]:
        """Walk the rows through the run's segments; gives what is left of them and the tokens of the inputs.

        Args:
            run: which one.
            rows: `id` and its inputs.
            examples: labelled rows to which it is fitted before; None for its own.
            column: what is wanted of the last segment, where that is not the answer.
            segments: how many of them; None for all.
            request_id: of the HTTP request.

        Raises:
            Refusal: the rows cannot be answered, or not now.
        """
        tokens = 0
        parts = run.segments[:segments]
        for segment in parts:
            wanted = column if segment is parts[-1] else None
            reply = await self._answer(Work(run.place, segment, rows, examples, wanted, request_id))
            assert reply.rows is not None
            rows, examples, tokens = reply.rows, reply.examples, tokens + reply.prompt_tokens
        return rows, tokens

    async def write(
        self,
        run: ServedRun,
        manner: Manner,
        *,
        prompts: Sequence[str] = (),
        rows: pa.Table | None = None,
        request_id: str = "",
    ) -> AsyncGenerator[Sequence[tuple[int, Piece]]]:
        """What the run's answering model writes after prompts, or in answer to a row.

        Args:
            run: which one.
            manner: how it writes.
            prompts: verbatim.
            rows: one row: `id` and the run's inputs.
            request_id: of the HTTP request.

        Raises:
            Refusal: the texts cannot be written, or not now.
        """
        if rows is not None and len(run.segments) > 1:
            rows, _ = await self.run(run, rows, segments=len(run.segments) - 1, request_id=request_id)
        writing = Writing(run.place, run.segments[-1], manner, tuple(prompts), rows, request_id)
        if manner.whole:
            whole = await self._asked(writing, lambda handle: handle.write_whole.remote(writing))
            yield _sound(whole, writing).items
            return
        async with aclosing(self._streamed(writing)) as messages:
            async for message in messages:
                yield message

    async def not_ready(self) -> list[str]:
        """Names of deployments that do not answer in time."""
        answers = await asyncio.gather(*(self._ready(handle) for handle in self.handles.values()))
        return [name for name, fine in zip(self.handles, answers, strict=True) if not fine]

    async def _ready(self, handle: Any) -> bool:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return bool(await handle.ready.remote())
        except (TimeoutError, *GONE):
            return False

    async def _answer(self, work: Work) -> Reply:
        reply = await self._batches(work).ask(work)
        if reply.refused:
            raise Refusal(422, reply.refused, "invalid_input", "input")
        if reply.rows is None:
            raise _broken(work)
        return reply

    def _batches(self, work: Work) -> Batches[Work, Reply]:
        """Where requests for one deployment meet: a message to it costs more than a small model's answer."""
        name = work.segment.deployment
        way = self.ways[name]
        key = name, work.place.run_id if way.spread else ""
        if key not in self.batches:
            self.batches[key] = Batches(self._answers, way.most, at_once=way.at_once)
        return self.batches[key]

    async def _answers(self, works: Sequence[Work]) -> list[Reply]:
        replies: list[Reply] = await self._asked(works[0], lambda handle: handle.answer.remote(works))
        return replies

    async def _asked(self, work: Work | Writing, ask: Callable[[Any], Any]) -> Any:
        """Ask a deployment, and another of its replicas where one dies."""
        for attempt in range(ATTEMPTS):
            answer = ask(self._handle(work))
            try:
                return await answer
            except asyncio.CancelledError:
                # Serve does so for a client that left; for a time-out it would go on.
                answer.cancel()
                raise
            except GONE as error:
                await self._gone(work, error, attempt)
        raise _away(work)

    async def _streamed(self, writing: Writing) -> AsyncGenerator[Sequence[tuple[int, Piece]]]:
        """Pieces as they come. Where a replica dies another one writes the texts again, and what was told is left out.

        Every text has a seed, so it is the same again; where it is not after all, the stream ends with an error.
        """
        said: dict[int, Piece] = {}
        for attempt in range(ATTEMPTS):
            behind, ended = dict(said), {number for number, piece in said.items() if piece.finish}
            try:
                stream = self._handle(writing).options(stream=True).write.remote(writing)
                try:
                    async for message in stream:
                        found = _sound(message, writing).items
                        new = [(number, piece) for number, piece in found if number not in ended]
                        items = [(number, _beyond(piece, behind, number)) for number, piece in new]
                        items = [(number, piece) for number, piece in items if piece != SILENCE]
                        for number, piece in items:
                            said[number] = said[number].followed(piece) if number in said else piece
                        if items:
                            yield items
                    return
                finally:
                    stream.cancel()
            except GONE as error:
                await self._gone(writing, error, attempt)
        raise _away(writing)

    def _handle(self, work: Work | Writing) -> Any:
        handle = self.handles[work.segment.deployment]
        if self.ways[work.segment.deployment].spread:
            return handle.options(multiplexed_model_id=work.place.run_id)
        return handle

    async def _gone(self, work: Work | Writing, error: Exception, attempt: int) -> None:
        log.warning("request %s: %s is gone: %s", work.request_id, work.segment.deployment, type(error).__name__)
        if attempt:
            await asyncio.sleep(0.1 * attempt)


def _beyond(piece: Piece, behind: dict[int, Piece], number: int) -> Piece:
    """What is new of a piece of a text that is written again.

    Args:
        piece: of the text as it is written now.
        behind: what was told of each text and has not come again yet; less of it afterwards.
        number: of the text.

    Raises:
        Refusal: it is another text.
    """
    known = behind.get(number)
    if known is None:
        return piece
    both, counted = min(len(known.text), len(piece.text)), min(known.tokens, piece.tokens)
    prompt = min(known.prompt_tokens, piece.prompt_tokens)
    if known.text[:both] != piece.text[:both]:
        raise Refusal(503, "the text was lost with its process and came out otherwise; ask again", "unavailable")
    behind[number] = Piece(known.text[both:], known.tokens - counted, prompt_tokens=known.prompt_tokens - prompt)
    return dataclasses.replace(
        piece,
        text=piece.text[both:],
        tokens=piece.tokens - counted,
        logprobs=piece.logprobs[counted:],
        prompt_tokens=piece.prompt_tokens - prompt,
    )


def _sound(message: Pieces, writing: Writing) -> Pieces:
    """A message that is no refusal.

    Raises:
        Refusal: it is.
    """
    if message.refused:
        raise Refusal(422, message.refused, "invalid_input", "prompt" if writing.prompts else "messages")
    if message.failed:
        raise _broken(writing)
    return message


def _broken(work: Work | Writing) -> Refusal:
    return Refusal(500, f"{work.segment.deployment} failed on this; its log names the error", "internal")


def _away(work: Work | Writing) -> Refusal:
    message = f"{work.segment.deployment} is being restarted; try again in a few seconds"
    return Refusal(503, message, "unavailable", headers={"Retry-After": "5"})
