"""What comes from a client: its body, as much of it as is allowed, and the news that it has gone."""

import asyncio
import contextlib
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope

from graft.serving.outgoing import Reply
from graft.serving.schemas import Refusal

LEAVE_SECONDS = 2.0
"""How long an application that was cancelled is waited for."""


class Gone(Exception):
    """Nobody waits for this answer any more."""


class Body:
    """The body of one request."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        declared = headers.get("content-length", "")
        self.whole = False
        """All of it has come."""
        self._declared = int(declared[:20]) if declared.isdecimal() else 0
        self._receive = receive

    async def read(self, limit_bytes: int) -> bytes:
        """All of it.

        Raises:
            Refusal: it is longer than allowed.
            Gone: its sender is.
        """
        message = f"the body is larger than {limit_bytes / 2**20:g} MiB; send fewer inputs at once"
        refusal = Refusal(413, message, "body_too_large")
        if self._declared > limit_bytes:
            raise refusal
        pieces, size = [], 0
        while not self.whole:
            pieces.append(await self._piece())
            size += len(pieces[-1])
            if size > limit_bytes:
                raise refusal
        return b"".join(pieces)

    async def drain(self, limit_bytes: int, seconds: float) -> None:
        """Throw away what is left of it, within limits: who is still sending cannot read why it was refused.

        Raises:
            Gone: its sender is.
        """
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.whole and max(size, self._declared) <= limit_bytes:
                    size += len(await self._piece())

    async def _piece(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self.whole = not message.get("more_body", False)
        return message.get("body", b"")


async def attend(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, reply: Reply) -> None:
    """Let the application answer for as long as somebody waits for that.

    From here on only this listens to the client, and the application's own `receive` gives the body and then waits
    until the client has gone.

    Raises:
        Gone: the client went before the answer was whole; the application was cancelled.
        Exception: whatever the application raises.
    """
    gone = asyncio.Event()
    listening = asyncio.create_task(_listen(receive))
    listening.add_done_callback(lambda _: gone.set())
    answering = asyncio.create_task(_call(app, scope, _replay(body, gone), reply))
    try:
        await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
        # Servers also say that the client has gone once the answer is out: what is done after that is let be.
        if not answering.done() and not reply.complete:
            raise Gone
        await asyncio.wait({answering})
        if answering.cancelled():
            raise RuntimeError("the application was cancelled from within")
        answering.result()
    finally:
        await _end(answering, listening)


async def _call(app: ASGIApp, scope: Scope, receive: Receive, reply: Reply) -> None:
    await app(scope, receive, reply.send)


async def _listen(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel them; one that does not heed it goes on alone, and what it sends is not passed on."""
    for task in tasks:
        task.add_done_callback(_retrieve)
        task.cancel()
    await asyncio.wait(tasks, timeout=LEAVE_SECONDS)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Else asyncio would log the error with its message, which may repeat what a user has sent."""
    if not task.cancelled():
        task.exception()


def _replay(body: bytes, gone: asyncio.Event) -> Receive:
    """A `receive` that gives a body which has been read, then the client's leaving."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            await gone.wait()
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
