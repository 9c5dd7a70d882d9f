"""Global batches: a function of the seed and the position, whatever the workers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.training.batching import GlobalBatches, micro_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))


def epoch(batches: GlobalBatches, rows: int, start: int = 0) -> list[np.ndarray]:
    """Batches from `start` until every row was in one."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < rows:
        found.append(batches.rows(start + len(found)))
    return found


@given(LENGTHS, st.integers(1, 300), st.integers(0, 9))
def test_every_epoch_holds_each_row_once_within_the_budget(lengths: np.ndarray, tokens: int, seed: int) -> None:
    batches, start = GlobalBatches(lengths, tokens, seed), 0
    for _ in range(3):
        found = epoch(batches, len(lengths), start)
        assert sorted(np.concatenate(found)) == list(range(len(lengths)))
        for rows in found:
            assert len(rows) == 1 or lengths[rows].max() * len(rows) <= tokens
        start += len(found)


@given(LENGTHS, st.integers(20, 300), st.integers(0, 30))
def test_a_batch_depends_on_seed_and_position_alone(lengths: np.ndarray, tokens: int, position: int) -> None:
    first = GlobalBatches(lengths, tokens, 3)
    for place in range(position):
        first.rows(place)
    assert np.array_equal(first.rows(position), GlobalBatches(lengths, tokens, 3).rows(position))


def test_another_seed_is_another_order_and_so_is_another_epoch() -> None:
    lengths = np.full(64, 5, np.int64)
    one, other = (GlobalBatches(lengths, 40, seed) for seed in (0, 1))
    assert not np.array_equal(one.rows(0), other.rows(0))
    assert not np.array_equal(np.concatenate(epoch(one, 64)), np.concatenate(epoch(one, 64, start=8)))


def test_rows_of_like_length_stand_together() -> None:
    """Sorting leaves less padding than filling batches in random order does."""
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(3, 1, 4000).astype(np.int64) + 1, 400)
    found = epoch(GlobalBatches(lengths, 4096, 0), len(lengths))
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in found)
    unsorted = sum(int(part.max()) * len(part) for part in np.array_split(lengths, len(found)))
    assert padded < 1.1 * lengths.sum()
    assert unsorted > 2 * lengths.sum()


def test_a_ramp_begins_with_an_eighth_and_doubles() -> None:
    batches = GlobalBatches(np.full(1000, 10, np.int64), 800, 0, ramp_steps=6)
    assert [len(batches.rows(place)) for place in range(8)] == [10, 10, 20, 20, 40, 40, 80, 80]


@given(LENGTHS, st.integers(1, 5), st.none() | st.integers(1, 200))
def test_workers_share_a_batch_without_rest(lengths: np.ndarray, workers: int, tokens: int | None) -> None:
    rows = np.argsort(-lengths, kind="stable")
    shares = micro_batches(lengths, rows, workers, tokens)
    assert len({len(share) for share in shares}) == 1  # all take part in every exchange
    assert sorted(np.concatenate([part for share in shares for part in share])) == list(range(len(lengths)))
    for share in shares:
        for part in share:
            assert tokens is None or len(part) < 2 or lengths[part].max() * len(part) <= tokens


@pytest.mark.parametrize("workers", [2, 3])
def test_shares_are_about_equal(workers: int) -> None:
    lengths = np.sort(np.random.default_rng(1).integers(1, 100, 300))[::-1].astype(np.int64)
    shares = micro_batches(lengths, np.arange(300), workers, None)
    sizes = [sum(int(lengths[part].sum()) for part in share) for share in shares]
    assert max(sizes) - min(sizes) <= 100
