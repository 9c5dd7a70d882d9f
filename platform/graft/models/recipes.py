"""Models that graft trains itself: where they lie, and whether they are still what was trained.

    recipe:NAME ─► $GRAFT_MODELS/NAME/IDENTITY, the one that was trained last ─► shipped with graft
               └─► never trained, but its recipe comes with graft: `graft run` and `graft sweep` train it first

`graft pretrain` puts them there (`graft.pretraining`). Their folders are transformers' own, with a manifest.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import fs

from graft.errors import ModelError, suggest
from graft.hashing import file_sha256
from graft.storage import write_atomic

MANIFEST = "recipe.json"
LATEST = "latest"
INSTRUCT = "instruct"
"""Folder of the second stage's model, inside the first one's."""
SHIPPED = Path(__file__).parents[1] / "pretraining" / "shipped"
RECIPES = Path(__file__).parents[1] / "pretraining" / "recipes"
"""Recipes that need nothing from outside."""


def home() -> Path:
    """Where trained models are kept: `$GRAFT_MODELS`, else `~/.cache/graft/models`; all nodes must see it."""
    return Path(os.environ.get("GRAFT_MODELS") or Path.home() / ".cache" / "graft" / "models").expanduser().absolute()


def folder_of(name: str, identity: str) -> Path:
    """Where the model of a recipe lies, or will lie."""
    shipped = SHIPPED / name
    if (shipped / MANIFEST).is_file() and read_manifest(shipped)["identity"] == identity:
        return shipped
    return home() / name / identity


def find(name: str, variant: str | None) -> Path:
    """The folder of a trained model.

    Args:
        name: of the recipe.
        variant: `pretrained`, `instruct`, or None for the last stage there is.

    Raises:
        ModelError: it was never trained, has no such variant, or is damaged.
    """
    folder = _latest(name)
    if folder is None and (recipe := recipe_of(name)):
        raise ModelError(
            f"recipe:{name}: is not trained yet; graft run and graft sweep train it first, graft pretrain {recipe} "
            "does only that"
        )
    if folder is None:
        known = {path.parent.name for path in home().glob(f"*/{LATEST}")} | shipped()
        known |= {path.stem for path in RECIPES.glob("*.yaml")}
        raise ModelError(
            f"recipe:{name}: no such model; {suggest(name, known)}; graft pretrain SPEC trains one whose name is {name}"
        )
    check(folder, f"recipe:{name}")
    instructed = folder / INSTRUCT
    if variant == "instruct" and not instructed.is_dir():
        raise ModelError(f"recipe:{name}: has no variant instruct; its recipe has no section instruct")
    return folder if variant == "pretrained" or not instructed.is_dir() else instructed


def shipped() -> set[str]:
    """Names of the models that come with graft."""
    return {path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}")}


def recipe_of(name: str) -> Path | None:
    """The recipe of this name that comes with graft."""
    return next((path for path in RECIPES.glob("*.yaml") if path.stem == name), None)


def untrained(sources: Iterable[str]) -> list[Path]:
    """Recipes among these sources that come with graft and were never trained."""
    names = dict.fromkeys(source.removeprefix("recipe:") for source in sources if source.startswith("recipe:"))
    return [recipe for name in names if _latest(name) is None and (recipe := recipe_of(name))]


def _latest(name: str) -> Path | None:
    pointer = home() / name / LATEST
    if pointer.is_file():
        return pointer.parent / pointer.read_text(encoding="utf-8").strip()
    return SHIPPED / name if name in shipped() else None


def is_whole(folder: Path) -> bool:
    """Whether a model is there; its manifest is renamed into place last."""
    return (folder / MANIFEST).is_file()


def check(folder: Path, name: str) -> None:
    """Refuse a model whose files are not those that were written.

    Raises:
        ModelError: one is missing or damaged.
    """
    if not is_whole(folder):
        raise ModelError(f"{name}: {folder} is gone or not finished; run graft pretrain with its spec again")
    for file, expected in read_manifest(folder)["files"].items():
        path = folder / file
        got = file_sha256(path) if path.is_file() else "nothing"
        if got != expected:
            raise ModelError(
                f"{name}: {path} is damaged: its SHA-256 is {got}, it was written as {expected}; delete {folder} and "
                "run graft pretrain with its spec again"
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was written beside the model.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {**found, "files": dict(found["files"]), "identity": str(found["identity"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{folder / MANIFEST}: cannot be read ({error}); delete {folder} and train it again"
        ) from error


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write down what a finished folder holds, as the last thing."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for place in (folder, folder / INSTRUCT)
        for path in sorted(place.glob("*"))
        if path.suffix in (".json", ".safetensors", ".jinja")
    }
    _write(folder / MANIFEST, json.dumps({**about, "files": files}, indent=2) + "\n")


def point_to(name: str, folder: Path) -> None:
    """Make a trained model the one that its recipe's name means."""
    if _latest(name) == folder:
        return
    if folder == SHIPPED / name:
        (home() / name / LATEST).unlink()
        return
    _write(folder.parent / LATEST, folder.name + "\n")


def _write(path: Path, text: str) -> None:
    write_atomic(fs.LocalFileSystem(), str(path), text.encode())
