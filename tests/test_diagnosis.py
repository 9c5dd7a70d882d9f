"""What `graft doctor` says of ports and of Ray's Jobs API."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from graft import diagnosis
from graft.errors import ClusterError

TOKEN = "a1" * 32


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of this test's own; what graft changes in the environment ends with it."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for variable in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))


@contextmanager
def api(status: Callable[[str | None], int]) -> Iterator[str]:
    """A Jobs API that answers a request by its credentials alone."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status(self.headers.get("Authorization")))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def guarded(credentials: str | None) -> int:
    return 401 if credentials is None else 200 if credentials == f"Bearer {TOKEN}" else 403


def test_an_api_that_refuses_strangers_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with api(guarded) as address:
        diagnosis.check_jobs_api(address)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (lambda _: 200, "answers no token with 200: whoever reaches it runs programs here"),
        (lambda credentials: 200 if credentials else 401, "answers a wrong token with 200: whoever"),
        (lambda credentials: 403 if credentials else 401, "answers the token with 403 instead of 200"),
        (lambda _: 404, "answers no token with 404 instead of 401"),
    ],
)
def test_an_api_that_does_not_is_not(status: Callable[[str | None], int], expected: str) -> None:
    with api(status) as address, pytest.raises(ClusterError, match=expected):
        diagnosis.check_jobs_api(address)


def test_ports_say_who_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        ports = {taken.getsockname()[1]: "one", bound.getsockname()[1]: "two"}
        monkeypatch.setattr(diagnosis, "PORTS", ports)
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{bound.getsockname()[1]}")
        found = {check.name: check for check in diagnosis.checks(str(tmp_path))}
    said = found["ports"].finding
    assert f"(pid {os.getpid()})" in said.split("; ")[0]
    assert said.endswith("(two) free")
    assert not found["ray"].fine
    assert "no cluster answers here" in found["ray"].finding
