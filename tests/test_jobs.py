"""Jobs on a real cluster of two nodes: submitted from a fresh clone, watched, stopped, refused; nothing is left."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "cluster" / "local.sh"
RAY = str(Path(sys.executable).with_name("ray"))

SWEEP = """
name: numbers
task: {name: digits}
method: {name: probe}
sweep:
  axes: {method.classifier: [majority, centroid]}
  seeds: SEEDS
"""

MISSING = """
name: lost
task: {name: file, path: nowhere.csv, text: text, label: topic}
models: {encoder: {source: ENCODER}}
method: {name: probe}
"""

WHERE = """
import json, os, sys
sys.path.insert(0, "platform")
from graft.cluster import connect
with connect(os.environ["RAY_ADDRESS"], "where"):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
    look = ray.remote(num_cpus=0)(lambda: __import__("graft").__file__)
    nodes = [node["NodeID"] for node in ray.nodes()]
    print("FOUND" + json.dumps(ray.get([look.options(scheduling_strategy=On(node, False)).remote() for node in nodes])))
"""

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Place:
    """A cluster, and what its commands need."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Everything that runs because of this cluster."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            marked = process.environ().get("GRAFT_CLUSTER_MARK", "").startswith(f"{self.folder}-")
            return process.status() != psutil.STATUS_ZOMBIE and (
                marked or any(f"{self.folder}/" in word for word in process.cmdline())
            )
        except psutil.Error:
            return False

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.environment['RAY_DASHBOARD_PORT']}"


def free_port() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


def place() -> Place:
    """Somewhere for a cluster: a short path, because Ray keeps sockets there; a home of its own, with a token."""
    folder = Path(tempfile.mkdtemp(prefix="graft-", dir="/tmp"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"GRAFT_CLUSTER": str(folder), "HOME": str(folder / "home")}
    environment |= {"RAY_PORT": free_port(), "RAY_DASHBOARD_PORT": free_port()}
    return Place(folder, environment)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Place]:
    """Two nodes with two CPUs each; at the end nothing of them is left."""
    here = place()
    try:
        up = here.run(LOCAL, "up", "2", "2")
        assert up.returncode == 0, up.stderr
        variables = dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
        assert here.run(LOCAL, "env").stdout == up.stdout
        yield Place(here.folder, here.environment | variables)
    finally:
        down = here.run(LOCAL, "down")
        left = here.processes()
        shutil.rmtree(here.folder)
    assert down.returncode == 0, down.stderr
    assert not left


@pytest.fixture(scope="module")
def clone(cluster: Place, tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A fresh clone with what is not committed yet, specs, and files that must not travel."""
    folder = tmp_path_factory.mktemp("fresh") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    (folder / "sweep.yaml").write_text(SWEEP.replace("SEEDS", "2"))
    (folder / "long.yaml").write_text(SWEEP.replace("SEEDS", "300"))
    (folder / "missing.yaml").write_text(MISSING.replace("ENCODER", str(tiny_bert)))
    (folder / "where.py").write_text(WHERE)
    for private in ("demo", "runs", "store", ".venv"):
        (folder / private).mkdir()
        (folder / private / "own.txt").write_text("stays here")
    return folder


def test_a_sweep_submitted_from_a_fresh_clone_succeeds(cluster: Place, clone: Path, tmp_path: Path) -> None:
    words = ("python", "jobs/sweep.py", "sweep.yaml", "--storage", tmp_path)
    submitted = cluster.run(RAY, "job", "submit", "--submission-id=fresh", "--working-dir=.", "--", *words, cwd=clone)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert len(list(tmp_path.glob("runs/*/metrics.parquet"))) == 4
    assert list(tmp_path.glob("sweeps/numbers-*/report.html"))
    status = cluster.run(RAY, "job", "status", "fresh")
    assert "succeeded" in status.stdout + status.stderr
    assert "report.html" in cluster.run(RAY, "job", "logs", "fresh").stdout
    unpacked = list(cluster.folder.glob("node-*/session_2*/runtime_resources/working_dir_files/*/sweep.yaml"))
    assert unpacked
    for copy in unpacked:
        names = {path.name for path in copy.parent.iterdir()}
        assert {"jobs", "platform"} <= names
        assert not names & {"demo", "runs", "store", ".venv", ".git"}


def test_every_node_runs_the_code_that_the_job_brought(cluster: Place, clone: Path) -> None:
    done = cluster.run(RAY, "job", "submit", "--working-dir=.", "--", "python", "where.py", cwd=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    files = sorted(json.loads(line.removeprefix("FOUND")))
    assert [Path(file).relative_to(cluster.folder).parts[0] for file in files] == ["node-1", "node-2"]
    assert all("working_dir_files" in file for file in files)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing.yaml"], "error: nowhere.csv: no such file"),
        (["sweep.yaml", "--concurrent", "64"], "error: --concurrent 64 needs 64 CPUs, the cluster at"),
    ],
)
def test_exit_codes_pass_through(cluster: Place, clone: Path, words: list[str], expected: str) -> None:
    done = cluster.run(sys.executable, "jobs/submit.py", *words, cwd=clone)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stdout
    assert f"results go to {cluster.folder}/home/graft" in done.stdout
    assert "ray job stop raysubmit_" in done.stdout
    assert not done.stderr


def is_of_a_job(process: psutil.Process) -> bool:
    """A driver, or a worker that carries out its tasks."""
    words = " ".join(process.cmdline())
    return "jobs/sweep.py" in words or ("ray::" in words and "Agent" not in words and "ray::IDLE" not in words)


@pytest.mark.long
def test_a_job_is_stopped_with_its_trials(cluster: Place, clone: Path, tmp_path: Path) -> None:
    words = [sys.executable, "jobs/submit.py", "long.yaml", "--storage", str(tmp_path)]
    log = tmp_path / "log"
    with log.open("w") as out, subprocess.Popen(words, cwd=clone, env=cluster.environment, stdout=out) as follower:
        while not list(tmp_path.glob("runs/*/metrics.parquet")):
            assert follower.poll() is None, log.read_text()
            time.sleep(0.1)
        job = log.read_text().partition(":")[0]
        running = [process for process in cluster.processes() if is_of_a_job(process)]
        assert len(running) > 2
        stopped = cluster.run(RAY, "job", "stop", job)
        assert "was stopped" in stopped.stdout + stopped.stderr
        assert follower.wait(60) == 1
    assert f"{job}: STOPPED" in log.read_text()
    _, left = psutil.wait_procs(running, timeout=60)
    assert not left
    assert len(list(tmp_path.glob("runs/*/metrics.parquet"))) < 600


@pytest.mark.long
def test_strangers_are_refused(cluster: Place, clone: Path, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.api}/api/jobs/", timeout=30)
    with refused.value:
        assert refused.value.code == 401
    wrong = cluster.run(sys.executable, "jobs/submit.py", "sweep.yaml", cwd=clone, RAY_AUTH_TOKEN="0" * 64)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == f"error: {cluster.api}: refuses the token; copy the cluster's own to ~/.ray/auth_token\n"
    none = cluster.run(sys.executable, "jobs/submit.py", "sweep.yaml", cwd=clone, HOME=str(tmp_path))
    assert none.returncode == 1
    assert none.stderr.startswith(f"error: {tmp_path}/.ray/auth_token: no token here")
    assert (cluster.folder / "home" / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    doctor = cluster.run(sys.executable, "-m", "graft.cli", "doctor", cwd=tmp_path)
    assert f"2 node(s), 4 CPUs; the Jobs API at {cluster.api} refuses" in doctor.stdout


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["sweep.yaml", "--address", "http://127.0.0.1:1"], 1, "no cluster answers here"),
        (["sweep.yaml", "--address", "127.0.0.1:6379"], 2, "give the dashboard's, for example http://127.0.0.1:8265"),
        (["/etc/hostname"], 2, "a job sees only what lies in"),
        (["nothing.yaml"], 2, "nothing.yaml"),
    ],
)
def test_what_cannot_be_submitted(cluster: Place, clone: Path, words: list[str], code: int, expected: str) -> None:
    done = cluster.run(sys.executable, "jobs/submit.py", *words, cwd=clone)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line


def test_what_is_up_or_taken_is_not_started_again(cluster: Place) -> None:
    again = cluster.run(LOCAL, "up")
    assert again.returncode == 1
    assert again.stderr.startswith(f"error: a cluster of {cluster.folder} is up already; end it with")
    beside = cluster.folder / "two"
    taken = cluster.run(LOCAL, "up", GRAFT_CLUSTER=str(beside))
    assert taken.returncode == 1
    assert taken.stderr == f"error: port {cluster.environment['RAY_PORT']} is in use; set RAY_PORT to a free one\n"
    assert not beside.exists()


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        ([], {}, "give one of: up"),
        (["up", "0"], {}, "give NODES"),
        (["up", "2", "two"], {}, "give NODES"),
        (["up"], {"RAY_PORT": "99999"}, "give a number from 1024 to 65535"),
        (["up"], {"GRAFT_CLUSTER": "relative"}, "give an absolute path"),
        (["up"], {"GRAFT_CLUSTER": f"/tmp/{'x' * 40}"}, "at most 32 characters"),
    ],
)
def test_local_refuses_what_it_cannot_do(words: list[str], variables: dict[str, str], expected: str) -> None:
    here = place()
    done = here.run(LOCAL, *words, **variables)
    shutil.rmtree(here.folder)
    assert done.returncode == 2
    assert expected in done.stderr


def test_down_leaves_nothing_of_a_node_that_was_killed() -> None:
    here = place()
    try:
        assert here.run(LOCAL, "up", "1", "1").returncode == 0
        (node,) = (process for process in here.processes() if {"start", "--block"} <= set(process.cmdline()))
        node.kill()
        node.wait(60)
        assert here.run(LOCAL, "down").returncode == 0
        assert not here.processes()
        assert "no cluster of" in here.run(LOCAL, "env").stderr
    finally:
        here.run(LOCAL, "down")
        shutil.rmtree(here.folder)
