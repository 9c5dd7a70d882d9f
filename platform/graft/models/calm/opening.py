"""The frozen models of a composed one: live, as handles, or where they lie; with their tokenizers."""

import copy
from typing import Any

from torch import nn

from graft import models
from graft.errors import ModelError
from graft.models.calm.folder import name_of
from graft.models.calm.reading import Interpreter
from graft.models.local import LocalModel, twin_of
from graft.models.model import Model

Network = Any
"""A transformers model, a handle of `graft.models.load`, or where one lies."""


def opened(given: Network) -> tuple[Any, Any]:
    """A live network, and its tokenizer where it comes with one."""
    if isinstance(given, nn.Module):
        return given, None
    handle = given if isinstance(given, Model) else models.load(given)
    if not isinstance(handle, LocalModel):
        raise ModelError(f"{handle.source.source}: a model of kind {handle.kind} cannot be composed; name one of text")
    # Its own object: hooks on a network that others use would meet their calls too.
    return handle.frozen_copy(), handle.tokenizer


def beside(anchor: nn.Module, network: nn.Module) -> Any:
    """A network that shares no module with the anchor, whose hooks would meet this one's calls too; weights it may."""
    return network if set(anchor.modules()).isdisjoint(network.modules()) else twin_of(network)


def configuration(anchor: Any) -> Any:
    """A copy of the anchor's: transformers writes into what it is given."""
    if not hasattr(anchor, "generate"):
        raise ModelError(f"anchor: {type(anchor).__name__} writes no text; give a causal language model")
    return copy.deepcopy(anchor.config)


def tokenizer_pairs(anchor: Any, augmenting: Any, known: list[Any]) -> list[tuple[Any, Any]]:
    """The anchor's tokenizer and the augmenting model's, for each of these."""
    given = list(augmenting) if isinstance(augmenting, list | tuple) else [augmenting] * len(known)
    if len(given) != len(known):
        raise ModelError(
            f"augmenting_tokenizer: got {len(given)} for {len(known)} augmenting models; give one for each"
        )
    pairs = [(anchor, one or own) for one, own in zip(given, known, strict=True)]
    for number, (one, other) in enumerate(pairs):
        if (one is None) != (other is None):
            missing = "tokenizer" if one is None else "augmenting_tokenizer"
            raise ModelError(
                f"{missing}: none for what augmenting model {number} reads; give both tokenizers, or neither"
            )
    return pairs


def interpreter(anchor: Any, network: Any, tokenizer: Any, other: Any) -> Interpreter | None:
    """None where no tokenizer is known: both read the same tokens."""
    if tokenizer is None:
        sizes = [int(one.config.get_text_config().vocab_size) for one in (anchor, network)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"the anchor knows {sizes[0]} tokens, {name_of(network)} knows {sizes[1]}: they cannot read the "
                "same ones; give tokenizer= and augmenting_tokenizer="
            )
        return None
    return Interpreter(tokenizer, other)
