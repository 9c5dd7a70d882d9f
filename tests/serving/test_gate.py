"""The gate and the routes in this process: what happens before any model is asked."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from fastapi import FastAPI

from graft import runs
from graft.models.asked import Piece
from graft.serving import routes
from graft.serving.gate import Limits
from graft.serving.keys import Key, Keys, hash_key
from graft.serving.layout import Layout, ServedRun, lay_out
from graft.serving.wire import Manner

KEYS = Keys((Key("anna", hash_key("secret")),))
KEY = {"Authorization": "Bearer secret"}
LIMITS = Limits(body_bytes=1000, drain_bytes=4000, waiting_requests=2, seconds=0.5)


class NothingDeployed:
    """No cluster: nothing is ready, and nothing may be asked."""

    async def run(self, run: ServedRun, rows: pa.Table, **more: Any) -> tuple[pa.Table, int]:
        raise ZeroDivisionError("a text that somebody has sent")

    async def write(self, run: ServedRun, manner: Manner, **more: Any) -> AsyncGenerator[Any]:
        raise ZeroDivisionError("a text that somebody has sent")
        yield

    async def not_ready(self) -> list[str]:
        return ["embed-tiny"]


@pytest.fixture(scope="module")
def layout(storage: Path, run_ids: dict[str, str]) -> Layout:
    return lay_out([runs.open_run(run_ids[name], storage) for name in ("centroid", "words")])


@pytest.fixture(scope="module")
def app(layout: Layout) -> FastAPI:
    return routes.build(layout.runs, KEYS, LIMITS, NothingDeployed())


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


def ask(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with client(app) as session:
            return await session.request(method, path, **{"headers": KEY, **request})

    return asyncio.run(run())


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    assert "\n" not in body["error"]["message"]
    return dict(body["error"])


async def never_ends() -> AsyncIterator[bytes]:
    yield b'{"model": '
    await asyncio.sleep(3600)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/graph", "/docs", "/openapi.json", "/nowhere", "/v1/classify"])
@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic secret", "secret", "Bearer secret2"])
def test_nothing_but_health_is_answered_without_the_key(app: FastAPI, path: str, header: str | None) -> None:
    answer = ask(app, "GET", path, headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = error_of(answer)
    assert (error["type"], error["param"]) == ("authentication_error", "Authorization")
    assert "secret2" not in answer.text


def test_health_needs_no_key_and_readiness_says_who_is_missing(app: FastAPI) -> None:
    assert ask(app, "GET", "/healthz", headers={}).json() == {"status": "ok"}
    answer = ask(app, "GET", "/readyz", headers={})
    assert answer.status_code == 503
    assert "embed-tiny" in error_of(answer)["message"]


def test_the_docs_and_the_lists(app: FastAPI, run_ids: dict[str, str]) -> None:
    assert ask(app, "GET", "/docs").status_code == 200
    assert "/v1/classify" in ask(app, "GET", "/openapi.json").json()["paths"]
    listed = ask(app, "GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == {run_ids["centroid"], run_ids["words"]}
    assert all(model["object"] == "model" and model["created"] > 1e9 for model in listed["data"])


@pytest.mark.parametrize(
    ("change", "status", "param", "expected"),
    [
        ({"model": "centroit"}, 404, "model", "served here; "),
        ({"model": "words"}, 400, "model", "free text"),
        ({"examples": [{"input": "a", "label": "b"}]}, 422, "examples", "at least 2"),
        ({"examples": [{"input": "a", "label": "b"}] * 2}, 422, "examples", "one label only"),
        ({"examples": [{"input": 7, "label": "b"}, {"input": "a", "label": "c"}]}, 422, "examples", "row 0"),
        ({"examples": [{"input": "a", "label": "b"}, {"input": "a"}]}, 422, "examples.1.label", "required"),
        ({"input": []}, 422, "input", "at least 1"),
        ({"input": "a text"}, 422, "input", "valid list"),
        ({"input": None}, 422, "input", "valid list"),
        ({"input": ["a", 7]}, 422, "input", "row 1"),
        ({"temperature": 1}, 422, "temperature", "not permitted"),
        ({"\ud800": 1}, 422, None, "unicode"),
        ({"model": "\ud800"}, 404, "model", "served here"),
        ({"model": 3}, 422, "model", "string"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    app: FastAPI, run_ids: dict[str, str], change: dict[str, Any], status: int, param: str | None, expected: str
) -> None:
    body = {"model": run_ids["centroid"], "input": ["a"], **change}
    body["model"] = run_ids.get(str(body["model"]), body["model"])
    content = json.dumps(body)  # ASCII: what httpx writes cannot hold half a character
    answer = ask(app, "POST", "/v1/classify", content=content, headers={**KEY, "Content-Type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (status, param), error
    assert expected in error["message"]


def test_more_rows_than_one_request_may_ask_about(layout: Layout, run_ids: dict[str, str]) -> None:
    roomy = routes.build(layout.runs, KEYS, Limits(), NothingDeployed())
    answer = ask(roomy, "POST", "/v1/classify", json={"model": run_ids["centroid"], "input": ["a"] * 1025})
    assert answer.status_code == 422
    assert "1024" in error_of(answer)["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b'"a"'])
def test_a_body_that_is_no_request(app: FastAPI, body: bytes) -> None:
    answer = ask(app, "POST", "/v1/classify", content=body, headers={**KEY, "Content-Type": "application/json"})
    assert answer.status_code == (400 if body in (b"{", b"\xff") else 422)
    error_of(answer)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2", 404), ("GET", "/v1/classify", 405)])
def test_routes_that_do_not_exist(app: FastAPI, method: str, path: str, status: int) -> None:
    answer = ask(app, method, path)
    assert answer.status_code == status
    assert error_of(answer)["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_a_body_that_is_too_large(app: FastAPI) -> None:
    async def pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 100):
            yield b" " * 100

    for size, closes in ((1001, False), (3900, False), (9000, True)):
        declared = ask(app, "POST", "/v1/classify", content=b" " * size)
        assert declared.status_code == 413
        assert error_of(declared)["code"] == "body_too_large"
        assert (declared.headers.get("connection") == "close") is closes
    for size, closes in ((1100, False), (9000, True)):
        undeclared = ask(app, "POST", "/v1/classify", content=pieces(size))
        assert undeclared.status_code == 413
        assert (undeclared.headers.get("connection") == "close") is closes
    assert ask(app, "POST", "/v1/classify", content=b" " * 1000).status_code in (400, 422)


def test_a_body_that_never_ends_is_a_time_out(app: FastAPI) -> None:
    answer = ask(app, "POST", "/v1/classify", content=never_ends())
    assert answer.status_code == 408
    assert error_of(answer)["type"] == "timeout_error"
    assert answer.headers["connection"] == "close"


def test_more_requests_than_may_wait(app: FastAPI) -> None:
    async def run() -> tuple[httpx.Response, list[httpx.Response], httpx.Response]:
        async with client(app) as session:

            async def slow() -> httpx.Response:
                return await session.post("/v1/classify", content=never_ends(), headers=KEY)

            waiting = [asyncio.create_task(slow()) for _ in range(LIMITS.waiting_requests)]
            await asyncio.sleep(0.1)
            refused = await session.get("/v1/models", headers=KEY)
            timed_out = await asyncio.gather(*waiting)
            return refused, timed_out, await session.get("/v1/models", headers=KEY)

    refused, timed_out, later = asyncio.run(run())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert error_of(refused)["type"] == "rate_limit_error"
    assert [answer.status_code for answer in timed_out] == [408, 408]
    assert later.status_code == 200


class Slow(NothingDeployed):
    """Writes two tokens and then no more."""

    async def write(self, run: ServedRun, manner: Manner, **more: Any) -> AsyncGenerator[Any]:
        assert not manner.whole
        yield [(0, Piece("a b", 2, prompt_tokens=5))]
        await asyncio.sleep(3600)


@pytest.mark.parametrize("stream", [False, True])
def test_a_limited_key_pays_for_what_was_written_until_its_time_was_over(
    layout: Layout, run_ids: dict[str, str], stream: bool
) -> None:
    keys = Keys((Key("ben", hash_key("secret"), tokens_per_minute=10),))
    app = routes.build(layout.runs, keys, LIMITS, Slow())
    answer = ask(app, "POST", "/v1/completions", json={"model": run_ids["words"], "prompt": "a", "stream": stream})
    assert answer.status_code == (200 if stream else 408)
    assert "timeout" in answer.text
    # Seven are gone, and come back within 42 seconds.
    assert int(ask(app, "GET", "/v1/models").headers["x-ratelimit-remaining-tokens"]) < 10


def test_names_may_have_slashes(layout: Layout) -> None:
    named = [dataclasses.replace(layout.runs[0], aliases=("team/best",))]
    app = routes.build(named, KEYS, LIMITS, NothingDeployed())
    assert ask(app, "GET", "/v1/models/team/best").json()["id"] == "team/best"
    assert ask(app, "GET", "/v1/models/team/other").status_code == 404


def test_a_browser_gets_the_picture_of_the_graphs(app: FastAPI) -> None:
    html = {**KEY, "Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert ask(app, "GET", "/v1/graph", headers=html).headers["content-type"] == "image/svg+xml"
    assert ask(app, "GET", "/v1/graph").headers["content-type"] == "application/json"


def test_what_breaks_inside_is_not_repeated(
    app: FastAPI, run_ids: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(app, "POST", "/v1/classify", json={"model": run_ids["centroid"], "input": ["a text"]})
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "ZeroDivisionError" in caplog.text
    assert "somebody" not in caplog.text + answer.text
