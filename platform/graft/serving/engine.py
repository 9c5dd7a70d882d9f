"""Texts of one model for many requests at once: a thread writes them all, and each request hears its own.

request ─► check (a thread of the pool) ─► queue ─┐  asked between two tokens
                                                  ▼
request ◄─ pieces ◄──────────────── Writer.write, in a thread that lives while there is work
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Self

from graft.errors import ServeError
from graft.models import Model
from graft.models.asked import Asked, Piece, Writer

log = logging.getLogger(__name__)


class Engine:
    """Lets a writer work for whoever asks in an event loop; how many may wait is their affair.

    Args:
        writer: its `write` is called in one thread at a time.
        check: refuses what must not meet the others, by an exception.
    """

    def __init__(self, writer: Writer, check: Callable[[Asked], None] = lambda _asked: None) -> None:
        self.writer, self.check = writer, check
        self._lock = threading.Lock()
        self._queue: deque[Asked] = deque()
        self._ears: dict[Asked, _Ear] = {}
        """Of those who wait, and of those whose text is being written."""
        self._thread: threading.Thread | None = None
        self._closed = False

    @classmethod
    def of(cls, model: Model, max_sequences: int) -> Self:
        """An engine that writes so many texts of a model at once.

        Raises:
            ModelError: this kind of model writes no text.
        """
        from graft.models.decoding import check, writer_for

        return cls(writer_for(model, max_sequences), lambda asked: check(model, asked))

    @property
    def running(self) -> int:
        """Texts that the writer has taken; it may keep some of them until they fit."""
        with self._lock:
            return len(self._ears) - len(self._queue)

    @property
    def waiting(self) -> int:
        """Texts that it has not taken yet."""
        with self._lock:
            return len(self._queue)

    async def write(self, asked: Asked) -> AsyncGenerator[Piece]:
        """The pieces of a text; those that come while nobody listens are one.

        Leaving early, by `aclose` or a cancelled task, makes room for others at the next token.

        Raises:
            ModelError: the text cannot be written (`graft.models.decoding.check`).
            ServeError: the engine is closed.
            Exception: the writer failed while it had this text.
        """
        await asyncio.to_thread(self.check, asked)
        ear = _Ear(asyncio.get_running_loop())
        self._take(asked, ear)
        try:
            finish = None
            while finish is None:
                piece = await ear.heard()
                finish = piece.finish
                yield piece
        finally:
            asked.gone = True
            with self._lock:
                self._forget(asked)

    def close(self) -> None:
        """End all texts with a ServeError, refuse new ones, and wait for the thread to end."""
        with self._lock:
            self._closed = True
            for asked, ear in self._ears.items():
                asked.gone = True
                ear.tell(_closed())
            self._ears.clear()
            self._queue.clear()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _take(self, asked: Asked, ear: "_Ear") -> None:
        with self._lock:
            if self._closed:
                raise _closed()
            self._ears[asked] = ear
            self._queue.append(asked)
            if self._thread is None:
                # Whatever a process is busy with, it may end: nobody hears these texts any more.
                self._thread = threading.Thread(target=self._work, name="graft-engine", daemon=True)
                self._thread.start()

    def _forget(self, asked: Asked) -> None:
        if self._ears.pop(asked, None) is not None and asked in self._queue:
            self._queue.remove(asked)

    def _work(self) -> None:
        """Write until nobody waits; what fails ends the texts that the writer had, and no others."""
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
            # What the writer has at its end was not written, were it not forgotten by then.
            had: list[Asked] = []
            try:
                self.writer.write((), lambda room, had=had: self._more(room, had), self._emit)  # type: ignore[misc]
                failure: Exception = ServeError("a text was not written to its end; ask again")
            except Exception as error:
                log.error("the writer failed: %s", type(error).__name__)
                failure = error
            for asked in had:
                self._emit(asked, failure)

    def _more(self, room: int, had: list[Asked]) -> Sequence[Asked]:
        """Those who may join, who came first; nobody waits for a lock that is held longer than this."""
        if not self._queue:
            return ()
        with self._lock:
            found = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
        had += found
        return found

    def _emit(self, asked: Asked, piece: Piece | Exception) -> None:
        over = isinstance(piece, Exception) or piece.finish is not None
        with self._lock:
            ear = self._ears.pop(asked, None) if over else self._ears.get(asked)
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
