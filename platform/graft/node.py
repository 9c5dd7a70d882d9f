"""The contract of a node: one step of a composed model, and what it is given when it is fitted."""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import pyarrow as pa

from graft import hashing
from graft.errors import GraftError
from graft.execution import Pool, Progress, class_path, no_progress
from graft.models import absolute
from graft.spec import Experiment, ModelSource
from graft.store import ColumnStore

if TYPE_CHECKING:
    from torch import Tensor, nn

Models = Callable[[ModelSource], Any]
"""Gives the handle of a frozen model; nodes that name the same source share it."""


class Trains(Protocol):
    """A node with gradients: what the one training loop needs of it.

    It travels to other processes as it is: handles of models go as names, and `build` loads them there.
    """

    @property
    def terms(self) -> tuple[float, ...]:
        """Weights of the loss's K terms; each term is a mean over its own target tokens in the whole global batch."""
        ...

    def encode(self, rows: pa.Table) -> pa.Table:
        """Rows as tokens: the one place where that happens, once per training.

        Gives `length` (int32, positions that a row takes in a batch), `targets` (list of K int32, target tokens of
        each term), `tokens` (int32) where padding inside the row makes those fewer than `length`, and whatever
        columns `collate` reads; row for row.
        """
        ...

    def build(self) -> "nn.Module":
        """The network to train, the same for the same settings, in training mode.

        `forward(**collate(encoded))` gives the sum of losses of each term [K]. Exactly what is to be trained requires
        gradients, and is float32. A module that changes more than its parameters has `after_step(step)`, called
        after each step of the optimizer, and `training_state()` and `load_training_state(tensors)`.
        """
        ...

    def collate(self, encoded: pa.Table) -> dict[str, "Tensor"]:
        """Rows of `encode` as one batch, on the CPU."""
        ...

    def describe(self) -> str:
        """The node in a few words."""
        ...

    def fingerprint(self) -> str:
        """Identity by content, before training."""
        ...

    def handles(self) -> dict[str, Any]:
        """Frozen models, by field; the first one's usage counts the tokens trained on."""
        ...


class Train(Protocol):
    """Trains a node: gives weights by their names in its `build()`, float32."""

    def __call__(self, node: Trains, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
        """Train on rows that hold `target`, and on `more`, encoded already, of which nothing is held out."""
        ...


def no_training(node: Trains, rows: pa.Table, more: pa.Table | None = None) -> dict[str, np.ndarray]:
    """Refuse: there is nothing to train with."""
    raise GraftError(f"{node.describe()} learns by gradients; carry it out with graft.Experiment(...).run()")


@dataclass(frozen=True)
class Context:
    """What a node may need beside the rows when it is fitted."""

    experiment: Experiment
    labels: tuple[str, ...] | None
    """Sorted labels of a classification; None for free-text targets."""
    store: ColumnStore | None = None
    progress: Progress = no_progress
    pool: Pool | None = None
    train: Train = no_training
    units: Mapping[str, int] | None = None
    """By an example's id the number of its unit, which no hold-out divides; None where each stands for itself."""


class Node(ABC):
    """One step of a composed model: reads columns, adds columns.

    A node is a frozen dataclass, and its fields are its whole identity: plain JSON values, numpy arrays or dicts of
    them (what fitting has set) and handles of frozen models, or tuples of these. Fingerprint, `save` and `load` follow
    from them. A node is never mutated: `fit` returns a copy (`dataclasses.replace`) that shares the handles.

    A node that cuts texts also writes an int32 column `<what>_tokens_cut`: tokens dropped from the row.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    storable = False
    """True: `run` depends on `fingerprint()` and the row alone, and costs more than reading it back."""
    version = 1
    """Raise it when `run` changes what it gives: part of the fingerprint, so that nothing stale is read."""
    pool_rows: int | None = None
    """Missing rows above which other processes compute them; None leaves it to the pool."""
    tally = ""
    """Under what a run's record counts the rows computed and those read from the store; "" counts neither."""
    chunk_rows = 512
    """Rows computed between two writes to the store: what a kill can lose."""

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """A fitted copy; `rows` are the examples with every column written before, and `target`."""
        return self

    def check(self, rows: pa.Table) -> None:  # noqa: B027 -- most nodes refuse nothing
        """Refuse what `run` would refuse, before any row is computed."""

    def asks(self) -> "tuple[Node, ...]":
        """Nodes that `fit` puts the examples through first, from the task's own columns: what they give, runs share."""
        return ()

    def given(self, rows: pa.Table) -> pa.Table:
        """The read columns as `check` and `run` get them; rows that are equal here share an entry of the store."""
        return rows.select(self.reads)

    @abstractmethod
    def run(self, rows: pa.Table) -> pa.Table:
        """The written columns, row for row. It is given the read columns only, so it cannot see `target`."""

    def describe(self) -> str:
        """The node in a few words, for people."""
        return type(self).__name__.lower()

    def parameters_trained(self) -> int:
        """How many numbers fitting has set by learning (stored examples are not learned)."""
        return 0

    def parameters_added(self) -> int:
        """How many of them the models do not have already."""
        return self.parameters_trained()

    def warm(self) -> None:
        """Load now what `run` would load at its first row."""
        for handle in self.handles().values():
            if not handle.remote:
                _ = handle.network

    def fingerprint(self) -> str:
        """Identity by content: class, settings, model weights and fitted arrays."""
        sources = {name: handle.fingerprint for name, handle in self.handles().items()}
        return hashing.digest(class_path(type(self)), self.version, self._settings(), sources, self._arrays())

    def column(self) -> str:
        """The store's name for this node here: another floating-point type or transformers release, other numbers."""
        here = [getattr(handle, "dtype", "") for handle in self.handles().values()]
        return hashing.digest(self.fingerprint(), here, version("transformers").split(".")[:2])

    def handles(self) -> dict[str, Any]:
        """Handles of the frozen models that this node runs, by field; those of a tuple as `field/0`, `field/1`."""
        found = {}
        for name, value in self._fields().items():
            if _is_handle(value):
                found[name] = value
            elif _are_handles(value):
                found |= {f"{name}/{place}": one for place, one in enumerate(value)}
        return found

    def save(self, directory: Path) -> None:
        """Write `config.json` (values, models by absolute path) and what fitting has set; never a pickle."""
        directory.mkdir(parents=True, exist_ok=True)
        models = {name: absolute(handle.source).model_dump(mode="json") for name, handle in self.handles().items()}
        config = {"settings": self._settings(), "models": models}
        (directory / "config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        self._write_arrays(directory)

    @classmethod
    def load(cls, directory: Path, models: Models) -> Self:
        """The node that `save` wrote."""
        from safetensors.numpy import load_file

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        settings = {name: _tuples(value) for name, value in config["settings"].items()}
        handles: dict[str, Any] = {}
        for name, source in config["models"].items():
            field, several, _ = name.partition("/")
            one = models(ModelSource(**source))
            handles[field] = (*handles.get(field, ()), one) if several else one
        weights = directory / "fitted.safetensors"
        return cls(**settings, **handles, **(load_file(weights) if weights.exists() else {}))

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            name: np.ascontiguousarray(value) for name, value in self._fields().items() if isinstance(value, np.ndarray)
        }

    def _write_arrays(self, directory: Path) -> None:
        """Write what fitting has set, so that `load` finds it: by default `fitted.safetensors`."""
        from safetensors.numpy import save_file

        if arrays := self._arrays():
            save_file(arrays, directory / "fitted.safetensors")

    def _settings(self) -> dict[str, Any]:
        settings = {}
        for name, value in self._fields().items():
            if _is_fitted(value) or _is_handle(value) or _are_handles(value):
                continue
            settings[name] = value.item() if isinstance(value, np.generic) else value
            try:
                json.dumps(settings[name])
            except TypeError:
                kind = type(value).__name__
                cure = "use plain values (text, numbers, tuples, dicts) or a numpy array"
                raise GraftError(
                    f"{class_path(type(self))}.{name} is a {kind}, which cannot be saved; {cure}"
                ) from None
        return settings


def _is_fitted(value: Any) -> bool:
    """An array, or arrays by name."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(one, np.ndarray) for one in value.values())
    return isinstance(value, np.ndarray)


def _is_handle(value: Any) -> bool:
    return hasattr(value, "source") and hasattr(value, "fingerprint")


def _are_handles(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_handle, value))


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
