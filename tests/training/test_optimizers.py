"""Optimizers and the learning rate against their definitions."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from graft.spec import Training
from graft.training.optimizers import Lion, learning_rate, make_optimizer


def training(**changes: Any) -> Training:
    return Training(**{"max_steps": 100, "learning_rate": 1e-2, **changes})


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_each_optimizer_by_name_solves_a_regression(name: str) -> None:
    torch.manual_seed(0)
    inputs, wanted = torch.randn(64, 5), torch.randn(5, 1)
    layer = nn.Linear(5, 1)
    optimizer = make_optimizer(layer.parameters(), training(optimizer=name))

    def loss() -> torch.Tensor:
        return ((layer(inputs) - inputs @ wanted) ** 2).mean()

    first = loss().item()
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.2 * first


def test_lion_is_its_algorithm() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, 2))
    optimizer = Lion([{"params": [parameter]}], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    value, momentum = parameter.detach().clone(), torch.zeros(3, 2)
    for _ in range(5):
        gradient = torch.randn(3, 2)
        parameter.grad = gradient.clone()
        optimizer.step()
        update = torch.sign(0.9 * momentum + 0.1 * gradient)
        value = value - 0.1 * (update + 0.5 * value)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert torch.allclose(parameter, value, atol=1e-6)


def test_only_matrices_decay() -> None:
    layer = nn.Linear(3, 3)
    optimizer = make_optimizer(layer.parameters(), training(weight_decay=0.5))
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, before[0] * (1 - 1e-2 * 0.5))
    assert torch.equal(layer.bias, before[1])


def test_the_rate_warms_up_and_falls_as_its_name_says() -> None:
    cosine = training(warmup_steps=10)
    assert learning_rate(cosine, 0) == pytest.approx(1e-3)
    assert learning_rate(cosine, 9) == pytest.approx(1e-2)
    assert learning_rate(cosine, 55) == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(cosine, 99) == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate(training(schedule="linear", warmup_steps=0), 25) == pytest.approx(0.75e-2)
    assert learning_rate(training(schedule="constant", warmup_steps=0), 99) == pytest.approx(1e-2)
    assert learning_rate(training(), 4) == pytest.approx(1e-2 * 5 / 10)  # a tenth of the steps, unless told otherwise
    assert learning_rate(training(max_steps=1), 0) == pytest.approx(1e-2)
