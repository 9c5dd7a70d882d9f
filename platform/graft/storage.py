"""Where runs, sweeps and the column store are kept: a local folder or any URI that `pyarrow.fs` knows."""

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from graft.errors import GraftError, SpecError, StoreError


def open_storage(uri: str | Path, create: bool = True) -> fs.SubTreeFileSystem:
    """A file system whose root is `uri`.

    Args:
        uri: a folder, or a URI that `pyarrow.fs` knows.
        create: make the folder when it is missing; reading asks for one that is there.

    Raises:
        SpecError: it cannot be opened or made, or is not there.
    """
    try:
        if "://" in str(uri):
            base, root = fs.FileSystem.from_uri(str(uri))
        else:
            base, root = fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    except (pa.ArrowInvalid, OSError, RuntimeError) as error:
        raise SpecError(f"--storage {uri}: {error}; give a folder or a URI such as s3://bucket/folder") from error
    try:
        if create:
            base.create_dir(root, recursive=True)
        found = base.get_file_info(root).type
    except OSError as error:
        raise SpecError(f"--storage {uri}: the folder cannot be made or read: {error}; give another") from error
    if found != fs.FileType.Directory:
        raise SpecError(
            f"--storage {uri}: {'a file' if found == fs.FileType.File else 'no such folder'}; give a folder"
        )
    return fs.SubTreeFileSystem(root, base)


def local_root(files: fs.SubTreeFileSystem) -> Path | None:
    """The folder on this machine, or None for remote storage."""
    return Path(files.base_path) if isinstance(files.base_fs, fs.LocalFileSystem) else None


def write_atomic(files: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write a file that is either absent or whole.

    Raises:
        StoreError: the storage refuses (full, read-only, unreachable); nothing readable is left behind.
    """
    with whole_file(files, path) as stream:
        stream.write(data)


@contextlib.contextmanager
def whole_file(files: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """A stream into a file that is either absent or whole: written beside its place, then renamed into it.

    Raises:
        StoreError: the storage refuses (full, read-only, unreachable); nothing readable is left behind.
    """
    folder, _, name = path.rpartition("/")
    draft = f".{name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    draft = f"{folder}/{draft}" if folder else draft
    with writing(path):
        try:
            if folder:
                files.create_dir(folder, recursive=True)
            with files.open_output_stream(draft) as stream:
                yield stream
            files.move(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                files.delete_file(draft)
            raise


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Whatever refuses to be written inside is a StoreError that names `path` and the cure."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error}; free some space or give another --storage") from error


def read_bytes(files: fs.FileSystem, path: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with files.open_input_stream(path) as stream:
        return stream.read()


def exists(files: fs.FileSystem, path: str) -> bool:
    """Whether a file or folder is there."""
    return files.get_file_info(path).type != fs.FileType.NotFound


def children(files: fs.FileSystem, folder: str) -> list[str]:
    """Sorted names inside a folder, hidden ones left out; empty where there is no such folder."""
    found = files.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in found if not info.base_name.startswith("."))


def files_below(files: fs.FileSystem, folder: str) -> set[str]:
    """Paths of all files below a folder, hidden ones left out; empty where there is no such folder."""
    found = files.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
    return {info.path for info in found if info.type == fs.FileType.File and not info.base_name.startswith(".")}


@contextlib.contextmanager
def clean_if_wrong(files: fs.FileSystem, folder: str) -> Iterator[None]:
    """Wrong input that shows only inside leaves no folder, unless it was there before or holds trained weights."""
    new = not exists(files, folder)
    try:
        yield
    except GraftError as error:
        if error.exit_code == 2 and new and not exists(files, f"{folder}/checkpoints"):
            files.delete_dir(folder)
        raise


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Inside, what graft logs goes to this file too, from INFO on."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("graft")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
