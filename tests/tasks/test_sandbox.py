"""Programs that pass, programs that fail, and programs that try to get out."""

import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft.errors import DataError
from graft.tasks import sandbox
from graft.tasks.sandbox import Job, Outcome, Walls

REACHED = "assert False, 'the tests were reached'"


def outcome(program: str, tests: str = REACHED, seconds: int = 5, names: tuple[str, ...] = ()) -> Outcome:
    return sandbox.run(Job(program, tests, names), seconds, sandbox.walls())


def test_a_right_program_passes_and_a_wrong_one_says_why() -> None:
    tests = "from math import isclose\nassert isclose(half(3), 1.5)"
    assert outcome("def half(x):\n    return x / 2", tests) == Outcome(True, "")
    assert outcome("def half(x):\n    return x // 2", tests).why.startswith("AssertionError")
    assert outcome("def half(x) return", tests).why.startswith("SyntaxError")
    assert outcome("def third(x):\n    pass", tests).why == "NameError: name 'half' is not defined"


def test_outcomes_stand_in_the_order_of_the_programs() -> None:
    jobs = [Job(f"x = {value}", "assert x % 2") for value in range(6)]
    assert [found.passed for found in sandbox.run_all(jobs)] == [False, True] * 3


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "its process ended before its tests did"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os, signal\nsignal.raise_signal(signal.SIGKILL)\nos.abort()", "its process ended|refuses"),
        ("class Loud(Exception):\n    def __str__(self):\n        raise self\nraise Loud", "cannot be shown"),
        ("import builtins\nbuiltins.AssertionError = Warning", "AssertionError: the tests were reached"),
        ("import sys\nsys.stdout.write('x' * 10**6)\nsys.stderr.write('x' * 10**6)", "the tests were reached"),
        ("import os\nassert not os.environ\ninput()", "EOFError"),
        ("def f():\n    f()\nf()", "RecursionError"),
    ],
)
def test_only_the_end_of_the_tests_is_a_pass(program: str, why: str) -> None:
    found = outcome(program)
    assert not found.passed
    assert re.search(why, found.why), found.why


def test_tests_see_builtins_as_they_were() -> None:
    tests = "assert abs(f(-3)) == 3\nassert sum([1, 2]) == 3"
    right = "def f(x):\n    return x"
    assert outcome(right, tests).passed
    cheat = f"import builtins\nbuiltins.abs = lambda x: 3\n{right[:-1]}7"
    assert not outcome(cheat, tests).passed
    assert not outcome("abs = lambda x: 3\ndef f(x):\n    return 7", tests).passed
    # What the tests are about may bear a builtin's name.
    assert outcome("def sum(x):\n    return 'mine'", "assert sum([1]) == 'mine'", names=("sum",)).passed


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("while True:\n    pass", "its process ended before its tests did"),
        ("import time\ntime.sleep(60)", "more than 4 s on the clock"),
        ("x = []\nwhile True:\n    x.append('a' * 10**6)", "MemoryError"),
        ("x = [0] * 10**10", "MemoryError"),
        ("with open('a', 'wb') as f:\n    while True:\n        f.write(b'a' * 10**6)", "File too large"),
    ],
)
def test_nothing_takes_more_than_its_share(program: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SPARE_SECONDS", 1 if "sleep" in program else 30)
    began = time.monotonic()
    found = outcome(program, seconds=1)
    assert time.monotonic() - began < 20
    assert not found.passed
    assert why in found.why


LEAVES_SOMETHING = (
    "import sqlite3\nsqlite3.connect('OUTSIDE/a')",
    "import os\nos.open('a', os.O_CREAT | os.O_WRONLY, dir_fd=os.open('OUTSIDE', os.O_RDONLY))",
    "import os\nos.scandir('OUTSIDE')\nfor n in range(32):\n    os.open('a', os.O_CREAT | os.O_WRONLY, dir_fd=n)",
    "import os\nos.mkdir('OUTSIDE/a')",
    "import os\nos.mkdir('a', dir_fd=os.open('OUTSIDE', os.O_RDONLY))",
    "import os\nos.mkfifo('OUTSIDE/a')",
    "import posix\nposix.mknod('OUTSIDE/a')",
    "import dbm.gnu\ndbm.gnu.open('OUTSIDE/a', 'n')",
    "import readline\nreadline.write_history_file('OUTSIDE/a')",
    "import pathlib\npathlib.Path('OUTSIDE/a').mkdir()",
)
"""Programs that write in a folder that is not theirs."""


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True:\n    os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.kill(os.getppid(), 9)",
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
        "import ctypes",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (9, 9))",
        "open('/tmp/../graft-was-here', 'w')",
        "import os\nos.open('/graft-was-here', os.O_CREAT | os.O_WRONLY)",
        "import os\nos.remove(os.__file__)",
        "import os\nos.chdir('/')",
        "import _xxsubinterpreters",
        "import ssl\nssl.SSLContext().keylog_filename = '/tmp/graft-was-here'",
        "import sys, os\ndel sys.modules['posix'], sys.modules['os']\nimport os",
        "import sys\ndel sys.modules['_posixsubprocess']\nimport _posixsubprocess",
        "import _posixsubprocess\n_posixsubprocess.fork_exec()",
        *(program.replace("OUTSIDE", "/lib") for program in LEAVES_SOMETHING),
    ],
)
def test_the_interpreter_refuses_ways_out(program: str) -> None:
    why = outcome(program).why
    assert "sandbox" in why or why.startswith(("PermissionError", "ValueError")), why
    assert not Path("/graft-was-here").exists()


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may write to, and a Python that runs behind the weaker walls."""
    for python in (sys.executable, "/usr/bin/python3"):
        monkeypatch.setattr(sys, "executable", python)
        if Path(python).exists() and sandbox.run(Job(sandbox.PROBE, ""), 10, "process").passed:
            break
    else:
        pytest.skip("the user nobody can run no Python here")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("program", LEAVES_SOMETHING)
def test_without_namespaces_nothing_is_left_outside_either(outside: Path, program: str) -> None:
    found = sandbox.run(Job(program.replace("OUTSIDE", str(outside)), REACHED), 10, "process")
    assert not list(outside.iterdir())
    assert "sandbox" in found.why, found.why


def test_the_refusals_leave_programs_alone(outside: Path) -> None:
    program = """
import asyncio, os, subprocess, unittest.mock, urllib.request
from os import *
from pathlib import Path
os.makedirs("a/b")
Path("a/c").mkdir()
Path("a/c/d").write_text("e")
os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600))
Path("g").touch()
"""
    tests = "assert sorted(found for _, *some in os.walk('.') for found in sum(some, [])) == [*'abcdfg']"
    for kind in ("process", sandbox.walls()):
        assert sandbox.run(Job(program, tests), 10, kind) == Outcome(True, "")


def test_a_program_writes_in_its_own_folder_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert outcome("with open('a.txt', 'w') as f:\n    f.write('b')", "assert open('a.txt').read() == 'b'").passed
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's walls alone. Never without them: what these programs try would reach this machine."""
    if sandbox.walls() != "namespaces":
        pytest.skip("this system gives no namespaces")
    text = sandbox.JAIL.read_text(encoding="utf-8")
    assert text.count("    refuse(inside)\n") == 1
    jail = tmp_path / "jail.py"
    jail.write_text(text.replace("    refuse(inside)\n", ""), encoding="utf-8")
    monkeypatch.setattr(sandbox, "JAIL", jail)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 1), timeout=1)", "Network is unreachable"),
        ("open('/graft-was-here', 'w')", "Read-only file system"),
        ("import os\nopen(os.path.dirname(os.__file__) + '/graft-was-here', 'w')", "Read-only file system"),
        ("open('/etc/passwd')", "No such file"),
        ("import os\nos.listdir('/proc')", "No such file"),
        ("import os\nraise ValueError(os.getpid(), os.getuid())", r"\(1, 65534\)"),
        ("import os\nos.setuid(0)", "not permitted|Invalid argument"),
        ("import os\nos.mkdir('a')\nos.chroot('a')", "not permitted"),
        ("import os\nos.kill(-1, 0)", "No such process"),
        (
            "i = 0\nwhile True:\n    i += 1\n    with open(str(i), 'w') as f:\n        f.write('a' * 10**6)",
            "No space left",
        ),
    ],
)
def test_the_kernel_refuses_them_too(without_refusals: None, program: str, why: str) -> None:
    found = outcome(program)
    assert re.search(why, found.why), found.why


def test_where_there_are_no_namespaces_the_weaker_walls_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(job: Job, seconds: int, kind: Walls) -> Outcome:
        return Outcome(kind in allowed, "" if kind in allowed else f"no walls: {kind}")

    monkeypatch.setattr(sandbox, "run", run)
    allowed = ["process"]
    with caplog.at_level(logging.WARNING):
        assert sandbox.walls.__wrapped__() == "process"
    assert "programs run without namespaces (no walls: namespaces)" in caplog.text
    allowed = []
    with pytest.raises(DataError, match="programs cannot be run safely here: no walls: process"):
        sandbox.walls.__wrapped__()


def test_a_program_that_could_not_be_walled_in_is_no_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "walls", lambda: "namespaces")
    monkeypatch.setattr(sandbox, "run", lambda *_: Outcome(False, "no walls: unshare: No space left on device"))
    with pytest.raises(DataError, match=r"could not be run safely \(no walls: unshare: No space"):
        sandbox.run_all([Job("", "")])


def test_root_runs_nothing_as_root() -> None:
    """Without namespaces a program is nobody's, or it is not run."""
    found = sandbox.run(Job("import os\nraise ValueError(os.getuid())", ""), 5, "process")
    assert found.why != "ValueError: 0"
    assert found.why.startswith(("ValueError: ", "no walls: ")), found.why
    assert sys.platform == "linux" or "no walls" in found.why
