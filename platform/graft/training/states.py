"""What is trained, where a training stands, and what it gives."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from graft.node import Trains
from graft.spec import Training
from graft.training.batching import Drawn
from graft.training.guard import Guard
from graft.training.parallel import Parallel

CURVE = pa.schema(
    [
        ("node", pa.string()),  # what was trained
        ("step", pa.int64()),  # counted from 0
        # At most a thousand steps, evenly spaced.
        ("loss", pa.float64()),  # of the global batch, in nats per target token, before the step
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),  # before clipping
        ("validation_loss", pa.float64()),  # after the step
        ("event", pa.string()),  # JSON: a rollback, or a checkpoint taken up
    ]
)
"""The columns of `training.parquet`."""


@dataclass(frozen=True)
class Job:
    """One training, in the form in which it travels to other processes."""

    node: Trains
    training: Training
    encoded: pa.Table | Drawn
    """Rows to learn from, as `node.encode` gives them, or what draws them."""
    held_out: pa.Table | None = None
    """Rows to validate on."""
    strategy: str = "ddp"
    worst: Mapping[int, float] = field(default_factory=dict)
    """After a step, the largest loss of the held-out rows with which training goes on; none of other steps."""


@dataclass
class State:
    """Where a training stands, as plain values."""

    step: int = 0
    """Steps taken."""
    position: int = 0
    """The next global batch; ahead of `step` by what was skipped."""
    guard: Guard = field(default_factory=Guard)
    best_loss: float | None = None
    best_step: int | None = None
    looks: int = 0
    """Validations since the best one."""
    rollbacks: int = 0
    """In a row without coming further than ever."""
    furthest: int = 0
    """The last step that was not taken."""
    seconds: float = 0.0
    """Spent, in all attempts."""
    peak_memory_bytes: int = 0
    """The most that the first process has held."""
    tokens: int = 0
    """Put through the model in training and validation, padding not counted."""
    sequences: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "State":
        """The state that `dataclasses.asdict` wrote."""
        return cls(**{**values, "guard": Guard(**values["guard"])})


@dataclass(frozen=True)
class Trained:
    """What a training gives."""

    weights: dict[str, np.ndarray]
    """Trained parameters by name, float32: of the best validation, else of the last step."""
    state: State


class Weights:
    """The tensors that steps change: trained parameters, the optimizer's state, and what the module adds to them."""

    def __init__(self, module: nn.Module, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.module, self.parameters, self.optimizer = module, parameters, optimizer

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All of them by path, live."""
        for name, parameter in self.parameters.items():
            yield f"weights/{name}", parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer/{key}/{name}", value
        if hasattr(self.module, "training_state"):
            for name, value in self.module.training_state().items():
                yield f"module/{name}", value

    def copies(self, parallel: Parallel) -> dict[str, Tensor]:
        """Whole copies on the CPU, in the first process."""
        return parallel.gather(dict(self.tensors()))

    def restore(self, copies: dict[str, Tensor], parallel: Parallel) -> None:
        """Put back, in every process, what `copies` gave to the first."""
        self.optimizer.state.clear()
        own: dict[str, Tensor] = {}
        for path, value in parallel.scatter(copies):
            kind, _, rest = path.partition("/")
            if kind == "module":
                own[rest] = value.clone()  # what is remembered stays as it is
            elif kind == "weights":
                parameter = self.parameters[rest]
                with torch.no_grad():
                    parameter.copy_(parallel.like(value.to(parameter.device), parameter))
            else:
                key, _, name = rest.partition("/")
                parameter = self.parameters[name]
                # Optimizers count their steps on the CPU.
                place = "cpu" if key == "step" else parameter.device
                self.optimizer.state[parameter][key] = parallel.like(value.to(place, copy=True), parameter)
        if hasattr(self.module, "load_training_state"):
            self.module.load_training_state(own)


def looks(points: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Steps taken to loss of the held-out rows, of a curve's points or the rows of `training.parquet`."""
    found = ((point["step"] + 1, point.get("validation_loss")) for point in points)
    return {step: loss for step, loss in found if loss is not None}


def curve(state: State, node: str) -> pa.Table:
    """A training as the rows of `training.parquet`: points of the curve, and what went wrong on the way."""
    points = [*state.curve, *({"step": event["step"], "event": json.dumps(event)} for event in state.events)]
    ordered = sorted(points, key=lambda point: point["step"])
    return pa.Table.from_pylist([{"node": node, **point} for point in ordered], schema=CURVE)
