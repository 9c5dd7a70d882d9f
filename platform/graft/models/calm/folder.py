"""A composed model as a folder: bridges alone, and which frozen models they were trained with.

calm_config.json       settings; name, revision and contents of every model, contents of every tokenizer
bridges.safetensors    the trained weights
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from graft import hashing
from graft.errors import ModelError
from graft.models.calm.reading import tokenizer_fingerprint

if TYPE_CHECKING:
    from graft.models.calm.model import CalmForCausalLM

FORMAT = 1
CONFIG, WEIGHTS = "calm_config.json", "bridges.safetensors"


def depth(network: nn.Module) -> int:
    """Number of blocks."""
    return int(network.config.get_text_config().num_hidden_layers)


def name_of(network: nn.Module) -> str:
    """Where a network came from, or its kind."""
    return str(getattr(network, "name_or_path", "") or type(network).__name__)


def weights_fingerprint(network: nn.Module) -> str:
    """A digest of every weight by name and value; the same in any floating-point type that holds the values."""

    def one(item: tuple[str, torch.Tensor]) -> str:
        name, weight = item
        state = hashlib.blake2b(f"{name} {tuple(weight.shape)}".encode(), digest_size=16)
        state.update(weight.detach().to("cpu", torch.float32).contiguous().numpy())
        return state.hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return hashing.digest(list(pool.map(one, sorted(network.named_parameters()))))


def _about(network: nn.Module, tokenizer: Any) -> dict[str, Any]:
    name = name_of(network)
    return {
        "source": str(Path(name).absolute()) if Path(name).exists() else name,
        "revision": getattr(network.config, "_commit_hash", None),
        "fingerprint": weights_fingerprint(network),
        "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
    }


def write(composed: "CalmForCausalLM", directory: Path) -> None:
    """What `CalmForCausalLM.save_pretrained` does."""
    directory.mkdir(parents=True, exist_ok=True)
    networks, tokenizers = composed.augmenting, composed.tokenizers
    content = {
        "format": FORMAT,
        "anchor": _about(composed.anchor, tokenizers[0][0]),
        "augmenting": [_about(one, other) for one, (_, other) in zip(networks, tokenizers, strict=True)],
        "connections": [dataclasses.astuple(connection) for connection in composed.connections],
        **dataclasses.asdict(composed.settings),
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in composed.bridges.state_dict().items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(
    cls: type["CalmForCausalLM"], directory: Path, anchor: Any, augmenting: Any, tokenizer: Any, other: Any
) -> Any:
    """What `CalmForCausalLM.from_pretrained` does."""
    try:
        content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        named, names = content["anchor"], content["augmenting"]
        settings = {name: content[name] for name in ("mode", "heads", "rank", "prenorm", "distance_bias")}
        connections = [
            [(source, target) for model, source, target in content["connections"] if model == number]
            for number in range(len(names))
        ]
        if content["format"] != FORMAT:
            raise ModelError(f"{directory}: format {content['format']}, this graft reads {FORMAT}; train it again")
        weights = load_file(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise ModelError(
            f"{directory}: {Path(error.filename or WEIGHTS).name} is not here; give the folder of a composed model"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{directory} is damaged: {error!r}; copy it again") from error
    from graft.models.calm.opening import opened

    anchor = named["source"] if anchor is None else anchor
    augmenting = [one["source"] for one in names] if augmenting is None else augmenting
    if named["tokenizer"] is None:
        # They read the same tokens, whatever tokenizers lie beside them.
        several = augmenting if isinstance(augmenting, list | tuple) else [augmenting]
        anchor, augmenting = opened(anchor)[0], [opened(one)[0] for one in several]
    composed = cls(anchor, augmenting, connections, tokenizer=tokenizer, augmenting_tokenizer=other, **settings)
    _check_models(composed, directory, [named, *names])
    try:
        composed.bridges.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{directory}: its bridges do not fit these models: {reason}") from error
    return composed.eval()


def _check_models(composed: "CalmForCausalLM", directory: Path, expected: Sequence[dict[str, Any]]) -> None:
    """Refuse other weights or tokenizers than those that the bridges were trained with."""
    networks = [composed.anchor, *composed.augmenting]
    tokenizers = [composed.tokenizers[0][0], *(other for _, other in composed.tokenizers)]
    for role, network, tokenizer, named in zip(
        ("the anchor", *(f"augmenting model {number}" for number in range(len(networks) - 1))),
        networks,
        tokenizers,
        expected,
        strict=True,
    ):
        if weights_fingerprint(network) != named["fingerprint"]:
            raise ModelError(
                f"{directory}: {role} has other weights than the model that these bridges were trained with "
                f"({named['source']}); give that one"
            )
        found = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
        if found != named["tokenizer"]:
            raise ModelError(
                f"{directory}: {role} has another tokenizer than these bridges were trained with; give tokenizer= and "
                "augmenting_tokenizer= as they were then"
            )
