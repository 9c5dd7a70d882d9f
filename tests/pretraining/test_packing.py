"""Batches of text: every token is learned once an epoch, from those before it; gaps are where they should be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import DataError
from graft.models.objective import NO_TARGET
from graft.pretraining.corpus import SPECIAL
from graft.pretraining.packing import Gaps, Pieces, Stage, stages_of

TEXT = np.arange(4, 1004, dtype=np.int32)


def ids(pieces: Pieces, position: int) -> np.ndarray:
    return np.array(pieces.batch(position)["ids"].to_pylist())


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 3), st.integers(0, 40))
def test_a_batch_is_pieces_of_the_text_and_what_follows_each_token(length: int, rows: int, seed: int, at: int) -> None:
    pieces = Pieces(TEXT, (Stage(0, length),), rows * length, seed)
    batch = pieces.batch(at)
    read, wanted = np.array(batch["ids"].to_pylist()), np.array(batch["labels"].to_pylist())
    assert read.shape == (rows, length)
    assert (np.diff(read, axis=1) == 1).all()
    assert (wanted == read + 1).all()
    assert batch["length"].to_pylist() == [length] * rows
    assert batch["targets"].to_pylist() == [[length]] * rows
    assert batch.equals(Pieces(TEXT, (Stage(0, length),), rows * length, seed).batch(at))


def test_an_epoch_holds_no_token_twice_and_the_next_one_is_cut_elsewhere() -> None:
    pieces = Pieces(TEXT, (Stage(0, 10),), 30, 0)
    epochs = [
        np.concatenate([ids(pieces, at).ravel() for at in range(33 * epoch, 33 * epoch + 32)]) for epoch in (0, 1)
    ]
    assert all(len(set(epoch)) == len(epoch) > 950 for epoch in epochs)
    assert set(ids(pieces, 0)[:, 0] % 10) != set(ids(pieces, 40)[:, 0] % 10)
    assert not np.array_equal(ids(pieces, 0), ids(Pieces(TEXT, (Stage(0, 10),), 30, 1), 0))


def test_pieces_grow_with_the_stages() -> None:
    stages = stages_of(((8, 0.5), (16, 0.3), (64, 0.2)), 64, 20)
    assert [(stage.begins, stage.length) for stage in stages] == [(0, 8), (10, 16), (16, 64)]
    pieces = Pieces(TEXT, stages, 64, 0)
    assert [ids(pieces, at).shape for at in (0, 9, 10, 15, 16, 30)] == [
        (8, 8),
        (8, 8),
        (4, 16),
        (4, 16),
        (1, 64),
        (1, 64),
    ]
    assert stages_of((), 128, 20) == (Stage(0, 128),)


def test_a_text_shorter_than_a_batch_is_an_error() -> None:
    with pytest.raises(DataError, match=r"has 1000 tokens, fewer than one batch of 1000 .* lower training.tokens_per"):
        Pieces(TEXT, (Stage(0, 10),), 1000, 0)
    with pytest.raises(DataError, match="give more text"):
        Pieces(TEXT, (Stage(0, 2000),), 10, 0)
    assert ids(Pieces(TEXT, (Stage(0, 999),), 999, 0), 5).shape == (1, 999)


def test_gaps_are_a_share_of_the_tokens_masked_replaced_or_left() -> None:
    gaps = Gaps(np.tile(TEXT, 20), (Stage(0, 100),), 10_000, 0, 0.15, 3, 1004)
    whole = Pieces(np.tile(TEXT, 20), (Stage(0, 100),), 10_000, 0)
    batch, read = gaps.batch(3), ids(gaps, 3)
    wanted = np.array(batch["labels"].to_pylist())
    guessed = wanted != NO_TARGET
    assert guessed.mean() == pytest.approx(0.15, abs=0.02)
    assert (wanted[guessed] == ids(whole, 3)[guessed]).all()
    assert (read[~guessed] == ids(whole, 3)[~guessed]).all()
    assert (read[guessed] == 3).mean() == pytest.approx(0.8, abs=0.04)
    assert (read[guessed] == wanted[guessed]).mean() == pytest.approx(0.1, abs=0.03)
    assert batch["targets"].to_pylist() == [[count] for count in guessed.sum(axis=1)]
    assert gaps.batch(3).equals(gaps.batch(3))
    assert not gaps.batch(4).equals(gaps.batch(3))


def test_special_tokens_are_not_guessed_unless_there_is_nothing_else() -> None:
    text = np.tile(np.array([1, 2], np.int32), 500)
    wanted = np.array(Gaps(text, (Stage(0, 10),), 100, 0, 0.5, 3, 20).batch(0)["labels"].to_pylist())
    assert (wanted != NO_TARGET).sum(axis=1).tolist() == [1] * 10
    mixed = np.tile(np.array([1, 9], np.int32), 500)
    wanted = np.array(Gaps(mixed, (Stage(0, 10),), 100, 0, 0.9, 3, 20).batch(0)["labels"].to_pylist())
    assert set(wanted[:, 1:].ravel()) <= {NO_TARGET, 9}
    assert len(SPECIAL) == 4


def test_the_fingerprint_follows_what_is_drawn() -> None:
    def mark(**changes: object) -> str:
        return Pieces(
            **{"tokens": TEXT, "stages": (Stage(0, 10),), "tokens_per_batch": 30, "seed": 0, **changes}
        ).fingerprint()  # type: ignore[arg-type]

    assert mark() == mark()
    others = [mark(tokens=TEXT + 1), mark(stages=(Stage(0, 11),)), mark(tokens_per_batch=40), mark(seed=1)]
    assert len({mark(), *others}) == 5
