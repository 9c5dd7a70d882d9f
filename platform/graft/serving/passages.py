"""The texts of one request: several prompts, several choices of each, written side by side and told as they come."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from graft.hashing import digest
from graft.models.asked import Asked, Piece
from graft.serving.engine import Engine
from graft.serving.wire import Manner, Writing

Numbered = list[tuple[int, Piece]]
"""Pieces, each with the number of its text."""


class Passages:
    """What is asked of the model, and how its texts are told.

    Args:
        node: the run's last one.
        writing: what is asked.
        prompts: what the model reads.
    """

    def __init__(self, node: Any, writing: Writing, prompts: Sequence[str]) -> None:
        self.node, self.manner = node, writing.manner
        self.verbatim = writing.rows is None
        prompts = [node.verbatim(prompt) for prompt in prompts] if self.verbatim else prompts
        stop = self.manner.stop if self.verbatim else (*node.ends, *self.manner.stop)
        limit = self.manner.max_new_tokens or node.max_new_tokens
        drawn = {name: getattr(self.manner, name) for name in ("temperature", "top_p", "logprobs")}
        self.asked = [
            Asked(prompt, limit, stop, seed=_seed(self.manner, number), **drawn)
            for number, prompt in enumerate(prompt for prompt in prompts for _ in range(self.manner.choices))
        ]

    async def pieces(self, engine: Engine) -> AsyncGenerator[Numbered]:
        """What is new of the texts; all of them at once at the end where they are wanted whole."""
        if not self.manner.whole:
            async with aclosing(_merged([self._told(engine, one) for one in self.asked])) as merged:
                async for found in merged:
                    yield found
            return
        tasks = [asyncio.create_task(_joined(self._told(engine, one))) for one in self.asked]
        try:
            yield list(enumerate(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:
                task.cancel()  # where one has failed, nobody waits for the others

    async def _told(self, engine: Engine, asked: Asked) -> AsyncGenerator[Piece]:
        """A text as it is told: as it was written, or as an answer is read in it."""
        async with aclosing(engine.write(asked)) as written:
            if self.verbatim:
                async for piece in written:
                    yield piece
            elif self.manner.whole or self.node.parser:
                text = ""
                async for piece in written:
                    text += piece.text
                    # Tokens are told as they are written: whoever leaves has caused them.
                    yield dataclasses.replace(piece, text=(self.node.read(text) or "") if piece.finish else "")
            else:
                async for piece in _stripped(written):
                    yield piece


def _seed(manner: Manner, number: int) -> int:
    """Of a text's draws: the first one's is the request's."""
    return manner.seed if not number else int(digest(manner.seed, number)[:8], 16)


async def _joined(pieces: AsyncGenerator[Piece]) -> Piece:
    """A whole text."""
    whole: Piece | None = None
    async with aclosing(pieces):
        async for piece in pieces:
            whole = piece if whole is None else whole.followed(piece)
    assert whole is not None  # a text has a last piece, whatever it says
    return whole


async def _stripped(pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """Without white space at the beginning and the end: what may be the end is told once more follows."""
    begun, held = False, ""
    async for piece in pieces:
        text = held + piece.text
        text = text if begun else text.lstrip()
        said = text.rstrip()
        begun, held = begun or bool(said), text[len(said) :]
        yield dataclasses.replace(piece, text=said)


async def _merged(texts: Sequence[AsyncGenerator[Piece]]) -> AsyncGenerator[Numbered]:
    """Pieces of several texts as they come; those that have piled up come together, those of one text as one."""
    queue: asyncio.Queue[tuple[int, Piece] | BaseException | None] = asyncio.Queue()

    async def listen(number: int, pieces: AsyncGenerator[Piece]) -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    queue.put_nowait((number, piece))
        except Exception as error:  # it is raised to whoever reads the texts
            queue.put_nowait(error)
        queue.put_nowait(None)

    tasks = [asyncio.create_task(listen(number, pieces)) for number, pieces in enumerate(texts)]
    left = len(tasks)
    try:
        while left:
            found: dict[int, Piece] = {}
            items = [await queue.get()]
            while not queue.empty():
                items.append(queue.get_nowait())
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                    continue
                number, piece = item
                found[number] = found[number].followed(piece) if number in found else piece
            if found:
                yield list(found.items())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
