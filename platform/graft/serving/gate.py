"""What every request passes before it is read: the key, its limits, the queue, the size of its body, the clock."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from graft.serving.incoming import Body, Gone, attend
from graft.serving.keys import CurrentKeys, Key, Keys
from graft.serving.outgoing import Reply, answer
from graft.serving.rates import Allowance, Clock
from graft.serving.request_ids import HEADER, behind_proxy, request_id
from graft.serving.schemas import Refusal
from graft.serving.telemetry import UNKNOWN, Telemetry, log_as_serve

__all__ = ["Gate", "Limits", "answer"]

log = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/readyz")
"""What a load balancer asks, without a key."""
NO_STATUS = 499
"""What is logged where nothing could be answered; nginx does it so."""
MAX_PATH = 200
LAST_WORD_SECONDS = 5.0
"""How long a client has to take the news that its time is over."""


@dataclass(frozen=True)
class Limits:
    """What one server takes on."""

    body_bytes: int = 4 * 2**20
    """Longest body."""
    drain_bytes: int = 16 * 2**20
    """How much more of a longer one is read and thrown away, so that its sender gets to read the answer."""
    drain_seconds: float = 5.0
    """And for how long."""
    waiting_requests: int = 128
    """Requests that are being answered or wait for it."""
    seconds: float = 60.0
    """From the first byte of a request to the last one of its answer."""
    output_tokens: int = 1024
    """Most that one request may ask to be written, for each of its choices."""
    choices: int = 16
    """Most answers to one prompt."""
    log_prompts: bool = False
    """Write what users send into the server's log; else nothing of it is."""


class Gate:
    """ASGI middleware: keys, limits, and one shape for what goes wrong.

    What it lets in finds in `request.state`:
        request_id: the client's `X-Request-Id` or a new one; also in the response and in every log line.
        key: name of the key; not for the paths that need none.
        model: to be set to the run_id of the run that was asked, once that is known.
        spent: where the key's tokens are limited: to be called with a number of tokens once they are known, also
            where the client has left early and they are what it has caused. The key pays for them, and the next
            request is refused where nothing is left.
    """

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits, clock: Clock = time.monotonic_ns) -> None:
        self.app = app
        self.keys = CurrentKeys(keys)
        self.limits = limits
        self.waiting = 0
        self.telemetry = Telemetry()
        self.clock = clock
        self.allowances: dict[str, tuple[Key, Allowance]] = {}
        self._echoes = not behind_proxy()
        if not self._echoes:
            log_as_serve(log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await self._guard(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, method, began = Headers(scope=scope), scope["method"], time.monotonic()
        state = {**scope.get("state", {}), "request_id": request_id(headers)}
        # What GET would answer, without its body: the routes know of GET only.
        scope = {**scope, "state": state, "method": "GET" if method == "HEAD" else method}
        reply = Reply(send, {HEADER: state["request_id"]} if self._echoes else {}, bodiless=method == "HEAD")
        ended = "client gone"
        try:
            ended = await self._settle(scope, Body(headers, receive), receive, reply)
        finally:
            status, seconds = reply.status or NO_STATUS, time.monotonic() - began
            # The router says in the scope which route it was.
            route = getattr(scope.get("route"), "path", UNKNOWN)
            self.telemetry.request(route, state.get("model", UNKNOWN), status, seconds)
            log.info(
                "%s: %s %s: %d in %.3f s, %s, request %s",
                state.get("key", "no key"),
                method,
                _path(scope),
                status,
                seconds,
                ended,
                state["request_id"],
            )

    async def _settle(self, scope: Scope, body: Body, receive: Receive, reply: Reply) -> str:
        """Have the request answered, one way or another; gives how that ended."""
        try:
            async with asyncio.timeout(self.limits.seconds) as clock:
                await self._pass(scope, body, receive, reply)
            return "done"
        except Gone:
            return "client gone"
        except Exception as error:
            if isinstance(error, TimeoutError) and clock.expired():
                message = f"no answer within {self.limits.seconds:g} seconds; ask for less at once"
                refusal = Refusal(408, message, "timeout")
            else:
                refusal = _reason(error, scope)
        if not body.whole and not _is_open(scope):
            refusal.headers = {**refusal.headers, "Connection": "close"}
        ended = f"broken off: {refusal.code}" if reply.status and not reply.complete else refusal.code
        # A client that does not read holds up nobody else, and itself not for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await reply.refuse(refusal, scope)
        return ended

    async def _pass(self, scope: Scope, body: Body, receive: Receive, reply: Reply) -> None:
        if _is_open(scope):
            await self.app(scope, receive, reply.send)
            return
        try:
            self._admit(scope, reply)
            self._wait(1)
            try:
                content = await body.read(self.limits.body_bytes)
                if self.limits.log_prompts:
                    log.info("request %s: %s", scope["state"]["request_id"], ascii(content.decode(errors="replace")))
                await attend(self.app, scope, content, receive, reply)
            finally:
                self._wait(-1)
        except Refusal:
            await body.drain(self.limits.drain_bytes, self.limits.drain_seconds)
            raise

    def _wait(self, change: int) -> None:
        self.waiting += change
        self.telemetry.waiting(self.waiting)

    def _admit(self, scope: Scope, reply: Reply) -> None:
        """Find whose request it is, and whether it may come in.

        Raises:
            Refusal: it may not.
        """
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        key = self.keys.find(given.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            what = "the key is not one of this server's" if given else "send Authorization: Bearer KEY"
            raise Refusal(401, what, "invalid_api_key", "Authorization", {"WWW-Authenticate": "Bearer"})
        allowance = self._allowance(key)
        scope["state"]["key"] = key.name
        if key.tokens_per_minute is not None:
            scope["state"]["spent"] = allowance.spend
        reply.late = allowance.headers
        allowance.check()
        if self.waiting >= self.limits.waiting_requests:
            message = f"{self.waiting} requests are waiting already; try again in a second"
            raise Refusal(429, message, "too_many_requests", headers={"Retry-After": "1"})
        allowance.take_request()

    def _allowance(self, key: Key) -> Allowance:
        """What is left of its limits; all of them, where these have changed in the file."""
        if self.allowances.get(key.name, (None,))[0] != key:
            self.allowances[key.name] = key, Allowance(key, self.clock)
        return self.allowances[key.name][1]


def _reason(error: Exception, scope: Scope) -> Refusal:
    """What the client is told of an error."""
    # Starlette wraps what is raised once an answer has begun.
    for found in (error, error.__cause__):
        if isinstance(found, Refusal):
            return found
    # Only its kind: the message may repeat what a user has sent.
    log.error("request %s: %s: %s", scope["state"]["request_id"], _path(scope), type(error).__name__)
    return Refusal(500, "something failed here; the server's log names it", "internal")


def _is_open(scope: Scope) -> bool:
    """Whether it is asked without a key; under a route prefix the server names that too."""
    return str(scope["path"]).removeprefix(scope.get("root_path", "")) in OPEN_PATHS


def _path(scope: Scope) -> str:
    """The path for the log: without the query, on one line, and not without end."""
    return quote(scope["path"])[:MAX_PATH]
