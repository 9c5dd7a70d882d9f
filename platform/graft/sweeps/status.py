"""How far a sweep is, and who is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far one arm with one amount of data is."""

    arm: str
    examples: int
    trials: int = 0
    """Settings that its search tries; 0 without one."""
    tried: int = 0
    runs: tuple[str, ...] = ()
    """Those that are reported on, as far as they are known."""
    wanted: int = 0
    """How many there will be."""


@dataclass
class Status:
    """How far a sweep is; one object throughout, changed in place."""

    sweep_id: str
    folder: str
    """Where its table, its report and its trials' TensorBoard files go."""
    total: int
    arms: list["Progress"] = field(default_factory=list)
    """Each arm with each amount of data."""
    dashboard: str | None = None
    read: int = 0
    """Runs that were done before this command."""
    done: dict[str, Mapping[str, float | None]] = field(default_factory=dict)
    """run_id to its test metrics."""
    failed: dict[str, str] = field(default_factory=dict)
    """run_id to the error."""
    pruned: set[str] = field(default_factory=set)
    """Runs that a search has stopped."""
    running: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    """Runs that only judge a setting in a search; the others are reported on."""


class Watcher:
    """Told of everything that happens; this one looks away."""

    def update(self, status: Status) -> None:
        """A run began, ended or failed."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def rows(self, what: str, done: int, total: int) -> None:
        """Rows that all runs share went through a frozen model."""
