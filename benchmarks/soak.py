"""A server under load for a quarter of an hour, one of whose processes is killed every two minutes.

    python benchmarks/soak.py [--minutes 15] [--kill-seconds 120] [--load 0.8] [--workloads probe shots completions]
                              [--out FOLDER] [--quick] [-- MORE WORDS FOR graft serve]

`graft serve` on several runs. How much it takes is tried first (16 clients that ask again as soon as they are
answered); then requests arrive at random (a Poisson process) at 80 % of that rate, whether earlier ones are answered
or not. Each has an id and a question whose answer was computed beforehand without a server; it has a connection of its
own, which is read to its end, so that a second answer would be seen. Replicas are killed (SIGKILL), those of each
model and the one that speaks HTTP in turn, never the proxy or the controller. Memory (resident) of all the server's
processes is read every ten seconds. Ctrl-C prints what there is by then.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

import served
from exchange import exchange
from machine import machine
from questions import Question, is_right, questions
from served import Side, title
from soak_page import Kill, Outcome, Sample, Soak, save

REPLICA = "ServeReplica:graft:"
FRONT = "http"
"""The deployment that speaks HTTP."""
SAMPLE_SECONDS = 10.0
LAST_SECONDS = 130.0
"""For what is on its way at the end; a request gives up before."""


class Driver:
    """Asks the server, kills its replicas, and notes what comes of it."""

    def __init__(self, side: Side, asked: Sequence[Question], seed: int) -> None:
        self.side, self.asked, self.random = side, asked, random.Random(seed)
        place = urlsplit(side.url)
        self.host, self.port = place.hostname or "", place.port or 80
        self.stop = asyncio.Event()
        self.soak = Soak(time.monotonic())
        self.number = 0

    async def capacity(self, clients: int, seconds: float) -> float:
        """Answers per second to clients that ask again as soon as they are answered."""
        for question in self.asked[:: max(1, len(self.asked) // 30)]:
            await self.ask(question)
        before, until = len(self.soak.outcomes), time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until and not self.stop.is_set():
                await self.ask(self.random.choice(self.asked))

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        took, tried = time.monotonic() - began, self.soak.outcomes[before:]
        self.soak.outcomes.clear()
        return sum(one.status == 200 for one in tried) / took

    async def ask(self, question: Question) -> None:
        """One request, from its beginning to its end."""
        self.number += 1
        name = f"soak-{self.number}"
        headers = {**self.side.headers, "X-Request-ID": name}
        began = time.monotonic()
        reply = await exchange(self.host, self.port, question.path, headers, question.body)
        ended = time.monotonic()
        right = is_right(question, reply.content) if reply.status == 200 else None
        echo = reply.headers.get("x-request-id")
        self.soak.outcomes.append(
            Outcome(
                name, question.workload, began - self.soak.began, ended - self.soak.began, reply.status, right,
                reply.responses, None if echo is None else echo == name, reply.problem,
            )
        )  # fmt: skip

    async def arrivals(self, rate: float, seconds: float) -> set[asyncio.Task[None]]:
        """Requests that arrive at random, whatever becomes of them; gives those that are still on their way."""
        waiting, at = set[asyncio.Task[None]](), time.monotonic()
        end = at + seconds
        while not self.stop.is_set():
            at += self.random.expovariate(rate)
            if at > end:
                break
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            task = asyncio.create_task(self.ask(self.random.choice(self.asked)))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        self.soak.sent_seconds = time.monotonic() - self.soak.began
        return waiting

    async def last(self, waiting: set[asyncio.Task[None]]) -> None:
        """Wait for what is on its way; what never comes is counted."""
        if waiting:
            await asyncio.wait(waiting, timeout=LAST_SECONDS)
        self.soak.unfinished = len(waiting)

    async def kills(self, every_seconds: float) -> None:
        """A replica, again and again; each deployment in turn."""
        while True:
            await asyncio.sleep(every_seconds)
            met = Counter(kill.deployment for kill in self.soak.kills)
            found = [(met[deployment(title(one))], self.random.random(), one) for one in self.replicas()]
            if not found:
                continue
            victim = min(found)[2]
            name = deployment(title(victim))
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                self.soak.kills.append(Kill(time.monotonic() - self.soak.began, name, victim.pid))
                print(f"{self.soak.kills[-1].at:7.1f} s  killed {name}", file=sys.stderr, flush=True)

    def replicas(self) -> list[psutil.Process]:
        """All of them."""
        return [one for one in self.side.family() if REPLICA in title(one)]

    async def samples(self, every_seconds: float) -> None:
        """Memory of all processes, again and again."""
        while True:
            self.soak.samples.append(await asyncio.to_thread(sample, self.side, self.soak.began))
            await asyncio.sleep(every_seconds)

    async def users(self) -> dict[str, set[str]]:
        """Deployment to the workloads that need it, as the server says."""
        reply = await exchange(self.host, self.port, "/v1/graph", self.side.headers, b"")
        names = {question.run_id: question.workload for question in self.asked}
        found: dict[str, set[str]] = {FRONT: set(names.values())}
        for graph in json.loads(reply.content)["data"]:
            for node in graph["nodes"]:
                found.setdefault(node["deployment"], set()).add(names[graph["model"]])
        return found


def deployment(words: str) -> str:
    """Which deployment a replica's command line names."""
    return words.partition(REPLICA)[2].split(".")[0].split()[0]


def part(words: str) -> str:
    """What a process is of the server, by its command line."""
    if REPLICA in words:
        return deployment(words)
    known = {"ServeController": "controller", "Proxy": "proxy", "haproxy": "proxy", "graft.cli": "graft serve"}
    return next((name for mark, name in known.items() if mark in words), "ray")


def sample(side: Side, began: float) -> Sample:
    """Resident memory of each part of the server, in MiB."""
    sizes: dict[str, float] = {}
    replicas: dict[str, int] = {}
    for process in side.family():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            name = part(words)
            sizes[name] = sizes.get(name, 0.0) + process.memory_info().rss / 2**20
            if REPLICA in words:
                replicas[name] = replicas.get(name, 0) + 1
    return Sample(time.monotonic() - began, sizes, replicas)


async def drive(side: Side, asked: Sequence[Question], options: argparse.Namespace) -> Soak:
    """Find the capacity, then load the server while its replicas are killed."""
    driver = Driver(side, asked, options.seed)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, driver.stop.set)
    users = await driver.users()
    capacity = await driver.capacity(options.clients, options.capacity_seconds)
    soak = driver.soak = Soak(time.monotonic(), capacity, capacity * options.load, users)
    if driver.stop.is_set() or not capacity:
        return soak
    print(f"capacity {capacity:.1f} requests/s, load {soak.rate:.1f}", file=sys.stderr, flush=True)
    beside = [
        asyncio.create_task(driver.samples(min(SAMPLE_SECONDS, options.minutes * 2))),
        asyncio.create_task(driver.kills(options.kill_seconds)),
    ]
    waiting = await driver.arrivals(soak.rate, options.minutes * 60)
    for task in beside:
        task.cancel()
    await driver.last(waiting)
    for ended in await asyncio.gather(*beside, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    return soak


def arguments() -> argparse.Namespace:
    """The command line; what stands after `--` goes to `graft serve`."""
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["probe", "shots", "completions"]
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--kill-seconds", type=float, default=120.0, help="between two kills")
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity")
    parser.add_argument("--clients", type=int, default=16, help="with which the capacity is found")
    parser.add_argument("--capacity-seconds", type=float, default=20.0)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--model", default=served.LANGUAGE_MODEL, help="source of the language model")
    parser.add_argument("--tokens", type=int, default=24, help="that are written after each prompt")
    parser.add_argument("--questions", type=int, default=300, help="distinct ones of each run")
    parser.add_argument("--fast", action="store_true", help="with Ray's variables for its faster proxy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", help="folder for the runs, to use them again")
    parser.add_argument("--out", type=Path, help="folder for soak.md, soak.svg and the figures as CSV")
    parser.add_argument("--quick", action="store_true", help="one minute: that it runs, not what it gives")
    options = parser.parse_args(given[:cut])
    options.words = given[cut + 1 :]
    if options.quick:
        options.minutes, options.kill_seconds, options.capacity_seconds, options.questions = 1.0, 25.0, 5.0, 40
    return options


def main() -> None:
    """Measure, print, and save where asked."""
    options = arguments()
    served.end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="graft-soak-") as folder:
        storage = Path(options.storage or folder).resolve()
        storage.mkdir(exist_ok=True)
        workloads = served.workloads(options.workloads, storage, options.model, options.tokens)
        asked = questions(workloads, storage, options.questions)
        where = f"{machine()}, load {os.getloadavg()[0]:.1f} before it; clients and server share the cores"
        run_ids = [workload.run_id for workload in workloads]
        with served.graft_server(storage, run_ids, options.words, served.FAST if options.fast else {}) as side:
            soak = asyncio.run(drive(side, asked, options))
    text = soak.page(where)
    print(text)
    if options.out:
        save(soak, text, options.out)


if __name__ == "__main__":
    main()
