"""cluster/slurm/train.sbatch, run: on hosts in namespaces of their own, with an srun that starts a task on each."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("10.231.7.1", "10.231.7.2")
JOB = "4242"
PORT = 20000 + int(JOB) % 4000 * 3

SRUN = """#!/usr/bin/env bash
# Task 0 here, where the batch script runs, as in Slurm; task 1 on the other host.
while [[ $1 == --* ]]; do shift; done
if [[ $SLURM_JOB_NUM_NODES == 2 ]]; then
    { env -0; printf '%s\\0' SLURM_PROCID=1 "$@"; } >/mnt/task.part
    mv /mnt/task.part /mnt/task
fi
SLURM_PROCID=0 "$@"
code=$?
until [[ $SLURM_JOB_NUM_NODES == 1 || -e /mnt/ended ]]; do sleep 0.2; done
exit $code
"""

SLURMD = """
until [ -e /mnt/task ]; do sleep 0.2; done
mapfile -d '' task </mnt/task
env -i "${task[@]}"
ls /tmp >/mnt/ended
"""

SBATCH = """
bash cluster/slurm/train.sbatch "$@"
code=$?
ls /tmp >/mnt/left
exit $code
"""

LOOK = """
import json, os, stat, subprocess, sys, urllib.error, urllib.request
from pathlib import Path

def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=30).status
    except urllib.error.HTTPError as refused:
        return refused.code

head, port = os.environ["RAY_ADDRESS"].split(":")
folder = Path(os.environ["RAY_TMPDIR"])
listening = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout
Path(sys.argv[1]).write_text(json.dumps({
    "api": answers(f"http://127.0.0.1:{int(port) + 1}/api/jobs/"),
    "dashboard": [line.split()[3] for line in listening.splitlines() if line.split()[3].endswith(f":{int(port) + 1}")],
    "modes": [oct(path.stat().st_mode & 0o777) for path in (folder, Path.home() / ".ray/auth_token")],
    "sessions": len(list(folder.glob("ray/session_2*"))),
}))
sys.exit(3)
"""

SWEEP = """
name: numbers
task: {name: digits}
method: {name: probe}
sweep: {axes: {method.classifier: [majority, centroid]}, seeds: 2}
"""

pytestmark = pytest.mark.long


def sh(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Allocation:
    """What Slurm gives a job: nodes, and a folder that all of them share."""

    shared: Path
    name: str

    def sbatch(self, nodes: int, *words: str, before: str = ":") -> subprocess.CompletedProcess[str]:
        """Run the script on the first host as Slurm does."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        environment |= {"PATH": f"/mnt/bin:{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/mnt/home"}
        environment |= {"SLURM_JOB_ID": JOB, "SLURM_JOB_NAME": "graft", "SLURM_JOB_NUM_NODES": str(nodes)}
        environment |= {"SLURM_CPUS_ON_NODE": "2"}
        with subprocess.Popen(self._on(1, SLURMD), env=environment, stdin=subprocess.DEVNULL) as slurmd:
            try:
                return subprocess.run(
                    [*self._on(0, f"{before}\n{SBATCH}"), "bash", *words],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
            finally:
                slurmd.kill()

    def _on(self, host: int, script: str) -> list[str | Path]:
        """A command that runs a script on a host: a network, a /tmp and processes of its own, which end with it.

        `ray symmetric-run` ends with `ray stop`: without that it would end every Ray of this machine.
        """
        enter = ["nsenter", f"--net=/run/netns/{self.name}-{host}"]
        alone = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        place = f"mount --bind {self.shared} /mnt; mount -t tmpfs tmpfs /tmp; cd /mnt/repo"
        return [*enter, *alone, "bash", "-c", f"{place}\n{script}"]


@pytest.fixture(scope="module")
def allocation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Allocation]:
    """Two hosts on one cable; skipped where this user may not make them."""
    for tool in ("ip", "ss", "nsenter", "unshare"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("this user may not make network and process namespaces")
    shared = tmp_path_factory.mktemp("shared")
    for folder in ("jobs", "platform", "cluster"):
        shutil.copytree(ROOT / folder, shared / "repo" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (shared / "repo" / "jobs" / "look.py").write_text(LOOK)
    (shared / "repo" / "sweep.yaml").write_text(SWEEP)
    (shared / "home").mkdir()
    (shared / "bin").mkdir()
    (shared / "bin" / "srun").write_text(SRUN)
    (shared / "bin" / "srun").chmod(0o755)
    name = f"graft{os.getpid()}"
    try:
        for number in range(2):
            sh("ip", "netns", "add", f"{name}-{number}")
        sh("ip", "link", "add", "eth0", "netns", f"{name}-0", "type", "veth", "peer", "eth0", "netns", f"{name}-1")
        for number, address in enumerate(ADDRESSES):
            for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                sh("ip", "-n", f"{name}-{number}", *words.split())
        yield Allocation(shared, name)
    finally:
        for number in range(2):
            subprocess.run(["ip", "netns", "del", f"{name}-{number}"], check=False)


def test_a_sweep_on_two_nodes(allocation: Allocation) -> None:
    done = allocation.sbatch(2, "sweep", "sweep.yaml", "--storage", "/mnt/results")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "probe classifier=centroid" in done.stdout
    assert len(list(allocation.shared.glob("results/runs/*/metrics.parquet"))) == 4
    (other,) = allocation.shared.glob("repo/graft-4242.node-1.log")
    assert f"Connecting to Ray cluster at {ADDRESSES[0]}:{PORT}" in other.read_text()
    assert "Ray runtime started" in other.read_text()
    for left in ("left", "ended"):
        assert (allocation.shared / left).read_text() == "", "something of the job is left in /tmp"


def test_the_cluster_is_closed_and_the_exit_code_is_the_jobs(allocation: Allocation) -> None:
    done = allocation.sbatch(1, "look", "/mnt/found.json")
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads((allocation.shared / "found.json").read_text())
    assert found == {
        "api": 401,
        "dashboard": [f"127.0.0.1:{PORT + 1}"],
        "modes": ["0o700", "0o600"],
        "sessions": 1,
    }


def test_where_ray_does_not_start_the_job_has_failed(allocation: Allocation) -> None:
    take = f"import socket, time; s = socket.socket(); s.bind(('', {PORT})); s.listen(); time.sleep(600)"
    before = f"""{sys.executable} -c "{take}" & until ss -ltnH | grep -q :{PORT}; do sleep 0.1; done"""
    done = allocation.sbatch(1, "look", "/mnt/never.json", before=before)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: Ray did not start on all 1 nodes" in done.stderr
    assert not (allocation.shared / "never.json").exists()


@pytest.mark.parametrize("words", [[], ["sweep"], ["serve", "sweep.yaml"]])
def test_what_is_no_job_is_said_before_ray_starts(allocation: Allocation, words: list[str]) -> None:
    done = allocation.sbatch(1, *words)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: got '{' '.join(words)}': give run|sweep SPEC.yaml")
