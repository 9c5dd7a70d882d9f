"""The load of `serve.py`, in a process of its own: N clients that each ask again as soon as they are answered.

`serve.py` starts it with what it asks, as JSON on standard input; what it found is printed, as JSON. The same for the
model in this process, without a server: N requests at a time.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import aiohttp

from figures import percentile

MIN_ANSWERS = 20
"""Fewer are no measurement, however long it takes."""
MAX_SECONDS = 300.0
ANSWER_SECONDS = 120.0

Body = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """What to send, and for how long."""

    bodies: str
    """File of requests, a JSON list; they are taken in this order, and from the beginning again after the last."""
    path: str
    """Which route of the interface; it also says what an answer looks like."""
    url: str = ""
    """Empty: the run is called in this process."""
    headers: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    clients: int = 1
    offset: int = 0
    """The first request."""
    warm_seconds: float = 2.0
    seconds: float = 10.0
    requests: int = 0
    """Ask so many, however long it takes, and count all of them; 0 asks for `seconds`."""


@dataclass(frozen=True)
class Asked:
    """One request and what came of it; times in seconds."""

    place: int
    began: float
    ended: float
    status: int
    answer: str = ""
    units: int = 1
    """Tokens written, or texts labelled."""


@dataclass
class Point:
    """What one load gave."""

    p50_ms: float
    p99_ms: float
    requests_per_second: float
    units_per_second: float
    statuses: dict[str, int]
    answers: dict[str, str]
    """Place of a request to its answer, of all that were answered."""
    units: dict[str, int]

    @classmethod
    def of(cls, found: list[Asked], begin: float, end: float) -> Self:
        """Requests that were answered from `begin` to `end`."""
        counted = [one for one in found if begin <= one.ended <= end]
        fine = [one for one in counted if one.status == 200]
        latencies = [1000 * (one.ended - one.began) for one in fine]
        return cls(
            percentile(latencies, 50),
            percentile(latencies, 99),
            len(fine) / (end - begin),
            sum(one.units for one in fine) / (end - begin),
            dict(Counter(str(one.status) for one in counted)),
            {str(one.place): one.answer for one in found if one.status == 200},
            {str(one.place): one.units for one in found if one.status == 200},
        )


class Window:
    """When to begin counting, and when it is enough."""

    def __init__(self, ask: Ask) -> None:
        self.ask, self.started = ask, time.perf_counter()
        self.begin = self.started if ask.requests else None
        self.end: float | None = None
        self.counted, self.met = 0, Counter[int]()

    def note(self, client: int) -> None:
        """A client was answered."""
        now = time.perf_counter()
        self.met[client] += 1
        if self.begin is None:
            # What is in a queue while it fills waits less than later: each client has been answered once.
            if now - self.started >= self.ask.warm_seconds and len(self.met) == self.ask.clients:
                self.begin = now
            return
        self.counted += 1
        enough = max(MIN_ANSWERS, 2 * self.ask.clients)
        over = now - self.begin >= self.ask.seconds and self.counted >= enough
        if self.ask.requests:
            over = self.counted >= self.ask.requests
        if self.end is None and (over or now - self.started > MAX_SECONDS):
            self.end = now

    def point(self, found: list[Asked]) -> Point:
        """What was measured."""
        assert self.begin is not None
        assert self.end is not None
        return Point.of(found, self.begin, self.end)


def read(path: str, response: Body) -> tuple[str, int]:
    """What an answer says, and how many tokens or texts that is."""
    if path == "/v1/completions":
        return response["choices"][0]["text"].strip(), response["usage"]["completion_tokens"]
    return "|".join(one["label"] for one in response["data"]), len(response["data"])


async def over_http(ask: Ask, bodies: list[Body]) -> Point:
    """Ask a server."""
    window, places, found = Window(ask), count(ask.offset), list[Asked]()
    wait, pool = aiohttp.ClientTimeout(total=ANSWER_SECONDS), aiohttp.TCPConnector(limit=0)

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        while window.end is None:
            place = next(places) % len(bodies)
            if ask.requests and place >= ask.offset + ask.requests:
                return
            found.append(await _ask(session, ask, place, bodies[place]))
            window.note(number)

    async with aiohttp.ClientSession(ask.url, headers=ask.headers, timeout=wait, connector=pool) as session:
        await asyncio.gather(*(client(number, session) for number in range(ask.clients)))
    return window.point(found)


async def _ask(session: aiohttp.ClientSession, ask: Ask, place: int, body: Body) -> Asked:
    began = time.perf_counter()
    try:
        async with session.post(ask.path, json=body) as response:
            content = await response.read()
            ended = time.perf_counter()
            if response.status != 200:
                return Asked(place, began, ended, response.status)
            return Asked(place, began, ended, 200, *read(ask.path, json.loads(content)))
    except (aiohttp.ClientError, TimeoutError):
        return Asked(place, began, time.perf_counter(), 0)


def in_process(ask: Ask, bodies: list[Body]) -> Point:
    """Ask the run itself, as many requests at a time as there are clients."""
    answer = _directly(ask.storage, bodies[0]["model"])
    window, found = Window(ask), list[Asked]()
    places = (place % len(bodies) for place in count(ask.offset))
    while window.end is None:
        together = list(islice(places, ask.clients))
        began = time.perf_counter()
        texts = answer([bodies[place] for place in together])
        ended = time.perf_counter()
        for client, (place, text) in enumerate(zip(together, texts, strict=True)):
            found.append(Asked(place, began, ended, 200, text))
            window.note(client)
    return window.point(found)


def _directly(storage: str, run_id: str) -> Callable[[list[Body]], list[str]]:
    """The graph of a run as a function of requests' bodies, of one text each."""
    import pyarrow as pa

    import graft

    graph = graft.load(run_id, storage)

    def answer(several: list[Body]) -> list[str]:
        texts = [body["prompt"] if "prompt" in body else body["input"][0] for body in several]
        return [(text or "").strip() for text in graph.run(pa.table({"text": texts}))["prediction"].to_pylist()]

    answer([{"input": ["a first text"]}])  # loads the weights
    return answer


def main() -> None:
    """Do what standard input asks."""
    ask = Ask(**json.load(sys.stdin))
    bodies = json.loads(Path(ask.bodies).read_text())
    point = asyncio.run(over_http(ask, bodies)) if ask.url else in_process(ask, bodies)
    sys.stdout.write(json.dumps(asdict(point)) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
