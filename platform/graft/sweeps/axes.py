"""From one spec with a sweep to the list of single experiments that it stands for."""

import itertools
from collections.abc import Mapping
from typing import Any

from graft.spec import Experiment
from graft.specfile import replaced


def expand(experiment: Experiment) -> list[Experiment]:
    """Every single experiment of a sweep: the grid of its axes in the order written, seeds innermost.

    Raises:
        SpecError: a combination is not a valid spec; the message names the axis values.
    """
    sweep = experiment.sweep
    if sweep is None:
        return [experiment.resolved()]
    base = experiment.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    arms = [dict(zip(sweep.axes, values, strict=True)) for values in itertools.product(*sweep.axes.values())]
    return [_member(base, arm, seed) for arm in arms for seed in range(sweep.seeds)]


def _member(base: Mapping[str, Any], arm: Mapping[str, Any], seed: int) -> Experiment:
    values: Mapping[str, Any] = base
    # Short keys first: one axis may vary a field of the method that another axis gives whole.
    for key in sorted(arm, key=lambda key: key.count(".")):
        values = replaced(values, key, arm[key])
    values = replaced(replaced(values, "regime.seed", seed), "training.seed", seed)
    origin = " ".join(f"{key}={value}" for key, value in arm.items())
    return Experiment.from_mapping(values, origin=f"sweep {origin}").resolved()
