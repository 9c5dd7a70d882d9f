"""The blocks of a transformers network, and hooks on the states between them.

Layers count as in transformers' `hidden_states`: 0 is what enters the first block, i what block i gives.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from graft.errors import ModelError

Action = Callable[[Tensor], Tensor | None]
"""What is done with states [B, T, D]: look at them (None), or give others in their place."""


class Reached(Exception):
    """A signal, not an error: the wanted layer is computed, and what follows it is not needed."""


def blocks_of(network: nn.Module, name: str) -> nn.ModuleList:
    """The list of a network's blocks.

    Args:
        network: a transformers model.
        name: what a message calls it.

    Raises:
        ModelError: it has none.
    """
    depth = network.config.get_text_config().num_hidden_layers
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ModelError(f"{name}: its blocks are not a list, so no layer of it can be named; name another model")


def at_layer(blocks: nn.ModuleList, layer: int, action: Action) -> Any:
    """Put an action where the states of a layer come by; gives the hook, to be removed.

    Blocks give a tensor or a tuple that begins with it, and take it by place or by name, as their family has it.
    """
    if layer == 0:

        def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found = action(args[0] if args else kwargs["hidden_states"])
            if found is None:
                return None
            return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": found})

        return blocks[0].register_forward_pre_hook(before, with_kwargs=True)

    def after(_block: nn.Module, _inputs: Any, output: Any) -> Any:
        found = action(output[0] if isinstance(output, tuple) else output)
        if found is None:
            return None
        return (found, *output[1:]) if isinstance(output, tuple) else found

    return blocks[layer - 1].register_forward_hook(after)
