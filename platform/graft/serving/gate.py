"""What every request passes before it is read: the key, the queue, the size of its body, the clock."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.serving.keys import Keys
from graft.serving.schemas import Refusal

log = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/readyz")
"""What a load balancer asks, without a key."""


@dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    body_bytes: int = 4 * 2**20
    """Longest body."""
    drain_bytes: int = 16 * 2**20
    """How much more of a longer one is read and thrown away, so that its sender gets to read the answer."""
    waiting_requests: int = 128
    """Requests that are being answered or wait for it."""
    seconds: float = 60.0
    """From the first byte to the answer."""
    output_tokens: int = 1024
    choices: int = 16


class Gate:
    """ASGI middleware: keys, limits, and one shape for what goes wrong."""

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits) -> None:
        self.app = app
        self.keys = keys
        self.limits = limits
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            async with asyncio.timeout(self.limits.seconds):
                await self._pass(scope, receive, watched)
        except Refusal as refusal:
            await answer(refusal)(scope, receive, send)
        except TimeoutError:
            message = f"no answer within {self.limits.seconds:g} seconds; send fewer inputs at once"
            await answer(Refusal(408, message, "timeout"))(scope, receive, send)
        except Exception as error:
            # Only its kind: the message may repeat what a user has sent.
            log.error("%s: %s", scope["path"], type(error).__name__)
            if began:
                raise
            await answer(Refusal(500, "something failed here; the server's log names it", "internal"))(
                scope, receive, send
            )

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await self._drain(headers, receive, refusal)
            raise refusal
        self.waiting += 1
        try:
            body = await self._body(headers, receive)
            await self.app(scope, _replay(body, receive), send)
        finally:
            self.waiting -= 1

    def _refusal(self, headers: Headers) -> Refusal | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self.keys.admit(key.strip()):
            what = "the key is not one of this server's" if key else "send Authorization: Bearer KEY"
            cure = {"WWW-Authenticate": "Bearer"}
            return Refusal(401, what, "invalid_api_key", "Authorization", cure)
        if self.waiting >= self.limits.waiting_requests:
            message = f"{self.waiting} requests are waiting already; try again in a second"
            return Refusal(429, message, "too_many_requests", headers={"Retry-After": "1"})
        return None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            Refusal: it is longer than allowed, or its sender is gone.
        """
        limit = self.limits.body_bytes
        message = f"the body is larger than {limit / 2**20:g} MiB; send fewer inputs at once"
        refusal = Refusal(413, message, "body_too_large")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await self._drain(headers, receive, refusal)
            raise refusal
        chunks, size = [], 0
        async for chunk in _chunks(receive):
            size += len(chunk)
            if size > limit:
                await self._drain(headers, receive, refusal)
                raise refusal
            chunks.append(chunk)
        return b"".join(chunks)

    async def _drain(self, headers: Headers, receive: Receive, refusal: Refusal) -> None:
        """Read on for a while: who is still sending cannot read why it was refused. Beyond that, hang up."""
        declared = headers.get("content-length", "")
        size, limit = 0, self.limits.drain_bytes
        if not (declared.isdigit() and int(declared) > limit):
            async for chunk in _chunks(receive):
                size += len(chunk)
                if size > limit:
                    break
            else:
                return
        refusal.headers["Connection"] = "close"


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of a body."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the request ended before its body did", "disconnected")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which has been read, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def answer(refusal: Refusal) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)
