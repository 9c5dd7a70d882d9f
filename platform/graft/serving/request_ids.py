"""One id for a request, from the client through every deployment and log line, and back.

Ray Serve's proxy takes the client's `X-Request-Id` or makes one, hands it down with every call between deployments
and puts it into the response.
"""

import re
import sys
import uuid

from starlette.datastructures import Headers

HEADER = "x-request-id"
FIT = re.compile(r"[A-Za-z0-9._-]{1,128}")


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
