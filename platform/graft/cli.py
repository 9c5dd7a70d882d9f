"""The command line: `graft COMMAND`. Exit codes: 0 done, 1 a run failed, 2 the input is wrong."""

import atexit
import contextlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graft.errors import GraftError, SpecError
from graft.serving.key_commands import keys

if TYPE_CHECKING:
    from graft.spec import Experiment

app = typer.Typer(
    help="Compose and adapt pre-trained models, and learn with honest numbers which way is best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys, name="keys")

Spec = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to do; the README explains every field.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[key.path=value]...", help="Fields that override the spec's.")
]
Storage = Annotated[str, typer.Option(help="Folder or URI (s3://, gs://) that holds runs/, sweeps/ and store/.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the resolved spec, the graph and the resources; run nothing.")
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="Ray cluster, host:port or auto; left out, one is started here if needed."),
]
Concurrent = Annotated[
    int | None, typer.Option(min=1, help="Runs at the same time at most; left out, one per CPU of the cluster.")
]
StoreLimit = Annotated[str, typer.Option(help="Size above which the column store evicts what was used least recently.")]


@app.command()
def validate(spec: Spec, overrides: Words = None, storage: Storage = ".", dry_run: DryRun = False) -> None:
    """Check a spec, its data and its models, and say what it will ask for. No model runs.

    A config file of Ray Serve, or a RayService of KubeRay that holds one, is checked too: Ray ignores misspelt keys.
    """
    if not overrides and _shows_serve_config(spec):
        typer.echo(f"{spec} is valid")
        return
    _show_plan(_read(spec, overrides), with_spec=dry_run)
    typer.echo(f"{spec} is valid")


@app.command()
def run(
    spec: Spec,
    overrides: Words = None,
    storage: Storage = ".",
    dry_run: DryRun = False,
    store_limit: StoreLimit = "20GiB",
    address: Address = None,
) -> None:
    """Carry out one experiment. The same command resumes what was killed, and only reads what is done."""
    from graft import runner
    from graft.terminal import progress

    experiment = _read(spec, overrides)
    limit = _bytes(store_limit)
    if experiment.sweep is not None:
        raise SpecError(f"{spec}: this spec has a sweep; carry it out with: graft sweep {spec}")
    if dry_run:
        return _show_plan(experiment, with_spec=True)
    with progress() as watch:
        result = runner.run(
            experiment, storage, progress=watch(experiment.name), store_limit_bytes=limit, address=address
        )
    for name, value in result.values.items():
        typer.echo(f"{name:<18} {'undefined' if value is None else format(value, '.4f')}")
    typer.echo(f"{result.run_id}: {result.folder}")


@app.command()
def pretrain(spec: Spec, overrides: Words = None, dry_run: DryRun = False, address: Address = None) -> None:
    """Train a model from scratch; afterwards `recipe:NAME` names it. The same command resumes what was killed."""
    from graft import pretraining
    from graft.models import recipes
    from graft.pretraining.recipe import Recipe
    from graft.terminal import interruptible, progress

    recipe = Recipe.from_yaml(spec, *(overrides or ()))
    if dry_run:
        folder = recipes.folder_of(recipe.name, pretraining.identity(recipe))
        typer.echo(recipe.to_yaml() + f"# {folder}: {'trained' if recipes.is_whole(folder) else 'not trained yet'}")
        return
    with interruptible(), progress() as watch:
        folder = pretraining.pretrain(recipe, watch(recipe.name), address)
    for name, value in recipes.read_manifest(folder)["evaluation"].items():
        typer.echo(f"{name:<18} {value:.4f}")
    typer.echo(f"recipe:{recipe.name}: {folder}")


@app.command()
def sweep(
    spec: Spec,
    overrides: Words = None,
    storage: Storage = ".",
    dry_run: DryRun = False,
    store_limit: StoreLimit = "20GiB",
    address: Address = None,
    concurrent: Concurrent = None,
    yes: Annotated[bool, typer.Option("--yes", help="Carry out more than 10,000 runs.")] = False,
) -> None:
    """Carry out every run of a spec's sweep on Ray, and report. The same command resumes what was killed.

    A run that fails is a row of the table with its error, and the exit code is then 1.
    """
    from graft.results.tables import main_metric, run_to_serve, summary, terminal
    from graft.sweeps.axes import MOST_CELLS, count
    from graft.sweeps.sweep import run_sweep
    from graft.terminal import SweepView, console, interruptible

    experiment = _read(spec, overrides)
    limit = _bytes(store_limit)
    if experiment.sweep is None:
        raise SpecError(f"{spec}: this spec has no sweep; carry it out with: graft run {spec}")
    if (runs := count(experiment)) > MOST_CELLS and not yes:
        hours = runs / (os.cpu_count() or 1) / 3600
        raise SpecError(
            f"{spec}: this sweep has {runs:,} runs; even at a second each, one per CPU of this machine, that is "
            f"{hours:,.1f} hours; take values from its axes, or give --yes"
        )
    if dry_run:
        return _show_plan(experiment, with_spec=True)
    with interruptible(), SweepView() as view:
        result = run_sweep(
            experiment,
            storage,
            address=address,
            concurrent=concurrent,
            watcher=view,
            store_limit_bytes=limit,
        )
    console().print(terminal(summary(result.metrics, main_metric(result.metrics))))
    typer.echo(f"report: {result.report}")
    if best := run_to_serve(result.metrics):
        typer.echo(f"serve its best arm: graft serve {best}{'' if storage == '.' else f' --storage {storage}'}")
    if result.failed:
        typer.echo(
            f"{result.failed} of {view.status.total if view.status else '?'} runs failed; the report says why", err=True
        )
        raise typer.Exit(1)


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
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run_id or run folder; with --sweep also an arm's name.")],
    second: Annotated[str, typer.Argument(metavar="B", help="What it is held against.")],
    sweep: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the sweep that has both.")] = None,
    metric: Annotated[str | None, typer.Option(help="Compare by this; left out, by the task's main metric.")] = None,
    storage: Storage = ".",
) -> None:
    """Hold two runs or arms against each other, paired by seed and test row: difference, interval, tests, verdict."""
    from graft.results.pairs import compare_pair

    for line in compare_pair(first, second, sweep, storage, metric).lines():
        typer.echo(line)


@app.command()
def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run_id or a run folder.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows with the run's input columns: CSV, JSONL or Parquet.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the answers go: .csv, .jsonl or .parquet.")],
    storage: Storage = ".",
    address: Address = None,
) -> None:
    """Answer the rows of a file with a run's graph; from 10,000 new rows on, on a pool of Ray processes."""
    from graft.prediction import predict_file
    from graft.terminal import progress

    with progress() as watch:
        count = predict_file(run, file, out, storage, watch(file.name), address)
    typer.echo(f"{count} rows: {out}")


@app.command()
def serve(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [serve.key=value]...", help="run_ids or run folders; fields of their serve."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File that graft keys new has made; without it one key is made for this session."),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write what users send into the server's log; else none of it is.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate in PEM, to serve over HTTPS; needs --tls-key.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its key in PEM, not encrypted; needs --tls-cert.")
    ] = None,
    storage: Storage = ".",
    address: Address = None,
) -> None:
    """Serve runs over HTTP with Ray Serve until Ctrl-C: a deployment per model, keys and limits in front."""
    from graft.serving import host as serving
    from graft.serving.gate import Limits
    from graft.terminal import note

    def announce(server: serving.Server) -> None:
        for line in server.lines():
            typer.echo(line)

    served = serving.serve(
        names,
        host=host,
        port=port,
        api_keys=api_keys,
        limits=Limits(log_prompts=log_prompts),
        tls_cert=tls_cert,
        tls_key=tls_key,
        storage=storage,
        address=address,
        announce=announce,
        note=note,
    )
    if not served:
        typer.echo("stopped while it was starting", err=True)
        raise typer.Exit(130)


@app.command("ls")
def list_runs(
    storage: Storage = ".",
    store: Annotated[bool, typer.Option("--store", help="List the column store instead.")] = False,
) -> None:
    """List runs and sweeps, or with --store what the column store keeps and has saved."""
    from graft.results import listing
    from graft.terminal import console

    # Names are copied from here into other commands: a pipe has no width to cut them to.
    console(width=None if sys.stdout.isatty() else 200).print(
        listing.store_table(storage) if store else listing.run_table(storage)
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A run_id, a sweep_id or a folder.")], storage: Storage = "."
) -> None:
    """Show one run (spec, graph, numbers, costs) or one sweep (its table)."""
    from graft.results import listing
    from graft.terminal import console

    for part in listing.details(name, storage):
        console().print(part, markup=False, highlight=False)


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


def _shows_serve_config(file: Path) -> bool:
    """Show what a file deploys, where it is one of Ray Serve's."""
    from graft.specfile import read_yaml

    values = read_yaml(file)
    # Asked before Ray is loaded: most files are specs.
    if "applications" not in values and values.get("kind") != "RayService":
        return False
    from graft.serving.checking import check_serve_config

    checked = check_serve_config(file)
    for line in checked.lines():
        typer.echo(line)
    for warning in checked.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return True


def _show_plan(experiment: "Experiment", with_spec: bool) -> None:
    from graft.sweeps.axes import expand_members
    from graft.sweeps.roster import plan_sweep

    roster = plan_sweep(experiment, expand_members(experiment))
    first = next(iter(roster.plans.values()))
    if with_spec:
        typer.echo(experiment.to_yaml() if experiment.sweep else first.experiment.to_yaml())
    if experiment.sweep:
        typer.echo(roster.describe(experiment.sweep))
    typer.echo(first.describe())


def _bytes(text: str) -> int:
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([KMGT]iB)", text)
    if not found:
        raise SpecError(f"--store-limit: got {text!r}; give a number and a unit, for example 500MiB or 20GiB")
    return int(float(found[1]) * units[found[2]])


def carry_out(words: Sequence[str] | None = None) -> int:
    """Carry out a command line (None: this process's own), and give its exit code.

    Errors that graft raises on purpose are lines, not tracebacks.
    """
    try:
        app(args=words)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except GraftError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        pass
    return 0


def main() -> None:
    """The process of the command line."""
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is not worth a traceback
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    logging.basicConfig(handlers=[handler], format="%(levelname)s: %(message)s")
    status = 1
    # First registered, last called: what other modules do at exit is done by then.
    atexit.register(lambda: _leave(status))
    status = carry_out()
    sys.exit(status)


def _leave(status: int) -> None:
    """End the process without unloading it.

    A thread of pyarrow that asks for the interpreter while that is being unloaded is killed inside C++, which aborts
    the process: work that is done and written would then end with the code of a crash.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
