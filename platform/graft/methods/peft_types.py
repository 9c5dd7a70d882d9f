"""PEFT's adapters in a frozen network: configured by PEFT's own fields, saved in PEFT's own format.

All types of PEFT are there. What an adapter needs beside its fields follows from the model and the training; what
would break a promise, or needs a training that the one loop does not know, is refused with its reason (`REFUSED`,
`CAUSAL_ONLY`, `NOT_OFFERED`).
"""

import dataclasses
import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from graft.errors import ModelError, SpecError, suggest
from graft.hashing import file_sha256

SET_BY_GRAFT = ("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version")
"""Fields of PEFT's configurations that follow from the model."""

REQUIRED = {
    "ADAPTION_PROMPT": ("adapter_len", "adapter_layers"),
    "CARTRIDGE": ("num_virtual_tokens",),
    "CPT": ("cpt_token_ids",),
    "MULTITASK_PROMPT_TUNING": ("num_virtual_tokens",),
    "PREFIX_TUNING": ("num_virtual_tokens",),
    "PROMPT_TUNING": ("num_virtual_tokens",),
    "P_TUNING": ("num_virtual_tokens",),
    "TRAINABLE_TOKENS": ("token_indices",),
    "XLORA": ("adapters",),
}
"""Fields without which a type is nothing; PEFT says so late, or not at all."""

PER_TASK = ("MULTITASK_PROMPT_TUNING", "POLY")
"""Types that are told which task a row belongs to; here there is one."""

CALLED_WHOLE = (*PER_TASK, "SHADOW", "XLORA")
"""Types that, like soft prompts, work only where the whole network is called, without caches of prefixes."""

REFUSED = {"LILY": "its router averages over all tokens of a batch, so that an answer would depend on other rows"}
"""Types that cannot keep what graft promises, and why."""

CAUSAL_ONLY = {
    "CPT": "its prompt stands before a decoder's text",
    "MULTITASK_PROMPT_TUNING": "PEFT drops the decoder's tokens",
    "SHADOW": "its shadow follows one decoder",
    "XLORA": "its gates read one decoder's states",
}
"""Types that encoder-decoder models cannot have, and why."""

NOT_OFFERED = {
    "ADAMSS": {"use_asa": "stops and resumes the training of single weights"},
    "CPT": {
        "opt_weighted_loss_type": "weighs losses inside the prompt; here the answer alone is learned",
        "opt_loss_decay_factor": "weighs losses inside the prompt; here the answer alone is learned",
    },
    "LORA": {
        "alora_invocation_tokens": "depends on where tokens stand in a batch",
        "arrow_config": "routes between adapters and trains nothing",
        "corda_config": "reads data before training",
        "eva_config": "reads data before training",
        "kasa_config": "needs its own loss",
        "lora_ga_config": "reads data before training",
        "monteclora_config": "needs its own loss",
    },
    "MULTITASK_PROMPT_TUNING": {"prompt_tuning_init_state_dict_path": "may read a pickle"},
    "XLORA": {"use_trainable_adapters": "changes adapters that are saved elsewhere"},
}
"""Fields that must be left as they are, and why."""

DATA_FIRST = ("eva", "corda", "lora_ga")
"""Initialisations that read rows before training; they are not offered."""


def checked(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that PEFT knows, with adapters that it builds on by absolute path.

    Raises:
        SpecError: a type, a field or a value is wrong.
    """
    configuration(adapter, "CAUSAL_LM", training=True)
    if kind_of(adapter) != "XLORA":
        return dict(adapter)
    experts = {name: Path(folder).absolute() for name, folder in adapter["adapters"].items()}
    if list(experts) != [str(place) for place in range(len(experts))]:
        raise SpecError(f"method.adapter.adapters: got the names {', '.join(experts)}; call them '0', '1', ... in order")
    for name, folder in experts.items():
        if not (folder / "adapter_config.json").exists():
            raise SpecError(
                f"method.adapter.adapters.{name}: {folder} holds no adapter; give the folder adapter/ of a run that "
                "trained LORA on this model (in runs/RUN_ID/graph/)"
            )
    return {**adapter, "adapters": {name: str(folder) for name, folder in experts.items()}}


def by_content(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """A setting in which adapters that it builds on are what they hold, wherever they lie."""
    if not adapter.get("adapters"):
        return dict(adapter)
    files = {name: sorted(Path(folder).glob("adapter_*")) for name, folder in adapter["adapters"].items()}
    return {**adapter, "adapters": {name: list(map(file_sha256, paths)) for name, paths in files.items()}}


def kind_of(adapter: Mapping[str, Any]) -> str:
    """PEFT's name of a setting's type."""
    return str(adapter["peft_type"]).upper()


def scheduled(adapter: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A setting with what follows from the number of training steps."""
    return {"total_step": steps, **adapter} if kind_of(adapter) == "ADALORA" else dict(adapter)


def configuration(adapter: Mapping[str, Any], task_type: str, training: bool, **derived: Any) -> Any:
    """PEFT's configuration object for a setting.

    Args:
        adapter: the setting.
        task_type: PEFT's name for the kind of model.
        training: False for inference.
        derived: fields that follow from the model, where the setting does not give them.

    Raises:
        SpecError: the type, a field or a value is wrong.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = kind_of(adapter)
    if kind not in known:
        raise SpecError(f"method.adapter.peft_type: unknown type {adapter['peft_type']!r}; {suggest(kind, known)}")
    if kind in REFUSED:
        raise SpecError(f"method.adapter.peft_type: {kind} is not offered: {REFUSED[kind]}; {suggest('', known)}")
    fields = {field.name for field in dataclasses.fields(known[kind]) if field.init} - set(SET_BY_GRAFT)
    given = {name: value for name, value in adapter.items() if name != "peft_type"}
    _check_fields(kind, given, fields)
    values = {**_defaults(kind, given), **derived, **given}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the model will give
            return known[kind](task_type=task_type, inference_mode=not training, **values)
    except (ValueError, TypeError) as error:
        raise SpecError(f"method.adapter: {kind}: {' '.join(str(error).split())}") from error


def _check_fields(kind: str, given: Mapping[str, Any], fields: set[str]) -> None:
    for name in given:
        if name not in fields:
            raise SpecError(f"method.adapter.{name}: {kind} has no such field; {suggest(name, sorted(fields))}")
    for name in REQUIRED.get(kind, ()):
        if given.get(name) is None:
            raise SpecError(f"method.adapter.{name} is missing: {kind} needs {' and '.join(REQUIRED[kind])}")
    for name, reason in NOT_OFFERED.get(kind, {}).items():
        if given.get(name):
            raise SpecError(f"method.adapter.{name}: it {reason}, which is not offered; leave it out")
    if given.get("init_lora_weights") in DATA_FIRST:
        raise SpecError(
            f"method.adapter.init_lora_weights: {given['init_lora_weights']} reads data before training, which is not "
            "offered; leave it true, or give gaussian, olora, pissa, orthogonal or mica"
        )
    if kind == "ADALORA" and given.get("init_r", 12) <= given.get("target_r", 8):
        raise SpecError(
            f"method.adapter.init_r: got {given.get('init_r', 12)}; ADALORA takes ranks away until target_r are left, "
            f"which is {given.get('target_r', 8)}: give more than that"
        )


def _defaults(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values in place of PEFT's own."""
    if kind == "ADALORA":
        # Until the training says how long it is.
        return {"total_step": given.get("tinit", 0) + given.get("tfinal", 0) + 1}
    return {"progressbar": False} if kind == "FROD" else {}


def is_plain(adapter: Mapping[str, Any]) -> bool:
    """Whether the adapter only changes what modules compute, so that the network is called as it always was."""
    config = configuration(adapter, "CAUSAL_LM", training=True)
    return not config.is_prompt_learning and config.peft_type.value not in CALLED_WHOLE


def soft_tokens(adapter: Mapping[str, Any]) -> int:
    """Positions of the context that soft prompts take."""
    return int(getattr(configuration(adapter, "CAUSAL_LM", training=True), "num_virtual_tokens", None) or 0)


def insert(model: Any, network: nn.Module, adapter: Mapping[str, Any], training: bool) -> tuple[nn.Module, nn.Module]:
    """Put an adapter into a network; gives what is called, and PEFT's own object.

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
    config = _configuration_for(model, network, adapter, training)
    modules = sorted({name.rpartition(".")[2] for name, part in network.named_modules() if _has_weights(part)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT to its own and to transformers' authors
            adapted = peft.get_peft_model(network, config)
    except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"method.adapter: {kind} cannot be put into {model.source.source}: {reason}; "
            f"its modules are {', '.join(modules)}"
        ) from error
    _check_targets(adapted, config, modules)
    if kind in PER_TASK:
        return OneTask(adapted), adapted
    return (adapted.base_model.model if is_plain(adapter) else adapted), adapted


def _configuration_for(model: Any, network: Any, adapter: Mapping[str, Any], training: bool) -> Any:
    """The configuration for a model, with what follows from it."""
    derived: dict[str, Any] = {}
    if adapter.get("prompt_tuning_init") == "TEXT":
        derived["tokenizer_name_or_path"] = model.tokenizer.name_or_path
    if kind_of(adapter) == "XLORA":
        network.config.use_cache = False  # its gates read whole texts
        derived["hidden_size"] = network.config.get_text_config().hidden_size
    task_type = "SEQ_2_SEQ_LM" if model.kind == "seq2seq" else "CAUSAL_LM"
    return configuration(adapter, task_type, training, **derived)


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
    """What PEFT saves of an adapter, float32; frozen embeddings are never part of it."""
    from peft import get_peft_model_state_dict

    if adapted.active_peft_config.peft_type.value == "XLORA":
        # PEFT 0.21 takes the gates' layer "0" for the expert "0", and leaves it out.
        found = {name: value for name, value in adapted.state_dict().items() if "internal_xlora_classifier" in name}
    else:
        found = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().numpy()
        for name, value in found.items()
    }


def load(adapted: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Put saved weights into an adapter.

    Raises:
        ModelError: they are of another one.
    """
    from peft import set_peft_model_state_dict

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


def _check_targets(adapted: Any, config: Any, modules: list[str]) -> None:
    """PEFT is content when one of several target modules is there; a misspelt one is an error here."""
    wanted = getattr(config, "target_modules", None)
    found = getattr(adapted, "targeted_module_names", None)
    if not isinstance(wanted, set | list | tuple) or not found:
        return
    for name in sorted(wanted):
        if not any(one == name or one.endswith(f".{name}") for one in found):
            near = difflib.get_close_matches(name, modules, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ModelError(
                f"method.adapter.target_modules: no module is named {name!r}; {meant}its modules are "
                + ", ".join(modules)
            )


def _has_weights(part: nn.Module) -> bool:
    return any(True for _ in part.parameters(recurse=False))
