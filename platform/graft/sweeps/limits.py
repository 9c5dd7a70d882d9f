"""What one run of a sweep may take, kept by the process that carries it out.

The watch is a thread; what it interrupts is the process's main thread, in which Ray calls an actor: there the run ends
with an ordinary error, and the process goes on to the next run. A single call into a library that lasts long is
interrupted when it returns.

A run that was killed goes on from its last checkpoint, so what it had taken until then counts too, and one that has
reached its limit has reached it for good: else a sweep that was disturbed would allow its runs more than one that was
not. What is lost with a kill does not count: it is done again.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

from graft.errors import GraftError, StoreError
from graft.storage import exists, files_below, read_bytes, write_atomic
from graft.swept import Trial

SECONDS_BETWEEN_LOOKS = 0.25

SECONDS_BETWEEN_NOTES = 5.0
"""Within so long the time that a checkpoint stands for is noted."""


class LimitError(GraftError):
    """A run took more than its sweep allows."""

    exit_code = 1


class Spent:
    """The seconds that a run has taken, as far as an attempt can go on from them: `limits.json` in the run's folder.

    An attempt begins with it.

    Args:
        files: the storage.
        run_id: of the run.
    """

    def __init__(self, files: fs.FileSystem, run_id: str):
        self.files, self.folder = files, f"runs/{run_id}"
        self.path = f"{self.folder}/limits.json"
        self.began = time.monotonic()
        self.earlier: float = json.loads(read_bytes(files, self.path))["seconds"] if exists(files, self.path) else 0.0
        self._known = self._checkpoints()

    @property
    def seconds(self) -> float:
        """So far, this attempt included."""
        return self.earlier + time.monotonic() - self.began

    def note(self) -> None:
        """Keep them if there is a new checkpoint."""
        # A storage that does not answer is no reason to end the watch; the next checkpoint is noted again.
        with contextlib.suppress(OSError):
            if (found := self._checkpoints()) != self._known:
                self._known = found
                self.keep()

    def keep(self) -> None:
        """Write them down for the next attempt."""
        with contextlib.suppress(StoreError):
            write_atomic(self.files, self.path, json.dumps({"seconds": self.seconds}).encode())

    def forget(self) -> None:
        """The run is done; should its result be damaged, it begins anew."""
        with contextlib.suppress(OSError):
            self.files.delete_file(self.path)

    def _checkpoints(self) -> set[str]:
        return files_below(self.files, f"{self.folder}/checkpoints")


@contextlib.contextmanager
def limited(limits: Trial, spent: Spent) -> Iterator[None]:
    """Interrupt what runs inside when it takes more than allowed.

    Args:
        limits: what the run may take.
        spent: what it has taken so far; where the time is limited, it is kept for the next attempt.

    Raises:
        LimitError: it took too long, or too much memory.
    """
    if limits.seconds is None and limits.memory_gib is None:
        yield
        return
    reason: list[str] = []

    def interrupted(number: int, frame: Any) -> None:
        raise LimitError(reason[0])

    ended = threading.Event()

    def watch() -> None:
        noted = time.monotonic()
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            if (said := _broken(limits, spent.seconds)) and not ended.is_set():
                reason.append(said)
                signal.raise_signal(signal.SIGUSR1)
                return
            if limits.seconds is not None and time.monotonic() - noted > SECONDS_BETWEEN_NOTES:
                noted = time.monotonic()
                spent.note()

    before = signal.signal(signal.SIGUSR1, interrupted)
    watcher = threading.Thread(target=watch, name="limits", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
        if too_long(limits, spent.seconds):
            spent.keep()


def too_long(limits: Trial, seconds: float) -> str | None:
    """That a run has taken more seconds than it may, in words."""
    if limits.seconds is None or seconds <= limits.seconds:
        return None
    return f"it ran longer than sweep.trial.seconds allows ({limits.seconds:g}); allow more, or make it smaller"


def _broken(limits: Trial, seconds: float) -> str | None:
    """Which limit is broken, in words."""
    if said := too_long(limits, seconds):
        return said
    if limits.memory_gib is not None and (held := resident_bytes() / 2**30) > limits.memory_gib:
        return (
            f"its process held {held:.2f} GiB, more than sweep.trial.memory_gib allows ({limits.memory_gib:g}); allow "
            "more, or make training.tokens_per_batch or the model smaller"
        )
    return None


def resident_bytes() -> int:
    """Memory that this process holds now."""
    import resource

    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return 0  # where the system does not say
