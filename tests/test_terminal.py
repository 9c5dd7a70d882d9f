"""What the terminal shows of a sweep: arms by amounts of data."""

import io

import pytest
from rich.console import Console

from graft.sweeps.status import Progress, Status
from graft.terminal import SweepView, best, grid


def shown(status: Status, most: int = 10) -> str:
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(grid(status, most))
    return console.export_text()


def status() -> Status:
    found = Status("s-1", "sweeps/s-1", 9)
    found.arms = [
        Progress("probe", 8, runs=("a", "b"), wanted=2),
        Progress("probe", 64, runs=("c", "d"), wanted=2),
        Progress("full", 8, trials=6, tried=2, wanted=2),
        Progress("full", 64, trials=6, wanted=2),
    ]
    found.done = {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.7}, "c": {"accuracy": 0.8}, "t": {"accuracy": 0.99}}
    found.failed = {"d": "out of memory"}
    found.tried = {"t"}
    return found


def test_each_arm_with_each_amount_of_data_says_how_far_it_is() -> None:
    lines = [line.split() for line in shown(status()).splitlines() if line.strip()]
    assert ["arm", "8", "64"] in lines
    assert ["probe", "2/2", "0.600", "1/2", "0.800", "1", "failed"] in lines
    assert ["full", "2/6", "tried", "·"] in lines
    assert ["accuracy"] in lines


def test_what_is_finished_gives_way() -> None:
    text = shown(status(), most=1)
    assert "full" in text
    assert "probe" not in text
    assert "and 1 more" in text


def test_the_best_run_is_one_that_is_reported_on() -> None:
    assert best(status()) == ["best accuracy 0.800 (c)"]


def test_where_there_is_no_terminal_a_line_says_at_once_what_takes_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    with SweepView() as view:
        view.note("starting Ray on this machine")
    assert capsys.readouterr().err == "planning: reading rows and models\nstarting Ray on this machine\n"
