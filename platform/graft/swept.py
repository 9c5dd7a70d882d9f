"""The section `sweep` of a spec: which experiments one spec stands for."""

import itertools
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from graft.errors import SpecError
from graft.sections import Section
from graft.specfile import key_and_value

MOST_FACTORS = 10
"""Items of a factorial at most: 1,024 combinations, each once per seed and axis value."""


class Ablations(Section):
    """What is taken away from the experiment; one of the three, in `key=value` items as on the command line."""

    ladder: tuple[str, ...] | None = None
    """Items taken one after the other: each rung lacks what the rungs above it lack, and the first lacks nothing."""
    leave_one_out: tuple[str, ...] | None = None
    """Items taken each alone, beside the whole."""
    factorial: tuple[str, ...] | None = None
    """Up to 10 items taken in every combination."""

    @property
    def kind(self) -> str:
        """`ladder`, `leave_one_out` or `factorial`."""
        return next(kind for kind in type(self).model_fields if getattr(self, kind) is not None)

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
            if other == one or other.startswith(f"{one}."):
                raise ValueError(f"{one} and {other}: one sets the other too, so there is no combination of both")
        return items

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"give one of {known}; got {' and '.join(given) or 'none'}")
        return self


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
    _check_swept(key, "an ablation")
    return key, value


def _check_swept(key: str, by: str) -> None:
    """Refuse a key that no part of a sweep may set."""
    if key in ("regime.seed", "training.seed"):
        raise ValueError(f"{key}: seeds are set by sweep.seeds, not by {by}")
    if key.split(".")[0] in ("sweep", "name"):
        raise ValueError(f"{key}: not a field of a single experiment; give models, task, regime, method, ...")


class Sweep(Section):
    """Many experiments from one spec: the grid of all axes, with every ablation, once per seed."""

    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted key to the values it takes; the key `method` takes whole methods."""
    ablations: Ablations | None = None
    """What is taken away from each experiment of the grid, as a ladder, one at a time or in every combination;
    null takes nothing away."""
    seeds: int = Field(1, ge=1)
    """Seed i sets `regime.seed` and `training.seed` to i, for i from 0."""

    @field_validator("axes", mode="before")
    @classmethod
    def _lists_of_values(cls, axes: Any) -> Any:
        for key, values in axes.items() if isinstance(axes, Mapping) else ():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{key}: give a list of values, got {values!r}")
            _check_swept(key, "an axis")
        return axes
