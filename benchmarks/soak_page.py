"""What a soak came to, in words, as files and as a picture."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from figures import Slope, near, percentile, slope

ALLOWED = (200, 429, 503)
PROMPT_SECONDS = 1.0
"""A refusal that takes longer has made its sender wait for nothing."""
NEAR_KILL_SECONDS = 30.0
SETTLED_SECONDS = 10.0
"""From a new replica's first answer until its memory counts."""
WARM_SHARE = 0.1
"""Of the time: what memory does in it is not counted."""


@dataclass(frozen=True)
class Outcome:
    """One request and what came of it; times in seconds since the load began."""

    name: str
    workload: str
    began: float
    ended: float
    status: int
    right: bool | None
    responses: int
    echoed: bool | None
    """Whether the response names the request; None where it names none."""
    problem: str = ""

    @property
    def seconds(self) -> float:
        """Until the answer had come."""
        return self.ended - self.began


@dataclass(frozen=True)
class Kill:
    """A replica that was killed."""

    at: float
    deployment: str
    pid: int


@dataclass(frozen=True)
class Sample:
    """Memory at a moment."""

    at: float
    sizes: dict[str, float]
    """Part of the server to its resident MiB."""
    replicas: dict[str, int]
    """Deployment to its number of processes."""


@dataclass
class Soak:
    """Everything that was noted."""

    began: float
    capacity: float = 0.0
    rate: float = 0.0
    users: dict[str, set[str]] = field(default_factory=dict)
    """Deployment to the workloads that need it."""
    outcomes: list[Outcome] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    sent_seconds: float = 0.0
    unfinished: int = 0

    def page(self, where: str) -> str:
        """All of it as Markdown."""
        if not self.outcomes:
            return f"{where}: nothing was asked; capacity {self.capacity:.1f} requests/s"
        named = sum(one.echoed is True for one in self.outcomes)
        head = (
            f"{where}. Capacity {self.capacity:.1f} requests/s with closed clients; {len(self.outcomes):,} requests in "
            f"{self.sent_seconds / 60:.1f} minutes ({len(self.outcomes) / self.sent_seconds:.1f}/s), "
            f"{len(self.kills)} kills; {named:,} responses name their request."
        )
        return "\n\n".join([head, self._verdict(), self._latencies(), self._kills(), self._memory()])

    def faults(self) -> dict[str, int]:
        """What must not happen, and how often it did."""
        return {
            "lost (no whole response)": sum(one.responses < 1 for one in self.outcomes) + self.unfinished,
            "answered more than once": sum(one.responses > 1 for one in self.outcomes),
            "another request's id": sum(one.echoed is False for one in self.outcomes),
            "wrong answers": sum(one.right is False for one in self.outcomes),
            "statuses other than 200, 429, 503": sum(one.status not in (0, *ALLOWED) for one in self.outcomes),
            "refused after more than a second": sum(
                one.status in (429, 503) and one.seconds > PROMPT_SECONDS for one in self.outcomes
            ),
        }

    def _verdict(self) -> str:
        statuses = Counter(one.status for one in self.outcomes)
        problems = Counter(one.problem for one in self.outcomes if one.problem)
        lines = ["| what became of the requests | |", "|---|---:|"]
        lines += [
            f"| {f'status {status}' if status else 'no status'} | {statuses[status]:,} |" for status in sorted(statuses)
        ]
        lines += [f"| {name} | {number:,} |" for name, number in self.faults().items()]
        lines += [f"| of these: {name} | {number:,} |" for name, number in problems.items()]
        return "\n".join(lines)

    def _latencies(self) -> str:
        moments = [kill.at for kill in self.kills]
        lines = ["| answered (200), seconds | number | p50 | p99 | longest |", "|---|---:|---:|---:|---:|"]
        groups = {name: [one for one in self._fine() if one.workload == name] for name in self._workloads()}
        close = [one for one in self._fine() if near(one.began, moments, NEAR_KILL_SECONDS)]
        far = [one for one in self._fine() if not near(one.began, moments, NEAR_KILL_SECONDS)]
        groups |= {"all": self._fine(), f"sent within {NEAR_KILL_SECONDS:g} s after a kill": close, "all others": far}
        for name, some in groups.items():
            times = [one.seconds for one in some]
            cells = [percentile(times, 50), percentile(times, 99), max(times, default=math.nan)]
            lines.append(f"| {name} | {len(some):,} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
        return "\n".join(lines)

    def _fine(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.status == 200]

    def _workloads(self) -> list[str]:
        return sorted({one.workload for one in self.outcomes})

    def _kills(self) -> str:
        lines = ["| killed | at, s | not 200 until it was back | answers again after, s |", "|---|---:|---:|---:|"]
        for kill in self.kills:
            back = self.back(kill)
            refused = sum(one.status != 200 and kill.at <= one.ended <= kill.at + back + 1 for one in self.outcomes)
            lines.append(f"| {kill.deployment} | {kill.at:.0f} | {refused:,} | {back:.1f} |")
        return "\n".join(lines)

    def back(self, kill: Kill) -> float:
        """Seconds from a kill until a request that was sent later and needs that model had been answered."""
        needs = self.users.get(kill.deployment, set())
        later = [one.ended for one in self._fine() if one.began >= kill.at and one.workload in needs]
        return min(later, default=math.inf) - kill.at

    def _memory(self) -> str:
        steady = self.steady()
        lines = [
            "| resident, MiB | first third | last third | MiB per minute (95 % interval) |",
            "|---|---:|---:|---:|",
        ]
        if len(steady) < 2:
            return "Too short to say anything about memory."
        names = sorted({name for one in steady for name in one.sizes})
        models = set(self.users) - {"http"}
        rows = {name: [one.sizes.get(name, 0.0) for one in steady] for name in names}
        rows["all but the models"] = [
            sum(size for name, size in one.sizes.items() if name not in models) for one in steady
        ]
        rows["all"] = [sum(one.sizes.values()) for one in steady]
        for name, sizes in rows.items():
            lines.append(f"| {name} | {_cells(slope([one.at for one in steady], sizes))} |")
        kept = f"{len(steady)} of {len(self.samples)} samples: after the first tenth, and with every model in its place"
        return "\n".join([*lines, "", f"From {kept}."])

    def steady(self) -> list[Sample]:
        """Samples in which nothing is missing because it was killed just before."""
        if not self.samples:
            return []
        whole = self.samples[0].replicas
        warm = WARM_SHARE * self.samples[-1].at
        # A process that is there may still be loading: it counts from shortly after its first answer.
        gaps = [(kill.at, kill.at + max(NEAR_KILL_SECONDS, self.back(kill) + SETTLED_SECONDS)) for kill in self.kills]
        return [
            one
            for one in self.samples
            if one.at >= warm and one.replicas == whole and not any(low <= one.at <= high for low, high in gaps)
        ]


def _cells(found: Slope) -> str:
    return f"{found.first:,.1f} | {found.last:,.1f} | {found.per_minute:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def save(soak: Soak, text: str, folder: Path) -> None:
    """The page, every figure, and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.md").write_text(text + "\n")
    _csv(folder / "requests.csv", [one.name for one in fields(Outcome)], [astuple(one) for one in soak.outcomes])
    _csv(folder / "kills.csv", [one.name for one in fields(Kill)], [astuple(one) for one in soak.kills])
    sizes = [(one.at, name, size) for one in soak.samples for name, size in one.sizes.items()]
    _csv(folder / "memory.csv", ["at", "part", "mib"], sizes)
    draw(soak, folder / "soak.svg")


def _csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def draw(soak: Soak, file: Path) -> None:
    """Latency and memory over time, kills as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(11, 6), layout="constrained")
    for status in sorted({one.status for one in soak.outcomes}):
        some = [one for one in soak.outcomes if one.status == status]
        label = str(status) if status else "none"
        # Thousands of points as shapes would make a file that no browser likes.
        above.plot(
            [one.began / 60 for one in some], [one.seconds for one in some], ".", ms=2, label=label, rasterized=True
        )
    above.set(yscale="log", ylabel="seconds to the answer")
    above.legend(title="status", markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5))
    minutes = [one.at / 60 for one in soak.samples]
    below.plot(minutes, [sum(one.sizes.values()) for one in soak.samples], label="all processes")
    for name in sorted({name for one in soak.samples for name in one.replicas}):
        below.plot(minutes, [one.sizes.get(name, 0.0) for one in soak.samples], label=name)
    below.set(xlabel="minutes", ylabel="resident, MiB", ylim=(0, None))
    below.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    for kill in soak.kills:
        for axes in (above, below):
            axes.axvline(kill.at / 60, color="0.6", lw=0.8, ls=":")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
