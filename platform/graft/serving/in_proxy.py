"""What Ray Serve's proxy does for us before and after it hands a request to our own HTTP process.

It takes anything for a request's id and hands it down, so it is given only ids that are fit for a log. And where our
HTTP process dies it answers nothing, which its web server makes a bare 500 of; answering changes nothing, so such a
request is handed over once more, and the next HTTP process answers it.
"""

import os

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.serving.outgoing import answer
from graft.serving.request_ids import HEADER, request_id
from graft.serving.schemas import Refusal

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Ray Serve's proxy, in whatever process that is, looks for middlewares of ours."""
ATTEMPTS = 3
KEPT_BYTES = 8 * 2**20
"""Of a body; a request with a longer one is not passed on again."""


def ask_proxy() -> None:
    """Have the proxy of a cluster that this process is going to start use `middlewares`."""
    os.environ.setdefault(CALLBACK, f"{__name__}:{middlewares.__name__}")


def middlewares() -> list[Middleware]:
    """For Ray Serve's proxy; they see a request before its own do."""
    return [Middleware(FitIds), Middleware(Again)]


class FitIds:
    """ASGI middleware: no request goes on without an id that is fit to be one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its id."""
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            headers[HEADER] = request_id(headers)
        await self.app(scope, receive, send)


class Again:
    """ASGI middleware: a request that was lost with its process is passed on again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on until something answers it, or say that nothing does."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, begun = _Body(receive), False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        for _ in range(ATTEMPTS):
            await self.app({**scope}, body.again(), noting)
            if begun or body.left:
                return
            if body.bytes > KEPT_BYTES:
                break
        refusal = Refusal(503, "the server's HTTP process has died; ask again", "unavailable")
        refusal.headers = {"Retry-After": "5", HEADER: Headers(scope=scope).get(HEADER, "")}
        await answer(refusal)(scope, receive, send)


class _Body:
    """A request's messages, kept to be read again."""

    def __init__(self, receive: Receive) -> None:
        self.bytes = 0
        """That came."""
        self.left = False
        """The client is gone."""
        self._receive, self._messages = receive, list[Message]()

    def again(self) -> Receive:
        """Reads them from the beginning."""
        read = 0

        async def receive() -> Message:
            nonlocal read
            read += 1
            return self._messages[read - 1] if read <= len(self._messages) else await self._read()

        return receive

    async def _read(self) -> Message:
        message = await self._receive()
        self.left = message["type"] == "http.disconnect"
        self.bytes += len(message.get("body", b""))
        if self.bytes <= KEPT_BYTES:
            self._messages.append(message)
        return message
