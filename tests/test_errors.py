"""Which errors mean that there was no memory, and what they then say."""

import errno
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch

from graft.errors import DataError, ModelError, OutOfMemoryError, from_words, naming_memory, to_words
from graft.sweeps.limits import LimitError

MORE_THAN_THERE_IS = 2**50


def gives(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def wrapped() -> None:
    try:
        np.empty(MORE_THAN_THERE_IS)
    except MemoryError as error:
        raise ModelError("the model cannot be read") from error


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (
            lambda: torch.empty(MORE_THAN_THERE_IS),
            r"\(DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
        ),
        (lambda: np.empty(MORE_THAN_THERE_IS), r"\(Unable to allocate 8\.00 PiB for an array"),
        (lambda: pa.allocate_buffer(MORE_THAN_THERE_IS), r"\(malloc of size 1125899906842624 failed"),
        (lambda: bytearray(MORE_THAN_THERE_IS), r"\(MemoryError\)"),
        # What GPUs say, on a machine without one.
        (gives(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")), r"\(CUDA out of memory\."),
        (
            gives(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")),
            r"\(CUDA error: out of memory C",
        ),
        (gives(OSError(errno.ENOMEM, "Cannot allocate memory")), r"\(\[Errno 12\] Cannot allocate memory\)"),
        (wrapped, r"\(Unable to allocate 8\.00 PiB"),
    ],
)
def test_what_gets_no_memory_is_a_line_with_the_cure(allocate: Callable[[], object], said: str) -> None:
    with pytest.raises(OutOfMemoryError, match=f"^ran out of memory {said}") as caught, naming_memory():
        allocate()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert all(key in text for key in ("training.tokens_per_batch", "training.tokens_per_device", "sweep.trial.cpus"))
    # From another process it comes as what it is, and no second time into a sentence of its own.
    with pytest.raises(OutOfMemoryError) as again, naming_memory():
        raise from_words(*to_words(caught.value)) or AssertionError
    assert str(again.value) == text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("this method has a fault"),
        OSError(errno.ENOSPC, "No space left on device"),
        DataError("a.csv: no such file"),
        LimitError("its process held 9.00 GiB, more than sweep.trial.memory_gib allows"),
    ],
)
def test_any_other_error_is_left_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_memory():
        raise error
    assert caught.value is error
