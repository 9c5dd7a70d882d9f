"""The gate around small applications, in raw ASGI: ids, limits of keys, clients that leave, and answers that break."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from logging.handlers import MemoryHandler
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft.serving.gate import Gate, Limits
from graft.serving.in_proxy import ATTEMPTS, KEPT_BYTES, Again, FitIds
from graft.serving.keys import Key, Keys, hash_key
from graft.serving.schemas import Refusal

KEYS = Keys(
    (
        Key("anna", hash_key("secret")),
        Key("ben", hash_key("limited"), requests_per_minute=3, tokens_per_minute=100),
    )
)
LIMITS = Limits(seconds=0.3, waiting_requests=2)
ONE = {"type": "http.request", "body": b"{}", "more_body": False}


class Client:
    """A client in raw ASGI: it sends what it is given, and then stays until it leaves."""

    def __init__(self, *messages: Message, path: str = "/x", method: str = "POST", **headers: str) -> None:
        self.left = asyncio.Event()
        self.got: list[Message] = []
        self.came = asyncio.Event()
        self.listeners = self.most_listeners = 0
        self._messages = list(messages or [ONE])
        headers = {"authorization": "Bearer secret", **{name.replace("_", "-"): text for name, text in headers.items()}}
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), text.encode("latin-1")) for name, text in headers.items()],
        }

    async def receive(self) -> Message:
        self.listeners += 1
        self.most_listeners = max(self.most_listeners, self.listeners)
        try:
            if self._messages:
                return self._messages.pop(0)
            await self.left.wait()
            return {"type": "http.disconnect"}
        finally:
            self.listeners -= 1

    async def send(self, message: Message) -> None:
        self.got.append(message)
        self.came.set()

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.got if message["type"] == "http.response.start"]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got if message["type"] == "http.response.body")

    @property
    def whole(self) -> bool:
        return self.got[-1]["type"] == "http.response.body" and not self.got[-1].get("more_body", False)

    def header(self, name: str) -> list[str]:
        (start,) = (message for message in self.got if message["type"] == "http.response.start")
        return [value.decode() for found, value in start["headers"] if found.decode().lower() == name]

    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


def respond(body: bytes = b"fine") -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def streams(*, events: bool, then: Callable[[], Awaitable[Any]], cancelled: list[str] | None = None) -> ASGIApp:
    """Two pieces of a stream, then whatever comes."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kind = b"text/event-stream; charset=utf-8" if events else b"text/plain"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for _ in range(2):
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        try:
            await then()
        except asyncio.CancelledError:
            if cancelled is not None:
                cancelled.append("stream")
            raise

    return app


async def for_ever() -> None:
    await asyncio.sleep(3600)


async def breaks() -> None:
    raise ZeroDivisionError("a text that somebody has sent")


async def refuses() -> None:
    raise RuntimeError("Caught handled exception") from Refusal(503, "the model is gone", "unavailable")


def call(app: ASGIApp, *clients: Client, limits: Limits = LIMITS, keys: Keys = KEYS, **words: Any) -> Gate:
    """Let clients ask one after the other."""
    gate = Gate(app, keys, limits, **words)

    async def run() -> None:
        for client in clients:
            await gate(client.scope, client.receive, client.send)

    asyncio.run(run())
    return gate


@pytest.mark.parametrize(("path", "status"), [("/graft/healthz", 200), ("/graft/readyz", 200), ("/graft/x", 401)])
def test_health_needs_no_key_under_a_route_prefix_either(path: str, status: int) -> None:
    client = Client(path=path, authorization="")
    client.scope["root_path"] = "/graft"
    call(respond(), client)
    assert client.statuses == [status]


def test_a_fit_request_id_comes_back_and_reaches_the_application() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"])
        await respond()(scope, receive, send)

    client = Client(x_request_id="a.b_c-7")
    call(app, client)
    assert client.header("x-request-id") == ["a.b_c-7"]
    assert (seen[0]["request_id"], seen[0]["key"]) == ("a.b_c-7", "anna")


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "ü", "a" * 129, "{id}"])
def test_an_id_that_is_not_fit_is_replaced(given: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Client(x_request_id=given), Client(x_request_id=given)
    with caplog.at_level(logging.INFO):
        call(respond(), first, second)
    (found,), (other,) = first.header("x-request-id"), second.header("x-request-id")
    assert len(found) == 32
    assert found != other
    assert found in caplog.text
    assert not given or f"request {given}" not in caplog.text


@pytest.mark.parametrize("key", ["secret", "wrong"])
def test_refusals_carry_the_id_too(key: str) -> None:
    client = Client({**ONE, "body": b"x" * 10}, authorization=f"Bearer {key}", x_request_id="mine")
    call(respond(), client, limits=Limits(body_bytes=5))
    assert client.statuses == [413 if key == "secret" else 401]
    assert client.header("x-request-id") == ["mine"]


def test_behind_the_proxy_the_id_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.serving.gate.behind_proxy", lambda: True)
    client = Client(x_request_id="mine")
    call(respond(), client)
    assert client.header("x-request-id") == []


def test_in_a_replica_requests_are_logged_to_serves_file_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = logging.getLogger("graft.serving.gate"), logging.getLogger("ray.serve")
    file, terminal = MemoryHandler(100), logging.StreamHandler()
    monkeypatch.setattr("graft.serving.gate.behind_proxy", lambda: True)
    monkeypatch.setattr(theirs, "handlers", [terminal, file])
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "propagate", False)
    level = ours.level
    try:
        call(streams(events=True, then=breaks), Client(x_request_id="r1"))
    finally:
        ours.setLevel(level)
    lines = [record.getMessage() for record in file.buffer]
    assert lines[0] == "request r1: /x: ZeroDivisionError"
    assert lines[1].startswith("anna: POST /x: 200 in ")
    assert "POST" not in capsys.readouterr().err


@pytest.mark.parametrize(("given", "kept"), [("mine", True), ("not mine", False), (None, False)])
def test_what_the_proxy_hands_on_has_one_fit_id(given: str | None, kept: bool) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")

    client = Client() if given is None else Client(x_request_id=given)
    asyncio.run(FitIds(app)(client.scope, client.receive, client.send))
    assert len(seen) == 1
    assert (seen[0] == b"mine") is kept
    assert b" " not in seen[0]


class Dying:
    """Reads a request whole and then dies, so many times; afterwards it repeats what it has read."""

    def __init__(self, deaths: int, after: Message | None = None) -> None:
        self.deaths, self.after, self.asked = deaths, after, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if self.asked <= self.deaths:
            if self.after:
                await send(self.after)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


TWO = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"cd"}]


@pytest.mark.parametrize("deaths", range(ATTEMPTS))
def test_a_request_that_died_with_its_process_is_passed_on_again(deaths: int) -> None:
    app, client = Dying(deaths), Client(*TWO)
    asyncio.run(Again(app)(client.scope, client.receive, client.send))
    assert (app.asked, client.got[0]["status"], client.got[1]["body"]) == (deaths + 1, 200, b"abcd")


def test_where_nothing_answers_it_is_said_so() -> None:
    app, client = Dying(99), Client(x_request_id="mine")
    asyncio.run(Again(app)(client.scope, client.receive, client.send))
    headers = dict(client.got[0]["headers"])
    assert (app.asked, client.got[0]["status"]) == (ATTEMPTS, 503)
    assert (headers[b"retry-after"], headers[b"x-request-id"]) == (b"5", b"mine")
    assert json.loads(client.got[1]["body"])["error"]["code"] == "unavailable"


def test_what_cannot_be_passed_on_again_is_not() -> None:
    app, client = Dying(99), Client({**ONE, "body": b"x" * (KEPT_BYTES + 1)})
    asyncio.run(Again(app)(client.scope, client.receive, client.send))
    assert (app.asked, client.got[0]["status"]) == (1, 503)
    app, client = Dying(99, {"type": "http.response.start", "status": 200, "headers": []}), Client()
    asyncio.run(Again(app)(client.scope, client.receive, client.send))
    assert (app.asked, len(client.got)) == (1, 1)
    app, client = Dying(99), Client({"type": "http.disconnect"})
    asyncio.run(Again(app)(client.scope, client.receive, client.send))
    assert (app.asked, client.got) == (1, [])


def test_one_line_a_request_and_nothing_of_its_body(caplog: pytest.LogCaptureFixture) -> None:
    body = {**ONE, "body": b"quokkas"}
    with caplog.at_level(logging.INFO, "graft"):
        call(respond(), Client(body, x_request_id="r1", path="/a\nb"), Client(body, authorization="Bearer no"))
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("anna: POST /a%0Ab: 200 in 0.")
    assert first.endswith(" s, done, request r1")
    assert second.startswith("no key: POST /x: 401 in ")
    assert "quokka" not in caplog.text


def test_bodies_are_logged_where_that_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graft"):
        call(respond(), Client({**ONE, "body": b"quokkas\nand"}, x_request_id="r1"), limits=Limits(log_prompts=True))
    assert r"request r1: 'quokkas\nand'" in caplog.messages


class Hands:
    now = 0

    def __call__(self) -> int:
        return self.now


def test_a_key_that_asks_too_often_is_told_when_to_come_back() -> None:
    hands = Hands()
    clients = [Client(authorization="Bearer limited") for _ in range(5)]
    other = Client()
    gate = call(respond(), *clients[:4], other, clock=hands)
    assert [client.statuses for client in clients[:4]] == [[200], [200], [200], [429]]
    assert [client.header("x-ratelimit-remaining-requests") for client in clients[:4]] == [["2"], ["1"], ["0"], ["0"]]
    assert clients[0].header("x-ratelimit-limit-requests") == ["3"]
    assert clients[3].header("retry-after") == ["20"]
    assert clients[3].error()["code"] == "rate_limit_exceeded"
    assert clients[3].error()["type"] == "rate_limit_error"
    assert "3 requests per minute" in clients[3].error()["message"]
    assert other.statuses == [200]
    assert other.header("x-ratelimit-limit-requests") == []
    hands.now += 20 * 10**9
    asyncio.run(gate(clients[4].scope, clients[4].receive, clients[4].send))
    assert clients[4].statuses == [200]


def test_tokens_that_routes_report_are_charged_to_the_key() -> None:
    app = FastAPI()

    @app.post("/x")
    async def route(request: Request) -> str:
        request.state.spent(70)
        return "fine"

    clients = [Client(authorization="Bearer limited") for _ in range(3)]
    call(app, *clients, clock=Hands())
    assert [client.statuses for client in clients] == [[200], [200], [429]]
    assert [client.header("x-ratelimit-remaining-tokens") for client in clients] == [["30"], ["0"], ["0"]]
    assert clients[2].header("retry-after") == ["25"]
    assert "100 tokens per minute" in clients[2].error()["message"]


def test_a_request_that_was_refused_costs_nothing() -> None:
    hands = Hands()
    refused = [Client(authorization="Bearer limited") for _ in range(5)]
    gate = Gate(respond(), KEYS, LIMITS, hands)
    gate.waiting = LIMITS.waiting_requests

    async def run() -> None:
        for client in refused:
            await gate(client.scope, client.receive, client.send)

    asyncio.run(run())
    assert {client.error()["code"] for client in refused} == {"too_many_requests"}
    assert refused[-1].header("x-ratelimit-remaining-requests") == ["3"]
    assert refused[-1].header("retry-after") == ["1"]


@pytest.mark.parametrize("begun", [False, True])
def test_when_the_client_leaves_the_application_is_cancelled_and_its_place_is_free(
    begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[str] = []

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append("silent")
            raise

    async def run() -> tuple[Client, Gate]:
        app = streams(events=True, then=for_ever, cancelled=cancelled) if begun else silent
        gate, client = Gate(app, KEYS, Limits()), Client()
        asking = asyncio.create_task(gate(client.scope, client.receive, client.send))
        if begun:
            await client.came.wait()
        while not client.listeners:
            await asyncio.sleep(0)
        assert gate.waiting == 1
        client.left.set()
        await asking
        return client, gate

    with caplog.at_level(logging.INFO, "graft"):
        client, gate = asyncio.run(run())
    assert cancelled == ["stream" if begun else "silent"]
    assert gate.waiting == 0
    assert client.statuses == ([200] if begun else [])
    assert b"error" not in client.body
    assert "client gone" in caplog.text
    assert client.most_listeners == 1


def test_a_client_that_leaves_while_it_sends_gets_no_answer() -> None:
    client = Client({"type": "http.request", "body": b"{", "more_body": True})
    client.left.set()
    gate = call(respond(), client)
    assert client.got == []
    assert gate.waiting == 0


def test_the_application_hears_of_the_leaving_from_its_own_receive() -> None:
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"all of it"})
        heard.append(await receive())  # work after the answer is let be

    async def run() -> Client:
        client = Client({**ONE, "body": b"a", "more_body": True}, {**ONE, "body": b"b"})
        asking = asyncio.create_task(Gate(app, KEYS, Limits())(client.scope, client.receive, client.send))
        await client.came.wait()
        client.left.set()
        await asking
        return client

    client = asyncio.run(run())
    assert heard == [{**ONE, "body": b"ab"}, {"type": "http.disconnect"}]
    assert client.body == b"all of it"
    assert client.most_listeners == 1


def test_an_answer_that_does_not_begin_in_time_is_408() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(3600)

    client = Client()
    gate = call(app, client)
    assert client.statuses == [408]
    assert client.error()["code"] == "timeout"
    assert client.header("connection") == []
    assert gate.waiting == 0


def test_a_time_out_of_the_applications_own_is_not_the_clients() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError

    client = Client()
    call(app, client)
    assert client.statuses == [500]


@pytest.mark.parametrize(
    ("then", "code"),
    [(for_ever, "timeout"), (breaks, "internal"), (refuses, "unavailable")],
    ids=["late", "broken", "refused"],
)
@pytest.mark.parametrize("events", [True, False])
def test_a_stream_that_breaks_is_seen_to_be_broken(
    then: Callable[[], Awaitable[Any]], code: str, events: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[str] = []
    client = Client()
    with caplog.at_level(logging.INFO, "graft"):
        gate = call(streams(events=events, then=then, cancelled=cancelled), client)
    assert client.statuses == [200]
    assert client.whole is events
    last = client.body.removeprefix(b"data: 1\n\n" * 2)
    if events:
        assert last.endswith(b"\n\n")
        assert list(json.loads(last.removeprefix(b"data: "))) == ["error"]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    else:
        assert last == b""
    assert cancelled == (["stream"] if then is for_ever else [])
    assert f"broken off: {code}" in caplog.text
    assert "somebody" not in caplog.text
    assert gate.waiting == 0


def test_a_refusal_in_a_real_stream_is_its_last_event() -> None:
    app = FastAPI()
    app.add_exception_handler(Refusal, lambda request, error: None)  # type: ignore[arg-type, return-value]

    async def pieces() -> Any:
        yield "data: 1\n\n"
        raise Refusal(503, "the model is gone", "unavailable")

    @app.post("/x")
    async def route() -> StreamingResponse:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    app.add_middleware(Gate, keys=KEYS, limits=LIMITS)
    client = Client()
    asyncio.run(app(client.scope, client.receive, client.send))
    assert client.statuses == [200]
    first, last, end = client.body.split(b"\n\n")
    assert (first, end) == (b"data: 1", b"")
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "the model is gone"
    assert client.whole


def test_an_application_that_does_not_heed_its_end_holds_no_place_and_says_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graft.serving.incoming.LEAVE_SECONDS", 0.01)
    woken = asyncio.Event()

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        while not woken.is_set():
            try:
                await woken.wait()
            except asyncio.CancelledError:
                continue
        await respond()(scope, receive, send)
        raise ZeroDivisionError

    async def run() -> tuple[Client, Gate]:
        client, gate = Client(), Gate(stubborn, KEYS, LIMITS)
        await gate(client.scope, client.receive, client.send)
        assert gate.waiting == 0
        woken.set()
        await asyncio.sleep(0.01)
        return client, gate

    client, _ = asyncio.run(run())
    assert client.statuses == [408]
    assert b"fine" not in client.body


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.serving.gate.LAST_WORD_SECONDS", 0.01)

    async def run() -> Gate:
        gate, slow, other = Gate(streams(events=True, then=for_ever), KEYS, LIMITS), Client(), Client()

        async def full(message: Message) -> None:
            await asyncio.sleep(3600)

        asking = asyncio.create_task(gate(slow.scope, slow.receive, full))
        await gate(other.scope, other.receive, other.send)
        assert b"data: 1" in other.body
        await asking
        return gate

    assert asyncio.run(run()).waiting == 0


def test_who_has_no_key_is_not_listened_to_for_long() -> None:
    client = Client({"type": "http.request", "body": b"{", "more_body": True}, authorization="Bearer wrong")
    call(respond(), client, limits=Limits(drain_seconds=0.01))
    assert client.statuses == [401]
    assert client.header("connection") == ["close"]


def test_head_is_get_without_the_body() -> None:
    app = FastAPI()

    @app.get("/x")
    async def route(request: Request) -> str:
        return request.method

    got, head, wrong = Client(method="GET"), Client(method="HEAD"), Client(method="HEAD", authorization="Bearer no")
    call(app, got, head, wrong)
    assert (got.statuses, head.statuses, wrong.statuses) == ([200], [200], [401])
    assert head.header("content-length") == got.header("content-length")
    assert (got.body, head.body, wrong.body) == (b'"GET"', b"", b"")
    asked = Client(method="OPTIONS")
    call(app, asked)
    assert asked.statuses == [405]
    assert asked.header("allow") == ["GET"]


def test_nothing_but_http_is_spoken() -> None:
    client = Client()
    client.scope["type"] = "websocket"
    call(respond(), client)
    assert client.got == [{"type": "websocket.close", "code": 1008}]
