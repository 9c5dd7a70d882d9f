"""The runs that a sweep stands for, before any of them begins."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graft import hashing, planning
from graft.spec import Experiment
from graft.sweeps.ablations import names
from graft.sweeps.axes import Member
from graft.swept import Sweep


@dataclass(frozen=True)
class Roster:
    """The runs that a sweep stands for, each once, in the order of the sweep."""

    sweep_id: str
    plans: Mapping[str, planning.Plan]
    """run_id to its plan."""
    ablations: Mapping[str, str | None]
    """run_id to what it lacks; all None in a sweep without ablations."""

    def describe(self, sweep: Sweep) -> str:
        """How many runs there are, and how many of each ablation, as text."""
        lines = [f"sweep      {self.sweep_id}: {len(self.plans)} runs; the first of them:"]
        if sweep.ablations is not None:
            counts = Counter(self.ablations[run_id] for run_id in self.plans)
            rungs = (f"           {name}: {count} run{'s' if count > 1 else ''}" for name, count in counts.items())
            lines[:0] = [f"ablations  {sweep.ablations.kind}", *rungs]
        return "\n".join(lines)


def plan_sweep(experiment: Experiment, members: Sequence[Member]) -> Roster:
    """What the members of a sweep come to; no model runs.

    Raises:
        GraftError: a member cannot be carried out as written.
    """
    planned = planning.plans([member.experiment for member in members])
    # Two values of an axis, or an ablation and an axis, may stand for one experiment; it is carried out and counted
    # once.
    plans = {plan.run_id: plan for plan in planned}
    ablations = names((plan.run_id, member.ablation) for plan, member in zip(planned, members, strict=True))
    return Roster(identify(experiment, ablations), plans, ablations)


def identify(experiment: Experiment, ablations: Mapping[str, str | None]) -> str:
    """The id of a sweep: slug, and hash of the ids of its runs and of what they are called there.

    Args:
        experiment: with the sweep.
        ablations: run_id to the name of its ablation, or None.
    """
    called = sorted([run_id, name] for run_id, name in ablations.items() if name is not None)
    return f"{experiment.name}-{hashing.digest(called or sorted(ablations))[:10]}"
