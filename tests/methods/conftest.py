"""What the tests of methods share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path:
    """The folder of a tiny model, for tests that are parametrised by the names of such fixtures."""
    return Path(request.getfixturevalue(request.param))
