"""API keys: made here, shown once, and kept as hashes in a file that only its owner reads.

A key is 32 random bytes, so a plain SHA-256 cannot be turned back and needs no salt.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graft.errors import SpecError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
HASH = re.compile(r"[0-9a-f]{64}")


def new_key() -> str:
    """A key that nobody can guess."""
    return f"graft-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """What is kept of a key: its SHA-256, 64 hex characters."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Keys:
    """The keys that a server accepts."""

    hashes: tuple[str, ...]

    def admit(self, key: str) -> bool:
        """Whether the key is one of these; takes as long whichever of them it is, or none."""
        given = hash_key(key)
        return any([hmac.compare_digest(given, known) for known in self.hashes])


def add_key(file: Path, name: str) -> str:
    """Make a key, keep its hash under `name` in the file (made with mode 0600 where it is missing); gives the key.

    Raises:
        SpecError: the name is taken or not allowed, or the file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise SpecError(f"NAME: got {name!r}; use up to 64 letters, digits, dots, dashes, underscores and @")
    key = new_key()
    with _alone(file):
        entries = _entries(file) if file.exists() else []
        if any(entry["name"] == name for entry in entries):
            raise SpecError(f"{file}: holds a key named {name!r} already; choose another name, or remove its entry")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        _write(file, [*entries, {"name": name, "sha256": hash_key(key), "created": created}])
    return key


def read_keys(file: Path) -> Keys:
    """The keys of a file.

    Raises:
        SpecError: it is missing, damaged or empty, or others may read it and that cannot be changed.
    """
    if not file.is_file():
        raise SpecError(f"--api-keys {file}: no such file; make one with graft keys new NAME --file {file}")
    entries = _entries(file)
    if not entries:
        raise SpecError(f"--api-keys {file}: holds no key; add one with graft keys new NAME --file {file}")
    return Keys(tuple(entry["sha256"] for entry in entries))


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        if _open_to_others(file.stat()):
            file.chmod(0o600)
            log.warning("%s could be read by others; its mode is 0600 now", file)
        entries = json.loads(file.read_text(encoding="utf-8"))["keys"]
        if all(NAME.fullmatch(entry["name"]) and HASH.fullmatch(entry["sha256"]) for entry in entries):
            return list(entries)
        reason = "an entry has no valid name or sha256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
    raise SpecError(f"{file}: cannot be used as a file of keys: {reason}; make a new one with graft keys new")


def _open_to_others(file: os.stat_result) -> bool:
    """Whether more may read it than should: its owner, or a group that its owner lets us be in.

    A secret that Kubernetes mounts is root's, and ours to read through its group.
    """
    ours = file.st_uid == os.geteuid()
    return bool(file.st_mode & (0o077 if ours else 0o007))


def _write(file: Path, entries: list[dict[str, Any]]) -> None:
    """The whole file or the old one; never readable for others, not even for a moment."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"keys": entries}, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise SpecError(f"{file}: cannot be written: {error.strerror}; give another --file") from error


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One writer at a time: of two commands at once, neither loses the other's key."""
    try:
        descriptor = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise SpecError(f"--file {file}: {file.parent}: {error.strerror}; make the folder first") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
