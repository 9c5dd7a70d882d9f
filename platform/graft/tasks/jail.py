"""The other side of `graft.tasks.sandbox`: a script that walls itself in, then runs one program and its tests.

    launcher ── unshare ── fork ──► first process of its own world ── chroot ── nobody ── limits ──► program, tests

It is started by its path in an isolated interpreter (`python -I -S -B`), so it imports the standard library alone. The
job comes as JSON by standard input; what goes out is the job's password, if and only if the tests came to their end,
or else why they did not.
"""

import builtins
import ctypes
import json
import os
import posix
import resource
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

NOBODY = 65534
NEW_WORLD = 0x00020000 | 0x08000000 | 0x04000000 | 0x20000000 | 0x40000000
"""CLONE_NEWNS, NEWIPC, NEWUTS, NEWPID, NEWNET: own mounts, message queues, host name, processes, and no network."""
NEW_USER = 0x10000000
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
"""MS_* of mount(2)."""
KEPT_FLAGS = 2 | 4 | 8 | 1024 | 2048 | 4096
"""Of statvfs(3): what a mount forbids already must stay forbidden when it is made read-only."""
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")
ROOM = "size=8m"
"""Of the folder that the program may write to, in memory."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "pty.", "shutil.", "signal.pthread_kill", "resource.", "syslog."),
    *("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.chdir", "os.fchdir", "os.chmod", "os.chown", "os.chflags", "os.lchmod"),
    *("os.link", "os.symlink", "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.unshare", "os.setns"),
    *("sqlite3.", "cpython.PyInterpreterState_New"),
)
"""Beginnings of the names of audit events that no program needs to pass its tests; a new interpreter has no hooks."""
CLOSED = frozenset(
    (
        *("ctypes", "_ctypes", "posix", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "_interpreters"),
        *("_sqlite3", "_gdbm", "_dbm", "readline", "_ssl", "_tkinter", "_posixshmem", "_multiprocessing"),
        "_posixsubprocess",
    )
)
"""Modules that reach beyond Python or write files that no event tells of; `posix` would come back as it was."""


def main() -> None:
    """Read the job, wall in, run, tell."""
    job = json.load(sys.stdin.buffer)
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    try:
        inside = enter_new_world(job["folder"]) if job["namespaces"] else enter_plainly(job["folder"])
        limit(job)
    except OSError as error:
        os.write(out, f"no walls: {error}".encode())
        os._exit(0)
    os.environ.clear()
    write, leave = os.write, os._exit  # before a program could put something in their place
    refuse(inside)
    why = verdict(job["program"], job["tests"], job["names"])
    write(out, (job["password"] if why is None else why).encode("utf-8", "replace")[:200])
    leave(0)


def enter_new_world(folder: str) -> str:
    """Go on as the first process of new namespaces that sees the standard library and an empty folder; its path.

    What the process starts dies with it: the kernel ends a world whose first process has ended.

    Raises:
        OSError: the system does not let this user make one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    as_root = user == 0
    try:
        _call(libc.unshare, NEW_WORLD if as_root else NEW_WORLD | NEW_USER)
    except PermissionError:
        if not as_root:
            raise
        as_root = False  # of a container, without the right to mount
        _call(libc.unshare, NEW_WORLD | NEW_USER)
    if not as_root:
        _map_user(user, group)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    _change_root(libc, folder)
    if as_root:
        _become_nobody()
    _give_up_privileges(libc)
    return "/tmp"


def enter_plainly(folder: str) -> str:
    """Go on in the folder, without privileges.

    Raises:
        OSError: root runs this, and nobody may not read the standard library: what is left would run as root.
    """
    os.chdir(folder)
    if os.geteuid() == 0:
        library = os.path.dirname(os.__file__)
        parents = [library[:end] for end, letter in enumerate(library) if letter == "/" and end]
        closed = next((path for path in (*parents, library) if not os.stat(path).st_mode & 0o001), None)
        if closed is not None:
            raise PermissionError(f"root runs this, and the user nobody may not enter {closed}, where Python lies")
        os.chown(folder, NOBODY, NOBODY)
        _become_nobody()
    if sys.platform == "linux":
        _give_up_privileges(ctypes.CDLL(None, use_errno=True))
    return folder


def limit(job: dict[str, Any]) -> None:
    """Bound processor time, memory, files and processes; none of it can be raised again."""
    seconds = job["seconds"]
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (most, most))


def refuse(inside: str) -> None:
    """Have the interpreter itself refuse what has nothing to do with an answer; a hook cannot be taken off again."""

    def outside(path: Any) -> bool:
        if type(path) is not str or ".." in path:
            return True
        return path[:1] == "/" and path[: len(inside) + 1] != inside + "/"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if (flags or 0) & WRITING and outside(path):
                raise PermissionError("the sandbox lets programs write in their own folder only")
        elif event == "os.mkdir":
            path, _, folder = arguments
            if folder != -1 or outside(path):
                raise PermissionError("the sandbox lets programs make folders in their own folder only")
        elif event == "import":
            if not CLOSED.isdisjoint(arguments[0].split(".")):
                # As where the module was never built: much of the standard library goes on without it.
                raise ImportError(f"the sandbox refuses import of {arguments[0]}")
        elif event.startswith(REFUSED):
            raise PermissionError(f"the sandbox refuses {event}")

    replace_unheard()
    for name in [name for name in sys.modules if name.split(".")[0] in (CLOSED - {"posix"}) | {"resource", "signal"}]:
        del sys.modules[name]
    # `import subprocess`, which asyncio and unittest.mock do, must go on; starting a process must not.
    sys.modules["_posixsubprocess"] = types.ModuleType("_posixsubprocess")
    vars(sys.modules["_posixsubprocess"])["fork_exec"] = _refusal("fork_exec")
    sys.addaudithook(hook)


def replace_unheard() -> None:
    """Put refusals in the place of what writes files without an event that tells where."""
    plain_open = os.open

    def open_by_path(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None:
            raise PermissionError("the sandbox refuses paths that begin at another folder (dir_fd)")
        return plain_open(path, flags, mode)

    instead = {"open": open_by_path, "mkfifo": _refusal("mkfifo"), "mknod": _refusal("mknod")}
    for name, function in instead.items():
        os.supports_dir_fd.discard(getattr(os, name, None))
        for module in (os, posix):
            setattr(module, name, function)
    if hasattr(sys, "activate_stack_trampoline"):
        del sys.activate_stack_trampoline  # writes to /tmp


def _refusal(name: str) -> Callable[..., None]:
    def refused(*_arguments: Any, **_keywords: Any) -> None:
        raise PermissionError(f"the sandbox refuses {name}")

    return refused


def verdict(program: str, tests: str, names: Sequence[str]) -> str | None:
    """Why the program fails its tests; None where they came to their end.

    The tests see the interpreter's builtins as they were before the program ran, and none of its own names in their
    place but those that are asked for.
    """
    pristine = dict(vars(builtins))
    space: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(program, "<program>", "exec", dont_inherit=True, optimize=0), space)
        seen = {name: value for name, value in space.items() if name not in pristine or name in names}
        exec(compile(tests, "<tests>", "exec", dont_inherit=True, optimize=0), {**seen, "__builtins__": pristine})
    except BaseException as error:  # SystemExit and what programs raise of their own
        try:
            return f"{type(error).__name__}: {error}"
        except BaseException:
            return "it raised what cannot be shown"
    return None


def _call(function: Callable[..., int], *arguments: Any) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{getattr(function, '__name__', 'call')}: {os.strerror(number)}")


def _map_user(user: int, group: int) -> None:
    """In a user namespace of its own, this user (as it is called outside) is nobody."""
    for name, text in (("uid_map", f"{NOBODY} {user} 1"), ("setgroups", "deny"), ("gid_map", f"{NOBODY} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)


def _change_root(libc: ctypes.CDLL, folder: str) -> None:
    """See nothing but the libraries, read-only, and an empty /tmp."""

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
        _call(libc.mount, texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])

    mount("none", "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", folder, "tmpfs", NO_SETUID | NO_DEVICES, f"{ROOM},mode=755")
    libraries = {os.path.realpath(path) for path in (*SYSTEM_LIBRARIES, *sys.path) if os.path.isdir(path)}
    for path in sorted(libraries):
        if any(path.startswith(f"{other}/") for other in libraries):
            continue
        os.makedirs(folder + path)
        mount(path, folder + path, None, BIND | RECURSIVE)
        kept = os.statvfs(folder + path).f_flag & KEPT_FLAGS
        # ST_RELATIME alone has another number as a mount's flag.
        flags = (kept & ~4096) | ((1 << 21) if kept & 4096 else 0)
        mount(path, folder + path, None, REMOUNT | BIND | READ_ONLY | flags)
    for path in SYSTEM_LIBRARIES:
        if os.path.islink(path) and not os.path.lexists(folder + path):
            os.symlink(os.path.realpath(path), folder + path)
    os.mkdir(f"{folder}/tmp")
    mount("tmpfs", f"{folder}/tmp", "tmpfs", NO_SETUID | NO_DEVICES, f"{ROOM},mode=777")
    mount("tmpfs", folder, "tmpfs", REMOUNT | READ_ONLY | NO_SETUID | NO_DEVICES, ROOM)
    os.chroot(folder)
    os.chdir("/tmp")


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _give_up_privileges(libc: ctypes.CDLL) -> None:
    """No capability, none to be got by running a file, and an end when the launcher ends."""
    no_new_privileges, death_signal = 38, 1
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call(libc.capset, header, (ctypes.c_uint32 * 6)())
    _call(libc.prctl, no_new_privileges, 1, 0, 0, 0)
    _call(libc.prctl, death_signal, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    main()
