"""`graft serve` as its users meet it: a real process, a real cluster, real HTTP."""

import json
import math
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from pyarrow import parquet

from graft import runs
from graft.cluster import connect
from graft.graph import Graph
from graft.node import Context
from graft.serving.questions import example_table, question_table

sys.path.insert(0, str(Path(__file__).parent))

from processes import GRAFT, Process, descendants, end, free_port, read_announcement, start, title, wait_for_ray, wrong

SERVED = ("centroid", "ridge", "tart", "vectors", "calm", "fiat", "words", "lora", "told", "heard")
LABELS, TEXTS = SERVED[:6], SERVED[6:]


@pytest.fixture(scope="module")
def server(storage: Path, run_ids: dict[str, str]) -> Iterator[Process]:
    port = free_port()
    popen = start(storage, *(run_ids[name] for name in SERVED), port=port)
    printed = read_announcement(popen)
    key = next((line.split()[1] for line in printed if line.startswith("key ")), "")
    yield Process(popen, f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}, printed)
    status, out, err = end(popen, signal.SIGINT)
    assert (status, out) == (0, ""), err
    assert err.startswith("starting Ray on this machine\nloading models: ")
    killed = ("WARNING: embed-", "WARNING: explain-", "WARNING: http: ")  # by tests
    assert not [line for line in wrong(err).splitlines() if not line.startswith(killed)]


def test_it_says_what_it_serves_and_how_to_ask(server: Process, run_ids: dict[str, str]) -> None:
    text = "\n".join(server.printed)
    assert f"serving    {server.url}" in text
    assert all(run_ids[name] in text for name in SERVED)
    assert "dashboard  http://127.0.0.1:" in text
    command = server.printed[-1].removeprefix("try").strip()
    asked = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
    assert '"label"' in asked.stdout


def test_health_readiness_and_a_wrong_key(server: Process, run_ids: dict[str, str]) -> None:
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/readyz", timeout=30).json() == {"status": "ready"}
    assert server.get("/v1/models").status_code == 200
    for path in ("/v1/models", "/v1/graph", "/docs"):
        answer = httpx.get(server.url + path, headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_shared_encoder_is_deployed_once(server: Process, run_ids: dict[str, str]) -> None:
    graphs = {graph["model"]: graph["nodes"] for graph in server.get("/v1/graph").json()["data"]}
    centroid, ridge, tart, vectors, calm, fiat = (graphs[run_ids[name]] for name in LABELS)
    (shared,) = {node["deployment"] for node in [*centroid, *ridge, tart[0]]}
    assert [node["class"] for node in centroid] == ["graft.methods.embed:Embed", "graft.methods.probe:Classify"]
    assert centroid[0]["models"] == ridge[0]["models"]
    assert len(centroid[0]["models"]["model"]["fingerprint"]) == 32
    assert list(calm[0]["models"]) == ["model", "augmenting/0"]
    assert [node["class"] for node in fiat] == ["graft.methods.explain:Explain", "graft.methods.fiat:Student"]
    teacher, student = (node["deployment"] for node in fiat)
    running = {title(child) for child in descendants(server.popen.pid) if "ServeReplica:graft:" in title(child)}
    assert {line.split("graft:")[1].strip() for line in running} == {
        *(shared, tart[1]["deployment"], vectors[0]["deployment"], calm[0]["deployment"], teacher, student, "http")
    }


def test_answers_equal_the_run_under_eight_clients(server: Process, storage: Path, run_ids: dict[str, str]) -> None:
    expected = {
        (name, row["id"]): row
        for name in LABELS
        for row in parquet.read_table(storage / "runs" / run_ids[name] / "predictions.parquet").to_pylist()
    }
    inputs = {name: "vector" if name == "vectors" else "text" for name in LABELS}

    def ask(asked: tuple[str, str]) -> tuple[tuple[str, str], dict[str, Any]]:
        name = asked[0]
        answer = server.classify(run_ids[name], [expected[asked][inputs[name]]])
        assert answer.status_code == 200, answer.text
        return asked, answer.json()

    with ThreadPoolExecutor(8) as clients:
        answers = dict(clients.map(ask, expected))
    assert len(answers) > 60
    for asked, answer in answers.items():
        (found,), row = answer["data"], expected[asked]
        assert found["label"] == row["prediction"]
        for label, score in row["scores"].items():
            assert math.log(found["scores"][label]) == pytest.approx(score, abs=1e-5)
        assert (answer["usage"]["prompt_tokens"] > 0) is (asked[0] != "vectors")


def test_many_rows_keep_their_order(server: Process, storage: Path, run_ids: dict[str, str]) -> None:
    rows = parquet.read_table(storage / "runs" / run_ids["ridge"] / "predictions.parquet").to_pylist()
    answer = server.classify(run_ids["ridge"], [{"text": row["text"]} for row in rows]).json()
    assert [found["index"] for found in answer["data"]] == list(range(len(rows)))
    assert [found["label"] for found in answer["data"]] == [row["prediction"] for row in rows]


def test_one_bad_request_does_not_spoil_those_it_came_with(server: Process, run_ids: dict[str, str]) -> None:
    texts = ["a text about bread", "too long " * 200, "a text about rain", "too long " * 300]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda text: server.classify(run_ids["centroid"], [text]), texts))
    assert [answer.status_code for answer in answers] == [200, 422, 200, 422]
    assert "longer than the 128 tokens" in answers[1].json()["error"]["message"]
    wide = server.classify(run_ids["vectors"], [[1.0, 2.0]])
    assert wide.status_code == 422
    assert "this run reads 13" in wide.json()["error"]["message"]


def test_a_body_of_ten_megabytes_is_refused_and_its_sender_reads_why(server: Process, run_ids: dict[str, str]) -> None:
    for size in (10 * 2**20, 40 * 2**20):
        try:
            answer = server.classify(run_ids["centroid"], ["a" * size])
        except httpx.WriteError:  # it was hung up on: only where far too much was sent
            assert size > 16 * 2**20
            continue
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    assert server.classify(run_ids["centroid"], ["a"]).status_code == 200


def test_too_many_requests_are_told_to_come_back(server: Process, run_ids: dict[str, str]) -> None:
    head = f"POST /v1/classify HTTP/1.1\r\nHost: here\r\nAuthorization: {server.headers['Authorization']}\r\n"
    port = int(server.url.rpartition(":")[2])
    # More than the limit, so that one which is lost on the way to a busy server does not matter.
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(160)]
    try:
        for connection in waiting:
            connection.sendall(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        deadline = time.monotonic() + 45
        while (answer := server.get("/v1/models")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        ended = [connection.recv(300) for connection in select.select(waiting, [], [], 0)[0]]
        assert answer.status_code == 429, f"{len(ended)} of the waiting ones were answered: {ended[:3]}"
        assert int(answer.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200
    finally:
        for connection in waiting:
            connection.close()
    while server.get("/v1/models").status_code == 429:
        time.sleep(0.1)
    assert server.classify(run_ids["centroid"], ["a"]).status_code == 200


def test_no_prompt_is_written_to_a_log(server: Process, run_ids: dict[str, str]) -> None:
    secret = "zanzibar and quokkas"
    assert server.classify(run_ids["centroid"], [secret]).status_code == 200
    assert server.classify(run_ids["centroid"], [secret * 100]).status_code == 422
    (session,) = {
        Path(word.partition("=")[2]).parents[1]
        for child in descendants(server.popen.pid)
        for word in title(child).split()
        if word.startswith("--raylet_socket_name=")
    }
    logs = [path for path in session.rglob("*") if path.is_file() and "logs" in path.parts]
    assert any("embed" in path.name for path in logs)
    assert not [path for path in logs if b"quokka" in path.read_bytes()]


def test_texts_equal_the_run_under_eight_clients(server: Process, storage: Path, run_ids: dict[str, str]) -> None:
    asked = [
        (name, row["text"], row["prediction"] or "")
        for name in TEXTS
        for row in parquet.read_table(storage / "runs" / run_ids[name] / "predictions.parquet").to_pylist()
    ]

    def ask(one: tuple[str, str, str]) -> tuple[str, str]:
        name, text, _ = one
        question = {"model": run_ids[name], "messages": [{"role": "user", "content": text}]}
        answer = server.client.chat.completions.create(**question)
        stream = server.client.chat.completions.create(**question, stream=True)
        pieces = [event.choices[0].delta.content or "" for event in stream]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 0
        return answer.choices[0].message.content or "", "".join(pieces)

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, asked))
    assert len(answers) > 15
    assert answers == [(expected, expected) for _, _, expected in asked]


def test_a_label_is_an_answer_in_a_chat_too(server: Process, storage: Path, run_ids: dict[str, str]) -> None:
    for name in LABELS:
        row = parquet.read_table(storage / "runs" / run_ids[name] / "predictions.parquet").to_pylist()[0]
        said = str(row["vector"]) if name == "vectors" else row["text"]
        message = {"role": "user", "content": said}
        answer = server.ask("/v1/chat/completions", {"model": run_ids[name], "messages": [message]}).json()
        assert answer["choices"][0]["message"]["content"] == row["prediction"]
        assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["lora", "told", "heard"])
def test_the_adapted_model_goes_on_with_a_prompt_verbatim(
    server: Process, storage: Path, run_ids: dict[str, str], name: str
) -> None:
    speaker = runs.load(run_ids[name], storage).nodes[-1].speaker  # type: ignore[attr-defined]
    prompts = ["Once upon a time", "The cat"]
    expected = speaker.generate(prompts, 12)
    complete = server.client.completions.create
    question: dict[str, Any] = {"model": run_ids[name], "max_tokens": 12}
    answer = complete(**question, prompt=prompts)
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    streamed = list(complete(**question, prompt=prompts, stream=True, stream_options={"include_usage": True}))
    told = ["".join(c.text for e in streamed for c in e.choices if c.index == at) for at in range(len(prompts))]
    assert told == expected
    assert {len(event.choices) for event in streamed[:-1]} == {1}, "clients read the first choice of an event"
    assert streamed[-1].usage == answer.usage
    drawn = [complete(**question, prompt="A", n=3, temperature=1.0, seed=seed).choices for seed in (7, 7, 8)]
    assert [c.text for c in drawn[0]] == [c.text for c in drawn[1]] != [c.text for c in drawn[2]]
    assert len({c.text for c in drawn[0]}) == 3
    text = drawn[0][0].text
    cut = complete(**question, prompt="A", temperature=1.0, seed=7, stop=[text[3:5]])
    assert cut.choices[0].text == text[: text.index(text[3:5])]
    assert cut.choices[0].finish_reason == "stop"


def test_tokens_and_how_probable_they_were(server: Process, storage: Path, run_ids: dict[str, str]) -> None:
    speaker = runs.load(run_ids["lora"], storage).nodes[-1].speaker  # type: ignore[attr-defined]
    answer = server.client.completions.create(model=run_ids["lora"], prompt="The cat", max_tokens=5, logprobs=2)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    for value, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert value == pytest.approx(max(top.values()))
    whole = speaker.score(["The cat"], [answer.choices[0].text])[0, 0]
    if "\ufffd" not in answer.choices[0].text:
        assert sum(value for value in found.token_logprobs if value is not None) == pytest.approx(whole, abs=1e-3)
    chat = server.client.chat.completions.create(
        model=run_ids["lora"],
        messages=[{"role": "user", "content": "a text"}],
        logprobs=True,
        top_logprobs=3,
        max_completion_tokens=2,
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert [len(token.top_logprobs) for token in content] == [3, 3]


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_those_that_the_probe_reads(
    server: Process, storage: Path, run_ids: dict[str, str], form: Any
) -> None:
    texts = ["a text about rain", "bread"]
    graph = runs.load(run_ids["tart"], storage)
    expected = graph.run(question_table(texts, ["text"], "text"))["embedding"].to_pylist()
    answer = server.client.embeddings.create(model=run_ids["tart"], input=texts, encoding_format=form)
    if form == "float":
        for found, vector in zip(answer.data, expected, strict=True):
            assert found.embedding == pytest.approx(vector, abs=1e-6)
    else:
        assert all(isinstance(found.embedding, str) for found in answer.data)
    assert answer.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="no node that embeds"):
        server.client.embeddings.create(model=run_ids["lora"], input="a")


@pytest.mark.parametrize("name", ["ridge", "tart"])
def test_few_shot_examples_make_another_task(
    server: Process, storage: Path, run_ids: dict[str, str], name: str
) -> None:
    examples = [("the dog barks", "pet"), ("pay the bill", "money"), ("my cat sleeps", "pet"), ("a tax", "money")]
    rows = ["a dog and a cat", "what does it cost"]
    files, folder = runs.open_run(run_ids[name], storage)
    labelled = example_table([text for text, _ in examples], [label for _, label in examples], ["text"], "text")
    context = Context(runs.read_spec(files, folder), ("money", "pet"))
    graph: Graph = runs.load(run_ids[name], storage).fit(labelled, context)
    expected = graph.run(question_table(rows, ["text"], "text"))
    body = {
        "model": run_ids[name],
        "input": rows,
        "examples": [{"input": text, "label": label} for text, label in examples],
    }
    for _ in range(2):  # the second one finds the task remembered
        answer = server.ask("/v1/classify", body).json()
        for found, label, scores in zip(
            answer["data"], expected["prediction"].to_pylist(), expected["scores"].to_pylist(), strict=True
        ):
            assert found["label"] == label
            assert found["scores"] == pytest.approx({one: math.exp(score) for one, score in scores.items()}, abs=1e-5)
    # The run itself answers as it was fitted.
    assert set(server.classify(run_ids[name], rows).json()["data"][0]["scores"]) == {"rain", "bread"}


def test_methods_that_learn_by_gradients_refuse_examples(server: Process, run_ids: dict[str, str]) -> None:
    examples = [{"input": "a", "label": "x"}, {"input": "b", "label": "y"}]
    answer = server.ask("/v1/classify", {"model": run_ids["calm"], "input": ["a"], "examples": examples})
    assert answer.status_code == 422
    assert "learned from its own by gradients" in answer.json()["error"]["message"]


def test_the_official_client_reads_refusals(server: Process, run_ids: dict[str, str]) -> None:
    client = server.client
    message: Any = [{"role": "user", "content": "a text"}]
    assert client.models.retrieve(run_ids["lora"]).id == run_ids["lora"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=message)
    with pytest.raises(openai.UnprocessableEntityError, match="frequency_penalty"):
        client.chat.completions.create(model=run_ids["lora"], messages=message, frequency_penalty=0.5)
    with pytest.raises(openai.UnprocessableEntityError, match="at most 1024"):
        client.completions.create(model=run_ids["lora"], prompt="a", max_tokens=5000)
    with pytest.raises(openai.UnprocessableEntityError, match=r"too long|context"):
        client.completions.create(model=run_ids["lora"], prompt="a long text " * 300, max_tokens=5)
    with pytest.raises(openai.UnprocessableEntityError, match="not drawn"):
        client.chat.completions.create(model=run_ids["tart"], messages=message, temperature=1.0)
    with pytest.raises(openai.BadRequestError, match="no model that writes"):
        client.completions.create(model=run_ids["tart"], prompt="a")
    wrong_key = openai.OpenAI(api_key="wrong", base_url=f"{server.url}/v1", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong_key.models.list()


ASKED = {
    "/v1/classify": "input",
    "/v1/embeddings": "input",
    "/v1/completions": "prompt",
    "/v1/chat/completions": "messages",
}
"""What can be asked, and the field of the question."""
NO_BODIES = {
    "not JSON": b"{",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "nothing": b"",
    "a list": b"[]",
    "a number without end": b"1e999",
    "nested deeply": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice, both wrong": b'{"model": 1, "model": 2}',
    "half a character": b'{"\\ud800": 1}',
}
NO_QUESTIONS: dict[str, bytes] = {
    "null": b"null",
    "a number": b"7",
    "an object": b'{"a": 1}',
    "an empty list": b"[]",
    "nulls": b"[null]",
    "numbers": b"[1, 2]",
    "not a number": b"[NaN]",
    "a huge number": b"[" + b"9" * 5000 + b"]",
    "lists": b"[[1]]",
    "another column": b'[{"txet": "a"}]',
    "nested deeply": b"[" * 900 + b"]" * 900,
    "too many": json.dumps(["a"] * 5000).encode(),
    "too long": json.dumps(["a b " * 5000]).encode(),
    "no role": b'[{"role": "king", "content": "a"}]',
    "no content": b'[{"role": "user", "content": ""}]',
}
NO_MANNERS: dict[str, Any] = {
    "n": 10**9,
    "max_tokens": -1,
    "temperature": 10**400,
    "top_p": 0,
    "stop": [""],
    "seed": 10**30,
    "stream": "perhaps",
    "stream_options": {"include_usage": True},
    "logit_bias": {"1": 100},
    "user": ["me"],
    "whatever": 1,
}


def test_bad_input_is_refused_in_words_and_no_process_dies(server: Process, run_ids: dict[str, str]) -> None:
    before = {child.pid for child in descendants(server.popen.pid) if "ServeReplica" in title(child)}

    def refuse(path: str, what: str, content: bytes) -> None:
        headers = {**server.headers, "Content-Type": "application/json"}
        answer = httpx.post(server.url + path, content=content, headers=headers, timeout=60)
        assert 400 <= answer.status_code < 500, (path, what, answer.status_code, answer.text[:300])
        assert list(answer.json()) == ["error"], (path, what)
        assert list(answer.json()["error"]) == ["message", "type", "param", "code"]

    for path, field in ASKED.items():
        model = json.dumps(run_ids["tart" if field == "input" else "lora"]).encode()
        fine = {"input": b'["a"]', "prompt": b'"a"', "messages": b'[{"role": "user", "content": "a"}]'}[field]
        for what, body in NO_BODIES.items():
            refuse(path, what, body)
        for what, value in NO_QUESTIONS.items():
            refuse(path, what, b'{"model": %s, "%s": %s}' % (model, field.encode(), value))
        for what, value in {}.items() if field == "input" else NO_MANNERS.items():
            more = json.dumps(value).encode()
            refuse(
                path, what, b'{"model": %s, "%s": %s, "%s": %s}' % (model, field.encode(), fine, what.encode(), more)
            )
        for wrong_model in (b'"nobody"', b"3", b"null", b'"a\\u0000b"', b'"' + b"x" * 100_000 + b'"'):
            refuse(path, "model", b'{"model": %s, "%s": %s}' % (wrong_model, field.encode(), fine))
    examples = json.dumps([{"input": "a", "label": "b"}] * 40_000).encode()
    refuse("/v1/classify", "examples", b'{"model": "%s", "input": ["a"], "examples": %s}' % (b"a", examples))
    assert server.get("/readyz").status_code == 200
    assert {child.pid for child in descendants(server.popen.pid) if "ServeReplica" in title(child)} == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves connections open
@pytest.mark.parametrize("path", ASKED)
def test_whatever_the_interface_allows_is_answered_or_refused_in_words(
    server: Process, run_ids: dict[str, str], path: str
) -> None:
    """Requests drawn from the interface's own description, right and wrong ones."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=server.headers)
    names = strategies.sampled_from([*run_ids.values(), "nobody"])

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=schema[path]["POST"].as_strategy(), name=names)
    def ask(case: Any, name: str) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = name
            case.body["max_tokens"] = 2
        answer = case.call(base_url=server.url, headers=server.headers)
        assert answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert list(answer.json()["error"]) == ["message", "type", "param", "code"]

    ask()
    assert server.get("/readyz").status_code == 200


def test_a_picture_of_the_graphs(server: Process) -> None:
    answer = httpx.get(f"{server.url}/v1/graph", headers={**server.headers, "Accept": "image/svg+xml,*/*"})
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.text == server.get("/v1/graph?format=svg").text
    assert server.get("/v1/graph").json()["object"] == "list"


def test_a_client_that_leaves_makes_room(server: Process, run_ids: dict[str, str]) -> None:
    """Hundreds of thousands of tokens that nobody waits for any more: were they written, the next one would be late."""
    much = {"model": run_ids["lora"], "prompt": ["a"] * 32, "max_tokens": 200, "temperature": 2.0, "n": 16}
    port = int(server.url.rpartition(":")[2])
    for stream in (True, False, True, False):
        with closing(socket.create_connection(("127.0.0.1", port))) as connection:
            body = httpx.Request("POST", server.url, json={**much, "stream": stream}).read()
            head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
            key = f"Authorization: {server.headers['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + key).encode() + body)
            if stream:
                connection.recv(1)  # it is being written
            time.sleep(0.5)
    answer = server.ask("/v1/completions", {"model": run_ids["lora"], "prompt": "a", "max_tokens": 2})
    assert answer.status_code == 200, answer.text


def test_what_is_written_when_its_process_dies_is_written_to_its_end(server: Process, run_ids: dict[str, str]) -> None:
    question: dict[str, Any] = {
        "model": run_ids["lora"],
        "prompt": "a",
        "max_tokens": 200,
        "temperature": 1.5,
        "seed": 3,
    }
    expected = server.client.completions.create(**question).choices[0].text
    told = []
    for event in server.client.completions.create(**question, stream=True):
        if len(told) == 2:
            server.replica("explain").kill()
        (choice,) = event.choices
        told.append(choice.text)
    assert "".join(told) == expected


@pytest.mark.parametrize("name", ["embed", "http"])
def test_whatever_is_being_answered_when_a_process_dies_is_answered(
    server: Process, run_ids: dict[str, str], name: str
) -> None:
    stop = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            statuses.append(server.classify(run_ids["centroid"], ["a text about rain"] * 20).status_code)

    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(ask) for _ in range(6)]
        time.sleep(1)
        before = len(statuses)
        server.replica(name).kill()
        deadline = time.monotonic() + 100
        while len(statuses) < before + 40 and time.monotonic() < deadline:
            time.sleep(0.2)
        stop.set()
        for one in asking:
            one.result()
    assert len(statuses) >= before + 40
    assert set(statuses) == {200}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["absent"], "absent: no finished run"),
        (["serve.replicas=2"], "RUN is missing"),
        (["RUN", "serve.replica=2"], "did you mean 'replicas'"),
        (["RUN", "regime.examples=2"], "give serve.key=value"),
        (["RUN", "--api-keys", "nowhere.json"], "graft keys new"),
        (["RUN", "--host", "203.0.113.1"], "cannot listen here"),
        (["RUN", "--address", "127.0.0.1:1"], "no cluster answers"),
    ],
)
def test_wrong_input_is_one_line_and_starts_nothing(
    storage: Path, run_ids: dict[str, str], words: list[str], expected: str
) -> None:
    words = [run_ids["vectors"] if word == "RUN" else word for word in words]
    status, out, err = end(start(storage, *words, port=free_port()), None)
    assert status == (1 if "--address" in words else 2), err
    assert out == ""
    assert wrong(err).startswith("error: ")
    assert wrong(err).count("\n") == 1
    assert expected in err


def test_a_port_in_use_is_said_at_once(storage: Path, run_ids: dict[str, str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        status, _, err = end(start(storage, run_ids["vectors"], port=other.getsockname()[1]), None)
    assert status == 2, err
    assert "in use" in err
    assert "--port" in err


def test_keys_new_shows_the_key_on_the_last_line_only(tmp_path: Path) -> None:
    words = [*GRAFT, "keys", "new", "anna", "--file", "keys.json"]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    key = made.stdout.splitlines()[-1]
    assert key.startswith("graft-")
    assert key not in (tmp_path / "keys.json").read_text() + made.stderr
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 2
    assert "already" in again.stderr


@pytest.mark.long
def test_a_model_that_dies_while_loading_ends_everything(
    storage: Path, run_ids: dict[str, str], tiny_bert: Path
) -> None:
    weights = tiny_bert / "model.safetensors"
    whole = weights.read_bytes()
    popen = start(storage, run_ids["centroid"], port=free_port())
    try:
        # Its checks are behind it once it starts Ray; the replica, which loads the weights, comes after that.
        wait_for_ray(popen)
        weights.write_bytes(whole[:1000])
        status, out, err = end(popen, None)
    finally:
        weights.write_bytes(whole)
        popen.kill()
    assert (status, out) == (1, ""), err
    assert wrong(err).count("\n") == 1
    assert wrong(err).startswith("error: embed-")
    assert "is damaged" in err


@pytest.mark.slow
def test_interrupted_while_it_starts_it_leaves_nothing_behind(storage: Path, run_ids: dict[str, str]) -> None:
    popen = start(storage, run_ids["vectors"], port=free_port())
    wait_for_ray(popen)
    status, out, err = end(popen, signal.SIGINT)
    assert (status, out) == (130, ""), err
    assert wrong(err) == "stopped while it was starting\n"


@pytest.mark.long
def test_on_a_cluster_that_is_there_it_takes_only_itself_away(storage: Path, run_ids: dict[str, str]) -> None:
    with connect(None, "there") as cluster:
        import ray

        words = [run_ids["vectors"], "--address", cluster.address]
        first = start(storage, *words, port=free_port())
        assert f"on the head node of {cluster.address}" in read_announcement(first)[0]
        status, _, err = end(start(storage, *words, port=free_port()), None)
        assert (status, "serves already" in err) == (1, True), err
        status, out, err = end(first, signal.SIGTERM)
        assert (status, out, wrong(err)) == (0, "", "")
        # Ray Data and Ray Train leave helpers of their own on a cluster that they have used.
        left = {actor["namespace"] for actor in ray.util.list_named_actors(all_namespaces=True)}
        assert not {namespace for namespace in left if "serve" in namespace.lower()}
