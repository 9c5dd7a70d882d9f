"""From one spec with a sweep to the list of single experiments that it stands for."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from graft.errors import SpecError
from graft.spec import Experiment
from graft.specfile import override, replaced
from graft.sweeps.ablations import Ablation, ablations, check_changes
from graft.swept import Sweep


class Member(NamedTuple):
    """A single experiment of a sweep, and what it lacks there."""

    experiment: Experiment
    ablation: Ablation


def expand(experiment: Experiment) -> list[Experiment]:
    """Every single experiment of a sweep: see `expand_members`."""
    return [member.experiment for member in expand_members(experiment)]


def expand_members(experiment: Experiment) -> list[Member]:
    """The grid of a sweep's axes in the order written, each with all ablations, seeds innermost.

    Raises:
        SpecError: a combination is not a valid spec; the message names the axis values and the items.
    """
    sweep = experiment.sweep
    if sweep is None:
        return [Member(experiment.resolved(), Ablation(None))]
    base = experiment.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    arms = [dict(zip(sweep.axes, values, strict=True)) for values in itertools.product(*sweep.axes.values())]
    wanted = ablations(sweep.ablations)
    cells = {(place, one): _seeds(base, sweep, arm, one) for place, arm in enumerate(arms) for one in wanted}
    if sweep.ablations is not None:
        firsts = {one: [cells[place, one][0].experiment for place in range(len(arms))] for one in wanted}
        check_changes(sweep.ablations, firsts)
    return [member for cell in cells.values() for member in cell]


def _seeds(base: Mapping[str, Any], sweep: Sweep, arm: Mapping[str, Any], ablation: Ablation) -> list[Member]:
    origin = _origin(sweep, arm, ablation)
    try:
        values = _varied(base, arm, ablation)
    except SpecError as error:
        raise SpecError(f"{origin}: {error}") from error
    members = []
    for seed in range(sweep.seeds):
        own = replaced(replaced(values, "regime.seed", seed), "training.seed", seed)
        members.append(Member(Experiment.from_mapping(own, origin=origin).resolved(), ablation))
    return members


def _origin(sweep: Sweep, arm: Mapping[str, Any], ablation: Ablation) -> str:
    axes = " ".join(["sweep", *(f"{key}={value}" for key, value in arm.items())])
    if sweep.ablations is None or not ablation.items:
        return axes
    taken = f"sweep.ablations.{sweep.ablations.kind}: {' '.join(ablation.items)}"
    return f"{axes}, {taken}" if arm else taken


def _varied(base: Mapping[str, Any], arm: Mapping[str, Any], ablation: Ablation) -> dict[str, Any]:
    values: Mapping[str, Any] = base
    # Short keys first: one axis may vary a field of the method that another axis gives whole.
    for key in sorted(arm, key=lambda key: key.count(".")):
        values = replaced(values, key, arm[key])
    return override(values, ablation.items)
