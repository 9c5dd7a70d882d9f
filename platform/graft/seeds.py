"""Named random streams: one seed, many independent draws, none of which shifts another."""

import zlib

import numpy as np


def generator(seed: int, stream: str) -> np.random.Generator:
    """A generator for one purpose, for example `generator(regime.seed, "examples")`."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode())])
