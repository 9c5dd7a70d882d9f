"""One id for a request, from the client through every deployment and log line, and back.

Ray Serve's proxy takes the client's `X-Request-Id` or makes one, hands it down with every call between deployments
and puts it into the response. It takes anything for an id; `proxy_middlewares` has it see only those that are fit
for a log.
"""

import os
import re
import sys
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "x-request-id"
FIT = re.compile(r"[A-Za-z0-9._-]{1,128}")
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Where Ray Serve's proxy, in whatever process that is, looks for middlewares of ours."""


def request_id(headers: Headers) -> str:
    """The client's id where it is fit to be one, else a new one."""
    given = headers.get(HEADER, "")
    return given if FIT.fullmatch(given) else uuid.uuid4().hex


def behind_proxy() -> bool:
    """This is a replica of Ray Serve, so its proxy writes the id into the response: a second one would be too many."""
    # A replica has loaded it; nobody else should have to.
    serve = sys.modules.get("ray.serve")
    if serve is None:
        return False
    try:
        serve.get_replica_context()
    except serve.exceptions.RayServeException:
        return False
    return True


def ask_proxy() -> None:
    """Have the proxy of a cluster that this process is going to start use `proxy_middlewares`."""
    os.environ.setdefault(CALLBACK, f"{__name__}:{proxy_middlewares.__name__}")


def proxy_middlewares() -> list[Middleware]:
    """For Ray Serve's proxy; they see a request before its own do."""
    return [Middleware(FitIds)]


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
