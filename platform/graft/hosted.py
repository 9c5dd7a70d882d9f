"""The section `serve` of a spec: what each model of a run is given where it is hosted. It changes no answer."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from graft.errors import suggest
from graft.sections import Section


class Hosting(Section):
    """What one deployment, which hosts one model, is given."""

    replicas: int = Field(1, ge=1, le=1000)
    """Processes that hold the model."""
    max_replicas: int | None = Field(None, ge=1, le=1000)
    """Up to so many while requests wait, down to `replicas` when they do not; null keeps `replicas`."""
    target_requests: float = Field(8.0, gt=0)
    """Requests in the hands of each replica that `max_replicas` aims at."""
    max_batch_size: int = Field(16, ge=1, le=4096)
    """Requests answered together, and texts written together, at most."""
    batch_wait_ms: float = Field(5.0, ge=0, le=10_000)
    """How long a request waits for others to be answered with, where the last one had company; else not at all."""
    max_requests: int = Field(128, ge=1)
    """Requests that a replica takes in at once; those beyond wait for another one, or for their turn."""
    max_runs: int = Field(16, ge=1)
    """Runs whose trained parts (adapters, bridges, heads) a replica keeps beside the one frozen model; another one is
    loaded when it is asked for, and the least recently used goes."""
    max_tasks: int = Field(32, ge=1)
    """Few-shot tasks (examples that came with a request) that a replica remembers; the least recently used goes."""
    cpus: float | None = Field(None, ge=0)
    """Logical CPUs of each replica; null shares out what the cluster has."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of each replica, or the share of one; null shares out what the cluster has, where the run may use one."""

    @model_validator(mode="after")
    def _more_and_not_fewer(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; give at least replicas, which is {self.replicas}")
        return self


class Serving(Hosting):
    """What every model of a run is given, and what some of them are given instead."""

    models: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Role of a model to the fields in which it differs: `{teacher: {replicas: 2}}`."""

    @model_validator(mode="after")
    def _known_fields(self) -> Self:
        from graft.spec import AUGMENTING, ROLES

        for role, changes in self.models.items():
            if role not in (*ROLES, *AUGMENTING):
                raise PydanticCustomError(
                    "unknown_key", "models: {cure}", {"cure": f"'{role}'; {suggest(role, ROLES)}"}
                )
            self.of(role)
            for key in changes:
                if key not in Hosting.model_fields:
                    cure = f"models.{role}: unknown key '{key}'; {suggest(key, Hosting.model_fields)}"
                    raise PydanticCustomError("unknown_key", "{cure}", {"cure": cure})
        return self

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with other fields.

        Raises:
            SpecError: one is unknown, or has no such value.
        """
        return self.from_mapping({**self.model_dump(exclude_unset=True), **changes}, "serve")

    def of(self, *roles: str) -> Hosting:
        """What a model that plays these roles is given; where they differ in it, the last one counts."""
        values = self.model_dump(exclude={"models"})
        for role in roles:
            values.update(self.models.get(role, {}))
        return Hosting.model_validate(values)
