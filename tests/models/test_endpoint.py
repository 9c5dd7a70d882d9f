"""A model over HTTP, against a real server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import graft.models
from graft.errors import ModelError
from graft.models import endpoint
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
    server.script = [busy(429), busy(500), busy(503)]
    assert handle().generate(["Hello"]) == ["Hello, and so on.\nEnd"]
    assert len(server.asked) == 4


def test_but_not_for_ever(server: Server, handle: Any) -> None:
    server.script = [busy() for _ in range(20)]
    with pytest.raises(ModelError, match=r"gave up after 5 attempts \(HTTP 503 too many requests\)") as caught:
        handle().generate(["Hello"])
    assert caught.value.exit_code == 1
    assert len(server.asked) == endpoint.ATTEMPTS


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


def test_nobody_answers() -> None:
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        graft.models.load("endpoint:http://127.0.0.1:1/v1#writer").generate(["Hello"])
    assert caught.value.exit_code == 1
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
