"""PEFT's adapters in a frozen network, saved in PEFT's own format; `peft_fields` says which there are."""

import contextlib
import difflib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from graft.errors import ModelError
from graft.methods.peft_fields import CAUSAL_ONLY, PER_TASK, SEEDS, configuration, is_plain, kind_of

WRITES_IN_PLACE = ("olora",)
"""Values of `init_lora_weights` that take the adapter's beginning out of the weights themselves."""

PEFT_REFUSES = (
    ValueError,
    TypeError,
    LookupError,
    NotImplementedError,
    AttributeError,
    RuntimeError,
    AssertionError,
    OSError,
)
"""What PEFT raises where an adapter does not suit a network."""


def insert(
    model: Any, network: nn.Module, adapter: Mapping[str, Any], training: bool, seed: int
) -> tuple[nn.Module, nn.Module]:
    """Put an adapter into a network; gives what is called, and PEFT's own object.

    Args:
        model: handle of the network's model.
        network: changed in place.
        adapter: the setting.
        training: False for inference.
        seed: of what the type draws by a seed of its own; the others draw from the process's streams.

    Raises:
        ModelError: PEFT cannot put it into this network, or a target module is not there.
        SpecError: a field is wrong.
    """
    import peft

    kind = kind_of(adapter)
    if model.kind == "seq2seq" and kind in CAUSAL_ONLY:
        raise ModelError(
            f"method.adapter: {kind} cannot be put into {model.source.source}, an encoder-decoder model: "
            f"{CAUSAL_ONLY[kind]}; give another type, or a causal model"
        )
    config = _configuration_for(model, network, adapter, training, seed)
    modules = [name for name, part in network.named_modules() if any(True for _ in part.parameters(recurse=False))]
    parameters = [name for name, _ in network.named_parameters()]
    try:
        with warnings.catch_warnings(), _kept(network, adapter):
            warnings.simplefilter("ignore")  # of PEFT to its own and to transformers' authors
            adapted = peft.get_peft_model(network, config)
    except PEFT_REFUSES as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"method.adapter: {kind} cannot be put into {model.source.source}: {reason}; "
            f"its modules are {', '.join(_last(modules))}"
        ) from error
    _check_named(config, "target_modules", getattr(adapted, "targeted_module_names", None) or modules, _last(modules))
    _check_named(config, "modules_to_save", modules, _last(modules))
    _check_named(config, "exclude_modules", modules, _last(modules))
    for field in ("rank_pattern", "alpha_pattern"):
        _check_patterns(config, field, modules, _last(modules))
    _check_named(config, "target_parameters", parameters, _last(parameters, parts=2))
    if kind == "LORA" and str(config.init_lora_weights).lower() == "olora" and config.fan_in_fan_out:
        raise ModelError(
            f"method.adapter.init_lora_weights: olora does not know layers like {model.source.source}'s; give pissa"
        )
    if kind in PER_TASK:
        return OneTask(adapted), adapted
    return (adapted.base_model.model if is_plain(adapter) else adapted), adapted


def _configuration_for(model: Any, network: Any, adapter: Mapping[str, Any], training: bool, seed: int) -> Any:
    """The configuration for a model, with what follows from it and from the seed."""
    derived: dict[str, Any] = dict.fromkeys(SEEDS, seed)
    if adapter.get("prompt_tuning_init") == "TEXT":
        derived["tokenizer_name_or_path"] = model.tokenizer.name_or_path
    if kind_of(adapter) == "XLORA":
        network.config.use_cache = False  # its gates read whole texts
        derived["hidden_size"] = network.config.get_text_config().hidden_size
    task_type = "SEQ_2_SEQ_LM" if model.kind == "seq2seq" else "CAUSAL_LM"
    return configuration(adapter, task_type, training, **derived)


@contextlib.contextmanager
def _kept(network: nn.Module, adapter: Mapping[str, Any]) -> Iterator[None]:
    """Inside, weights that others share may be written into: what changes becomes the network's own."""
    if str(adapter.get("init_lora_weights")).lower() not in WRITES_IN_PLACE:
        yield
        return
    shared = [(parameter, parameter.data) for parameter in network.parameters()]
    for parameter, data in shared:
        parameter.data = data.clone()
    yield
    for parameter, data in shared:
        if torch.equal(parameter.data, data):
            parameter.data = data


class OneTask(nn.Module):  # type: ignore[misc]
    """An adapter for many tasks, used for one."""

    def __init__(self, adapted: nn.Module) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """As the network's own."""
        return self.adapted(input_ids=input_ids, task_ids=_first_task(input_ids), **inputs)

    def generate(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """As the network's own."""
        return self.adapted.generate(input_ids=input_ids, task_ids=_first_task(input_ids), **inputs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("adapted"), name)


def _first_task(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(ids), dtype=torch.long, device=ids.device)


def state(adapted: nn.Module) -> dict[str, np.ndarray]:
    """What PEFT saves of an adapter, float32; frozen embeddings are never part of it.

    Raises:
        ModelError: nothing.
    """
    from peft import get_peft_model_state_dict

    if adapted.active_peft_config.peft_type.value == "XLORA":
        # PEFT 0.21 takes the gates' layer "0" for the expert "0", and leaves it out.
        found = {name: value for name, value in adapted.state_dict().items() if "internal_xlora_classifier" in name}
    else:
        found = get_peft_model_state_dict(adapted, adapted.state_dict(), save_embedding_layers=False)
    if not found:
        raise ModelError(f"method.adapter: PEFT saves nothing of {adapted.active_peft_config.peft_type.value}")
    return {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().numpy()
        for name, value in found.items()
    }


def load(adapted: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Put saved weights into an adapter; weights of the network that were trained with it become its own.

    Raises:
        ModelError: they are of another one.
    """
    from peft import set_peft_model_state_dict

    for name, parameter in adapted.named_parameters():
        if name in weights:
            parameter.data = parameter.data.clone()
    found = set_peft_model_state_dict(adapted, {name: torch.from_numpy(value) for name, value in weights.items()})
    # A soft prompt has a name of its own in the file.
    if found.unexpected_keys and not adapted.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"the saved adapter has {found.unexpected_keys[0]!r}, which the adapted model has not; run its spec again"
        )


def write_config(adapted: Any, source: str, folder: Path) -> None:
    """Write `adapter_config.json`."""
    config = adapted.peft_config[adapted.active_adapter]
    config.base_model_name_or_path, config.inference_mode = source, True
    config.save_pretrained(folder)


def _check_named(config: Any, field: str, found: list[str], known: list[str]) -> None:
    """PEFT is content when one of several names is there; a misspelt one is an error here."""
    wanted = getattr(config, field, None)
    if not isinstance(wanted, set | list | tuple):
        return
    for name in sorted(wanted):
        if not any(one == name or one.endswith(f".{name}") for one in found):
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ModelError(f"method.adapter.{field}: nothing is named {name!r}; {meant}there is {', '.join(known)}")


def _check_patterns(config: Any, field: str, found: list[str], known: list[str]) -> None:
    """A pattern that fits no module would be without effect."""
    patterns = getattr(config, field, None)
    for pattern in patterns if isinstance(patterns, Mapping) else ():
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in found):
            raise ModelError(f"method.adapter.{field}: {pattern!r} fits no module; there is {', '.join(known)}")


def _last(names: list[str], parts: int = 1) -> list[str]:
    """What names end in, each once."""
    return sorted({".".join(name.split(".")[-parts:]) for name in names})
