"""What the command line shows while something runs: on a terminal a live view, in a file a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from graft.results.tables import LOWER_IS_BETTER, ordered
from graft.sweeps.status import Status, Watcher

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    from graft.execution import Progress as Watch
    from graft.sweeps.status import Progress

SECONDS_BETWEEN_LINES = 10.0
SHOWN_RUNS = 4
PLANNING = "planning: reading rows and models"


def console(stderr: bool = False, width: int | None = None) -> "Console":
    """Where graft writes."""
    from rich.console import Console

    return Console(stderr=stderr, width=width)


class Lines:
    """A line now and then where nobody watches: in a file, in a job's log."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def say(self, text: str) -> None:
        """Write the line, unless one was written just now."""
        if time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            typer.echo(text, err=True)


def note(text: str) -> None:
    """Write a line once, for whoever waits."""
    typer.echo(text, err=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the command with a line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None


@contextmanager
def progress() -> Iterator[Callable[[str], "Watch"]]:
    """A bar with counts and time left; gives what makes a watch of rows from a title."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    place, lines = console(stderr=True), Lines()
    with Progress(*columns, console=place, transient=True, disable=not place.is_terminal) as bar, interruptible():
        rows = bar.add_task("rows", total=None)

        def watch(title: str) -> "Watch":
            def on_rows(what: str, done: int, total: int) -> None:
                if not place.is_terminal:
                    lines.say(f"{title} {what}: {done} of {total}")
                bar.update(rows, description=f"{title} {what}", completed=done, total=total)

            return on_rows

        yield watch


class SweepView(Watcher):
    """A sweep as it runs: counts, time left, the best run so far, what runs now, where to look.

    Use it as a context manager around the sweep.
    """

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console, self.lines = console(stderr=True), Lines()
        self.began: float | None = None
        self.status: Status | None = None
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.runs = self.bar.add_task("runs", total=None)
        self.shared = self.bar.add_task("rows", total=None, visible=False)
        self.live = Live(console=self.console, get_renderable=self._picture, transient=True, refresh_per_second=4)

    def __enter__(self) -> "SweepView":
        if self.console.is_terminal:
            self.live.start()
        else:
            self.note(self.line())
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, status: Status) -> None:
        """Show the new counts."""
        first, self.status = self.status is None, status
        if status.running and self.began is None:
            self.began = time.monotonic()
        self.bar.update(self.runs, completed=len(status.done) + len(status.failed), total=status.total)
        if first and status.read:
            typer.echo(f"{status.read} of {status.total} runs are done already", err=True)
        if not self.console.is_terminal:
            self.lines.say(self.line())

    def note(self, text: str) -> None:
        """Say it once, above what changes."""
        note(text)

    def rows(self, what: str, done: int, total: int) -> None:
        """Show the rows that all runs share."""
        self.bar.update(self.shared, description=what, completed=done, total=total, visible=done < total)
        if not self.console.is_terminal:
            self.lines.say(f"{what}: {done} of {total}")

    def line(self) -> str:
        """All of it in one line."""
        status = self.status
        if status is None:
            return PLANNING
        parts = [f"{len(status.done)} of {status.total} runs done", f"{len(status.failed)} failed"]
        parts += [f"{len(status.running)} running", *self._left(status), *best(status)]
        return f"{status.sweep_id}: {', '.join(parts)}"

    def _left(self, status: Status) -> list[str]:
        """Time left, from the pace of the runs that this command has ended."""
        ended = len(status.done) + len(status.failed) - status.read
        if self.began is None or ended < 4:  # the first ones wait for their process to start
            return []
        left = (time.monotonic() - self.began) / ended * (status.total - ended - status.read)
        return [f"{left // 60:.0f}:{left % 60:02.0f} left"]

    def _picture(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        status = self.status
        if status is None:
            return Group(Text(PLANNING))
        shown = sorted(status.running)[:SHOWN_RUNS]
        more = len(status.running) - len(shown)
        running = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
        lines = [
            f"sweep      {self.line()}",
            f"running    {running}" if running else "",
            f"failed     {next(reversed(status.failed.values()))}" if status.failed else "",
            f"dashboard  {status.dashboard}" if status.dashboard else "",
            f"curves     tensorboard --logdir {status.folder}/tensorboard" if status.dashboard else "",
        ]
        texts = (Text(line, overflow="ellipsis", no_wrap=True) for line in lines if line)
        return Group(*texts, grid(status, max(4, self.console.height - 9)), self.bar)


def grid(status: Status, most: int) -> "Table":
    """Arms by amounts of data: settings tried, runs done, failed ones, and the mean of the main metric so far.

    Args:
        status: how far the sweep is.
        most: rows at most; arms that are finished give way first.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sizes = sorted({cell.examples for cell in status.arms})
    cells = {(cell.arm, cell.examples): cell for cell in status.arms}
    names = list(dict.fromkeys(cell.arm for cell in status.arms))
    shown = sorted(names, key=lambda arm: all(_over(status, cell) for cell in status.arms if cell.arm == arm))[:most]
    metric = next(iter(ordered({name for found in status.done.values() for name in found})), None)
    table = Table(box=box.SIMPLE, padding=(0, 1), caption=metric, caption_justify="left")
    table.add_column("arm", no_wrap=True, max_width=44)
    for size in sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    for arm in names:
        if arm in shown:
            row = [_cell(status, cells[arm, size], metric) if (arm, size) in cells else Text() for size in sizes]
            table.add_row(Text(arm, overflow="ellipsis"), *row)
    if len(shown) < len(names):
        table.add_row(Text(f"and {len(names) - len(shown)} more"), *([Text()] * len(sizes)))
    return table


def _over(status: Status, cell: "Progress") -> bool:
    return bool(cell.runs) and all(run in status.done or run in status.failed for run in cell.runs)


def _cell(status: Status, cell: "Progress", metric: str | None) -> "Text":
    """`3/6 tried`, then `2/5 0.812`, in red where runs failed and dim once all are done."""
    from rich.text import Text

    if not cell.runs and cell.tried < cell.trials:
        return Text(f"{cell.tried}/{cell.trials} tried" if cell.tried else "·")
    done = [status.done[run] for run in cell.runs if run in status.done]
    failed = sum(run in status.failed for run in cell.runs)
    known = [value for found in done if metric is not None and (value := found.get(metric)) is not None]
    parts = [f"{len(done)}/{cell.wanted}", *([f"{sum(known) / len(known):.3f}"] if known else [])]
    parts += [f"{failed} failed"] if failed else []
    return Text(" ".join(parts), style="red" if failed else "dim" if _over(status, cell) else "")


def best(status: Status) -> list[str]:
    """The best run so far on the main metric, in words; empty before the first."""
    names = ordered({name for metrics in status.done.values() for name in metrics})
    if not names:
        return []
    sign = -1 if names[0] in LOWER_IS_BETTER else 1
    known = [
        (sign * value, run_id)
        for run_id, found in status.done.items()
        if run_id not in status.tried and (value := found.get(names[0])) is not None
    ]
    if not known:
        return []
    value, run_id = max(known)
    return [f"best {names[0]} {sign * value:.3f} ({run_id})"]
