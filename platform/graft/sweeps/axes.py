"""From one spec with a sweep to the list of single experiments that it stands for.

axes ──► arms with an amount of data ──► each with every ablation (a Cell) ──► each with every seed (a Member)
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from graft.errors import SpecError, suggest
from graft.spec import Experiment, catalogue
from graft.specfile import inside, override, replaced
from graft.sweeps.ablations import Ablation, ablations, check_changes
from graft.swept import Sweep

MOST_CELLS = 10_000
"""Runs that a sweep may have without being asked twice."""


class Member(NamedTuple):
    """A single experiment of a sweep, and what it lacks there."""

    experiment: Experiment
    ablation: Ablation
    cell: "Cell | None" = None
    """The arm that it is a seed of."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One arm with one amount of data: an experiment but for its seeds."""

    values: Mapping[str, Any]
    """A spec without a sweep."""
    ablation: Ablation
    origin: str
    """Where in the sweep it stands, for messages."""

    def experiment(self, seed: int, **settings: Any) -> Experiment:
        """The experiment of one seed.

        Args:
            seed: of the examples and of training.
            settings: dotted keys to values that differ from the cell's.

        Raises:
            SpecError: it is not valid; the message names the axis values and the items.
        """
        own = replaced(replaced(self.values, "regime.seed", seed), "training.seed", seed)
        for key, value in settings.items():
            own = replaced(own, key, value)
        return Experiment.from_mapping(own, origin=self.origin).resolved()

    def members(self, sweep: Sweep) -> list[Member]:
        """The experiments of the reporting seeds."""
        first = self.experiment(0)
        try:
            seeds = range(sweep.seeds_of(first.regime.examples))
        except SpecError as error:
            raise SpecError(f"{self.origin}: {error}") from error
        return [Member(first if seed == 0 else self.experiment(seed), self.ablation, self) for seed in seeds]


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
    return [member for cell in cells(experiment) for member in cell.members(sweep)]


def cells(experiment: Experiment) -> list[Cell]:
    """The grid of a sweep's axes in the order written, each with all ablations.

    Raises:
        SpecError: a combination is not a valid spec, or an axis sets what is searched for.
    """
    sweep = experiment.sweep
    assert sweep is not None
    _check_searched(sweep)
    base = experiment.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    wanted = ablations(sweep.ablations)
    arms = list(_arms(base, sweep))
    found = {(place, one): _cell(base, sweep, arm, one) for place, arm in enumerate(arms) for one in wanted}
    if sweep.ablations is not None:
        firsts = {one: [found[place, one].experiment(0) for place in range(len(arms))] for one in wanted}
        check_changes(sweep.ablations, firsts)
    return list(found.values())


def count(experiment: Experiment) -> int:
    """How many runs a sweep has at least, before any of them is looked at."""
    sweep = experiment.sweep
    if sweep is None:
        return 1
    base = experiment.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
    seeds = sweep.seeds if isinstance(sweep.seeds, int) else min(sweep.seeds.values())
    tried = sweep.search.trials * sweep.search.seeds if sweep.search else 0
    each = len(ablations(sweep.ablations)) * (seeds + tried)
    shared = math.prod(len(values) for key, values in sweep.axes.items() if own_key(key)[0] is None)
    return each * (shared if shared > MOST_CELLS else sum(1 for _ in _arms(base, sweep)))


def own_key(key: str) -> tuple[str | None, str]:
    """A key of a sweep as (the one method that it counts for, dotted key of the spec).

    `probe.classifier` is `method.classifier` of probes alone; `full.training.learning_rate` a field of the training
    of full tuning alone.

    Raises:
        SpecError: it begins with neither a section of the spec nor a method.
    """
    head, _, rest = key.partition(".")
    methods = catalogue("method")
    if head not in methods and head not in Experiment.model_fields:
        raise SpecError(f"sweep: {key}: unknown key {head!r}; {suggest(head, {*Experiment.model_fields, *methods})}")
    if head not in methods or not rest:
        return None, key
    return head, rest if rest.split(".")[0] in Experiment.model_fields else f"method.{rest}"


def method_name(values: Mapping[str, Any]) -> str | None:
    """The method of a spec that is still a mapping."""
    method = values.get("method")
    return method.get("name") if isinstance(method, Mapping) else method


def _check_searched(sweep: Sweep) -> None:
    """Refuse an axis whose values a search would replace.

    An axis of whole sections, such as `method`, stays: it sets more than what is searched for inside of them.
    """
    for axis, key in itertools.product(sweep.axes, sweep.search.space if sweep.search else ()):
        (of_axis, own), (of_key, searched) = own_key(axis), own_key(key)
        if inside(own, searched) and (of_axis is None or of_key is None or of_axis == of_key):
            raise SpecError(
                f"sweep.axes: {axis}: its values are replaced by what is searched for (sweep.search.space: {key}); "
                "take it out of the axes or out of the space"
            )


def _arms(base: Mapping[str, Any], sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Dotted key to value, for each combination; an axis of one method alone is one of its arms only."""
    owned: dict[str, dict[str, Sequence[Any]]] = {}
    shared = {}
    for key, choices in sweep.axes.items():
        method, own = own_key(key)
        if method is None:
            shared[key] = choices
        else:
            owned.setdefault(method, {})[own] = choices
    met = set()
    for values in itertools.product(*shared.values()):
        arm = dict(zip(shared, values, strict=True))
        name = method_name(_varied(base, arm)) or ""
        met.add(name)
        further = owned.get(name, {})
        for more in itertools.product(*further.values()):
            yield arm | dict(zip(further, more, strict=True))
    if missed := sorted(owned.keys() - met):
        raise SpecError(
            f"sweep.axes: an axis of {missed[0]} alone, and no arm has that method ({', '.join(sorted(met))})"
        )


def _cell(base: Mapping[str, Any], sweep: Sweep, arm: Mapping[str, Any], ablation: Ablation) -> Cell:
    origin = _origin(sweep, arm, ablation)
    try:
        values = override(_varied(base, arm), ablation.items)
    except SpecError as error:
        raise SpecError(f"{origin}: {error}") from error
    return Cell(values, ablation, origin)


def _origin(sweep: Sweep, arm: Mapping[str, Any], ablation: Ablation) -> str:
    axes = " ".join(["sweep", *(f"{key}={value}" for key, value in arm.items())])
    if sweep.ablations is None or not ablation.items:
        return axes
    taken = f"sweep.ablations.{sweep.ablations.kind}: {' '.join(ablation.items)}"
    return f"{axes}, {taken}" if arm else taken


def _varied(base: Mapping[str, Any], arm: Mapping[str, Any]) -> Mapping[str, Any]:
    values = base
    # Short keys first: one axis may vary a field of the method that another axis gives whole.
    for key in sorted(arm, key=lambda key: key.count(".")):
        values = replaced(values, key, arm[key])
    return values
