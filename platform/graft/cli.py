"""The command line: `graft COMMAND`. Exit codes: 0 done, 1 a run failed, 2 the input is wrong."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.errors import GraftError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from graft.graph import Progress as Watch
    from graft.spec import Experiment

SECONDS_BETWEEN_LINES = 10.0

app = typer.Typer(
    help="Compose and adapt pre-trained models, and learn with honest numbers which way is best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Spec = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to do; the README explains every field.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[key.path=value]...", help="Fields that override the spec's.")
]
Storage = Annotated[str, typer.Option(help="Folder or URI (s3://, gs://) that holds runs/, sweeps/ and store/.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the resolved spec, the graph and the resources; run nothing.")
]
StoreLimit = Annotated[str, typer.Option(help="Size above which the column store evicts what was used least recently.")]


@app.command()
def validate(spec: Spec, overrides: Words = None, storage: Storage = ".", dry_run: DryRun = False) -> None:
    """Check a spec, its data and its models, and say what it will ask for. No model runs."""
    _show_plan(_read(spec, overrides), with_spec=dry_run)
    typer.echo(f"{spec} is valid")


@app.command()
def run(
    spec: Spec,
    overrides: Words = None,
    storage: Storage = ".",
    dry_run: DryRun = False,
    store_limit: StoreLimit = "20GiB",
) -> None:
    """Carry out a spec: one run, or every run of its sweep with a report. The same command resumes what was killed."""
    from graft import runner

    experiment = _read(spec, overrides)
    limit = _bytes(store_limit)
    if dry_run:
        _show_plan(experiment, with_spec=True)
    elif experiment.sweep is not None:
        _run_sweep(experiment, storage, limit)
    else:
        with _progress() as watch:
            result = runner.run(experiment, storage, progress=watch(experiment.name), store_limit_bytes=limit)
        _print_metrics(result.metrics)
        typer.echo(f"{result.run_id}: {result.folder}")


@app.command()
def report(
    folders: Annotated[list[str], typer.Argument(metavar="DIR...", help="Sweep folders, run folders, or a storage.")],
    out: Annotated[str | None, typer.Option("-o", "--out", help="Folder for report.html and report.md.")] = None,
) -> None:
    """Write one self-contained HTML page and Markdown: tables with intervals, learning curves, costs."""
    from graft.results.report import write_report

    for path in write_report(folders, out):
        typer.echo(path)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run_id or a run folder.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows with the run's input columns: CSV, JSONL or Parquet.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the answers go: .csv, .jsonl or .parquet.")],
    storage: Storage = ".",
) -> None:
    """Answer the rows of a file with a run's graph."""
    from graft.prediction import predict_file

    with _progress() as watch:
        count = predict_file(run, file, out, storage, watch(file.name))
    typer.echo(f"{count} rows: {out}")


@app.command("ls")
def list_runs(
    storage: Storage = ".",
    store: Annotated[bool, typer.Option("--store", help="List the column store instead.")] = False,
) -> None:
    """List runs and sweeps, or with --store what the column store keeps and has saved."""
    from graft.results import listing

    # Names are copied from here into other commands: a pipe has no width to cut them to.
    _console(width=None if sys.stdout.isatty() else 200).print(
        listing.store_table(storage) if store else listing.run_table(storage)
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A run_id, a sweep_id or a folder.")], storage: Storage = "."
) -> None:
    """Show one run (spec, graph, numbers, costs) or one sweep (its table)."""
    from graft.results import listing

    for part in listing.details(name, storage):
        _console().print(part, markup=False, highlight=False)


@app.command()
def doctor(storage: Storage = ".") -> None:
    """Check this machine: versions, devices, storage, models at hand. Exits 1 when something is broken."""
    from graft import diagnosis

    checks = diagnosis.checks(storage)
    for check in checks:
        typer.echo(f"{'ok  ' if check.fine else 'FAIL'}  {check.name:<10} {check.finding}")
    if not all(check.fine for check in checks):
        raise typer.Exit(1)


def _read(spec: Path, overrides: list[str] | None) -> "Experiment":
    from graft.spec import Experiment

    return Experiment.from_yaml(spec, *(overrides or ()))


def _show_plan(experiment: "Experiment", with_spec: bool) -> None:
    from graft import runner
    from graft.sweeps.axes import expand
    from graft.sweeps.sequential import identify

    planned = runner.plans(expand(experiment))
    if with_spec:
        typer.echo(experiment.to_yaml() if experiment.sweep else planned[0].experiment.to_yaml())
    if experiment.sweep:
        typer.echo(f"sweep      {identify(experiment, planned)}: {len(planned)} runs; the first of them:")
    typer.echo(planned[0].describe())


def _run_sweep(experiment: "Experiment", storage: str, limit: int) -> None:
    from graft.results.tables import main_metric, summary, terminal
    from graft.sweeps.sequential import run_sweep

    with _progress() as watch:
        result = run_sweep(
            experiment,
            storage,
            watch=lambda done, total, plan: watch(f"[{done + 1}/{total}] {plan.run_id}", done, total),
            store_limit_bytes=limit,
        )
    metric = main_metric(result.metrics)
    _console().print(terminal(summary(result.metrics, metric)))
    typer.echo(f"report: {result.report}")
    if result.failed:
        raise typer.Exit(1)


def _print_metrics(metrics: Any) -> None:
    for name, value in zip(metrics["metric"].to_pylist(), metrics["value"].to_pylist(), strict=True):
        typer.echo(f"{name:<18} {'undefined' if value is None else format(value, '.4f')}")


@contextmanager
def _progress() -> Iterator[Callable[..., "Watch"]]:
    """A bar on a terminal with counts and time left; a line now and then where the output is a file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _console(stderr=True)
    said = time.monotonic()

    def say(text: str) -> None:
        """A line now and then where nobody watches a bar: in a file, in a job's log."""
        nonlocal said
        if not console.is_terminal and time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            typer.echo(text, err=True)

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        runs = bar.add_task("runs", total=None, visible=False)
        rows = bar.add_task("rows", total=None)

        def watch(title: str, done: int | None = None, total: int | None = None) -> "Watch":
            if total is not None:
                bar.update(runs, completed=done, total=total, visible=True)
            bar.update(rows, description=title, completed=0, total=None)
            say(title)

            def on_rows(what: str, done: int, total: int) -> None:
                say(f"{title} {what}: {done} of {total} rows")
                bar.update(rows, description=f"{title} {what}", completed=done, total=total)

            return on_rows

        try:
            yield watch
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command goes on from here", err=True)
            raise typer.Exit(130) from None


def _console(stderr: bool = False, width: int | None = None) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, width=width)


def _bytes(text: str) -> int:
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([KMGT]iB)", text)
    if not found:
        raise SpecError(f"--store-limit: got {text!r}; give a number and a unit, for example 500MiB or 20GiB")
    return int(float(found[1]) * units[found[2]])


def main() -> None:
    """Run the command line; errors that graft raises on purpose are lines, not tracebacks."""
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is not worth a traceback
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(handlers=[handler], format="%(levelname)s: %(message)s")
    try:
        app()
    except GraftError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
