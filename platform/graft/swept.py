"""The section `sweep` of a spec: which experiments one spec stands for."""

import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, StrictInt, field_validator, model_validator

from graft.errors import SpecError
from graft.sections import Section
from graft.specfile import inside, key_and_value

MOST_FACTORS = 10
"""Items of a factorial at most: 1,024 combinations, each once per seed and axis value."""

FIRST_TUNING_SEED = 1000
"""Tuning seeds begin here, so that no result is reported on a seed that chose a setting."""


class OneOf(Section):
    """A section of which exactly one field is given."""

    @property
    def kind(self) -> str:
        """The name of that field."""
        return next(kind for kind in type(self).model_fields if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"give one of {known}; got {' and '.join(given) or 'none'}")
        return self


class Ablations(OneOf):
    """What is taken away from the experiment; one of the three, in `key=value` items as on the command line."""

    ladder: tuple[str, ...] | None = None
    """Items taken one after the other: each rung lacks what the rungs above it lack, and the first lacks nothing."""
    leave_one_out: tuple[str, ...] | None = None
    """Items taken each alone, beside the whole."""
    factorial: tuple[str, ...] | None = None
    """Up to 10 items taken in every combination."""

    @property
    def items(self) -> tuple[str, ...]:
        """The items in the order written."""
        return tuple(getattr(self, self.kind))

    @field_validator("ladder", "leave_one_out", "factorial", mode="before")
    @classmethod
    def _different_items(cls, items: Any) -> Any:
        if items is None:
            return None
        if not isinstance(items, list | tuple) or not items:
            raise ValueError("give a list of key=value items")
        seen: set[str] = set()
        for item in items:
            pair = repr(_item(item))
            if pair in seen:
                raise ValueError(f"{item}: is written twice; an item is taken away once")
            seen.add(pair)
        return items

    @field_validator("factorial")
    @classmethod
    def _independent_factors(cls, items: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if items and len(items) > MOST_FACTORS:
            raise ValueError(f"{len(items)} items make {2 ** len(items):,} combinations; give at most {MOST_FACTORS}")
        for one, other in itertools.combinations(sorted(_item(item)[0] for item in items or ()), 2):
            if inside(other, one):
                raise ValueError(f"{one} and {other}: one sets the other too, so there is no combination of both")
        return items


def _item(item: Any) -> tuple[str, Any]:
    """Key and value of an ablation's item."""
    if isinstance(item, Mapping) and len(item) == 1:
        ((key, value),) = item.items()
        raise ValueError(f"write {key}={value} instead of {key}: {value}")
    if not isinstance(item, str):
        raise ValueError(f"{item!r} is no key=value item, for example method.adapter=full")
    try:
        key, value = key_and_value(item)
    except SpecError as error:
        raise ValueError(str(error)) from error
    check_swept(key, "an ablation")
    return key, value


def check_swept(key: str, by: str) -> None:
    """Refuse a key that no part of a sweep may set."""
    if key in ("regime.seed", "training.seed"):
        raise ValueError(f"{key}: seeds are set by sweep.seeds, not by {by}")
    if key.split(".")[0] in ("sweep", "serve", "name"):
        raise ValueError(f"{key}: not a field of a single experiment; give models, task, regime, method, ...")


class Dimension(OneOf):
    """The values that a search may give one field; one of the five, both ends included."""

    uniform: tuple[float, float] | None = None
    """Any number between two."""
    loguniform: tuple[float, float] | None = None
    """Any number between two positive ones, evenly over their logarithms."""
    int: tuple[StrictInt, StrictInt] | None = None
    """A whole number."""
    logint: tuple[StrictInt, StrictInt] | None = None
    """A positive whole number, evenly over its logarithm."""
    choice: tuple[Any, ...] | None = None
    """One of a list of values of any kind."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """The two ends of a range, or every choice."""
        return tuple(getattr(self, self.kind))

    @model_validator(mode="after")
    def _a_range_or_choices(self) -> Self:
        if self.kind == "choice":
            if len({json.dumps(value, sort_keys=True, default=str) for value in self.ends}) < 2:
                raise ValueError("choice: give at least two different values")
        elif self.ends[0] >= self.ends[1]:
            raise ValueError(f"{self.kind}: the first end must be below the second; got {list(self.ends)}")
        elif self.kind.startswith("log") and self.ends[0] <= 0:
            raise ValueError(f"{self.kind}: a logarithm needs positive ends; got {list(self.ends)}")
        return self


class Search(Section):
    """The best setting of each arm and amount of data, found on examples, seeds and rows that no result is reported on.

    Each setting is fitted to a part of the examples of seeds from 1000 on and judged by the held-out rest
    (`regime.validation`); the best is then carried out on the reporting seeds like any other run.
    """

    trials: int = Field(12, ge=1)
    """Settings tried for each arm and amount of data; the first is the spec's own, where it lies in the space."""
    space: dict[str, Dimension] = Field(min_length=1)
    """Dotted key to its values, such as `training.learning_rate: {loguniform: [1e-4, 1e-2]}`. A key counts for the arms
    that have the field; `METHOD.key` for those of one method alone, in place of a key of all. What an ablation sets
    stays; a key that an axis sets is refused."""
    sampler: Literal["tpe", "random", "qmc", "gp", "cmaes"] = "tpe"
    """Optuna's sampler that proposes settings."""
    metric: str | None = None
    """What the held-out examples are judged by; null is the task's first metric."""
    seeds: int = Field(1, ge=1)
    """Tuning seeds, 1000 and on, over which a setting is judged."""
    together: int = Field(1, ge=1)
    """Settings proposed at once for one arm and amount of data: more use more of a cluster, fewer learn more from one
    another."""
    pruner: Literal["asha"] | None = None
    """Stops settings that are behind the others at their looks at held-out examples (`training.validate_every_steps`):
    asynchronous successive halving; null lets each train to its end."""

    @field_validator("space")
    @classmethod
    def _searchable(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        for key in space:
            check_swept(key, "a search")
            head = key.split(".")[0]
            if head in ("task", "regime", "scaling"):
                raise ValueError(f"{key}: a search looks for a better answer to one question; make it an axis instead")
        return space


class Trial(Section):
    """What one run of a sweep may take."""

    cpus: float = Field(1.0, gt=0)
    """CPUs that are set aside for it."""
    gpus: float | None = Field(None, ge=0)
    """GPUs, or the share of one; null is one where the cluster has some and the run may use it."""
    seconds: float | None = Field(None, gt=0)
    """After so long it is stopped and counts as failed, for good unless this is raised; null lets it run. Of attempts
    that were killed, what their last checkpoint stands for counts too."""
    memory_gib: float | None = Field(None, gt=0)
    """A process that grows beyond this is stopped, and its run counts as failed; null leaves it to the machine."""


class Sweep(Section):
    """Many experiments from one spec: the grid of all axes, with every ablation, once per seed."""

    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted key to the values it takes; the key `method` takes whole methods, and `METHOD.key` is an axis of that
    method alone."""
    ablations: Ablations | None = None
    """What is taken away from each experiment of the grid, as a ladder, one at a time or in every combination;
    null takes nothing away."""
    seeds: int | dict[int, int] = 1
    """Seed i sets `regime.seed` and `training.seed` to i, for i from 0; or for each amount of data its own number:
    `{8: 10, 512: 3}`. At most 1,000: those from 1000 on are for tuning."""
    search: Search | None = None
    """Looks for the best setting of each arm before it is reported on; null takes the settings as written."""
    margin: float | None = Field(None, gt=0)
    """Two arms are called equivalent where their difference is certainly smaller, in the metric's own unit; null takes
    0.01, of chrf 1, and calls no two perplexities equivalent."""
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Who else is told of each run that is done; their packages are the extras `mlflow` and `wandb`."""
    trial: Trial = Trial()
    """What one run may take."""

    @field_validator("axes", mode="before")
    @classmethod
    def _lists_of_values(cls, axes: Any) -> Any:
        for key, values in axes.items() if isinstance(axes, Mapping) else ():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{key}: give a list of values, got {values!r}")
            check_swept(key, "an axis")
        return axes

    @field_validator("seeds")
    @classmethod
    def _one_to_a_thousand(cls, seeds: Any) -> Any:
        counts = seeds.values() if isinstance(seeds, dict) else [seeds]
        if not counts or min(counts) < 1:
            raise ValueError(f"give at least one seed; got {seeds}")
        if max(counts) > FIRST_TUNING_SEED:
            raise ValueError(
                f"seeds from {FIRST_TUNING_SEED} on are for tuning (sweep.search.seeds); give at most "
                f"{FIRST_TUNING_SEED:,}, got {max(counts):,}"
            )
        return seeds

    def seeds_of(self, examples: int) -> int:
        """How many seeds an amount of data has.

        Raises:
            SpecError: it is not listed.
        """
        if isinstance(self.seeds, int):
            return self.seeds
        if examples not in self.seeds:
            listed = ", ".join(map(str, self.seeds))
            raise SpecError(f"sweep.seeds: {examples} examples are not listed (those that are: {listed})")
        return self.seeds[examples]
