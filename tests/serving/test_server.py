"""`graft serve` as its users meet it: a real process, a real cluster, real HTTP."""

import math
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pyarrow import parquet

from graft.cluster import connect

SERVED = ("centroid", "ridge", "tart", "vectors", "calm", "fiat", "words", "lora", "told", "heard")
LABELS = SERVED[:6]


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
    assert not [line for line in wrong(err).splitlines() if not line.startswith("WARNING: embed-")]


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
    centroid, ridge, tart, vectors, calm, fiat = (graphs[run_ids[name]] for name in SERVED)
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
        for name in SERVED
        for row in parquet.read_table(storage / "runs" / run_ids[name] / "predictions.parquet").to_pylist()
    }
    inputs = {name: "vector" if name == "vectors" else "text" for name in SERVED}

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


@pytest.mark.slow
def test_a_replica_that_dies_is_replaced(server: Process, run_ids: dict[str, str]) -> None:
    server.replica("embed").kill()
    answers = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and answers[-3:] != [200] * 3:
        answers.append(server.classify(run_ids["centroid"], ["a text about rain"]).status_code)
    assert answers[-3:] == [200] * 3
    assert set(answers) <= {200, 408, 503}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["absent"], "absent: no finished run"),
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
