"""What a spec may say of a PEFT adapter: PEFT's own fields, checked before any work starts.

All types of PEFT are there but LILY, whose answers depend on the rest of the batch. What an adapter needs beside its
fields follows from the model and the training; what would break a promise, or needs a training that the one loop does
not know, is refused with its reason (`REFUSED`, `CAUSAL_ONLY`, `NOT_OFFERED`).
"""

import dataclasses
import enum
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft.errors import SpecError, suggest
from graft.hashing import file_sha256
from graft.spec import Training

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

SEEDS = ("projection_prng_key", "projection_seed", "proj_seed", "random_loc_seed", "random_seed")
"""Fields that decide what a type draws once and for all; they follow from the training's seed."""

PER_TASK = ("MULTITASK_PROMPT_TUNING", "POLY")
"""Types that are told which task a row belongs to; here there is one."""

CALLED_WHOLE = (*PER_TASK, "SHADOW", "XLORA")
"""Types that, like soft prompts, work only where the whole network is called, without caches of prefixes."""

REFUSED = {"LILY": "its router averages over all tokens of a batch, so that an answer would depend on other rows"}
"""Types that cannot keep what graft promises, and why."""

CACHED = ("CARTRIDGE", "PREFIX_TUNING")
"""Types whose prompts are keys and values."""

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
        "layer_replication": "makes the model deeper",
        "lora_ga_config": "reads data before training",
        "monteclora_config": "needs its own loss",
    },
    "MULTITASK_PROMPT_TUNING": {"prompt_tuning_init_state_dict_path": "may read a pickle"},
    "XLORA": {"use_trainable_adapters": "changes adapters that are saved elsewhere"},
}
"""Fields that must be left as they are, and why."""

INITIALISATIONS_NOT_OFFERED = {
    "corda": "reads data before training",
    "eva": "reads data before training",
    "lora_ga": "reads data before training",
    "loftq": "is for quantised weights",
    "pissa_niter": "is random, so that a saved adapter would not fit where it is loaded",
}
"""Values of `init_lora_weights`, or how they begin, and why."""


def checked(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """A setting that PEFT knows, with adapters that it builds on by absolute path.

    Raises:
        SpecError: a type, a field or a value is wrong.
    """
    if kind_of(adapter) == "XLORA" and not isinstance(adapter.get("adapters"), Mapping):
        raise SpecError("method.adapter.adapters: give names and folders, for example {'0': FOLDER, '1': FOLDER}")
    configuration(adapter, "CAUSAL_LM", training=True)
    if kind_of(adapter) != "XLORA":
        return dict(adapter)
    experts = {name: Path(folder).absolute() for name, folder in adapter["adapters"].items()}
    if list(experts) != [str(place) for place in range(len(experts))]:
        raise SpecError(
            f"method.adapter.adapters: got the names {', '.join(experts)}; call them '0', '1', ... in order"
        )
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


def suited(adapter: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """A setting with what follows from the training.

    Raises:
        SpecError: this training cannot be had with it.
    """
    kind = kind_of(adapter)
    if kind in CACHED and training.activation_checkpointing:
        raise SpecError(
            f"training.activation_checkpointing: {kind} lives in a cache, which is not kept for computing activations "
            "again; leave it false"
        )
    return {"total_step": training.max_steps, **adapter} if kind == "ADALORA" else dict(adapter)


def configuration(adapter: Mapping[str, Any], task_type: str, training: bool, **derived: Any) -> Any:
    """PEFT's configuration object for a setting.

    Args:
        adapter: the setting.
        task_type: PEFT's name for the kind of model.
        training: False for inference.
        derived: fields that follow from the model and the seed, where the type has them and the setting does not
            give them.

    Raises:
        SpecError: the type, a field or a value is wrong.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = kind_of(adapter)
    offered = suggest(kind, set(known) - set(REFUSED))
    if kind not in known:
        raise SpecError(f"method.adapter.peft_type: unknown type {adapter['peft_type']!r}; {offered}")
    if kind in REFUSED:
        raise SpecError(f"method.adapter.peft_type: {kind} is not offered: {REFUSED[kind]}; {offered}")
    fields = {field.name for field in dataclasses.fields(known[kind]) if field.init} - set(SET_BY_GRAFT)
    given = {name: value for name, value in adapter.items() if name != "peft_type"}
    _check_values(known[kind], given)
    _check_fields(kind, given, fields)
    follow = {name: value for name, value in derived.items() if name in fields}
    values = {**_defaults(kind, given), **follow, **given}
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
    for value, reason in INITIALISATIONS_NOT_OFFERED.items():
        if str(given.get("init_lora_weights")).lower().startswith(value):
            raise SpecError(
                f"method.adapter.init_lora_weights: {given['init_lora_weights']} {reason}, which is not offered; "
                "leave it true, or give gaussian, olora, pissa, orthogonal or mica"
            )
    if kind == "ADALORA" and given.get("init_r", 12) <= given.get("target_r", 8):
        raise SpecError(
            f"method.adapter.init_r: got {given.get('init_r', 12)}; ADALORA takes ranks away until target_r are left, "
            f"which is {given.get('target_r', 8)}: give more than that"
        )


def _check_values(config: type, given: Mapping[str, Any]) -> None:
    """PEFT takes whatever it is given: a value that is none of a choice's, it silently replaces by another."""
    hints = typing.get_type_hints(config)
    for name, value in given.items():
        kinds = [hints.get(name), *typing.get_args(hints.get(name))]
        for choices in (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)):
            known = [str(choice.value) for choice in choices]
            if value is not None and value not in known:
                raise SpecError(f"method.adapter.{name}: got {value!r}; {suggest(str(value), known)}")
        if int in kinds and bool not in kinds and isinstance(value, str):
            raise SpecError(f"method.adapter.{name}: got the text {value!r}; give a number")
    if (count := given.get("num_virtual_tokens", 1)) < 1:
        raise SpecError(f"method.adapter.num_virtual_tokens: got {count}; give at least 1")


def _defaults(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values in place of PEFT's own."""
    if kind == "ADALORA":
        # Until the training says how long it is.
        return {"total_step": given.get("tinit", 0) + given.get("tfinal", 0) + 1}
    if given.get("prompt_tuning_init") == "TEXT":
        # Until the model says which.
        return {"tokenizer_name_or_path": "the model's"}
    return {"progressbar": False} if kind == "FROD" else {}


def is_plain(adapter: Mapping[str, Any]) -> bool:
    """Whether the adapter only changes what modules compute, so that the network is called as it always was."""
    config = configuration(adapter, "CAUSAL_LM", training=True)
    return not config.is_prompt_learning and config.peft_type.value not in CALLED_WHOLE


def soft_tokens(adapter: Mapping[str, Any]) -> int:
    """Positions of the context that soft prompts take."""
    return int(getattr(configuration(adapter, "CAUSAL_LM", training=True), "num_virtual_tokens", None) or 0)
