"""From the states of a text's tokens to one vector: as the model's own files say, or as the source says.

Shapes: B texts, T tokens, D width of the model. Masks are 1 on tokens and 0 on padding, which is on the right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graft.errors import ModelError, suggest
from graft.models import folders
from graft.spec import ModelSource

PROMPT_EOL = 'This sentence : "{text}" means in one word:"'
"""Makes a causal model put a sentence's meaning into its last token (PromptEOL, arXiv:2307.16645, section 3)."""

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")

LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How older sentence-transformers folders name the modes, in the order in which several are joined."""


@dataclass(frozen=True)
class Readout:
    """How a text becomes a vector around the transformer."""

    modes: tuple[str, ...]
    """Poolings, joined end to end."""
    width: int
    """Numbers in the vector."""
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()
    """What follows the pooling, in order: dense layers, normalisation."""
    template: str = "{text}"
    """What is put around each text."""
    lower: bool = False
    """Texts are lower-cased first."""

    def dress(self, text: str) -> str:
        """The text as the tokenizer sees it."""
        return self.template.replace("{text}", text.lower() if self.lower else text)

    def around(self) -> tuple[str, str]:
        """What is put before and after each text."""
        before, _, after = self.template.partition("{text}")
        return before, after

    def __call__(self, states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Vectors, float32 [B, width], on the CPU: what follows the pooling is a few small layers."""
        states_BTD = states_BTD.float()
        vectors = torch.cat([POOLINGS[mode](states_BTD, mask_BT) for mode in self.modes], dim=-1).cpu()
        for step in self.steps:
            vectors = step(vectors)
        return vectors


def read_readout(source: ModelSource, folder: Path, width: int) -> Readout:
    """The readout of a folder; `source.pooling` goes before what the folder says.

    Args:
        source: the model's source.
        folder: the model's folder.
        width: D.

    Raises:
        ModelError: the folder asks for a step that graft does not know.
    """
    if source.pooling == "prompteol":
        return Readout(("lasttoken",), width, template=PROMPT_EOL)
    if source.pooling != "model":
        return Readout(("lasttoken" if source.pooling == "last" else source.pooling,), width)
    modes: tuple[str, ...] = ("mean",)
    steps: list[Callable[[Tensor], Tensor]] = []
    template, lower = _texts(folder)
    for module in folders.modules(folder)[1:]:
        # The class moved between releases; its last name did not.
        kind, place = str(module.get("type", "")).rpartition(".")[2], folder / module.get("path", "")
        if kind == "Pooling":
            modes = _modes(folders.read_json(place / "config.json"), place, template)
            width *= len(modes)
        elif kind == "Normalize":
            steps.append(_normalize)
        elif kind == "Dense":
            dense = _dense(place)
            steps.append(dense)
            width = dense[0].out_features
        elif kind != "Dropout":
            cure = suggest(kind, ("Pooling", "Dense", "Normalize", "Dropout"))
            raise ModelError(
                f"{folder}/modules.json: step {kind!r} is not supported; {cure}; or set models.ROLE.pooling"
            )
    return Readout(modes, width, tuple(steps), template, lower)


def _texts(folder: Path) -> tuple[str, bool]:
    """What sentence-transformers would do to a text: a default prompt before it, lower case."""
    prompts = _optional(folder / "config_sentence_transformers.json")
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    settings = _optional(folders.transformer_folder(folder) / "sentence_bert_config.json")
    return prompt + "{text}", bool(settings.get("do_lower_case", False))


def _optional(path: Path) -> Mapping[str, Any]:
    return folders.read_json(path) if path.is_file() else {}


def _modes(config: Mapping[str, Any], place: Path, template: str) -> tuple[str, ...]:
    named = config.get("pooling_mode") or [mode for key, mode in LEGACY_MODES.items() if config.get(key)] or "mean"
    modes = (named,) if isinstance(named, str) else tuple(named)
    for mode in modes:
        if mode not in POOLINGS:
            raise ModelError(f"{place}/config.json: pooling {mode!r} is not supported; {suggest(mode, POOLINGS)}")
    if template != "{text}" and not config.get("include_prompt", True):
        raise ModelError(f"{place}/config.json: include_prompt false is not supported; set models.ROLE.pooling")
    return modes


def _dense(place: Path) -> nn.Sequential:
    from safetensors.torch import load_file

    config = folders.read_json(place / "config.json")
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in ACTIVATIONS or config.get("use_residual"):
        what = f"activation {name!r}" if name not in ACTIVATIONS else "use_residual"
        raise ModelError(f"{place}/config.json: {what} is not supported; set models.ROLE.pooling")
    weights = place / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{place}: has no model.safetensors; copy or download it, or set models.ROLE.pooling")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in load_file(weights).items()})
    return nn.Sequential(linear, getattr(nn, name)()).float().eval().requires_grad_(False)


def _normalize(vectors_BD: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_BD, dim=-1)


def _sum(states_BTD: Tensor, weights_BT: Tensor) -> Tensor:
    return torch.einsum("btd,bt->bd", states_BTD, weights_BT.to(states_BTD.dtype))


def _mean(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return _sum(states_BTD, mask_BT) / mask_BT.sum(1, keepdim=True)


def _mean_sqrt(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return _sum(states_BTD, mask_BT) / mask_BT.sum(1, keepdim=True).sqrt()


def _weighted_mean(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Later tokens of a causal model have seen more: token t counts t times (SGPT, arXiv:2202.08904)."""
    weights_BT = mask_BT.cumsum(1) * mask_BT
    return _sum(states_BTD, weights_BT) / weights_BT.sum(1, keepdim=True)


def _max(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return states_BTD.masked_fill(mask_BT[..., None] == 0, float("-inf")).amax(1)


def _first(states_BTD: Tensor, _mask_BT: Tensor) -> Tensor:
    return states_BTD[:, 0]


def _last(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return states_BTD[torch.arange(len(mask_BT), device=mask_BT.device), mask_BT.sum(1) - 1]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": _first,
    "lasttoken": _last,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
}
