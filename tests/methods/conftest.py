"""What the tests of methods share."""

from pathlib import Path

import pytest


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path:
    """The folder of a tiny model, for tests that are parametrised by the names of such fixtures."""
    return Path(request.getfixturevalue(request.param))
