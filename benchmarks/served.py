"""What `serve.py` and `soak.py` serve and ask: three small finished runs, their requests, the servers' processes."""

import contextlib
import csv
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from graft import models, runs
from graft.graph import Graph
from graft.serving.keys import add_key
from graft.spec import Experiment, ModelSource
from graft.tasks.templates import render, template_for

HERE = Path(__file__).resolve().parent
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL = "recipe:graft-nano"
FAST = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Ray Serve's faster proxy and settings; it opens ports of its own on all interfaces."""
LEARNED_CHARACTERS = (80, 300)
ASKED_CHARACTERS = (30, 300)
"""Of the docstrings that are shown as examples, and of those that are asked about, of which there must be many."""
SHOTS = 8
START_SECONDS = 300.0
STOP_SECONDS = 120.0
MARK = "\x00"

Body = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A finished run and what it is asked."""

    name: str
    what: str
    run_id: str
    path: str
    unit: str
    """What is counted: tokens written, or classifications."""
    bodies: list[Body]
    plain: Body
    """What the plain server needs to give the same answers."""

    def saved(self, folder: Path) -> Path:
        """The requests as a file for the load's process."""
        file = folder / f"{self.name}.requests.json"
        if not file.exists():
            file.write_text(json.dumps(self.bodies))
        return file


@dataclass
class Side:
    """A server that answers."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    """Of its first process."""

    def family(self) -> list[psutil.Process]:
        """All of its processes."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


def workloads(names: Sequence[str], storage: Path, model: str, tokens: int) -> list[Workload]:
    """Runs by name, made where they are missing.

    Args:
        names: of probe, shots and completions.
        storage: where they are.
        model: source of the language model.
        tokens: limit of what is written after a prompt.
    """
    makers = {
        "probe": lambda: probe(storage),
        "shots": lambda: shots(storage, model),
        "completions": lambda: completions(storage, model, tokens),
    }
    return [makers[name]() for name in names]


def completions(storage: Path, source: str, tokens: int) -> Workload:
    """A language model that continues beginnings of stories, greedily."""
    rows = storage / "stories.csv"
    beginnings = _beginnings()
    _write(rows, ("text", "answer"), [(text, "a wood") for text in beginnings[:40]])
    run_id = _carry_out(
        storage,
        name="stories",
        models={"base": {"source": source}},
        # The prompt is the text alone, as in a request of completions.
        task={"name": "file", "path": str(rows), "text": "text", "target": "answer", "template": "{text}{target}"},
        method={"name": "icl", "num_shots": 0, "max_new_tokens": tokens},
        regime={"examples": 2},
    )
    bodies = [{"model": run_id, "prompt": text, "max_tokens": tokens, "temperature": 0} for text in beginnings]
    what = f"{_short(source)}, greedy, up to {tokens} tokens after about 20"
    plain = {"kind": "completions", "folder": _folder(source)}
    return Workload("completions", what, run_id, "/v1/completions", "tokens", bodies, plain)


def probe(storage: Path) -> Workload:
    """A ridge classifier on a sentence encoder that tells a docstring's topic."""
    rows = _docstrings(storage)
    run_id = _carry_out(
        storage,
        name="topics",
        models={"encoder": {"source": ENCODER}},
        task={"name": "file", "path": str(rows), "text": "text", "label": "topic"},
        method={"name": "probe", "classifier": "ridge"},
        regime={"examples": 256},
    )
    classify = runs.load(run_id, storage).nodes[-1]
    head = storage / "head.npz"
    np.savez(head, **{name: getattr(classify, name) for name in ("centre", "scale", "coef", "intercept")})
    plain = {"kind": "probe", "folder": _folder(ENCODER), "head": str(head), "labels": list(classify.labels)}
    what = "a ridge classifier of eight labels on all-MiniLM-L6-v2, a docstring of 30 to 300 characters"
    return Workload("probe", what, run_id, "/v1/classify", "classifications", _bodies(run_id, storage), plain)


def shots(storage: Path, source: str) -> Workload:
    """A language model that tells a docstring's topic after demonstrations, the same ones in each prompt."""
    rows = _docstrings(storage)
    run_id = _carry_out(
        storage,
        name="shots",
        models={"base": {"source": source}},
        task={"name": "file", "path": str(rows), "text": "text", "label": "topic", "test_examples": 32},
        method={"name": "icl", "num_shots": SHOTS},
        regime={"examples": 64},
    )
    plain, tokens = _prompt(runs.load(run_id, storage), source)
    what = (
        f"{_short(source)} with {SHOTS} demonstrations ({tokens} tokens before each question), a docstring of 30 to "
        "300 characters, eight labels"
    )
    return Workload("shots", what, run_id, "/v1/classify", "classifications", _bodies(run_id, storage), plain)


def _prompt(graph: Graph, source: str) -> tuple[Body, int]:
    """What stands around a text in the prompts of the run, and how long it is before it."""
    retrieve, complete = graph.nodes
    row = pa.table({"id": ["a"], "text": [MARK]})
    ids = retrieve.run(row)["demonstrations"][0].as_py()
    examples = {example["id"]: example for example in complete.examples}
    template = template_for(complete.template, complete.inputs, complete.kind, generation=False)
    prompt = render(template, {"text": MARK}, [examples[one] for one in ids], complete.instruction, complete.model.chat)
    prefix, _, suffix = prompt.partition(MARK)
    candidates = [template.candidate(label) + complete.label_end for label in complete.labels]
    plain = {"kind": "shots", "folder": _folder(source), "prefix": prefix, "suffix": suffix}
    plain |= {"labels": list(complete.labels), "candidates": candidates}
    return plain, int(complete.model.count_tokens([prefix])[0])


def _carry_out(storage: Path, **spec: Any) -> str:
    return str(Experiment.from_mapping(spec).run(storage).run_id)


def _folder(source: str) -> str:
    return str(models.locate(ModelSource(source=source)))


def _short(source: str) -> str:
    return source.rstrip("/").rpartition("/")[2].removeprefix("recipe:")


def _beginnings() -> list[str]:
    """Distinct beginnings of stories, in random order."""
    adjectives = ("little", "proud", "old", "hungry", "clever", "lonely", "brave", "lazy", "gentle", "grey")
    animals = ("fox", "king", "mouse", "bear", "princess", "miller", "crow", "goose", "wolf", "giant", "frog", "hare")
    places = ("a deep wood", "an old mill", "a small house by the sea", "the mountains", "a garden", "a dark tower")
    ends = ("One day", "Every morning", "In winter")
    found = [
        f"Once upon a time there was a {adjective} {animal} who lived in {place}. {end}, the {animal}"
        for adjective, animal, place, end in itertools.product(adjectives, animals, places, ends)
    ]
    random.Random(0).shuffle(found)
    return found


def _docstrings(storage: Path, characters: tuple[int, int] = LEARNED_CHARACTERS) -> Path:
    """Docstrings of Python's standard library with their topics, neither very short nor very long."""
    shortest, longest = characters
    file = storage / f"docstrings-{shortest}-{longest}.csv"
    if not file.exists():
        method = {"name": "probe", "classifier": "majority"}
        spec = {"name": "docs", "task": {"name": "python-docs"}, "models": {"encoder": {"source": ENCODER}}}
        rows = Experiment.from_mapping({**spec, "method": method}).task.read().train
        pairs = zip(rows["text"].to_pylist(), rows["target"].to_pylist(), strict=True)
        _write(file, ("text", "topic"), [pair for pair in pairs if shortest <= len(pair[0]) <= longest])
    return file


def _write(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def _bodies(run_id: str, storage: Path) -> list[Body]:
    with _docstrings(storage, ASKED_CHARACTERS).open(newline="") as stream:
        texts = list(dict.fromkeys(row["text"] for row in csv.DictReader(stream)))
    random.Random(0).shuffle(texts)
    return [{"model": run_id, "input": [text]} for text in texts]


def end_on_sigterm() -> None:
    """Leave by the way that ends the servers too: they would outlive a process that is just gone."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@contextlib.contextmanager
def plain_server(asked: Body, folder: Path) -> Iterator[Side]:
    """The plain server, for as long as the block lasts."""
    port = free_port()
    command = [sys.executable, str(HERE / "plain_server.py"), json.dumps({**asked, "port": port})]
    with (folder / "plain.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    side = Side(f"http://127.0.0.1:{port}", pid=process.pid)
    try:
        _wait_for(side, process, folder / "plain.log")
        yield side
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _wait_for(side: Side, process: subprocess.Popen[Any], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{side.url}/healthz", timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"no server at {side.url}:\n{log.read_text()}")


@contextlib.contextmanager
def graft_server(
    storage: Path, names: Sequence[str], words: Sequence[str] = (), variables: dict[str, str] | None = None
) -> Iterator[Side]:
    """`graft serve`, for as long as the block lasts; nothing of it is left behind.

    Args:
        storage: where the runs are.
        names: run ids.
        words: more of the command line.
        variables: of its environment.
    """
    port, keys = free_port(), storage / "keys.json"
    key = add_key(keys, f"key-{port}-{time.time_ns()}")
    command = [sys.executable, "-m", "graft.cli", "serve", *names, "--storage", str(storage), "--port", str(port)]
    with (storage / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--api-keys", str(keys), *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(variables or {})},
            start_new_session=True,
        )
    try:
        _read_until_ready(process, storage / "serve.log")
        yield Side(f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}, process.pid)
    finally:
        _end(process)


def _read_until_ready(process: subprocess.Popen[str], log: Path) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("try"):
            return
    raise RuntimeError(f"graft serve ended with {process.wait()}:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    others = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=STOP_SECONDS)
    for left in [*psutil.wait_procs(others, timeout=30)[1], process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def title(process: psutil.Process) -> str:
    """A process's command line; Ray writes there what it does."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def open_ports(side: Side) -> tuple[list[int], list[int]]:
    """Ports of the server's processes: those that this machine alone reaches, and those on all interfaces."""
    local, everywhere = set[int](), set[int]()
    for process in side.family():
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    own = connection.laddr.ip in ("127.0.0.1", "::1")
                    (local if own else everywhere).add(connection.laddr.port)
    return sorted(local), sorted(everywhere)
