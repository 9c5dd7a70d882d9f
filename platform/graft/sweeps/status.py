"""How far a sweep is, and who is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Status:
    """How far a sweep is; one object throughout, changed in place."""

    sweep_id: str
    folder: str
    """Where its table, its report and its trials' TensorBoard files go."""
    total: int
    dashboard: str | None = None
    read: int = 0
    """Runs that were done before this command."""
    done: dict[str, Mapping[str, float | None]] = field(default_factory=dict)
    """run_id to its test metrics."""
    failed: dict[str, str] = field(default_factory=dict)
    """run_id to the error."""
    running: set[str] = field(default_factory=set)


class Watcher:
    """Told of everything that happens; this one looks away."""

    def update(self, status: Status) -> None:
        """A run began, ended or failed."""

    def rows(self, what: str, done: int, total: int) -> None:
        """Rows that all runs share went through a frozen model."""
