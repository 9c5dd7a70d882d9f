"""Named random streams: one seed, many independent draws, none of which shifts another."""

import contextlib
import random
import sys
import zlib
from collections.abc import Iterator

import numpy as np


def generator(seed: int, stream: str) -> np.random.Generator:
    """A generator for one purpose, for example `generator(regime.seed, "examples")`."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode())])


@contextlib.contextmanager
def fresh_streams(seed: int) -> Iterator[None]:
    """Inside, the process's own random streams (Python's, NumPy's, torch's) begin from `seed`; outside they go on.

    What a library draws from them then depends on the experiment alone, not on what ran before in this process.
    """
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as streams:
        if torch is not None:
            streams.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
            torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
