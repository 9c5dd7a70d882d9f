"""What one run of a sweep may take, kept by the process that carries it out.

The watch is a thread; what it interrupts is the process's main thread, in which Ray calls an actor: there the run ends
with an ordinary error, and the process goes on to the next run. A single call into a library that lasts long is
interrupted when it returns.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graft.errors import GraftError
from graft.swept import Trial

SECONDS_BETWEEN_LOOKS = 0.25


class LimitError(GraftError):
    """A run took more than its sweep allows."""


@contextlib.contextmanager
def limited(limits: Trial) -> Iterator[None]:
    """Interrupt what runs inside when it takes more than allowed.

    Raises:
        LimitError: it took too long, or too much memory.
    """
    if limits.seconds is None and limits.memory_gib is None:
        yield
        return
    reason: list[str] = []

    def interrupted(number: int, frame: Any) -> None:
        raise LimitError(reason[0])

    ended, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            if (said := _broken(limits, time.monotonic() - began)) and not ended.is_set():
                reason.append(said)
                signal.raise_signal(signal.SIGUSR1)
                return

    before = signal.signal(signal.SIGUSR1, interrupted)
    watcher = threading.Thread(target=watch, name="limits", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def _broken(limits: Trial, seconds: float) -> str | None:
    """Which limit is broken, in words."""
    if limits.seconds is not None and seconds > limits.seconds:
        return f"it ran longer than sweep.trial.seconds allows ({limits.seconds:g}); allow more, or make it smaller"
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
