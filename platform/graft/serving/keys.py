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
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from graft.errors import SpecError, suggest

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
HASH = re.compile(r"[0-9a-f]{64}")
MAX_LIMIT = 10**9
LOOK_SECONDS = 1.0
"""How often a server looks at the file of its keys."""


def new_key() -> str:
    """A key that nobody can guess."""
    return f"graft-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """What is kept of a key: its SHA-256, 64 hex characters."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Key:
    """What is known of a key: not the key."""

    name: str
    sha256: str = field(repr=False)
    created: str = ""
    """When, in ISO 8601."""
    requests_per_minute: int | None = None
    """Most requests; None for no limit."""
    tokens_per_minute: int | None = None
    """Most tokens, read and written; None for no limit."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise SpecError(f"NAME: got {self.name!r}; use up to 64 letters, digits, dots, dashes, underscores and @")
        if not HASH.fullmatch(self.sha256):
            raise SpecError(f"{self.name}: sha256 must be 64 hex characters")
        for what in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, what)
            if limit is not None and (type(limit) is not int or not 1 <= limit <= MAX_LIMIT):
                raise SpecError(f"{self.name}: {what} must be a whole number from 1 to {MAX_LIMIT:,}, got {limit!r}")


@dataclass(frozen=True)
class Keys:
    """The keys that a server accepts."""

    entries: tuple[Key, ...]
    file: Path | None = None
    """That they were read from."""

    def find(self, key: str) -> Key | None:
        """Which of these it is; takes as long whichever it is, or none."""
        given, found = hash_key(key), None
        for entry in self.entries:
            if hmac.compare_digest(given, entry.sha256):
                found = entry
        return found


class CurrentKeys:
    """A server's keys as their file has them now: what is removed there is refused from the next second on.

    Where the file cannot be read, because it is damaged or on another node, the keys last read stay.

    Args:
        keys: read when the server was set up.
        clock: seconds since any moment.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._clock = keys, clock
        self._looked: float | None = None
        self._seen: tuple[int, ...] | None = None

    def find(self, key: str) -> Key | None:
        """Which of these it is."""
        if self._looked is None or self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            self._look()
        return self._keys.find(key)

    def _look(self) -> None:
        file = self._keys.file
        try:
            found = file.stat() if file is not None else None
        except OSError:
            found = None
        seen = None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)
        if file is None or seen is None or seen == self._seen:
            return
        self._seen = seen
        try:
            entries = _entries(file)
        except SpecError as error:
            log.error("the keys stay as they were: %s", error)
            return
        if entries != self._keys.entries:
            log.info("%s has changed: %d keys now", file, len(entries))
            self._keys = Keys(entries, file)


def add_key(
    file: Path, name: str, *, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
) -> str:
    """Make a key, keep its hash under `name` in the file (made with mode 0600 where it is missing); gives the key.

    Raises:
        SpecError: the name is taken or not allowed, a limit is not allowed, or the file cannot be read or written.
    """
    key = new_key()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Key(name, hash_key(key), created, requests_per_minute, tokens_per_minute)
    with _alone(file):
        entries = _entries(file) if file.exists() else ()
        if any(known.name == name for known in entries):
            raise SpecError(
                f"{file}: holds a key named {name!r} already; choose another name, or remove it with "
                f"graft keys rm {name} --file {file}"
            )
        _write(file, (*entries, entry))
    return key


def remove_key(file: Path, name: str) -> None:
    """Forget a key; servers that use the file refuse it a second later.

    Raises:
        SpecError: there is none of that name, or the file cannot be read or written.
    """
    with _alone(file):
        entries = list_keys(file)
        if all(entry.name != name for entry in entries):
            known = [entry.name for entry in entries]
            raise SpecError(f"{file}: holds no key named {name!r}; {suggest(name, known) if known else 'it is empty'}")
        _write(file, tuple(entry for entry in entries if entry.name != name))


def list_keys(file: Path) -> tuple[Key, ...]:
    """What the file says of its keys, in the order in which they were made.

    Raises:
        SpecError: it is missing or damaged, or others may read it and that cannot be changed.
    """
    if not file.is_file():
        raise SpecError(f"{file}: no such file; make one with graft keys new NAME --file {file}")
    return _entries(file)


def read_keys(file: Path) -> Keys:
    """The keys of a file, for a server.

    Raises:
        SpecError: it is missing, damaged or empty, or others may read it and that cannot be changed.
    """
    if not file.is_file():
        raise SpecError(f"--api-keys {file}: no such file; make one with graft keys new NAME --file {file}")
    entries = _entries(file)
    if not entries:
        raise SpecError(f"--api-keys {file}: holds no key; add one with graft keys new NAME --file {file}")
    return Keys(entries, file.absolute())


def _entries(file: Path) -> tuple[Key, ...]:
    try:
        if _open_to_others(file.stat()):
            file.chmod(0o600)
            log.warning("%s could be read by others; its mode is 0600 now", file)
        found = json.loads(file.read_text(encoding="utf-8"))["keys"]
        # A word that is not known is an error: a limit that is spelt wrong would be none.
        entries = tuple(Key(**entry) for entry in found)
        names = [entry.name for entry in entries]
        if len(set(names)) == len(names):
            return entries
        reason = "a name is there twice"
    except TypeError as error:
        reason = str(error).replace("Key.__init__()", "an entry")
    except KeyError as error:
        reason = f"it has no {error}"
    except (OSError, ValueError, SpecError) as error:
        reason = str(error)
    raise SpecError(
        f"{file}: cannot be used as a file of keys: {reason}; mend it, or make a new one with graft keys new"
    )


def _open_to_others(file: os.stat_result) -> bool:
    """Whether more may read it than should: its owner, or a group that its owner lets us be in.

    A secret that Kubernetes mounts is root's, and ours to read through its group.
    """
    ours = file.st_uid == os.geteuid()
    return bool(file.st_mode & (0o077 if ours else 0o007))


def _write(file: Path, entries: tuple[Key, ...]) -> None:
    """The whole file or the old one; never readable for others, not even for a moment."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"keys": [asdict(entry) for entry in entries]}, stream, indent=2)
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
