"""Requests that come while others are being answered are answered together afterwards.

Ray Serve's own `batch` makes up its batches before the model is free: with a short wait they are of one request each,
however many come meanwhile, and with a long one a lone request waits for nobody.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[Asked, Answer]):
    """Answers what is asked in an event loop, several at once.

    Args:
        answer: answers several, in their order. It runs outside the context of whoever asked: whom Serve cancels takes
            nobody along.
        most: how many at once.
        wait_seconds: how long the first of a batch waits for as many as the last one had, where that had several: those
            who were answered together ask again together. A lone one never waits.
        at_once: batches that are being answered at the same time.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer]]],
        most: int,
        wait_seconds: float = 0.0,
        at_once: int = 1,
    ) -> None:
        self.answer, self.most, self.wait_seconds, self.at_once = answer, most, wait_seconds, at_once
        self._queue: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._working: set[asyncio.Task[None] | None] = set()
        self._last = 1

    async def ask(self, asked: Asked) -> Answer:
        """The answer; who is cancelled before their turn costs nothing."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((asked, future))
        if len(self._working) < self.at_once:
            self._working.add(asyncio.create_task(self._work(), context=contextvars.Context()))
        return await future

    async def _work(self) -> None:
        try:
            while self._queue:
                if len(self._queue) < self._last and self.wait_seconds:
                    await asyncio.sleep(self.wait_seconds)
                await self._next()
        finally:
            # Here and not when the task is done: who asks in between would wait for nobody.
            self._working.discard(asyncio.current_task())

    async def _next(self) -> None:
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        while self._queue and len(batch) < self.most:
            asked, future = self._queue.popleft()
            if not future.done():
                batch.append((asked, future))
        if not batch:
            return
        self._last = len(batch)
        try:
            answers = await self.answer([asked for asked, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return  # it was the answer that was cancelled: who waits for another one still gets it
        except Exception as error:  # it goes to whoever asked
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
