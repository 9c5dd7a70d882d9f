"""`serve deploy` as its users meet it: a cluster, a config file, and updates while clients keep asking."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from graft.serving.keys import add_key, remove_key
from graft.serving.telemetry import METRICS

SECONDS = 180
LABELS = {label for metric in METRICS.values() for label in metric.labels} | {"le"}
HOLD = """
import json, sys
from graft.cluster import connect
with connect(None, "test-deploy") as cluster:
    print(json.dumps({"dashboard": cluster.dashboard, "address": cluster.address}), flush=True)
    sys.stdin.read()
"""
TELL = """
import sys
from graft.cluster import connect
from graft.serving.telemetry import Telemetry

def tell():
    telemetry = Telemetry()
    for _ in range(3):
        telemetry.request("/v1/classify", "some-run", 200, 0.03)
    telemetry.tokens("some-run", 7, 2)
    telemetry.waiting(4)
    telemetry.batch("embed-x", "some-run", 16)
    with telemetry.node("embed-x", "0-embed", "some-run"):
        pass
    telemetry.texts("complete-x", 2, 5)

with connect(sys.argv[1], "test-tell"):
    import ray
    class Teller:
        def tell(self):
            tell()
    teller = ray.remote(num_cpus=0)(Teller).remote()
    ray.get(teller.tell.remote())
    print(ray.nodes()[0]["MetricsExportPort"], flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Dashboard and address of a cluster that another process has started; it ends with that process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        yield json.loads(holder.stdout.readline())


@dataclass
class Service:
    """What is deployed by a file, and asked over HTTP."""

    dashboard: str
    file: Path
    url: str
    headers: dict[str, str]
    config: dict[str, Any]

    def serve(self, *words: str) -> str:
        """Ray's own command line."""
        command = [str(Path(sys.executable).with_name("serve")), *words, "--address", self.dashboard]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "RAY_AUTH_MODE": "token"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        return yaml.safe_load(self.serve("status"))["applications"].get("graft", {"status": "MISSING"})

    def deploy(self, runs: list[str], aliases: dict[str, str]) -> None:
        """Send the file; gives back before anything of it is done."""
        self.config["applications"][0]["args"].update(runs=runs, aliases=aliases)
        self.file.write_text(yaml.safe_dump(self.config))
        self.serve("deploy", str(self.file))

    def wait(self, *models: str) -> None:
        """Until just these are served and nothing is being replaced."""
        end = time.monotonic() + SECONDS
        found: Any = None
        while time.monotonic() < end:
            status = self.status()
            assert status["status"] != "DEPLOY_FAILED", status
            found = self.models()
            if status["status"] == "RUNNING" and found == {*models}:
                return
            time.sleep(0.5)
        raise AssertionError((status, found))

    def wait_for(self, wanted: str) -> dict[str, Any]:
        """Until the application has a status."""
        end = time.monotonic() + SECONDS
        while (status := self.status())["status"] != wanted and time.monotonic() < end:
            time.sleep(0.5)
        assert status["status"] == wanted, status
        return status

    def models(self) -> set[str]:
        try:
            answer = httpx.get(f"{self.url}/v1/models", headers=self.headers, timeout=60)
        except httpx.HTTPError:
            return set()
        return {model["id"] for model in answer.json()["data"]} if answer.status_code == 200 else set()

    def classify(self, model: str, *rows: Any) -> httpx.Response:
        body = {"model": model, "input": rows}
        return httpx.post(f"{self.url}/v1/classify", json=body, headers=self.headers, timeout=60)


@dataclass
class Client(threading.Thread):
    """Asks one question after the other until it is told to stop, and keeps every answer."""

    service: Service
    model: str
    row: Any
    stop: threading.Event
    answers: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                answer = self.service.classify(self.model, self.row)
                self.answers.append((answer.status_code, answer.json().get("model") or answer.text))
            except Exception as error:
                self.answers.append((0, repr(error)))
            time.sleep(0.02)

    __hash__ = threading.Thread.__hash__


@pytest.fixture
def service(cluster: dict[str, str], storage: Path, tmp_path: Path) -> Service:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = add_key(tmp_path / "keys.json", "test")
    args = {"storage": str(storage), "api_keys": str(tmp_path / "keys.json"), "serve": {"cpus": 0.1}}
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 65},
        "applications": [{"name": "graft", "import_path": "graft.serving.config:application", "args": args}],
    }
    file = tmp_path / "serve.yaml"
    return Service(cluster["dashboard"], file, f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}, config)


@pytest.mark.slow
def test_an_update_to_a_new_run_fails_no_request(service: Service, run_ids: dict[str, str]) -> None:
    old, new, beside = run_ids["centroid"], run_ids["ridge"], run_ids["vectors"]
    service.deploy([old, beside], {"best": old})
    service.wait(old, beside, "best")
    stop = threading.Event()
    clients = [Client(service, "best", "some rain", stop), Client(service, beside, [1.0] * 13, stop)]
    for client in clients:
        client.start()
    service.deploy([old, beside, new], {"best": new})
    service.wait(old, beside, new, "best")
    assert service.classify("best", "some rain").json()["model"] == new
    service.deploy([beside, new], {"best": new})
    service.wait(beside, new, "best")
    time.sleep(1)
    stop.set()
    for client in clients:
        client.join()
    failed = [answer for client in clients for answer in client.answers if answer[0] != 200]
    best = [model for _, model in clients[0].answers]
    assert not failed
    assert {model for _, model in clients[1].answers} == {beside}
    assert (best[0], best[-1], {*best}) == (old, new, {old, new})
    assert service.classify(old, "some rain").status_code == 404
    assert all(len(client.answers) > 50 for client in clients)

    service.deploy([beside, "topics-0000000000"], {})
    message = service.wait_for("DEPLOY_FAILED")["message"]
    _, reason = message.splitlines()
    assert reason.startswith("topics-0000000000: no finished run of this name")
    assert service.classify("best", "some rain").json()["model"] == new, "what was served is served on"
    service.deploy([beside, new], {"best": new})
    service.wait(beside, new, "best")

    file = Path(service.config["applications"][0]["args"]["api_keys"])
    service.headers = {"Authorization": f"Bearer {add_key(file, 'second')}"}
    time.sleep(1.1)
    assert service.classify("best", "some rain").status_code == 200
    remove_key(file, "test")
    gone = service.headers["Authorization"]
    service.headers = {"Authorization": f"Bearer {add_key(file, 'third')}"}
    remove_key(file, "second")
    time.sleep(1.1)
    assert httpx.get(f"{service.url}/v1/models", headers={"Authorization": gone}).status_code == 401
    assert service.classify("best", "some rain").status_code == 200

    end_and_answer(service)


def end_and_answer(service: Service) -> None:
    """Deploy no application: what was asked is answered, what comes later finds none."""
    service.config["applications"] = []
    service.file.write_text(yaml.safe_dump(service.config))
    answers: list[httpx.Response] = []

    def ask() -> None:
        while not answers or answers[-1].status_code == 200:
            answers.append(service.classify("best", *["some rain"] * 1000))

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        service.serve("deploy", str(service.file))
        for one in asking:
            one.result(SECONDS)  # raises where a connection was cut
    assert {answer.status_code for answer in answers} == {200, 404}
    service.serve("shutdown", "--yes")


@pytest.mark.slow
def test_what_telemetry_tells_is_what_prometheus_reads(cluster: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TELL, cluster["address"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as teller:
        assert teller.stdout is not None
        port = teller.stdout.readline().strip()
        end = time.monotonic() + 60
        found: dict[str, float] = {}
        while time.monotonic() < end and len({name.split("{")[0] for name in found}) < 14:
            found = series(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text)
            time.sleep(1)
    parts = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    wanted = {name + part for name, metric in METRICS.items() for part in parts[metric.kind]}
    assert {name.split("{")[0] for name in found} == wanted
    assert found['graft_requests_total{model="some-run",route="/v1/classify",status="200"}'] == 3
    assert found['graft_request_seconds_count{model="some-run",route="/v1/classify"}'] == 3
    assert found['graft_request_seconds_bucket{le="0.01",model="some-run",route="/v1/classify"}'] == 0
    assert found['graft_request_seconds_bucket{le="0.05",model="some-run",route="/v1/classify"}'] == 3
    assert found['graft_tokens_total{kind="completion",model="some-run"}'] == 2
    assert found["graft_waiting_requests{}"] == 4
    # Ray passes on in which bucket a value fell, and adds up the middles of the buckets.
    assert 8 <= found['graft_batch_rows_sum{deployment="embed-x",run="some-run"}'] <= 16
    assert found['graft_node_seconds_count{deployment="embed-x",node="0-embed",run="some-run"}'] == 1
    assert found['graft_waiting_texts{deployment="complete-x"}'] == 5


def series(text: str) -> dict[str, float]:
    """graft's own series out of a node's metrics, without the labels that Ray adds to all of them."""
    found = {}
    for name, labels, value in re.findall(r"^ray_(graft_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = sorted(label for label in re.findall(r'\w+="[^"]*"', labels) if label.split("=")[0] in LABELS)
        found[f"{name}{{{','.join(own)}}}"] = float(value)
    return found
