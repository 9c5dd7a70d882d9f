"""The runs that a sweep stands for, before any of them begins."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft import hashing, planning
from graft.spec import Experiment
from graft.sweeps.ablations import names
from graft.sweeps.axes import Cell, Member
from graft.sweeps.spaces import spaces
from graft.swept import Dimension, Sweep

PROPOSALS = 2
"""The version of how searches propose: where the same search would try other settings, it makes another sweep."""


@dataclass(frozen=True)
class Arm:
    """One arm of a sweep with one amount of data."""

    cell: Cell | None
    """None for an experiment without a sweep."""
    plans: tuple[planning.Plan, ...]
    """A run per reporting seed, with the spec's own settings."""
    space: Mapping[str, Dimension]
    """What a search may change of it."""


@dataclass(frozen=True)
class Roster:
    """The runs that a sweep stands for, each once, in the order of the sweep."""

    sweep_id: str
    plans: Mapping[str, planning.Plan]
    """run_id to its plan; where a setting is searched for, with the spec's own."""
    ablations: Mapping[str, str | None]
    """run_id to what it lacks; all None in a sweep without ablations."""
    arms: tuple[Arm, ...]

    def describe(self, sweep: Sweep) -> str:
        """How many runs there are, and how many of each ablation, as text."""
        lines = [f"sweep      {self.sweep_id}: {len(self.plans)} runs; the first of them:"]
        if sweep.search is not None:
            searched = [arm for arm in self.arms if arm.space]
            lines[:0] = [
                f"search     {sweep.search.trials} settings for each of {len(searched)} arms with an amount of data, "
                f"by {sweep.search.sampler}; {len(self.arms) - len(searched)} have nothing to search"
            ]
        if sweep.ablations is not None:
            counts = Counter(self.ablations[run_id] for run_id in self.plans)
            rungs = (f"           {name}: {count} run{'s' if count > 1 else ''}" for name, count in counts.items())
            lines[:0] = [f"ablations  {sweep.ablations.kind}", *rungs]
        return "\n".join(lines)


def plan_sweep(experiment: Experiment, members: Sequence[Member]) -> Roster:
    """What the members of a sweep come to; no model runs.

    Raises:
        GraftError: a member cannot be carried out as written, or nothing has a field that is searched for.
    """
    planned = planning.plans([member.experiment for member in members])
    # Two values of an axis, or an ablation and an axis, may stand for one experiment; it is carried out and counted
    # once.
    plans: dict[str, planning.Plan] = {}
    of_cell: dict[Cell | None, list[planning.Plan]] = {}
    for plan, member in zip(planned, members, strict=True):
        if plan.run_id not in plans:
            plans[plan.run_id] = plan
            of_cell.setdefault(member.cell, []).append(plan)
    ablations = names((plan.run_id, member.ablation) for plan, member in zip(planned, members, strict=True))
    return Roster(identify(experiment, ablations), plans, ablations, _arms(experiment.sweep, of_cell))


def identify(experiment: Experiment, ablations: Mapping[str, str | None]) -> str:
    """The id of a sweep: slug, and hash of the ids of its runs, of what they are called there and of its search.

    Args:
        experiment: with the sweep.
        ablations: run_id to the name of its ablation, or None.
    """
    called = sorted([run_id, name] for run_id, name in ablations.items() if name is not None)
    parts: list[Any] = [called or sorted(ablations)]
    if experiment.sweep is not None and experiment.sweep.search is not None:
        parts += [json.loads(experiment.sweep.search.model_dump_json()), PROPOSALS]
    return f"{experiment.name}-{hashing.digest(*parts)[:10]}"


def _arms(sweep: Sweep | None, of_cell: Mapping[Cell | None, Sequence[planning.Plan]]) -> tuple[Arm, ...]:
    found: list[Mapping[str, Dimension]] = [{} for _ in of_cell]
    if sweep is not None and sweep.search is not None:
        found = list(spaces(sweep.search, [(cell, plans[0]) for cell, plans in of_cell.items() if cell is not None]))
    return tuple(Arm(cell, tuple(plans), space) for (cell, plans), space in zip(of_cell.items(), found, strict=True))
