"""Requests that are answered together: what comes while the model is busy waits for it and not for a clock."""

import asyncio
import contextvars
import threading
from collections.abc import Sequence

import pytest

from graft.serving.batches import Batches


class Model:
    """Notes what it was asked at once; holds until it is let go."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.may_go = threading.Event()

    async def answer(self, several: Sequence[int]) -> list[int]:
        self.asked.append(list(several))
        await asyncio.to_thread(self.may_go.wait, 30)
        if 13 in several:
            raise ValueError("unlucky")
        return [-one for one in several]


async def held(batches: Batches[int, int], model: Model, *asked: int) -> list[asyncio.Task[int]]:
    """Tasks of requests, of which the first is being answered while the others come."""
    tasks = [asyncio.create_task(batches.ask(asked[0]))]
    while not model.asked:
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batches.ask(one)) for one in asked[1:]]
    await asyncio.sleep(0.01)
    return tasks


def test_what_comes_meanwhile_is_answered_together_in_order() -> None:
    model = Model()

    async def run() -> list[int]:
        batches = Batches(model.answer, 3, 0.0)
        tasks = await held(batches, model, 1, 2, 3, 4, 5)
        model.may_go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [-1, -2, -3, -4, -5]
    assert model.asked == [[1], [2, 3, 4], [5]]


def test_who_has_left_is_not_computed() -> None:
    model = Model()

    async def run() -> list[int]:
        batches = Batches(model.answer, 8, 0.0)
        tasks = await held(batches, model, 1, 2, 3)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        model.may_go.set()
        return await asyncio.gather(tasks[0], tasks[2])

    assert asyncio.run(run()) == [-1, -3]
    assert model.asked == [[1], [3]]


def test_a_failure_goes_to_those_who_asked_and_the_next_are_answered() -> None:
    model = Model()
    model.may_go.set()

    async def run() -> int:
        batches = Batches(model.answer, 8, 0.0)
        with pytest.raises(ValueError, match="unlucky"):
            await batches.ask(13)
        return await batches.ask(2)

    assert asyncio.run(run()) == -2


def test_those_who_were_answered_together_are_waited_for() -> None:
    model = Model()

    async def run() -> None:
        batches = Batches(model.answer, 8, 0.2)
        tasks = await held(batches, model, 1, 2, 3)
        model.may_go.set()
        await asyncio.gather(*tasks)
        first = asyncio.create_task(batches.ask(4))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, batches.ask(5))

    asyncio.run(run())
    assert model.asked == [[1], [2, 3], [4, 5]]


def test_several_batches_are_answered_at_once_and_no_more() -> None:
    model = Model()

    async def run() -> list[int]:
        batches = Batches(model.answer, 2, at_once=2)
        tasks = await held(batches, model, 1, 2, 3, 4, 5)
        assert model.asked == [[1], [2, 3]]
        model.may_go.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [-1, -2, -3, -4, -5]
    assert model.asked == [[1], [2, 3], [4, 5]]


def test_who_comes_as_a_batch_ends_is_answered() -> None:
    model = Model()
    model.may_go.set()

    async def run() -> list[int]:
        batches = Batches(model.answer, 1)
        return [await batches.ask(one) for one in range(1, 100) if one != 13]

    assert asyncio.run(run()) == [-one for one in range(1, 100) if one != 13]


def test_a_batch_that_is_cancelled_leaves_nobody_waiting() -> None:
    async def answer(several: Sequence[int]) -> list[int]:
        if 13 in several:
            raise asyncio.CancelledError
        return list(several)

    async def run() -> list[int | BaseException]:
        batches = Batches(answer, 1)
        return await asyncio.wait_for(asyncio.gather(*map(batches.ask, (13, 2)), return_exceptions=True), 10)

    first, second = asyncio.run(run())
    assert isinstance(first, asyncio.CancelledError)
    assert second == 2


def test_answers_are_made_outside_of_who_asked() -> None:
    asker = contextvars.ContextVar("asker", default="nobody")

    async def answer(several: Sequence[int]) -> list[str]:
        return [asker.get() for _ in several]

    async def run() -> str:
        asker.set("me")
        return await Batches(answer, 1).ask(1)

    assert asyncio.run(run()) == "nobody"
