"""Requests that come while others are being answered are answered together afterwards.

Ray Serve's own `batch` makes up its batches before the model is free: with a short wait they are of one request each,
however many come meanwhile, and with a long one a lone request waits for nobody.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[Asked, Answer]):
    """Answers what is asked in an event loop, several at once, in a thread.

    Args:
        answer: answers several, in their order; it raises nothing.
        most: how many at once.
        wait_seconds: how long the first of a batch waits for as many as the last one had, where that had several: those
            who were answered together ask again together. A lone one never waits.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Answer]], most: int, wait_seconds: float) -> None:
        self.answer, self.most, self.wait_seconds = answer, most, wait_seconds
        self._queue: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._last = 1

    async def ask(self, asked: Asked) -> Answer:
        """The answer; who is cancelled before their turn costs nothing."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((asked, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._queue:
                if len(self._queue) < self._last and self.wait_seconds:
                    await asyncio.sleep(self.wait_seconds)
                await self._next()
        finally:
            self._task = None

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
            answers = await asyncio.to_thread(self.answer, [asked for asked, _ in batch])
        except Exception as error:  # it goes to whoever asked
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)
