"""Checkpoints of one training: written in the background, whole or absent, on any storage.

    <folder>/last-000000120.safetensors            the newest two
    <folder>/best-000000090.safetensors            the best one
    <folder>/last-000000110.safetensors.corrupt    set aside: torn or damaged

Each is a plain safetensors file, written beside its place and renamed into it, so a process killed at any instant
leaves the previous one. Where a rename is a copy (object stores) or a disk forgets, the checksum tells: its metadata
hold the SHA-256 of the whole file, taken with zeros in the digest's own place.
"""

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import pyarrow as pa
import torch
from pyarrow import fs
from safetensors.torch import load

from graft.errors import CheckpointError, StoreError
from graft.storage import children, whole_file

log = logging.getLogger(__name__)

Kind = Literal["best", "last"]
T = TypeVar("T")

RETRY_SECONDS = (0.5, 2.0)
"""Pauses between tries to read."""

_KINDS: tuple[Kind, ...] = ("best", "last")
_FORMAT = "1"
_BLANK = b"0" * 64
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on from a step.

    Attributes:
        step: steps done.
        tensors: weights and optimizer state, on the CPU; dense.
        state: everything else, as plain JSON values.
    """

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class Checkpoints:
    """Last and best checkpoint of one training.

    Storage that refuses (full, unreachable) does not stop the training: it is reported once, and the checkpoints
    before stay.

    Args:
        files: any file system.
        folder: where this training alone keeps its checkpoints; made when it is missing.

    Attributes:
        problems: how many times the storage refused a checkpoint.
    """

    def __init__(self, files: fs.FileSystem, folder: str) -> None:
        self.files = files
        self.folder = folder
        self.problems = 0
        self._waiting: dict[Kind, _Draft] = {}
        self._owed: _Draft | None = None  # a best one that the storage has refused
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._swept = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write the newest checkpoint and return; one that still waits to be written gives way to it.

        Args:
            checkpoint: its tensors must not change until they are written.

        Raises:
            CheckpointError: it holds what a checkpoint cannot hold.
        """
        self._give("last", checkpoint)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Begin to write the best checkpoint so far and return, otherwise as `save`.

        Given before a last one whose state speaks of it, it or a newer one is written before that.
        """
        self._give("best", checkpoint)

    def last(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none; damaged ones are reported and set aside.

        Raises:
            StoreError: the storage does not answer; what it holds is not given up for that.
        """
        return self._newest("last")

    def best(self) -> Checkpoint | None:
        """The best checkpoint, or None where there is none that is whole; raises as `last`."""
        return self._newest("best")

    def wait(self) -> None:
        """Return when everything given has been written, or could not be."""
        thread = self._thread
        if thread:
            thread.join()

    def close(self) -> None:
        """Wait; the thread ends with its work."""
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give(self, kind: Kind, checkpoint: Checkpoint) -> None:
        draft = _Draft(checkpoint)
        with self._lock:
            self._waiting[kind] = draft
            if self._thread is None:
                # Not a daemon: the interpreter does not end before the last one is written.
                thread = threading.Thread(target=self._drain, name="graft-checkpoints")
                thread.start()
                self._thread = thread

    def _drain(self) -> None:
        """Write until nothing waits; what waits is taken together, so that no kind can starve the other."""
        while batch := self._take():
            # The last one speaks of the best one, so it comes after it, and never without it.
            for kind in (kind for kind in _KINDS if kind in batch):
                draft = batch.pop(kind)
                if not self._write(kind, draft) and kind == "best":
                    self._owed = draft
                    break

    def _take(self) -> dict[Kind, "_Draft"]:
        with self._lock:
            batch, self._waiting = self._waiting, {}
            if not batch:
                self._thread = None
            elif self._owed is not None:
                batch.setdefault("best", self._owed)
                self._owed = None
            return batch

    def _write(self, kind: Kind, draft: "_Draft") -> bool:
        """Put a checkpoint in its place, if the storage lets it."""
        try:
            self._sweep()
            with whole_file(self.files, self._path(kind, draft.step)) as stream:
                draft.write(stream)
            self._prune(kind, draft.step)
        except Exception as error:  # a storage's own library may raise anything, and this thread has no caller
            known = isinstance(error, StoreError | OSError)
            message = "checkpoint of step %d: %s; training goes on; what a kill loses grows"
            self._report(message, draft.step, error, exc_info=not known)
            return False
        return True

    def _report(self, message: str, *args: object, exc_info: bool = False) -> None:
        """Count a refusal, and warn of the first one."""
        self.problems += 1
        log.log(logging.WARNING if self.problems == 1 else logging.INFO, message, *args, exc_info=exc_info)

    def _sweep(self) -> None:
        """Delete what a killed process had begun to write; only once, lest two that live delete each other's."""
        if self._swept:
            return
        for info in self.files.get_file_info(fs.FileSelector(self.folder, allow_not_found=True)):
            if re.fullmatch(r"\.(best|last)-.*\.tmp", info.base_name):
                self._delete(f"{self.folder}/{info.base_name}")
        self._swept = True

    def _prune(self, kind: Kind, step: int) -> None:
        """Delete all but the one just written and, of the last ones, the one before it.

        Those of later steps go too: the training was rolled back, or began anew, and they are not its past.
        """
        steps = self._steps(kind)
        before = [old for old in steps if old < step][-1:] if kind == "last" else []
        for old in set(steps) - {step, *before}:
            self._delete(self._path(kind, old))

    def _delete(self, path: str) -> None:
        """Delete a file; one that cannot be deleted costs space and nothing more."""
        try:
            self.files.delete_file(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report("checkpoint %s: cannot be deleted: %s; it takes up space", path, error)

    def _newest(self, kind: Kind) -> Checkpoint | None:
        self.wait()
        steps = _patiently(self.folder, lambda: self._steps(kind))
        for step in reversed(steps):
            path = self._path(kind, step)
            try:
                return _patiently(path, lambda path=path: _read(self.files, path))  # type: ignore[misc]
            except CheckpointError as error:
                log.warning("checkpoint %s: %s; it is set aside as .corrupt, the one before is used", path, error)
                with contextlib.suppress(OSError):
                    self.files.move(path, f"{path}.corrupt")
        if steps:
            log.warning("checkpoints %s: no %s one is readable; training starts without them", self.folder, kind)
        return None

    def _steps(self, kind: Kind) -> list[int]:
        """Steps of the stored checkpoints, ascending; other files in the folder are left alone."""
        names = (re.fullmatch(rf"{kind}-(\d{{9,}})\.safetensors", name) for name in children(self.files, self.folder))
        return sorted(int(name[1]) for name in names if name)

    def _path(self, kind: Kind, step: int) -> str:
        return f"{self.folder}/{kind}-{step:09d}.safetensors"


def _patiently(path: str, read: Callable[[], T]) -> T:
    """What a storage gives, at last: one that does not answer for a moment is no reason to begin anew.

    Raises:
        CheckpointError: what it gives is no checkpoint.
        StoreError: it does not answer.
    """
    for seconds in (*RETRY_SECONDS, None):
        try:
            return read()
        except CheckpointError:
            raise
        except Exception as error:  # a storage's own library may raise anything
            if seconds is None:
                raise StoreError(
                    f"checkpoint {path}: cannot be read: {error}; run the same again when the storage answers; where "
                    "it never will, delete this, and training goes on from what is left"
                ) from error
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


class _Draft:
    """A checkpoint as it will be written; taking it costs no copy of its tensors.

    Raises:
        CheckpointError: it holds what a checkpoint cannot hold.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        # As safetensors does it: the widest numbers first, so that all are aligned.
        self.tensors = dict(sorted(checkpoint.tensors.items(), key=lambda item: -item[1].element_size()))
        self.header = _header(self.step, self.tensors, checkpoint.state)

    def write(self, stream: pa.NativeFile) -> None:
        """Write it tensor by tensor; one that is not contiguous is copied while it is written."""
        digest = hashlib.sha256(self.header)
        for tensor in self.tensors.values():
            digest.update(_bytes_of(tensor))
        stream.write(self.header.replace(_BLANK, digest.hexdigest().encode(), 1))
        for tensor in self.tensors.values():
            stream.write(_bytes_of(tensor))


def _header(step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> bytes:
    """How a safetensors file begins, with zeros for the digest."""
    try:
        about = {"format": _FORMAT, "sha256": _BLANK.decode(), "step": str(step), "state": json.dumps(state)}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state: {error}; give plain JSON values") from error
    entries: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise CheckpointError(
                f"tensors.{name}: got {tensor.dtype}, {tensor.layout} on {tensor.device}, allowed are dense ones on "
                f"the CPU of {', '.join(str(dtype) for dtype in _DTYPES)}; convert it"
            )
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, shared with it where it is contiguous."""
    dense = tensor.detach().contiguous()
    # A single number is contiguous whatever its stride says, and only a stride of 1 can be seen as bytes.
    flat: memoryview = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().data
    return flat


def _read(files: fs.FileSystem, path: str) -> Checkpoint:
    """A checkpoint that is what was written.

    Raises:
        CheckpointError: it is torn, damaged, or not a checkpoint that this version knows.
        OSError: it cannot be read.
    """
    with files.open_input_file(path) as file:
        data = file.read()
    body = 8 + int.from_bytes(data[:8], "little")
    try:
        about = json.loads(data[8:body])["__metadata__"]
        version, expected = about["format"], about["sha256"].encode()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError("it is torn or damaged, or is no checkpoint") from error
    if version != _FORMAT:
        raise CheckpointError(f"format: got {version!r}, allowed {_FORMAT!r}; another version of graft wrote it")
    digest = hashlib.sha256(data[:body].replace(expected, _BLANK, 1))
    digest.update(memoryview(data)[body:])
    if digest.hexdigest().encode() != expected:
        raise CheckpointError("it is torn or damaged: its bytes are not those that were written")
    return Checkpoint(int(about["step"]), load(data), json.loads(about["state"]))
