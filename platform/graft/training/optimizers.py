"""Optimizers by name, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from graft.spec import Training

DECAYED_DIMENSIONS = 2
"""Weight decay is for matrices: biases, norms and gates are vectors that have their own scale."""


def make_optimizer(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """The optimizer that the spec names, over the trained parameters."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim >= DECAYED_DIMENSIONS], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < DECAYED_DIMENSIONS], "weight_decay": 0.0},
    ]
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adafactor": torch.optim.Adafactor,
        "lion": Lion,
    }
    return kinds[training.optimizer]([group for group in groups if group["params"]], lr=training.learning_rate)


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then down to zero after the last step."""
    warmup = training.warmup_steps if training.warmup_steps is not None else training.max_steps // 10
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, training.max_steps - warmup)
    share = {"cosine": 0.5 * (1 - math.cos(math.pi * left)), "linear": left, "constant": 1.0}[training.schedule]
    return training.learning_rate * share


class Lion(torch.optim.Optimizer):  # type: ignore[misc]
    """Signs of momentum: half of AdamW's state (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    Its steps have the size of the learning rate in every coordinate: give it a third to a tenth of AdamW's.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """Move every parameter against the sign of its interpolated momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(
                        parameter, parameter.grad, **{key: group[key] for key in ("lr", "betas", "weight_decay")}
                    )

    def _move(
        self, parameter: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        state = self.state[parameter]
        momentum = state.setdefault("exp_avg", torch.zeros_like(parameter))
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(momentum.lerp(gradient, 1 - betas[0]).sign_(), alpha=-lr)
        momentum.lerp_(gradient, 1 - betas[1])
