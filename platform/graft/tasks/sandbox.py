"""Runs programs that a model wrote, and says whether they pass their tests.

    program, tests ──► python -I jail.py ──► walls ──► password, or why not

A program runs in a process of its own, in an empty folder, without environment variables, input or output; its
processor time, its time on the clock, its memory, the size of its files and the number of its processes (one) are
bounded, and the whole process group is killed in the end. The interpreter refuses (audit hooks, and refusals in the
place of what these do not see) sockets, other processes and interpreters, databases (sqlite3, dbm), the modules that
`jail.CLOSED` names (ctypes among them), opening for writing and making folders elsewhere than in that folder, paths
relative to an open folder (dir_fd), pipes and devices with names (mkfifo, mknod), and removing, moving, linking and
changing files everywhere. It does not refuse reading.

Where the system allows it (Linux, as root or with user namespaces) the walls are the kernel's: new namespaces without a
network, a file system that holds Python's libraries read-only and an empty /tmp, the user nobody, no capabilities.
Elsewhere (many containers, macOS) only the limits and the interpreter's own refusals remain, which a program that is
written to break out can get around: `walls()` says which it is, and a warning is logged. Nothing runs as root: where
root can neither make namespaces nor become nobody, programs are refused. Programs see the standard library alone.

What counts as a pass is that the tests came to their end, not an exit status: `sys.exit(0)`, `os._exit(0)` and
changed builtins pass nothing. The tests run in the program's own process, as these benchmarks' tests demand. A program
written against this very harness, which looks for the password in its frames or returns objects that equal everything,
can still forge a pass: scores are for models that try to solve the task.
"""

import contextlib
import functools
import json
import logging
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graft.errors import DataError

log = logging.getLogger(__name__)

JAIL = Path(__file__).with_name("jail.py")
MEMORY_BYTES = 512 * 2**20
"""Of addresses, the interpreter's own (about 30 MB) included."""
FILE_BYTES = 2**20
SPARE_SECONDS = 5
"""On the clock, beside three times the processor time: for a machine that is busy with others."""
ANSWER_BYTES = 256
"""Most that is read of what a sandbox says."""
NO_WALLS = "no walls: "
"""Begins what a sandbox says that was not made: its program has not run."""
PROBE = "import collections, datetime, decimal, hashlib, heapq, itertools, json, math, random, re, string, typing"
"""What the walls must leave within reach."""

Walls = Literal["namespaces", "process"]


@dataclass(frozen=True)
class Job:
    """A program and what it must pass."""

    program: str
    tests: str
    """Code that runs after the program and raises where it is wrong."""
    names: tuple[str, ...] = ()
    """Names that the tests are about: they may stand in a builtin's place."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    why: str
    """The error that ended it, or what stopped it; empty where it passed."""


def run_all(jobs: Sequence[Job], seconds: int = 10) -> list[Outcome]:
    """The outcome of each program; a few run at a time.

    Args:
        jobs: the programs.
        seconds: processor time that each may take; on the clock three times that, and SPARE_SECONDS.

    Raises:
        DataError: this system cannot run programs with any walls around them, or could not run one of these.
    """
    kind = walls()
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as threads:
        outcomes = list(threads.map(lambda job: run(job, seconds, kind), jobs))
    if unwalled := next((outcome.why for outcome in outcomes if outcome.why.startswith(NO_WALLS)), None):
        raise DataError(f"a program could not be run safely ({unwalled}), so none is judged; give the command again")
    return outcomes


@functools.cache
def walls() -> Walls:
    """The best walls that this system allows.

    Raises:
        DataError: it allows none: it has no such limits, or starts no process.
    """
    found = ""
    for kind in ("namespaces", "process"):
        outcome = run(Job(PROBE, ""), 10, kind)
        if outcome.passed:
            if found:
                log.warning(
                    "programs run without namespaces (%s): limits and the interpreter's refusals alone hold them; run "
                    "graft where nothing is to be lost, or where the kernel lets this user unshare",
                    found,
                )
            return kind
        found = outcome.why
    raise DataError(f"programs cannot be run safely here: {found}; use Linux or macOS, or another task")


def run(job: Job, seconds: int, kind: Walls) -> Outcome:
    """The outcome of one program, inside walls of this kind."""
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="graft-program-", ignore_cleanup_errors=True) as folder:
        content = {
            "program": job.program,
            "tests": job.tests,
            "names": job.names,
            "password": password,
            "folder": folder,
            "namespaces": kind == "namespaces",
            "seconds": seconds,
            "memory_bytes": MEMORY_BYTES,
            "file_bytes": FILE_BYTES,
        }
        on_the_clock = 3 * seconds + SPARE_SECONDS
        said = _said(json.dumps(content).encode(), folder, on_the_clock)
    if said is None:
        return Outcome(False, f"it took more than {on_the_clock} s on the clock")
    if said == password.encode():
        return Outcome(True, "")
    return Outcome(False, said.decode("utf-8", "replace") or "its process ended before its tests did")


def _said(content: bytes, folder: str, seconds: float) -> bytes | None:
    """What the sandbox says before it ends, or None where that takes too long; no process of it is left."""
    # The interpreter behind a virtual environment's link: that one finds the standard library by itself.
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8", str(JAIL)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdout:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(content)
            return _read(process.stdout.fileno(), time.monotonic() + seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(pipe: int, deadline: float) -> bytes | None:
    """The first bytes up to the pipe's end; None where the deadline comes first."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(found) < ANSWER_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            more = os.read(pipe, ANSWER_BYTES)
            if not more:
                break
            found += more
    return found
