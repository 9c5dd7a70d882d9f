"""What the sweep's machinery costs: trials that do nothing, through graft and through plain Ray Tune.

    python benchmarks/sweep.py [TRIALS]
    python benchmarks/sweep.py 200 --memory

One process, one local cluster, two trials at a time. The workers' start (graft's import torch) is one column, the pace
from the first trial's end to the last's another; "from start to end" is all of it:

- graft, no-op: graft's trials and events, with a run that does nothing;
- Ray Tune with `reuse_actors=True`: a function that reports one number;
- Ray Tune by default: the same function, a new process for each of its trials (a tenth as many);
- graft, smallest real runs: everything that a run is (rows, graph, seven metrics, five files), for scale: the
  label that most examples have, on 178 rows of numbers.

The first two take turns, three times each, because a machine's pace drifts; the medians are compared.

With `--memory` only what the driver's process holds (resident) before the first trial and after the 20th, the middle
one and the last, of the first two.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

from ray import tune

from graft import planning
from graft.cluster import connect
from graft.spec import Experiment
from graft.storage import open_storage
from graft.sweeps.agenda import Agenda, Group
from graft.sweeps.axes import expand
from graft.sweeps.limits import resident_bytes
from graft.sweeps.looks import Looks
from graft.sweeps.status import Status
from graft.sweeps.trial import GraftTrial
from graft.sweeps.tuning import tune_runs
from graft.sweeps.work import Work
from machine import machine

CONCURRENT = 2
TURNS = 3


class NoOp(GraftTrial):
    """A run that does nothing."""

    def step(self) -> dict[str, Any]:
        """Report one number."""
        return {"done": True, "metrics": {"value": 1.0}}


@dataclass
class Pace:
    """When trials ended."""

    began: float
    ends: list[float] = field(default_factory=list)
    held_bytes: list[int] = field(default_factory=list)
    """Resident memory of the driver before the first trial and at each end."""

    @property
    def start_seconds(self) -> float:
        """Until the first trial had ended."""
        return self.ends[0] - self.began

    @property
    def per_second(self) -> float:
        """Trials per second from then on."""
        return (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])

    @property
    def overall(self) -> float:
        """Trials per second from start to end."""
        return len(self.ends) / (self.ends[-1] - self.began)


def main() -> None:
    """Measure all sides and print them side by side."""
    words = argparse.ArgumentParser()
    words.add_argument("trials", type=int, nargs="?", default=300)
    words.add_argument("--memory", action="store_true", help="only the driver's memory")
    asked = words.parse_args()
    trials = asked.trials
    plans = {plan.run_id: plan for plan in planning.plans(expand(_experiment(trials)))}
    if asked.memory:
        return memory(plans)
    with connect(None, "benchmark"):
        turns = [(grafted(plans, NoOp), plain(trials, reuse=True)) for _ in range(TURNS)]
        fresh = plain(max(6, trials // 20), reuse=False)
        real = grafted(plans, GraftTrial)
    graft, reused = ([turn[side] for turn in turns] for side in (0, 1))
    print(f"{trials} trials, {CONCURRENT} at a time, {machine()}")
    print(f"{'':<30}{'start, s':>10}{'trials/s':>10}{'graft is':>10}{'from start to end':>20}{'graft is':>10}")
    _line("graft, no-op", graft, graft)
    _line("Ray Tune, reuse_actors=True", reused, graft)
    _line("Ray Tune, default", [fresh], graft)
    _line("graft, smallest real runs", [real], graft)


def memory(plans: dict[str, planning.Plan]) -> None:
    """Print what the driver holds as trials end, through graft and through plain Ray Tune after it."""
    with connect(None, "benchmark"):
        sides = {"graft, no-op": grafted(plans, NoOp), "Ray Tune, reuse_actors=True": plain(len(plans), reuse=True)}
    moments = (0, 20, len(plans) // 2, len(plans))
    print(f"driver's memory in MiB after so many trials, {CONCURRENT} at a time, {machine()}")
    print(f"{'':<30}" + "".join(f"{ended:>10}" for ended in moments) + f"{'KiB/trial':>12}")
    for name, pace in sides.items():
        held = [pace.held_bytes[ended] for ended in moments]
        each = (held[-1] - held[1]) / (moments[-1] - moments[1])
        print(f"{name:<30}" + "".join(f"{one / 2**20:>10.1f}" for one in held) + f"{each / 2**10:>12.1f}")


def _line(name: str, paces: list[Pace], graft: list[Pace]) -> None:
    def middle(of: list[Pace], what: str) -> float:
        return statistics.median(getattr(pace, what) for pace in of)

    cells = f"{name:<30}{middle(paces, 'start_seconds'):>10.1f}"
    for what, width in (("per_second", 10), ("overall", 20)):
        cells += f"{middle(paces, what):>{width}.2f}"
        cells += f"{'' if paces is graft else f'{middle(graft, what) / middle(paces, what):.2f}x':>10}"
    print(cells)


def grafted(plans: dict[str, planning.Plan], trial: type[GraftTrial]) -> Pace:
    """The pace of trials through graft."""
    with tempfile.TemporaryDirectory() as folder:
        status = Status("benchmark", folder, len(plans))
        rows = {plan.dataset.fingerprint: plan.dataset for plan in plans.values()}
        work = Work.of(status.sweep_id, rows, folder, 2**30)
        looks = Looks(open_storage(folder), "sweeps/benchmark")
        agenda = Agenda([Group(list(plans.values()), None)], lambda run_id: None, rows, looks)
        pace = Pace(time.perf_counter(), held_bytes=[resident_bytes()])

        def changed(run_id: str) -> None:
            if run_id not in status.running:
                pace.ends.append(time.perf_counter())
                pace.held_bytes.append(resident_bytes())

        tune_runs(work, agenda, status, changed, CONCURRENT, {"CPU": 1}, trial=trial)
        assert len(status.done) == len(plans) == len(pace.ends), status.failed
    return pace


def plain(trials: int, reuse: bool) -> Pace:
    """The pace of a function that reports one number."""

    def report(config: dict[str, int]) -> None:
        tune.report({"value": config["index"]})

    class Clock(tune.Callback):
        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            pace.ends.append(time.perf_counter())
            pace.held_bytes.append(resident_bytes())

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(report, {"CPU": 1}),
            param_space={"index": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=CONCURRENT, reuse_actors=reuse),
            run_config=tune.RunConfig(name="plain", storage_path=folder, verbose=0, callbacks=[Clock()]),
        )
        pace = Pace(time.perf_counter(), held_bytes=[resident_bytes()])
        tuner.fit()
    return pace


def _experiment(trials: int) -> Experiment:
    return Experiment.from_mapping(
        {
            "name": "smallest",
            "task": {"name": "wine"},
            "method": {"name": "probe", "classifier": "majority"},
            "sweep": {"axes": {"regime.examples": [16]}, "seeds": trials},
        }
    )


if __name__ == "__main__":
    main()
