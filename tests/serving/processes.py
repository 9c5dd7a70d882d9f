"""A `graft serve` process, and what is found out about it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import OpenAI

GRAFT = [sys.executable, "-m", "graft.cli"]
SECONDS = 180


@dataclass
class Process:
    """A running `graft serve`, alone in its process group as on a terminal."""

    popen: subprocess.Popen[str]
    url: str
    headers: dict[str, str]
    printed: list[str]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=60)

    def classify(self, run_id: str, rows: list[Any]) -> httpx.Response:
        body = {"model": run_id, "input": rows}
        return httpx.post(f"{self.url}/v1/classify", json=body, headers=self.headers, timeout=60)

    def ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.headers, timeout=60)

    @property
    def client(self) -> OpenAI:
        """The official client, as it is, but for trying again by itself."""
        key = self.headers["Authorization"].removeprefix("Bearer ")
        return OpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0)

    def replica(self, name: str) -> psutil.Process:
        """The process of a deployment."""
        (found,) = (child for child in descendants(self.popen.pid) if f"graft:{name}" in title(child))
        return found


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(storage: Path, *words: str, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GRAFT, "serve", *words, "--port", str(port)],
        cwd=storage,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(popen: subprocess.Popen[str], number: signal.Signals | None) -> tuple[int, str, str]:
    """Send a signal to the whole group as a terminal does, or wait; the process leaves nobody behind."""
    others = descendants(popen.pid)
    if number:
        os.killpg(popen.pid, number)
    out, err = popen.communicate(timeout=SECONDS)
    _, alive = psutil.wait_procs(others, timeout=30)
    for process in alive:
        process.kill()
    assert not alive, [title(process) for process in alive]
    return popen.returncode, out, err


def wrong(err: str) -> str:
    """What it says beside its notes of what takes its time."""
    notes = ("starting Ray on", "joining Ray at", "loading models: ")
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith(notes))


def wait_for_ray(popen: subprocess.Popen[str]) -> None:
    while not any("raylet" in title(child) for child in descendants(popen.pid)):
        assert popen.poll() is None
        time.sleep(0.05)


def read_announcement(popen: subprocess.Popen[str]) -> list[str]:
    """What it prints once it serves; shorter where it ends before."""
    assert popen.stdout is not None
    printed: list[str] = []
    while not printed or (printed[-1] and not printed[-1].startswith("try ")):
        printed.append(popen.stdout.readline().rstrip("\n"))
    return printed
