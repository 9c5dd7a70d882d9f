"""Everything graft raises on purpose.

    GraftError
    ├── SpecError         a spec, an override or a command-line argument
    ├── DataError         rows: files, columns, labels, regimes
    ├── ModelError        a model that cannot be found, read or used like this
    ├── StoreError        the column store or the storage under it
    ├── CheckpointError   a checkpoint that cannot be written or read
    ├── TrainingError     a training that does not come to an end
    ├── OutOfMemoryError  a computation that gets no memory, of the machine or of a GPU
    ├── PrunedError       a training that a search has stopped
    ├── ClusterError      a Ray cluster that cannot be started or joined
    └── ServeError        a served graph

A message says what is wrong, where (`method.adapter.r`), what was got, what is allowed, and the cure,
in one line: it is printed without a traceback.
"""

import difflib
import errno
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

_MEMORY_WORDS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's bare RuntimeErrors say of it: its allocator of CPUs, its drivers of GPUs."""

MEMORY_CURE = (
    "lower training.tokens_per_batch or training.tokens_per_device, take a smaller model, or let fewer runs share a "
    "node with sweep.trial.cpus"
)


class GraftError(Exception):
    """Base of all errors that graft raises on purpose; `exit_code` is the command line's."""

    exit_code = 2


class SpecError(GraftError):
    """What the user wrote is not a valid spec, override or argument."""


class DataError(GraftError):
    """The rows cannot be read, or do not allow what was asked of them."""


class ModelError(GraftError):
    """A model cannot be found, read, or used in the way asked."""


class StoreError(GraftError):
    """The storage refuses to be read or written."""

    exit_code = 1


class CheckpointError(GraftError):
    """A checkpoint cannot be written or read."""

    exit_code = 1


class TrainingError(GraftError):
    """A training diverges, or its workers are lost."""

    exit_code = 1


class OutOfMemoryError(GraftError):
    """A computation got no memory, of the machine or of a GPU."""

    exit_code = 1


class PrunedError(GraftError):
    """A training was stopped at one of its looks at held-out examples: others were better by then.

    Args:
        looks: step to loss of the held-out examples, so far.
    """

    def __init__(self, looks: Mapping[int, float]):
        step, loss = list(looks.items())[-1]
        super().__init__(f"stopped after {step} steps: the held-out loss was {loss:.4g}, others were better by then")
        self.looks = dict(looks)


class ClusterError(GraftError):
    """A Ray cluster cannot be started, or cannot be joined."""

    exit_code = 1


class ServeError(GraftError):
    """A graph cannot be served as asked."""

    exit_code = 1


@contextmanager
def naming_memory() -> Iterator[None]:
    """Whatever inside gets no memory is an OutOfMemoryError that says the cure.

    Raises:
        OutOfMemoryError: Python, numpy, Arrow, torch or the system had none to give.
    """
    try:
        yield
    except Exception as error:
        cause = _about_memory(error)
        if cause is None or isinstance(cause, OutOfMemoryError):
            raise
        text = re.sub(r"^\[enforce fail.*?\] err == 0\. ", "", " ".join(str(cause).split()))
        raise OutOfMemoryError(f"ran out of memory ({text[:200] or type(cause).__name__}); {MEMORY_CURE}") from error


def _about_memory(error: BaseException | None) -> BaseException | None:
    """The error itself, or one that led to it, that says that there was no memory."""
    while error is not None:
        # torch has a class for GPUs alone, and this file imports no torch.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return error
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return error
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS):
            return error
        error = error.__cause__
    return None


def suggest(wrong: str, known: Iterable[str]) -> str:
    """The cure for a name that does not exist: the closest known one, and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}" if names else "nothing is known here"


def to_words(error: BaseException) -> tuple[str, str]:
    """An error as data, for another process: the name of its class, of graft's own nearest one, and its text."""
    known = (kind for kind in type(error).__mro__ if kind.__module__ == __name__)
    text = json.dumps(error.looks) if isinstance(error, PrunedError) else str(error)
    return next(known, type(error)).__name__, text


def from_words(name: str, text: str) -> GraftError | None:
    """The error that `to_words` took apart; None where it was none of graft's."""
    kind = globals().get(name)
    if kind is PrunedError:
        return PrunedError({int(step): loss for step, loss in json.loads(text).items()})
    return kind(text) if isinstance(kind, type) and issubclass(kind, GraftError) else None
