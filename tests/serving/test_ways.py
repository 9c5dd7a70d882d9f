"""How the HTTP process asks a deployment: what its hosting says becomes messages, and how many at once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from ray import exceptions

from graft.hosted import Hosting
from graft.models.asked import Piece
from graft.serving.asking import Models, Way
from graft.serving.layout import Deployment
from graft.serving.wire import Manner, Pieces, Place


def deployment(hosting: Hosting, tmp_path: Path, runs: int = 1) -> Deployment:
    files = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    return Deployment("cpu", ("ab",), hosting, tuple(Place(f"run-{n}", files, f"run-{n}") for n in range(runs)))


def test_a_message_carries_a_batch_and_each_replica_has_the_next_one_waiting(tmp_path: Path) -> None:
    assert Way.to(deployment(Hosting(replicas=3, max_batch_size=5), tmp_path)) == Way(False, 5, 6)


def test_replicas_are_added_by_requests_so_each_is_a_message(tmp_path: Path) -> None:
    assert Way.to(deployment(Hosting(max_replicas=4, max_requests=10), tmp_path)) == Way(False, 1, 40)


def test_runs_that_do_not_all_fit_are_sought_where_they_lie(tmp_path: Path) -> None:
    assert Way.to(deployment(Hosting(max_runs=2), tmp_path, runs=2)).spread is False
    assert Way.to(deployment(Hosting(max_runs=2), tmp_path, runs=3)).spread is True


class Mortal:
    """A deployment whose replicas say what is given, one after the other; an exception is a replica's death."""

    def __init__(self, *replicas: Sequence[list[tuple[int, Piece]] | Exception]) -> None:
        self.replicas = list(replicas)

    def options(self, stream: bool) -> Any:
        assert stream
        return SimpleNamespace(write=SimpleNamespace(remote=lambda writing: Told(self.replicas.pop(0))))


class Told:
    def __init__(self, messages: Sequence[list[tuple[int, Piece]] | Exception]) -> None:
        self.messages = messages

    async def __aiter__(self) -> AsyncIterator[Pieces]:
        for message in self.messages:
            if isinstance(message, Exception):
                raise message
            yield Pieces(tuple(message))

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("death", [exceptions.RayActorError(), exceptions.OutOfMemoryError("the node was full")])
def test_a_text_that_had_ended_when_a_replica_died_is_not_told_again(death: Exception) -> None:
    first = [
        [(0, Piece("a", 1, prompt_tokens=9)), (1, Piece("x", 1, prompt_tokens=9))],
        [(0, Piece("b", 1, finish="stop"))],
        [(1, Piece("y", 1))],
    ]
    # Otherwise cut, as it comes when nobody has listened for a while.
    second = [
        [(0, Piece("ab", 2, finish="stop", prompt_tokens=9)), (1, Piece("x", 1, prompt_tokens=9))],
        [(1, Piece("yz", 2))],
        [(1, Piece("", 1, finish="length"))],
    ]
    run: Any = SimpleNamespace(place=None, segments=[SimpleNamespace(deployment="d")])

    async def ask() -> list[tuple[int, Piece]]:
        models = Models({"d": Mortal([*first, death], second)}, {"d": Way(False, 1, 1)})
        manner = Manner(choices=2, whole=False)
        return [one async for message in models.write(run, manner, prompts=("p",)) for one in message]

    told = asyncio.run(ask())
    assert told == [*(one for message in first for one in message), (1, Piece("z", 1)), second[2][0]]
