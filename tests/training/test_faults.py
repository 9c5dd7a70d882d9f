"""What is killed, torn or full while a model trains: the scenarios of docs/faults.md, in which nothing may be lost."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import faults
from faults import ONE, TWO, Desk, Outcome


@pytest.fixture(scope="module")
def desk(tiny_llama: Path) -> Iterator[Desk]:
    with faults.desk(tiny_llama) as desk:
        yield desk


@pytest.fixture(scope="module")
def undisturbed(desk: Desk) -> Callable[[tuple[str, ...]], Path]:
    """The folder of a run that nothing disturbs; there is one for each way to carry it out."""
    found: dict[tuple[str, ...], Path] = {}

    def run(words: tuple[str, ...]) -> Path:
        if words not in found:
            found[words] = desk.folder / f"undisturbed-{len(found)}"
            dataclasses.replace(desk, words=words).finish(found[words])
        return found[words]

    return run


def disturbed(name: str, desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]) -> Outcome:
    words, scenario = faults.SCENARIOS[name]
    return scenario(dataclasses.replace(desk, words=words), undisturbed(words))


@pytest.mark.long
def test_one_process_killed_again_and_again(desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]) -> None:
    outcome = disturbed("killed", desk, undisturbed)
    assert outcome.bit_equal
    assert len(set(outcome.at_steps)) == 4
    log = faults.log_of(desk.folder / "killed")
    assert [f"training goes on from step {step}" in log for step in outcome.at_steps] == [True] * 4


@pytest.mark.long
def test_a_torn_checkpoint_is_set_aside(desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]) -> None:
    outcome = disturbed("torn", desk, undisturbed)
    assert outcome.bit_equal
    log = faults.log_of(desk.folder / "torn")
    assert "it is torn or damaged" in log
    assert f"training goes on from step {outcome.at_steps[0] - 5}" in log


@pytest.mark.long
def test_a_full_disk_costs_no_more_than_the_checkpoints(
    desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]
) -> None:
    outcome = disturbed("full", desk, undisturbed)
    assert outcome.bit_equal
    log = faults.log_of(desk.folder / "full")
    assert log.count("WARNING") == 1
    assert "File too large" in log


@pytest.mark.long
def test_killed_workers_start_anew_by_themselves(desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]) -> None:
    outcome = disturbed("workers", desk, undisturbed)
    assert outcome.bit_equal
    log = faults.log_of(desk.folder / "workers")
    assert log.count("all workers start anew from the last checkpoint") == 2
    assert log.count("begins: {") == 1, "nobody has given the command again"
    alone, together = (faults.losses(undisturbed(words)) for words in (ONE, TWO))
    assert together[:20] == pytest.approx(alone[:20], rel=1e-5)


@pytest.mark.long
def test_workers_end_with_their_driver(desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]) -> None:
    outcome = disturbed("driver", desk, undisturbed)
    assert outcome.bit_equal
    assert len(outcome.at_steps) == 2
    assert "interrupted; the same command goes on from here" in (desk.folder / "driver" / "output").read_text()


@pytest.mark.cluster
@pytest.mark.long
def test_a_lost_node_is_replaced(desk: Desk, undisturbed: Callable[[tuple[str, ...]], Path]) -> None:
    outcome = disturbed("node", desk, undisturbed)
    assert outcome.bit_equal
    output = (desk.folder / "node" / "output").read_text()
    assert "all workers start anew from the last checkpoint" in output
    assert "SUCCEEDED" in output
