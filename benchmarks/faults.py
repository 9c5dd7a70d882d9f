"""What a kill costs: processes, workers, nodes and disks are lost while a tiny model trains.

    python benchmarks/faults.py [SCENARIO ...]

Every scenario is a real run of `graft run`, on one machine, disturbed on purpose; what comes out is compared with a run
that nothing disturbs. "Back after" is the time from the loss until a checkpoint shows that training stands beyond where
it was lost: finding out, starting anew (importing torch is most of it) and repeating steps. Prints the table of
docs/faults.md. Each scenario is also a test: tests/training/test_faults.py.
"""

import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from pyarrow import parquet

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "cluster" / "local.sh"
STEPS = 300
NEVER_SECONDS = 240.0

SPEC = f"""
name: fault
task: {{name: file, path: ROWS, text: text, label: topic}}
models: {{base: {{source: MODEL}}}}
regime: {{examples: 60}}
method: {{name: full}}
training: {{max_steps: {STEPS}, tokens_per_batch: 256, checkpoint_steps: 5, checkpoint_seconds: 0}}
"""


@dataclass
class Outcome:
    """What came of a scenario."""

    lost: str
    """What was lost, and how."""
    at_steps: list[int] = field(default_factory=list)
    """Newest checkpoint at each loss."""
    back_seconds: list[float] = field(default_factory=list)
    happened: str = ""
    bit_equal: bool = False
    """The weights are those of the undisturbed run."""
    loss_difference: float = np.inf
    """The largest relative difference of a step's loss."""

    def line(self) -> str:
        """A row of the table."""
        at = ", ".join(map(str, self.at_steps)) or "–"
        back = ", ".join(f"{seconds:.0f} s" for seconds in self.back_seconds) or "–"
        equal = "bit for bit" if self.bit_equal else f"losses within {self.loss_difference:.0e}"
        return f"| {self.lost} | {at} | {self.happened} | {back} | {equal} |"


@dataclass
class Desk:
    """A folder with data, a model and a spec, and the runs that are started there."""

    folder: Path
    environment: dict[str, str]
    words: tuple[str, ...] = ()
    """Overrides of the spec."""
    program: tuple[str, ...] = (sys.executable, "-m", "graft.cli", "run")
    spec: Path = Path("spec.yaml")

    def start(self, storage: Path, limit_bytes: int | None = None) -> subprocess.Popen[bytes]:
        """Begin, or go on with, a run; no file may become larger than the limit."""

        def limit() -> None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        storage.mkdir(exist_ok=True)
        with (storage / "output").open("ab") as output:
            return subprocess.Popen(
                [*self.program, str(self.spec), *self.words, "--storage", str(storage)],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                preexec_fn=limit if limit_bytes else None,
                start_new_session=True,
            )

    def finish(self, storage: Path) -> None:
        """A run from here to its end."""
        check(self.start(storage), storage)


def check(process: subprocess.Popen[bytes], storage: Path) -> None:
    """A run ends as it should."""
    if process.wait():
        raise RuntimeError((storage / "output").read_text())


def step(storage: Path) -> int:
    """Of the newest checkpoint; 0 where there is none."""
    found = storage.glob("runs/*/checkpoints/*/last-*.safetensors")
    return max((int(path.stem.partition("-")[2]) for path in found), default=0)


def reach(storage: Path, wanted: int, process: subprocess.Popen[bytes]) -> None:
    """Return when a checkpoint of that step, or of a later one, is there; a run that has ended is beyond all."""
    until = time.monotonic() + NEVER_SECONDS
    while step(storage) < wanted:
        if process.poll() is not None:
            if list(storage.glob("runs/*/metrics.parquet")):
                return
            raise RuntimeError((storage / "output").read_text())
        if time.monotonic() > until:
            raise TimeoutError(f"step {step(storage)} after {NEVER_SECONDS} s:\n{(storage / 'output').read_text()}")
        time.sleep(0.02)


def compare(outcome: Outcome, storage: Path, undisturbed: Path) -> Outcome:
    """Note how equal two finished runs are."""
    outcome.bit_equal = weights(storage) == weights(undisturbed)
    mine, others = losses(storage), losses(undisturbed)
    assert len(mine) == len(others)
    outcome.loss_difference = float(np.max(abs(mine - others) / others))
    return outcome


def weights(storage: Path) -> str:
    """A hash of the trained weights."""
    (path,) = storage.glob("runs/*/graph/**/*.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(storage: Path) -> np.ndarray:
    """One per step."""
    (path,) = storage.glob("runs/*/training.parquet")
    column = parquet.read_table(path)["loss"]
    return np.array([loss for loss in column.to_pylist() if loss is not None])


def log_of(storage: Path) -> str:
    """What a run has logged, all its processes together."""
    (path,) = storage.glob("runs/*/run.log")
    return path.read_text()


@contextlib.contextmanager
def desk(model: Path | None = None) -> Iterator[Desk]:
    """A folder with a tiny random Llama and rows to learn; it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="graft-faults-") as place:
        folder = Path(place)
        topics = ("rain", "bread", "trains")
        lines = [f"a text about {topic} number {i},{topic}" for i in range(60) for topic in topics]
        (folder / "rows.csv").write_text("text,topic\n" + "\n".join(lines) + "\n")
        if model is None:
            sys.path.insert(0, str(ROOT / "tests"))
            from conftest import llama_config, save_tiny

            model = save_tiny(folder / "model", "LlamaForCausalLM", llama_config(), "<s> $A")
        spec = SPEC.replace("ROWS", str(folder / "rows.csv")).replace("MODEL", str(model))
        (folder / "spec.yaml").write_text(spec)
        # Several threads take ten times as long for a model as small as this.
        yield Desk(folder, {**os.environ, "OMP_NUM_THREADS": "1"})


def killed_again_and_again(desk: Desk, undisturbed: Path) -> Outcome:
    """One process, killed at four random moments."""
    outcome = Outcome("the process (one worker): SIGKILL, four times", happened="the same command goes on")
    storage, moments = desk.folder / "killed", random.Random(0)
    process = desk.start(storage)
    for nearly in (0, 60, 120, 180):
        reach(storage, nearly + moments.randint(1, 50), process)
        time.sleep(moments.random() / 20)
        process.kill()
        process.wait()
        lost_at, when = step(storage), time.monotonic()
        process = desk.start(storage)
        reach(storage, lost_at + 1, process)
        outcome.at_steps.append(lost_at)
        outcome.back_seconds.append(time.monotonic() - when)
    check(process, storage)
    return compare(outcome, storage, undisturbed)


def torn(desk: Desk, undisturbed: Path) -> Outcome:
    """One process, killed, and its newest checkpoint torn."""
    outcome = Outcome("the process, and half of its newest checkpoint", happened="the checkpoint before it is used")
    storage = desk.folder / "torn"
    process = desk.start(storage)
    reach(storage, 100, process)
    process.kill()
    process.wait()
    newest = max(storage.glob("runs/*/checkpoints/*/last-*.safetensors"))
    os.truncate(newest, newest.stat().st_size // 2)
    lost_at, when = int(newest.stem.partition("-")[2]), time.monotonic()
    process = desk.start(storage)
    reach(storage, lost_at + 1, process)
    outcome.at_steps, outcome.back_seconds = [lost_at], [time.monotonic() - when]
    check(process, storage)
    return compare(outcome, storage, undisturbed)


def full_disk(desk: Desk, undisturbed: Path) -> Outcome:
    """One process whose checkpoints do not fit on the disk."""
    outcome = Outcome("room for checkpoints (file size limit)", happened="a warning; training goes on without them")
    storage = desk.folder / "full"
    (model,) = (path for path in undisturbed.glob("runs/*/graph/**/*.safetensors"))
    process = desk.start(storage, limit_bytes=model.stat().st_size * 2)  # a checkpoint is three times as large
    check(process, storage)
    return compare(outcome, storage, undisturbed)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that train, below a driver."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if trains(child)]


def trains(process: psutil.Process) -> bool:
    """Whether it is a worker of Ray Train."""
    try:
        return "ray::RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def workers_killed(desk: Desk, undisturbed: Path) -> Outcome:
    """Two workers on one machine: one is killed, then the other."""
    outcome = Outcome("a worker of two: SIGKILL, twice", happened="both start anew by themselves")
    storage = desk.folder / "workers"
    process = desk.start(storage)
    for place, target in enumerate((50, 200)):
        reach(storage, target, process)
        workers_of(process)[place].kill()
        lost_at, when = step(storage), time.monotonic()
        time.sleep(0.5)  # what was being written
        lost_at = max(lost_at, step(storage))
        reach(storage, lost_at + 1, process)
        outcome.at_steps.append(lost_at)
        outcome.back_seconds.append(time.monotonic() - when)
    check(process, storage)
    return compare(outcome, storage, undisturbed)


def driver_ended(desk: Desk, undisturbed: Path) -> Outcome:
    """Two workers, whose driver is asked to end, and the next one killed."""
    outcome = Outcome(
        "the driver of two workers: SIGTERM, then SIGKILL", happened="workers end; the same command goes on"
    )
    storage, families = desk.folder / "driver", []
    process = desk.start(storage)
    for how, code, target in ((signal.SIGTERM, 130, 50), (signal.SIGKILL, -signal.SIGKILL, 150)):
        reach(storage, target, process)
        training = workers_of(process)
        families += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        if process.wait() != code or psutil.wait_procs(training, timeout=30)[1]:
            raise RuntimeError(f"{how.name} gave {process.returncode}, or workers are left")
        lost_at, when = step(storage), time.monotonic()
        process = desk.start(storage)
        reach(storage, lost_at + 1, process)
        outcome.at_steps.append(lost_at)
        outcome.back_seconds.append(time.monotonic() - when)
    check(process, storage)
    psutil.wait_procs(families, timeout=180)  # Ray's agents look for their cluster once a minute or so
    return compare(outcome, storage, undisturbed)


@dataclass
class Nodes:
    """A cluster of several nodes on this machine, with one logical CPU each."""

    folder: Path
    environment: dict[str, str]
    added: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def lose(self, number: int) -> None:
        """Kill a node: all of its processes at once."""
        (node,) = (process for process in psutil.process_iter() if self._is_node(process, number))
        family = [node, *node.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)

    def add(self, number: int) -> None:
        """Let one more node join; the cluster's end ends it too."""
        mark = (self.folder / "mark").read_text()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", "--num-gpus=0"]
        command += [f"--address={self.environment['RAY_ADDRESS']}", f"--temp-dir={self.folder}/node-{number}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        environment = {**self.environment, "GRAFT_CLUSTER_MARK": mark}
        del environment["RAY_ADDRESS"]
        with (self.folder / f"node-{number}.log").open("w") as log:
            command += ["--object-store-memory=150000000", "--disable-usage-stats"]
            self.added.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _is_node(self, process: psutil.Process, number: int) -> bool:
        try:
            words = process.cmdline()
            return "start" in words and f"--temp-dir={self.folder}/node-{number}" in words
        except psutil.Error:
            return False


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """Two nodes; lost ones are noticed within three seconds."""
    folder = Path(tempfile.mkdtemp(prefix="graft-", dir="/tmp"))  # Ray keeps sockets there: a short path
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"GRAFT_CLUSTER": str(folder), "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_PORT": free_port(), "RAY_DASHBOARD_PORT": free_port()}
    environment |= {f"RAY_health_check_{name}_ms": "1000" for name in ("initial_delay", "period", "timeout")}
    environment["RAY_health_check_failure_threshold"] = "3"
    cluster = Nodes(folder, environment)
    try:
        up = subprocess.run([LOCAL, "up", "2", "1"], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        variables = dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
        cluster.environment |= variables
        yield cluster
    finally:
        subprocess.run([LOCAL, "down"], env=environment, check=True)
        for node in cluster.added:
            node.wait(30)
        shutil.rmtree(folder)


def free_port() -> str:
    """A port on which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


def submitting(desk: Desk, cluster: Nodes) -> Desk:
    """The same runs as jobs: submitted from a copy of the repository."""
    for name in ("platform", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, desk.folder / name, ignore=ignored, dirs_exist_ok=True)
    program = (sys.executable, "jobs/submit.py")
    return Desk(desk.folder, cluster.environment, desk.words, program)


def node_replaced(desk: Desk, undisturbed: Path) -> Outcome:
    """Two workers on two nodes; one node is killed, and another one joins."""
    outcome = Outcome("a node of two: SIGKILL to all of it", happened="another node joins; both workers start anew")
    storage = desk.folder / "node"
    with nodes() as cluster:
        jobs = submitting(desk, cluster)
        process = jobs.start(storage)
        reach(storage, 100, process)
        cluster.lose(2)
        lost_at, when = step(storage), time.monotonic()
        cluster.add(3)
        reach(storage, lost_at + 1, process)
        outcome.at_steps, outcome.back_seconds = [lost_at], [time.monotonic() - when]
        check(process, storage)
    return compare(outcome, storage, undisturbed)


def node_gone_and_back(desk: Desk, undisturbed: Path) -> Outcome:
    """Two workers on two nodes, or one on one: a node is killed, and another one joins much later."""
    what = "a node of two, with `scaling.min_workers: 1`: SIGKILL"
    outcome = Outcome(what, happened="one worker goes on; two again when a node joins")
    storage = desk.folder / "elastic"
    with nodes() as cluster:
        jobs = submitting(desk, cluster)
        process = jobs.start(storage)
        reach(storage, 100, process)
        cluster.lose(2)
        outcome.at_steps, when = [step(storage)], time.monotonic()
        reach(storage, outcome.at_steps[0] + 1, process)
        outcome.back_seconds.append(time.monotonic() - when)
        cluster.add(3)
        when = time.monotonic()
        while log_of(storage).count("worker 0 of 2 begins") < 2:
            if process.poll() is not None:
                raise RuntimeError(f"it never grew:\n{log_of(storage)}")
            time.sleep(0.1)
        outcome.at_steps.append(step(storage))
        reach(storage, outcome.at_steps[1] + 1, process)
        outcome.back_seconds.append(time.monotonic() - when)
        check(process, storage)
    return compare(outcome, storage, undisturbed)


ONE: tuple[str, ...] = ()
TWO = ("scaling.workers=2",)
ELASTIC = (*TWO, "scaling.min_workers=1", "training.max_steps=3000", "training.tokens_per_batch=1024")
SCENARIOS: dict[str, tuple[tuple[str, ...], Callable[[Desk, Path], Outcome]]] = {
    "killed": (ONE, killed_again_and_again),
    "torn": (ONE, torn),
    "full": (ONE, full_disk),
    "workers": (TWO, workers_killed),
    "driver": (TWO, driver_ended),
    "node": (TWO, node_replaced),
    "elastic": (ELASTIC, node_gone_and_back),
}
"""Name to the spec's overrides and the scenario."""


def main() -> None:
    """Carry out the scenarios and print a table."""
    names = sys.argv[1:] or list(SCENARIOS)
    print(f"{machine()}, no GPU; load {os.getloadavg()[0]:.1f}\n", flush=True)
    print("| lost | at step | what happens | back after | result |\n|---|---|---|---|---|", flush=True)
    undisturbed: dict[tuple[str, ...], Path] = {}
    with desk() as plain:
        for words, scenario in (SCENARIOS[name] for name in names):
            own = dataclasses.replace(plain, words=words)
            if words not in undisturbed:
                undisturbed[words] = plain.folder / f"undisturbed-{len(undisturbed)}"
                own.finish(undisturbed[words])
            print(scenario(own, undisturbed[words]).line(), flush=True)


if __name__ == "__main__":
    main()
