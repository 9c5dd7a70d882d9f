"""A model over HTTP, against a real server."""

import http.client
import json
import socket
import ssl
import threading
import urllib.error
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import graft.models
from graft.errors import ModelError
from graft.models import endpoint
from graft.models.decoding import Asked, Remote
from graft.models.endpoint import pause_seconds
from graft.spec import ModelSource

Answer = tuple[int, dict[str, str], bytes]


class Server(ThreadingHTTPServer):
    """Keeps what it was asked; `script` gives the next answers, then it speaks as a language model."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.script: list[Answer] = []
        self.models = ["story-writer"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._reply((200, {}, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode()))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        self._reply(self.server.script.pop(0) if self.server.script else self._speak(body))

    def _speak(self, body: dict[str, Any]) -> Answer:
        if self.path.endswith("chat/completions"):
            choice: dict[str, Any] = {"message": {"content": f"chat: {body['messages'][-1]['content']}"}}
        else:
            choice = {"text": f"{body['prompt']}, and so on.\nEnd"}
        return 200, {}, json.dumps({"choices": [choice], "usage": {"total_tokens": 7}}).encode()

    def _reply(self, answer: Answer) -> None:
        status, headers, content = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def asked_pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Nothing is waited for: attempts and the seconds that the server asked for."""
    pauses: list[tuple[int, float]] = []
    monkeypatch.setattr(endpoint, "pause_seconds", lambda attempt, asked: pauses.append((attempt, asked)) or 0.0)
    return pauses


@pytest.fixture
def handle(server: Server) -> Callable[..., graft.models.Model]:
    return lambda **settings: graft.models.load(ModelSource(source=f"endpoint:{server.url}#writer", **settings))


def busy(status: int = 503) -> Answer:
    return status, {"Retry-After": "0"}, json.dumps({"error": {"message": "too many requests"}}).encode()


def test_completions_take_the_prompt_as_it_is(server: Server, handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = handle()
    prompts = [f" prompt {index}" for index in range(20)]
    assert model.generate(prompts, max_new_tokens=9) == [f"{prompt}, and so on.\nEnd" for prompt in prompts]
    path, headers, body = server.asked[0]
    assert path == "/v1/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("writer", 9, 0)
    assert (model.kind, model.usage.forward_passes, model.usage.tokens) == ("endpoint", 20, 140)


def test_instruct_is_a_chat_and_the_key_is_sent(server: Server, handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert handle(variant="instruct").generate(["Hello"]) == ["chat: Hello"]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["messages"] == [{"role": "user", "content": "Hello"}]


def test_stop_strings_are_sent_and_applied_here(server: Server, handle: Any) -> None:
    assert handle().generate(["Hello"], stop=["1", "2", "3", "4", "\n", "on"]) == ["Hello, and so "]
    assert server.asked[0][2]["stop"] == ["1", "2", "3", "4"]


def test_a_busy_server_is_asked_again(server: Server, handle: Any) -> None:
    codes = [408, 409, 425, 429, 500, 503, 522, 529]
    server.script = [busy(code) for code in codes]
    assert handle().generate(["Hello"]) == ["Hello, and so on.\nEnd"]
    assert len(server.asked) == len(codes) + 1


def test_but_not_for_ever(server: Server, handle: Any) -> None:
    server.script = [busy() for _ in range(20)]
    with pytest.raises(ModelError, match=r"gave up after 10 attempts \(HTTP 503 too many requests\)") as caught:
        handle().generate(["Hello"])
    assert caught.value.exit_code == 1
    assert len(server.asked) == endpoint.ATTEMPTS


def test_pauses_outlast_a_limit_per_minute_and_heed_the_server(
    server: Server, handle: Any, asked_pauses: list[tuple[int, float]]
) -> None:
    pauses = [pause_seconds(attempt) for attempt in range(1, endpoint.ATTEMPTS)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (endpoint.FIRST_PAUSE_SECONDS, endpoint.LONGEST_PAUSE_SECONDS)
    assert sum(pauses) > 90
    assert [pause_seconds(1, asked) for asked in (0, 60, 3600, float("nan"))] == [0.5, 60, 120, 0.5]
    waits = ["60", "0", "Wed, 21 Oct 2015 07:28:00 GMT", "2.5"]
    server.script = [(429, {"Retry-After": wait}, b"") for wait in waits]
    handle().generate(["Hello"])
    assert asked_pauses == [(1, 60), (2, 0), (3, 0), (4, 2.5)]


@pytest.mark.parametrize(
    ("failure", "attempts", "message"),
    [
        (urllib.error.URLError(TimeoutError("timed out")), 10, "TimeoutError: timed out.*is the server running"),
        (urllib.error.URLError(ConnectionResetError("reset")), 10, "ConnectionResetError: reset"),
        (urllib.error.URLError(BrokenPipeError("pipe")), 10, "BrokenPipeError: pipe"),
        (urllib.error.URLError(ssl.SSLEOFError("eof")), 10, "SSLEOFError"),
        (http.client.RemoteDisconnected("closed"), 10, "RemoteDisconnected: closed"),
        (TimeoutError("the read timed out"), 10, "TimeoutError: the read"),
        (urllib.error.URLError(ConnectionRefusedError("refused")), 3, "cannot be reached: refused.*is the address"),
        (urllib.error.URLError(socket.gaierror("unknown name")), 3, "cannot be reached: unknown name"),
        (urllib.error.URLError(ssl.SSLCertVerificationError("expired")), 3, "cannot be reached: .*expired"),
    ],
)
def test_a_broken_connection_is_tried_again(
    handle: Any, monkeypatch: pytest.MonkeyPatch, failure: Exception, attempts: int, message: str
) -> None:
    model, tried = handle(), []
    opened = endpoint._OPENER.open

    def broken(*arguments: Any, **keywords: Any) -> Any:
        tried.append(arguments)
        if len(tried) < lasts:
            raise failure
        return opened(*arguments, **keywords)

    monkeypatch.setattr(endpoint._OPENER, "open", broken)
    lasts = attempts
    assert model.generate(["Hello"]) == ["Hello, and so on.\nEnd"]
    tried, lasts = [], 100
    with pytest.raises(ModelError, match=f"gave up after {attempts} attempts .*{message}") as caught:
        model.generate(["Hello"])
    assert (caught.value.exit_code, len(tried)) == (1, attempts)


def test_one_failure_ends_the_pauses_of_the_others(
    server: Server, handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "pause_seconds", lambda *_: 600.0)
    server.script = [busy(), busy(), (401, {}, b"")]
    with pytest.raises(ModelError, match="HTTP 401"):
        handle().generate(["1", "2", "3"])


@pytest.mark.parametrize("variant", [None, "instruct"])
def test_a_refused_prompt_is_named(server: Server, handle: Any, variant: str | None) -> None:
    server.script = [(400, {}, b'{"error": {"message": "maximum context length is 8 tokens"}}')]
    with pytest.raises(ModelError, match=r"is 8 tokens; .*the prompt 'Translate a+…a+ this' \(905 characters\)"):
        handle(variant=variant).generate(["Translate " + "a" * 890 + " this"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"message": {"content": None}, "finish_reason": "content_filter"}, "filter withheld the answer to .*'Hello'"),
        ({"message": {"content": "Half of"}, "finish_reason": "content_filter"}, "filter withheld the answer"),
        (
            {"message": {"content": None, "reasoning_content": "Hm"}, "finish_reason": "length"},
            "no text .*tokens",
        ),
        ({"message": {"content": [{"type": "text", "text": "Hi"}]}, "finish_reason": "stop"}, "holds no text"),
        ({"message": {"content": ""}}, "holds no text"),
        ({"message": {"content": ""}, "finish_reason": "tool_calls"}, "holds no text"),
        ({"message": {"content": ""}, "finish_reason": "stop"}, None),
        ({"message": {"content": ""}, "finish_reason": "length"}, None),
        ({"message": {"content": "Hi"}}, None),
    ],
)
def test_only_text_is_an_answer(server: Server, handle: Any, choice: dict[str, Any], message: str | None) -> None:
    server.script = [(200, {}, json.dumps({"choices": [choice]}).encode())]
    if message is None:
        (found,) = handle(variant="instruct").write(["Hello"])
        assert (found.text, found.whole) == (choice["message"]["content"], choice.get("finish_reason") != "length")
    else:
        with pytest.raises(ModelError, match=message):
            handle(variant="instruct").write(["Hello"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((501, {}, b"not here"), "HTTP 501 not here; see the server's log"),
        ((401, {}, b'{"error": {"message": "bad key"}}'), "HTTP 401 bad key; set OPENAI_API_KEY"),
        ((404, {}, b"nothing here"), "HTTP 404 nothing here; check the address"),
        ((400, {}, b"{}"), "HTTP 400 .*the request was refused"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "HTTP 302 .*redirects are not followed"),
        ((200, {}, b"<html>"), "the answer is not JSON"),
        ((200, {}, b'{"choices": []}'), "the answer holds no text"),
        ((200, {}, b"[]"), "the answer holds no text"),
        ((200, {}, b" " * (endpoint.MAX_RESPONSE_BYTES + 1)), "longer than 8388608 bytes"),
    ],
)
def test_other_answers_are_errors_at_once(server: Server, handle: Any, answer: Answer, message: str) -> None:
    server.script = [answer]
    with pytest.raises(ModelError, match=message) as caught:
        handle().generate(["Hello"])
    # What the user wrote is wrong, unless the server itself failed.
    assert caught.value.exit_code == (1 if answer[0] >= 500 else 2)
    assert len(server.asked) == 1


def test_an_address_without_a_model_means_the_only_one(server: Server) -> None:
    model = graft.models.load(f"endpoint:{server.url}")
    model.generate(["Hello"])
    assert server.asked[0][2]["model"] == "story-writer"
    named = ModelSource(source=f"endpoint:{server.url}#story-writer")
    assert model.fingerprint == graft.models.fingerprint(named)
    assert model.fingerprint != graft.models.fingerprint(ModelSource(source=f"endpoint:{server.url}#other"))
    server.models = ["one", "two"]
    with pytest.raises(ModelError, match=r"serves 2 models \(one, two\); write endpoint:.*#MODEL"):
        graft.models.load(f"endpoint:{server.url}")


def test_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        graft.models.load("endpoint:http://127.0.0.1:1/v1#writer").generate(["a secret prompt"])
    assert caught.value.exit_code == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2
    assert all("127.0.0.1:1/v1/completions: cannot be reached: " in line for line in said)
    assert "secret" not in caplog.text
    with pytest.raises(ModelError, match="not an address; write endpoint:https://HOST/v1#MODEL") as caught:
        graft.models.load("endpoint:file:///etc/passwd#x")
    assert caught.value.exit_code == 2


def test_text_in_text_out_only(handle: Any) -> None:
    model = handle()
    calls: list[Callable[[], Any]] = [
        lambda: model.embed(["a"]),
        lambda: model.score(["a"], ["b"]),
        lambda: model.cut(["a"], 3),
        lambda: model.tokens_over(["a"], 3),
    ]
    for call in calls:
        with pytest.raises(ModelError, match="an endpoint model cannot"):
            call()
    assert model.remote
    assert model.excess(["a", "b"], max_new_tokens=10**9).tolist() == [0, 0]
    assert model.tokens_over(["a", "b"], None).tolist() == [0, 0]
    with pytest.raises(ModelError, match="text in, text out only"):
        graft.models.locate(model.source)


def test_who_has_gone_is_not_asked_for_again(server: Server, handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [busy(), busy()]
    leave, new, told = [Asked("leaves", 5), Asked("leaves too", 5)], [Asked("new", 5)], []

    def go(*_: Any) -> float:
        for asked in leave:
            asked.gone = len(server.asked) == 2
        return 5.0

    monkeypatch.setattr(endpoint, "pause_seconds", go)
    Remote(handle(), 2).write(
        leave, lambda _room: [new.pop()] if new else [], lambda asked, piece: told.append((asked.prompt, piece.text))
    )
    assert told == [("new", "new, and so on.\nEnd")]
    assert sorted(body["prompt"] for _, _, body in server.asked) == ["leaves", "leaves too", "new"]
