"""Models that graft trains itself: where they lie, and whether they are still what was trained.

    recipe:NAME ─► $GRAFT_MODELS/NAME/IDENTITY, the one that was trained last ─► shipped with graft

`graft pretrain` puts them there (`graft.pretraining`). Their folders are transformers' own, with a manifest.
"""

import json
import os
from pathlib import Path
from typing import Any

from graft.errors import ModelError, suggest
from graft.hashing import file_sha256

MANIFEST = "recipe.json"
LATEST = "latest"
INSTRUCT = "instruct"
"""Folder of the second stage's model, inside the first one's."""
SHIPPED = Path(__file__).parents[1] / "pretraining" / "shipped"


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
    if folder is None:
        known = {path.parent.name for path in home().glob(f"*/{LATEST}")} | shipped()
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
    draft = folder / f"{MANIFEST}.tmp"
    draft.write_text(json.dumps({**about, "files": files}, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / MANIFEST)


def point_to(name: str, folder: Path) -> None:
    """Make a trained model the one that its recipe's name means."""
    if _latest(name) == folder:
        return
    if folder == SHIPPED / name:
        (home() / name / LATEST).unlink()
        return
    draft = folder.parent / f"{LATEST}.{os.getpid()}.tmp"
    draft.write_text(folder.name + "\n", encoding="utf-8")
    draft.replace(folder.parent / LATEST)
