"""What is trained in a frozen network: all of it, a PEFT adapter, or a bottleneck adapter.

    frozen network ─► structural copy that shares its weights ─► trained parts put in ─► trained, saved, loaded

A setting is a plain mapping: `{"full": true}`, PEFT's own fields with `peft_type`, or a bottleneck's.
Trained parts are saved in the format of their ecosystem: a transformers folder, PEFT's files, safetensors.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from graft.errors import ModelError
from graft.methods import bottleneck, peft_fields, peft_losses, peft_types
from graft.models import absolute
from graft.models.objective import NextTokenLoss
from graft.seeds import fresh_streams, generator
from graft.spec import Training

Weights = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A network with trained parts in it."""

    network: nn.Module
    """What is called: it takes and gives what the frozen network does."""
    module: nn.Module
    """What holds all parameters: PEFT's own object, else the network."""


def put_in(model: Any, adapter: Mapping[str, Any], seed: int, weights: Weights | None = None) -> Adapted:
    """A copy of a frozen model's network with trained parts in it, which alone require gradients.

    Args:
        model: handle of the frozen model; its own network stays as it is, and shares its weights.
        adapter: what is trained.
        seed: of the initialisation.
        weights: what `taken_out` gave, for inference; None for training.

    Raises:
        ModelError: the adapter does not suit the model.
        SpecError: the adapter's own settings are wrong.
    """
    network = model.frozen_copy()
    drawn = int(generator(seed, "adapter").integers(2**31))
    with fresh_streams(drawn):
        if "full" in adapter:
            adapted = _all_trained(model, network)
        elif "peft_type" in adapter:
            adapted = Adapted(*peft_types.insert(model, network, adapter, weights is None, drawn))
        else:
            bottleneck.insert(network, adapter["kind"], adapter["bottleneck"], seed=seed)
            adapted = Adapted(network, network)
    if weights is not None:
        _load(adapted, adapter, weights)
        adapted.module.eval().requires_grad_(False)
        return adapted
    for parameter in adapted.module.parameters():
        if parameter.requires_grad:
            # A copy: some adapters train biases that the frozen model shares.
            parameter.data = parameter.data.to(torch.float32, copy=True)
    adapted.module.train()
    return adapted


def merges(adapter: Mapping[str, Any], model: Any) -> bool:
    """Whether an adapter can become part of the weights, so that it costs nothing when the model answers.

    Trained biases (`lora_bias`) have no place where the layers under them have none.
    """
    unbiased = adapter.get("peft_type") == "LORA" and not adapter.get("lora_bias")
    return unbiased and model.source.quantization is None


def merged(model: Any, adapter: Mapping[str, Any], seed: int, weights: Weights) -> nn.Module:
    """The network with a trained adapter added to its weights; the frozen model keeps its own."""
    adapted = put_in(model, adapter, seed, weights)
    for module in adapted.module.modules():
        if isinstance(layer := getattr(module, "base_layer", None), nn.Module):
            for name, weight in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
    network: nn.Module = adapted.module.merge_and_unload().eval().requires_grad_(False)
    return network


WRAPPINGS = {"base_layer", "base_model", "default", "ln_tuning_layers", "modules_to_save", "original_module"}
"""Parts of a parameter's name that come from what PEFT puts around modules."""


def new_names(trained: Weights, model: Any) -> list[str]:
    """Names of trained parameters that are none of the frozen model's own."""

    def bare(name: str) -> str:
        return ".".join(part for part in name.removeprefix("base_model.model.").split(".") if part not in WRAPPINGS)

    own = {bare(name) for name, _ in model.network.named_parameters()}
    return [name for name in trained if bare(name) not in own]


def suited(adapter: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """A setting with what follows from the training.

    Raises:
        SpecError: this training cannot be had with it.
    """
    return peft_fields.suited(adapter, training) if "peft_type" in adapter else dict(adapter)


def with_loss(adapted: Adapted, adapter: Mapping[str, Any], terms: int) -> NextTokenLoss:
    """What is trained, as one module whose parameters are `network.NAME`."""
    loss = peft_losses.LOSSES.get(peft_fields.kind_of(adapter)) if "peft_type" in adapter else None
    return (loss or NextTokenLoss)(adapted.module, terms, called=adapted.network)


def taken_out(adapted: Adapted, adapter: Mapping[str, Any], trained: Weights) -> Weights:
    """What is kept of a training: the trained parts as they are saved, float32 by name.

    Args:
        adapted: made for training.
        adapter: its setting.
        trained: every trained parameter of `adapted.module` by its name there.
    """
    parameters = dict(adapted.module.named_parameters())
    with torch.no_grad():
        for name, value in trained.items():
            parameters[name].copy_(torch.from_numpy(value))
    if "peft_type" in adapter:
        return peft_types.state(adapted.module)
    return trained


def _all_trained(model: Any, network: nn.Module) -> Adapted:
    if model.source.quantization is not None:
        raise ModelError("models.base.quantization: quantised weights cannot be trained; leave it null, or use peft")
    for parameter in network.parameters():
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)
    return Adapted(network, network)


def _load(adapted: Adapted, adapter: Mapping[str, Any], weights: Weights) -> None:
    if "peft_type" in adapter:
        peft_types.load(adapted.module, weights)
        return
    parameters = dict(adapted.module.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(torch.from_numpy(value))


def write(adapted: Adapted, adapter: Mapping[str, Any], weights: Weights, model: Any, directory: Path) -> None:
    """Save trained parts as others can read them.

    Args:
        adapted: made with these weights.
        adapter: its setting.
        weights: what `taken_out` gave.
        model: handle of the frozen model.
        directory: of the node; a transformers folder `model/`, or `adapter/` with PEFT's files or safetensors.
    """
    if "full" in adapter:
        from graft.models.loading import quiet

        with quiet():
            adapted.network.save_pretrained(directory / "model")
        model.tokenizer.save_pretrained(directory / "model")
        return
    folder = directory / "adapter"
    folder.mkdir(parents=True, exist_ok=True)
    if "peft_type" in adapter:
        peft_types.write_config(adapted.module, absolute(model.source).source, folder)
    else:
        (folder / "adapter_config.json").write_text(json.dumps(dict(adapter), indent=2) + "\n", encoding="utf-8")
    _save_file(weights, folder / "adapter_model.safetensors")


def read(adapter: Mapping[str, Any], model: Any, directory: Path) -> Weights:
    """The trained parts that `write` saved."""
    if "full" in adapter:
        from graft.models.loading import open_network

        network = open_network(model.kind, directory / "model", model.source.trust_remote_code)
        return {name: value.detach().numpy() for name, value in network.named_parameters()}
    from safetensors.numpy import load_file

    return load_file(directory / "adapter" / "adapter_model.safetensors")


def _save_file(weights: Weights, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, path, metadata={"format": "pt"})
