"""A served run beside a plain server of the same model, and beside the model called in process.

    python benchmarks/serve.py [--workloads probe shots completions] [--modes default fast] [--out FILE] [--quick]
                               [-- MORE WORDS FOR graft serve]

The same weights and the same requests on one machine in one run. The plain server is FastAPI and transformers, one
request at a time (`plain_server.py`, written well); in process the graph answers one request after the other, and 16 at
once, which is about what these cores can give to any server. Before anything is timed the answers of all sides are
compared, and those under load afterwards. Clients (`load.py`, a process of its own) ask again as soon as they are
answered. The sides take turns, because a machine's pace drifts: medians over the turns with their range, ratios turn by
turn. Everything shares the machine's cores: both servers, of which one is idle, and the clients.

The default mode is Ray Serve's own proxy. The fast one is its HAProxy with the settings for throughput, which opens
ports on all interfaces; which ones is printed.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import served
from figures import ratio, spread
from load import Ask, Point
from machine import machine
from served import Side, Workload

HERE = Path(__file__).resolve().parent
DIRECT, PLAIN, GRAFT = "in process", "plain server", "graft"
COMPARED = 24
"""Requests whose answers are compared before anything is timed."""
WANTED = {"tokens": 4.0, "classifications": 5.0}
"""Times the plain server's pace, at WANTED_CLIENTS."""
WANTED_CLIENTS = 16
WANTED_OVERHEAD_MS = 20.0

Turn = dict[tuple[str, int], Point]
"""Side and number of clients to what was measured."""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    folder: Path
    clients: list[int]
    seconds: float
    warm_seconds: float
    repeats: int
    words: list[str]
    """More of `graft serve`'s command line."""
    fast_words: list[str]
    """What the fast mode adds to it; where empty, environment variables do."""


def main() -> None:
    """Measure and print."""
    options = arguments()
    served.end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="graft-serve-") as folder:
        plan = Plan(
            Path(options.storage or folder).resolve(),
            options.clients,
            options.seconds,
            options.warm_seconds,
            options.repeats,
            options.words,
            options.fast_words.split(),
        )
        plan.folder.mkdir(exist_ok=True)
        parts = [
            f"{machine()}, load {os.getloadavg()[0]:.1f} before it; {plan.seconds:g} s for each figure and turn, "
            f"{plan.repeats} turns, medians (and their range). Servers and clients share the cores."
        ]
        print(parts[0], flush=True)
        for workload in served.workloads(options.workloads, plan.folder, options.model, options.tokens):
            if options.plain_whole:
                workload.plain["whole"] = True
            for part in measured(workload, plan, options.modes):
                parts.append(part)
                print(f"\n{part}", flush=True)
    if options.out:
        options.out.write_text("\n\n".join(parts) + "\n")


def arguments() -> argparse.Namespace:
    """The command line; what stands after `--` goes to `graft serve`."""
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["probe", "shots", "completions"]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--modes", nargs="+", choices=("default", "fast"), default=["default", "fast"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="that are counted, of each figure and turn")
    parser.add_argument("--warm-seconds", type=float, default=3.0, help="before them")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--model", default=served.LANGUAGE_MODEL, help="source of the language model")
    parser.add_argument("--tokens", type=int, default=48, help="that are written after each prompt")
    parser.add_argument("--plain-whole", action="store_true", help="the plain server reads a prompt for each label")
    parser.add_argument("--fast-words", default="", help="what makes graft serve fast, in place of Ray's variables")
    parser.add_argument("--storage", help="folder for the runs, to use them again")
    parser.add_argument("--out", type=Path, help="Markdown file for what is printed")
    parser.add_argument("--quick", action="store_true", help="one short turn: that it runs, not what it gives")
    options = parser.parse_args(given[:cut])
    options.words = given[cut + 1 :]
    if options.quick:
        options.repeats, options.seconds, options.warm_seconds, options.clients = 1, 2.0, 1.0, [1, WANTED_CLIENTS]
    return options


def measured(workload: Workload, plan: Plan, modes: list[str]) -> Iterator[str]:
    """A part of the page for each mode."""
    whole = "; the plain server reads the prompt for each label" if "whole" in workload.plain else ""
    yield f"### {workload.name}: {workload.what}{whole}"
    with served.plain_server(workload.plain, plan.folder) as plain:
        for mode in modes:
            with _graft(workload, plan, mode) as graft:
                sides = {PLAIN: plain, GRAFT: graft}
                local, everywhere = served.open_ports(graft)
                known = compared(workload, plan, sides)
                turns = [turn(workload, plan, sides, known, number) for number in range(plan.repeats)]
            yield page(workload, plan, mode, turns)
            yield f"Open ports: {_listed(local)} for this machine alone, {_listed(everywhere)} on all interfaces."


def _graft(workload: Workload, plan: Plan, mode: str) -> contextlib.AbstractContextManager[Side]:
    words, variables = plan.words, dict[str, str]()
    if mode == "fast":
        words, variables = [*words, *plan.fast_words], {} if plan.fast_words else served.FAST
    return served.graft_server(plan.folder, [workload.run_id], words, variables)


def ask(workload: Workload, plan: Plan, side: Side | None, **more: Any) -> Point:
    """What a load of one side gave; None is the run in process."""
    where = {"url": side.url, "headers": side.headers} if side else {"storage": str(plan.folder)}
    asked = Ask(str(workload.saved(plan.folder)), workload.path, **where, **more)
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py")],
        input=json.dumps(asdict(asked)),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"the load of {workload.name} failed:\n{done.stderr}")
    return Point(**json.loads(done.stdout.splitlines()[-1]))


def compared(workload: Workload, plan: Plan, sides: dict[str, Side]) -> dict[str, int]:
    """Units of the first requests by their place; all sides answer these alike, or there is nothing to compare."""
    all_sides: dict[str, Side | None] = {**sides, DIRECT: None}
    points = {name: ask(workload, plan, side, requests=COMPARED) for name, side in all_sides.items()}
    expected = points[PLAIN].answers
    for name, point in points.items():
        for place, answer in expected.items():
            found = point.answers.get(place, f"none ({point.statuses})")
            # In process a text ends with its line, as the run's own answers do.
            if found != (answer.partition("\n")[0].strip() if name == DIRECT else answer):
                sys.exit(f"{workload.name}, request {place}: {name} answers {found!r}, the plain server {answer!r}")
    if points[PLAIN].units != points[GRAFT].units:
        sys.exit(f"{workload.name}: units are counted differently: {points[PLAIN].units}, {points[GRAFT].units}")
    return points[PLAIN].units


def turn(workload: Workload, plan: Plan, sides: dict[str, Side], known: dict[str, int], number: int) -> Turn:
    """Each side at each number of clients; who begins alternates."""
    often = {"seconds": plan.seconds, "warm_seconds": plan.warm_seconds}
    found: Turn = {}
    for clients in sorted({1, WANTED_CLIENTS}.intersection(plan.clients)):
        direct = ask(workload, plan, None, clients=clients, offset=0, **often)
        # What is written in process is not counted there.
        direct.units_per_second = direct.requests_per_second * statistics.mean(known.values())
        found[DIRECT, clients] = direct
    order = list(sides.items())[:: -1 if number % 2 else 1]
    for place, clients in enumerate(plan.clients):
        # Neither side meets a text in a turn that it met shortly before.
        offset = (number * len(plan.clients) + place) * len(workload.bodies) // (plan.repeats * len(plan.clients))
        for name, side in order:
            found[name, clients] = ask(
                workload, plan, side, clients=clients, offset=offset if clients > 1 else 0, **often
            )
    return found


def page(workload: Workload, plan: Plan, mode: str, turns: list[Turn]) -> str:
    """Tables of what was measured in one mode."""
    unit = workload.unit
    lines = [f"**{mode} mode**", "", f"| | clients | p50, ms | p99, ms | requests/s | {unit}/s | graft is |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, clients in turns[0]:
        points = [one[name, clients] for one in turns]
        cells = [spread([getattr(point, what) for point in points]) for what in ("p50_ms", "p99_ms")]
        cells += [spread([getattr(point, what) for point in points]) for what in ("requests_per_second",)]
        paces = [point.units_per_second for point in points]
        cells.append(spread(paces))
        ours = [one[GRAFT, clients].units_per_second for one in turns] if (GRAFT, clients) in turns[0] else []
        cells.append(ratio(ours, paces) if ours and name != GRAFT else "")
        lines.append(f"| {name} | {clients} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_verdict(workload, turns), _agreement(turns)])


def _verdict(workload: Workload, turns: list[Turn]) -> list[str]:
    lines = []
    if (GRAFT, WANTED_CLIENTS) in turns[0]:
        paces = {name: [one[name, WANTED_CLIENTS].units_per_second for one in turns] for name in (GRAFT, PLAIN)}
        times, wanted = ratio(paces[GRAFT], paces[PLAIN]), WANTED[workload.unit]
        lines.append(
            f"At {WANTED_CLIENTS} clients: {times} the plain server's {workload.unit} per second (wanted: {wanted:g}x)."
        )
    if (GRAFT, 1) in turns[0]:
        over = {name: [one[name, 1].p50_ms - one[DIRECT, 1].p50_ms for one in turns] for name in (GRAFT, PLAIN)}
        lines.append(
            f"Overhead at one client, p50 less that in process: graft {spread(over[GRAFT])} ms (wanted in the default "
            f"mode: at most {WANTED_OVERHEAD_MS:g}), plain server {spread(over[PLAIN])} ms."
        )
    return lines


def _agreement(turns: list[Turn]) -> str:
    """How often both servers gave the same answer under load, and what was not answered."""
    given: dict[str, dict[str, set[str]]] = {PLAIN: {}, GRAFT: {}}
    refused = dict.fromkeys(given, 0)
    for (name, _), point in (pair for one in turns for pair in one.items() if pair[0][0] in given):
        for place, answer in point.answers.items():
            given[name].setdefault(place, set()).add(answer)
        refused[name] += sum(number for status, number in point.statuses.items() if status != "200")
    both = given[PLAIN].keys() & given[GRAFT].keys()
    same = sum(given[PLAIN][place] == given[GRAFT][place] for place in both)
    failed = ", ".join(f"{number} of {name}" for name, number in refused.items())
    asked = f"Under load {same:,} of {len(both):,} requests that both were asked have the same answer"
    return f"{asked}; not answered: {failed}."


def _listed(ports: list[int]) -> str:
    return ", ".join(map(str, ports)) or "none"


if __name__ == "__main__":
    main()
