"""The engine between an event loop and a writer: who hears what, and what a failure or a departure changes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import graft.models
from graft.errors import ModelError, ServeError
from graft.hosted import Hosting
from graft.models.asked import Asked, Piece
from graft.serving.engine import Engine
from graft.serving.replica import ModelReplica


class Typist:
    """A writer that types a text's prompt letter by letter, one letter of every text each time it is let.

    While it is not let, others join.
    """

    def __init__(self, rows: int = 2) -> None:
        self.rows = rows
        self.steps = threading.Semaphore(0)
        self.texts: dict[Asked, int] = {}
        self.typed = 0

    def write(self, first: Sequence[Asked], more: Callable[[int], Sequence[Asked]], emit: Callable[..., None]) -> None:
        self.texts = dict.fromkeys(first, 0)
        while True:
            self.texts = {one: place for one, place in self.texts.items() if not one.gone}
            self.texts.update(dict.fromkeys(more(self.rows - len(self.texts)), 0))
            if not self.texts:
                return
            while not self.steps.acquire(timeout=0.01):
                self.texts.update(dict.fromkeys(more(self.rows - len(self.texts)), 0))
            self.typed += 1
            for one, place in list(self.texts.items()):
                if one.prompt[place] == "!":
                    raise ValueError(f"{one.prompt} is broken")
                last = place + 1 == len(one.prompt)
                emit(one, Piece(one.prompt[place], 1, finish="stop" if last else None))
                self.texts[one] += 1
                if last:
                    del self.texts[one]

    def let(self, steps: int = 1000) -> None:
        self.steps.release(steps)


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 120))


async def text(pieces: AsyncIterator[Piece]) -> str:
    return "".join([piece.text async for piece in pieces])


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_many_ask_at_once_and_each_hears_its_own() -> None:
    async def work() -> list[str]:
        engine = Engine(typist)
        typist.let()
        found = await asyncio.gather(*(text(engine.write(Asked(word * 5, 9))) for word in words))
        assert (engine.running, engine.waiting) == (0, 0)
        await until(lambda: engine._thread is None)
        return found

    typist, words = Typist(), [f"word {number} " for number in range(20)]
    assert run(work) == [word * 5 for word in words]


def test_pieces_that_pile_up_are_one() -> None:
    async def work() -> list[Piece]:
        engine, asked = Engine(typist), Asked("abcdef", 9)
        pieces = engine.write(asked)
        typist.let(1)
        found = [await anext(pieces)]
        typist.let(4)
        await until(lambda: typist.typed == 5)
        await until(lambda: typist.texts.get(asked) == 5)
        found.append(await anext(pieces))
        typist.let(1)
        return found + [piece async for piece in pieces]

    typist = Typist()
    assert run(work) == [Piece("a", 1), Piece("bcde", 4), Piece("f", 1, finish="stop")]


@pytest.mark.parametrize("how", ["closed", "cancelled", "abandoned"])
def test_who_leaves_makes_room(how: str) -> None:
    async def work() -> None:
        engine = Engine(typist)
        leaves, waits = Asked("x" * 50, 99), Asked("yes", 9)
        pieces = engine.write(leaves)
        typist.let(1)
        assert (await anext(pieces)).text == "x"
        waiting = asyncio.create_task(text(engine.write(waits)))
        await until(lambda: engine.waiting == 1 and engine._checking == 0)
        assert engine.running == 1
        if how == "closed":
            await pieces.aclose()  # type: ignore[attr-defined]
        elif how == "cancelled":
            task = asyncio.create_task(text(pieces))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            del pieces
        await until(lambda: leaves.gone)
        typist.let(10)
        assert await waiting == "yes"
        assert typist.typed <= 6

    typist = Typist(1)
    run(work)


def test_who_leaves_the_queue_is_never_written() -> None:
    async def work() -> None:
        engine = Engine(typist)
        first = asyncio.create_task(text(engine.write(Asked("abc", 9))))
        await until(lambda: engine.running == 1)
        second = asyncio.create_task(text(engine.write(Asked("zzz" * 30, 9))))
        await until(lambda: len(engine._queue) == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert engine.waiting == 0
        typist.let(3)
        assert await first == "abc"

    typist = Typist(1)
    run(work)
    assert typist.typed == 3


def test_a_failure_reaches_those_whose_text_was_being_written_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        engine = Engine(typist)
        words = ["one", "tw!", "later", "too"]
        tasks = [asyncio.create_task(text(engine.write(Asked(word, 9)))) for word in words]
        await until(lambda: engine.running == 2 and engine.waiting == 2 and not engine._checking)
        typist.let()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        # The first letter of the failing step was told before the other's key broke.
        assert found[0] == "one"
        assert isinstance(found[1], ValueError)
        assert found[2:] == ["later", "too"]
        assert await text(engine.write(Asked("again", 9))) == "again"
        broken = [asyncio.create_task(text(engine.write(Asked(word, 9)))) for word in ("!", "longer")]
        found = await asyncio.gather(*broken, return_exceptions=True)
        assert isinstance(found[0], ValueError)
        assert await text(engine.write(Asked("again", 9))) == "again"

    typist = Typist()
    run(work)
    assert "the writer failed: ValueError" in caplog.text
    assert "tw! is broken" not in caplog.text


def test_what_is_refused_meets_nobody() -> None:
    def check(asked: Asked) -> None:
        if asked.prompt == "bad":
            raise ModelError("too long")

    async def work() -> None:
        engine = Engine(typist, check)
        typist.let()
        good, bad = (asyncio.create_task(text(engine.write(Asked(word, 9)))) for word in ("good", "bad"))
        assert await good == "good"
        with pytest.raises(ModelError, match="too long"):
            await bad
        assert engine.waiting == 0

    typist = Typist()
    run(work)


def test_a_text_that_alone_cannot_be_written() -> None:
    class Half:
        def write(self, first: Any, more: Callable[[int], Sequence[Asked]], emit: Callable[..., None]) -> None:
            for asked in more(9):
                emit(asked, Piece("a", 1))
                emit(asked, ModelError("refused") if asked.prompt == "bad" else Piece("b", 1, finish="stop"))

    async def work() -> None:
        engine = Engine(Half())
        assert await text(engine.write(Asked("good", 9))) == "ab"
        pieces = engine.write(Asked("bad", 9))
        assert (await anext(pieces)).text == "a"
        with pytest.raises(ModelError, match="refused"):
            await anext(pieces)

    run(work)


def test_a_writer_that_forgets_a_text_leaves_nobody_waiting() -> None:
    class Forgetful:
        def write(self, first: Any, more: Callable[[int], Sequence[Asked]], emit: Callable[..., None]) -> None:
            more(9)

    async def work() -> None:
        with pytest.raises(ServeError, match="not written to its end"):
            await text(Engine(Forgetful()).write(Asked("good", 9)))

    run(work)


def test_a_closed_engine_ends_everything() -> None:
    async def work() -> None:
        engine = Engine(typist)
        tasks = [asyncio.create_task(text(engine.write(Asked("word" * 9, 9)))) for _ in range(3)]
        await until(lambda: (engine.running, len(engine._queue)) == (1, 2))
        thread = engine._thread
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await until(lambda: engine._closed)
        typist.let(2)
        await closing
        assert thread is not None
        assert not thread.is_alive()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found] == [ServeError] * 3
        assert (engine.running, engine.waiting) == (0, 0)
        with pytest.raises(ServeError, match="stopping"):
            await text(engine.write(Asked("more", 9)))

    typist = Typist(1)
    run(work)
    assert typist.typed <= 2


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_t5"])
def test_a_real_model_answers_many_who_come_and_go(request: pytest.FixtureRequest, name: str) -> None:
    model = graft.models.load(str(request.getfixturevalue(name)))
    prompts = [f"Once upon a time {'there ' * (number % 4)}was {number}" for number in range(12)]

    async def one(engine: Engine, prompt: str, wait: float) -> tuple[str, str | None, int]:
        await asyncio.sleep(wait)
        pieces = [piece async for piece in engine.write(Asked(prompt, 10))]
        return "".join(piece.text for piece in pieces), pieces[-1].finish, pieces[0].prompt_tokens

    async def leave(engine: Engine) -> None:
        async for _ in engine.write(Asked("The cat", 60)):
            return

    async def work() -> list[Any]:
        engine = Engine.of(model, 4)
        several = [one(engine, prompt, place * 0.003) for place, prompt in enumerate(prompts)]
        too_long = text(engine.write(Asked("cat", 300 if name == "tiny_llama" else 3)))
        found, failure, *_ = await asyncio.gather(
            asyncio.gather(*several), too_long, leave(engine), leave(engine), return_exceptions=True
        )
        assert name == "tiny_t5" or "its context holds 256" in str(failure)
        engine.close()
        assert isinstance(found, list)
        return found

    for (told, finish, tokens), written, row in zip(
        run(work), model.write(prompts, 10), model.rows_to_write(prompts, 10), strict=True
    ):
        assert (told, finish == "stop", tokens) == (written.text, written.whole, len(row))


def test_a_busy_model_lets_its_process_answer_others_while_an_engine_is_made(tiny_llama: Path) -> None:
    model = graft.models.load(str(tiny_llama))
    held, answered = threading.Event(), threading.Event()
    waited: list[bool] = []

    def score() -> None:
        with model.lock:
            held.set()
            waited.append(answered.wait(20))

    async def work() -> list[Engine]:
        replica = ModelReplica("d", [], Hosting(), [])
        runs: list[Any] = [SimpleNamespace(answering=SimpleNamespace(speaker=model), engine=None) for _ in range(2)]
        several = [asyncio.create_task(replica._engine(one)) for one in (*runs, runs[0])]
        await asyncio.sleep(0)
        assert await replica.ready()
        answered.set()
        return await asyncio.gather(*several)

    busy = threading.Thread(target=score)
    busy.start()
    held.wait()
    assert len(set(run(work))) == 1
    busy.join()
    assert waited == [True]
