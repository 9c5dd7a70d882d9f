"""Ray behind a token: started here, joined, or refused with the reason; nothing is left running."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from graft.cluster import Cluster, connect, use_tokens
from graft.errors import ClusterError, SpecError

HOLD = """
import json, sys
from dataclasses import asdict
from graft.cluster import connect
with connect(None, "test-hold") as cluster:
    print(json.dumps(asdict(cluster)), flush=True)
    sys.stdin.read()
"""

JOIN = """
import json, sys
from dataclasses import asdict
from graft.cluster import connect
from graft.errors import GraftError
try:
    with connect(sys.argv[1], "test-join") as cluster:
        import ray
        where = ray.remote(num_cpus=0)(lambda: __import__("graft").__file__)
        with connect(sys.argv[1], "test-inner") as inner:
            assert inner == cluster
        print(json.dumps({**asdict(cluster), "graft": ray.get(where.remote())}))
except GraftError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token; what graft changes in the environment ends with the test."""
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_token_is_made_once_and_only_its_owner_reads_it(home: Path) -> None:
    before = os.umask(0)
    try:
        with ThreadPoolExecutor(8) as threads:
            files = {made.result() for made in [threads.submit(use_tokens) for _ in range(8)]}
    finally:
        os.umask(before)
    (path,) = files
    assert path == home / ".ray" / "auth_token"
    token = path.read_text()
    assert len(bytes.fromhex(token)) == 32
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]
    assert os.environ["RAY_AUTH_MODE"] == "token"

    path.chmod(0o644)
    assert use_tokens(create=False) == path
    assert mode(path) == 0o600
    assert path.read_text() == token
    path.write_text("")
    use_tokens()
    assert len(path.read_text()) == 64


def test_a_token_that_cannot_be_had_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"no token here; copy the cluster's own"):
        use_tokens(create=False)
    (home / "file").touch()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "file" / "token"))
    with pytest.raises(ClusterError, match="cannot be kept here"):
        use_tokens()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert use_tokens(create=False) is None


@pytest.mark.parametrize("address", ["", "head", "local", "head:", "http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_of_no_cluster_is_refused(home: Path, address: str) -> None:
    with pytest.raises(SpecError, match="give host:port of a head node"), connect(address, "test"):
        pass


def test_nobody_listens(home: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(ClusterError, match=r"no cluster answers here .*cluster/local\.sh up"):
            connect(f"127.0.0.1:{port}", "test").__enter__()


def test_more_cpus_than_there_are_is_said_at_once() -> None:
    cluster = Cluster("10.0.0.1:6379", None, cpus=4.0, gpus=0.0, nodes=2, local=False)
    cluster.require(4, "--concurrent 4")
    with pytest.raises(SpecError, match=r"scaling\.workers: 64 needs 64 CPUs, the cluster at 10\.0\.0\.1:6379 has 4"):
        cluster.require(64, "scaling.workers: 64")


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """The address of a cluster that another process has started; it ends with that process, wholly."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        started = json.loads(holder.stdout.readline())
        assert started["local"]
        assert started["nodes"] == 1
        assert started["dashboard"].startswith("http://127.0.0.1:")
        processes = psutil.Process(holder.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in processes)
        yield started["address"]
        holder.stdin.close()
        assert holder.wait(60) == 0
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left


def join(address: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_a_cluster_is_joined_and_its_workers_find_this_graft(running: str) -> None:
    joined = json.loads(join(running, OMP_NUM_THREADS="1"))
    assert joined["address"] == running
    assert not joined["local"]
    assert joined["cpus"] == os.cpu_count()
    import graft

    assert joined["graft"] == graft.__file__


def test_a_wrong_token_or_none_is_refused_in_one_line(running: str, tmp_path: Path) -> None:
    wrong = join(running, RAY_AUTH_TOKEN="0" * 64)
    assert wrong.startswith("ClusterError: --address")
    assert "refuses the token of RAY_AUTH_TOKEN" in wrong
    assert "\n" not in wrong
    none = join(running, HOME=str(tmp_path))
    assert none.startswith(f"ClusterError: {tmp_path}/.ray/auth_token: no token here")


def test_a_port_of_something_else_is_no_head(home: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        answer = join(f"127.0.0.1:{server.server_port}", RAY_AUTH_TOKEN="0" * 64)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert answer.startswith("ClusterError")
    assert "is no Ray head" in answer
