"""`graft keys`: make, list and remove API keys."""

from pathlib import Path
from typing import Annotated

import typer

from graft.serving import keys as stored

keys = typer.Typer(help="API keys of served runs.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option(help="File that keeps the keys' hashes.")]


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    file: KeyFile = Path("keys.json"),
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests; left out, no limit.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Most tokens, read and written; left out, no limit.")
    ] = None,
) -> None:
    """Make an API key and show it once, on the last line; the file keeps its hash."""
    key = stored.add_key(file, name, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    typer.echo(f"added {name} to {file}; the key is shown only now:", err=True)
    typer.echo(key)


@keys.command("ls")
def list_keys(file: KeyFile = Path("keys.json")) -> None:
    """List the keys of a file: whose, since when, and their limits."""
    row = "{:<24} {:<25} {:>19} {:>17}".format
    typer.echo(row("name", "created", "requests per minute", "tokens per minute"))
    for key in stored.list_keys(file):
        limits = [limit or "no limit" for limit in (key.requests_per_minute, key.tokens_per_minute)]
        typer.echo(row(key.name, str(key.created), *limits))


@keys.command("rm")
def remove_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it was.")], file: KeyFile = Path("keys.json")
) -> None:
    """Remove a key from a file. A server on this machine that uses the file refuses it a second later."""
    stored.remove_key(file, name)
    typer.echo(f"removed {name} from {file}")
