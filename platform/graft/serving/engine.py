"""Texts of one model for many requests at once: a thread writes them all, and each request hears its own.

request ─► check (another thread) ─► queue ─┐  asked between two tokens
                                            ▼
request ◄─ pieces ◄────────── Writer.write, in a thread that lives while there is work

Nothing here knows a model: what is written, and how, is the writer's affair.
"""

import asyncio
import logging
import threading
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from graft.errors import ServeError
from graft.models import Model
from graft.models.asked import Asked, Piece, Writer

log = logging.getLogger(__name__)

CLOSING_SECONDS = 5.0
"""A writer ends at its next token; a server elsewhere may take longer to answer."""


class Engine:
    """Lets a writer work for whoever asks in an event loop; how many may wait is their affair.

    Args:
        writer: its `write` is called in one thread at a time.
        check: refuses what must not meet the others, by an exception.
        changed: called, in any thread, when others are `running` or `waiting` than before.
    """

    def __init__(
        self,
        writer: Writer,
        check: Callable[[Asked], None] = lambda _asked: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.writer, self.check, self.changed = writer, check, changed
        # A model that writes whole batches lets nobody read a prompt meanwhile: no other work may wait behind that.
        self._checks = ThreadPoolExecutor(1, "graft-check")
        self._checking = 0
        self._lock = threading.Lock()
        self._queue: deque[Asked] = deque()
        self._taken: set[Asked] = set()
        self._ears: dict[Asked, _Ear] = {}
        """Of those in the queue and those taken."""
        self._thread: threading.Thread | None = None
        self._closed = False

    @classmethod
    def of(cls, model: Model, max_sequences: int, changed: Callable[[], None] = lambda: None) -> Self:
        """An engine that writes so many texts of a model at once.

        Raises:
            ModelError: this kind of model writes no text.
        """
        from graft.models.decoding import check, writer_for

        return cls(writer_for(model, max_sequences), lambda asked: check(model, asked), changed)

    @property
    def running(self) -> int:
        """Texts that the writer has taken; it may keep some of them until they fit."""
        with self._lock:
            return len(self._taken)

    @property
    def waiting(self) -> int:
        """Texts that it has not taken yet."""
        with self._lock:
            return len(self._queue) + self._checking

    async def write(self, asked: Asked) -> AsyncGenerator[Piece]:
        """The pieces of a text; those that come while nobody listens are one.

        Leaving early, by `aclose` or a cancelled task, makes room for others at the next token.

        Raises:
            ModelError: the text cannot be written (`graft.models.decoding.check`).
            ServeError: the engine is closed.
            Exception: the writer failed while it had this text.
        """
        if self._closed:
            raise _closed()
        ear = _Ear(asyncio.get_running_loop())
        self._checking += 1
        self.changed()
        try:
            try:
                await ear.loop.run_in_executor(self._checks, self.check, asked)
            finally:
                self._checking -= 1
            self._join(asked, ear)
            finish = None
            while finish is None:
                piece = await ear.heard()
                finish = piece.finish
                yield piece
        finally:
            asked.gone = True
            with self._lock:
                self._forget(asked)
            self.changed()

    def close(self) -> None:
        """End all texts with a ServeError, refuse new ones, and wait for the thread to end."""
        with self._lock:
            self._closed = True
            thread, ears = self._thread, dict(self._ears)
            for asked in ears:
                asked.gone = True
                self._forget(asked)
        for ear in ears.values():
            ear.tell(_closed())
        self._checks.shutdown(wait=False)
        if thread is not None:
            thread.join(CLOSING_SECONDS)

    def _join(self, asked: Asked, ear: "_Ear") -> None:
        with self._lock:
            if self._closed:
                raise _closed()
            self._ears[asked] = ear
            self._queue.append(asked)
            if self._thread is None:
                # A process may end whatever is being written: nobody hears it any more.
                self._thread = threading.Thread(target=self._work, name="graft-engine", daemon=True)
                self._thread.start()

    def _forget(self, asked: Asked) -> "_Ear | None":
        """Its place is free; the lock is held."""
        ear = self._ears.pop(asked, None)
        if asked in self._taken:
            self._taken.remove(asked)
        elif ear is not None:
            self._queue.remove(asked)
        return ear

    def _work(self) -> None:
        """Write until nobody waits; what fails ends the texts that the writer had, and no others."""
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
            failure: Exception = ServeError("the text was not written to its end; ask again")
            try:
                self.writer.write((), self._more, self._emit)
            except Exception as error:
                # Not its message, which may repeat what a user has sent.
                lines = "".join(traceback.format_tb(error.__traceback__))
                log.error("the writer failed: %s\n%s", type(error).__name__, lines)
                failure = error
            with self._lock:
                unfinished = list(self._taken)
            for asked in unfinished:
                self._emit(asked, failure)

    def _more(self, room: int) -> Sequence[Asked]:
        """Those who may join, in the order in which they came."""
        if not self._queue:  # asked at every token: mostly nobody waits
            return ()
        with self._lock:
            found = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
            self._taken.update(found)
        if found:
            self.changed()
        return found

    def _emit(self, asked: Asked, piece: Piece | Exception) -> None:
        over = isinstance(piece, Exception) or piece.finish is not None
        with self._lock:
            ear = self._forget(asked) if over else self._ears.get(asked)
        if ear is not None and not ear.tell(piece):
            asked.gone = True


class _Ear:
    """What one request has not heard yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.news = loop, asyncio.Event()
        self._lock = threading.Lock()
        self._piece: Piece | None = None
        self._failure: Exception | None = None
        self._called = False

    def tell(self, piece: Piece | Exception) -> bool:
        """Add to it, from any thread; False where the event loop is gone."""
        with self._lock:
            if isinstance(piece, Exception):
                self._failure = piece
            else:
                self._piece = piece if self._piece is None else self._piece.followed(piece)
            called, self._called = self._called, True
        if not called:
            try:
                self.loop.call_soon_threadsafe(self.news.set)
            except RuntimeError:  # it is closed
                return False
        return True

    async def heard(self) -> Piece:
        """What is new, once anything is; a failure comes after what was told before it."""
        while True:
            await self.news.wait()
            with self._lock:
                self.news.clear()
                self._called = False
                piece, self._piece = self._piece, None
                if self._failure is not None:
                    self._called = True
                    self.news.set()
                    if piece is None:
                        raise self._failure
            if piece is not None:
                return piece


def _closed() -> ServeError:
    return ServeError("the server is stopping; ask again in a few seconds")
