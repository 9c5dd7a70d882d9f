"""A model's folder: whether it can be loaded safely, and which of its files say what the model computes."""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

from graft.errors import ModelError
from graft.hashing import file_sha256

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

DEFINING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*.safetensors",
    "*.safetensors.index.json",
)
"""Files of a folder that decide what the model computes; everything else in it is ignored."""


def check(folder: Path, name: str) -> None:
    """Refuse what cannot be loaded, before torch is imported.

    Raises:
        ModelError: an adapter, no configuration, no weights, pickled weights only, a missing shard, or a damaged file.
    """
    inner = transformer_folder(folder)
    if (inner / "adapter_config.json").is_file():
        raise ModelError(
            f"{name}: {inner} holds an adapter (adapter_config.json); merge it first (peft: merge_and_unload, then "
            "save_pretrained into a new folder), or remove the adapter to use the bare model"
        )
    if not (inner / "config.json").is_file():
        raise ModelError(f"{name}: {inner} has no config.json; give a folder written by save_pretrained")
    read_json(inner / "config.json")
    weights = sorted(inner.glob("*.safetensors"))
    if not weights:
        _refuse_without_weights(inner, name)
    for index in inner.glob("*.safetensors.index.json"):
        for shard in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (inner / shard).is_file():
                raise ModelError(f"{name}: {inner} has no {shard}, which {index.name} lists; copy or download it again")
    for file in weights:
        _check_tensors(file, name)


def is_whole(folder: Path) -> bool:
    """Whether the folder passes `check`."""
    try:
        check(folder, str(folder))
    except ModelError:
        return False
    return True


def hashes(folder: Path, code: bool = False) -> dict[str, str]:
    """SHA-256 of every file that decides what the model computes, by its name inside the folder.

    Args:
        folder: a folder that passed `check`.
        code: the model's own Python files run too, so they count.
    """
    places = {folder, *(folder / module.get("path", "") for module in modules(folder))}
    patterns = (*DEFINING, "*.py") if code else DEFINING
    files = {file for place in places for pattern in patterns for file in place.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def parameters(folder: Path) -> int:
    """Numbers in the weights of a folder that passed `check`, from the files' headers alone."""
    from safetensors import safe_open

    inner = transformer_folder(folder)
    # A folder may hold its weights a second time; transformers reads this one, or what the index lists.
    single = inner / "model.safetensors"
    index = inner / "model.safetensors.index.json"
    shards = set(read_json(index)["weight_map"].values()) if index.is_file() else ()
    files = [single] if single.is_file() else [inner / shard for shard in shards]
    count = 0
    for file in files:
        with safe_open(file, framework="np") as tensors:
            slices = map(tensors.get_slice, tensors.keys())
            # Whole numbers of this width are positions that old files carry, not weights.
            count += sum(math.prod(part.get_shape()) for part in slices if part.get_dtype() != "I64")
    return count


def modules(folder: Path) -> list[dict[str, Any]]:
    """The steps of a sentence-transformers folder, in order; empty for any other folder."""
    path = folder / "modules.json"
    steps = read_json(path) if path.is_file() else []
    if not isinstance(steps, list) or not all(isinstance(step, dict) and _is_inside(step) for step in steps):
        raise ModelError(
            f"{path}: not a list of steps with a type and a path inside the folder; copy or download it again"
        )
    return steps


def _is_inside(step: dict[str, Any]) -> bool:
    place = PurePosixPath(str(step.get("path", "")))
    return not place.is_absolute() and ".." not in place.parts


def transformer_folder(folder: Path) -> Path:
    """Where the transformers model lies: in older sentence-transformers folders, one level down."""
    steps = modules(folder)
    return folder / steps[0].get("path", "") if steps else folder


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        ModelError: it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy or download it again") from error


def _refuse_without_weights(folder: Path, name: str) -> None:
    pickled = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{name}: {folder} holds pickled weights only ({pickled[0]}), which can run code when opened; graft reads "
            "safetensors: where you trust the file, AutoModel.from_pretrained(FOLDER).save_pretrained(NEW) converts it "
            "(for a language model AutoModelForCausalLM, so that its head is kept)"
        )
    raise ModelError(f"{name}: {folder} has no weights (*.safetensors); copy or download them")


def _check_tensors(file: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            tensors.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{name}: {file} is damaged ({error}); copy or download it again") from error
