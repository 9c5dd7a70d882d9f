"""The answer on its way out: begun once at most, and never ended as if it were whole when it is not."""

import json
from collections.abc import Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import Message, Scope, Send

from graft.serving.schemas import Refusal


class Reply:
    """What has been sent of one answer."""

    def __init__(self, send: Send, headers: Mapping[str, str], bodiless: bool) -> None:
        """Begin with nothing sent.

        Args:
            send: the server's.
            headers: for this answer, whatever it is.
            bodiless: it answers HEAD: the same headers as for GET, and no body.
        """
        self.status = 0
        self.complete = False
        self.late: Callable[[], Mapping[str, str]] = dict
        """More headers, asked for when the answer begins."""
        self._server, self._headers, self._bodiless = send, headers, bodiless
        self._events = self._closed = False

    async def send(self, message: Message) -> None:
        """The application's `send`; nothing of what it says after a refusal goes out."""
        if not self._closed:
            await self._pass(message)

    async def refuse(self, refusal: Refusal, scope: Scope) -> None:
        """Say what went wrong.

        An answer that has begun cannot change its status any more. A stream of events ends with the error as its
        last one; any other body is left without its end, and the server hangs up on it.
        """
        self._closed = True
        if not self.status:
            await answer(refusal)(scope, _nothing_more, self._pass)
        elif self._events and not self.complete:
            event = f"data: {json.dumps(refusal.body())}\n\n".encode()
            await self._pass({"type": "http.response.body", "body": event, "more_body": False})

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {"headers": [], **message}
            headers = MutableHeaders(scope=message)
            headers.update({**self._headers, **self.late()})
            self.status = message["status"]
            self._events = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            message = {**message, "body": b""} if self._bodiless else message
            self.complete = not message.get("more_body", False)
        await self._server(message)


def answer(refusal: Refusal) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}
