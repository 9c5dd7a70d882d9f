"""Bottleneck adapters: two thin layers per sub-layer, trained while everything around them stays frozen.

    serial     x ─► attention ─► h ─► h + A(h) ─► residual, then the same behind the feed-forward
    parallel   x ─┬─► feed-forward ─► h ──┐
                  └─► A(x) ── × 4 ────────┴─► h + 4 A(x) ─► residual          A(x) = W_up f(W_down x + b_down) + b_up

Serial: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1 and figure 2; f is GELU, as in their code.
Parallel: He et al. 2022 (arXiv:2110.04366), sections 3.3 and 4.6, scaled and beside the feed-forward, the best of their
placements; f is ReLU, W_down is drawn as for a linear layer (Kaiming) and W_up is zero, as in their code.

Deviations from the papers:
- serial adapters begin like parallel ones (Houlsby et al. draw both matrices from a narrow normal distribution): with
  W_up = 0 the adapted network is the frozen one until the first step, bit for bit;
- layer norms stay frozen (Houlsby et al. train them): one frozen network can carry many adapters;
- an adapter sits on the output projection itself, which is inside any dropout and any norm that the family puts
  between it and the residual addition (GPT-2's dropout, Gemma 2's norms); in the papers' BERT and BART, dropout
  comes first;
- a mixture of experts counts as one feed-forward sub-layer.

Attention from a decoder to its encoder is left alone: in Houlsby et al. there is none. A block is what transformers
can checkpoint; in a model that also sees or hears, those of its towers are among them.
"""

import math
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.errors import ModelError
from graft.seeds import generator

Kind = Literal["serial", "parallel"]

SHAPES: dict[Kind, tuple[Callable[[Tensor], Tensor], float]] = {
    "serial": (functional.gelu, 1.0),
    "parallel": (functional.relu, 4.0),
}
"""f, and s: what A(x) is multiplied by."""

ATTENTION_OUTPUTS = (
    "self_attn.o_proj",  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo, DeepSeek
    "self_attn.out_proj",  # OPT, BART, mBART, Pegasus, Marian, M2M-100
    "self_attn.dense",  # Phi, Persimmon
    "linear_attn.out_proj",  # Qwen 3.5, in the blocks whose attention is linear
    "attn.c_proj",  # GPT-2, GPT-BigCode
    "attn.out_proj",  # GPT-J, CodeGen, MPT
    "attn.attention.out_proj",  # GPT-Neo
    "attention.output.dense",  # BERT, RoBERTa, ELECTRA
    "attention.dense",  # GPT-NeoX
    "self_attention.dense",  # BLOOM, Falcon
    "layer.0.SelfAttention.o",  # T5, mT5, UMT5
)
"""Where a block's self-attention ends: its projection back to the residual stream."""

FEED_FORWARDS = {
    "mlp.down_proj": "mlp",  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo
    "mlp.fc2": "mlp",  # Phi
    "mlp.c_proj": "mlp",  # GPT-2, GPT-Neo, GPT-BigCode, StarCoder 2
    "mlp.fc_out": "mlp",  # GPT-J, CodeGen
    "mlp.dense_4h_to_h": "mlp",  # GPT-NeoX, BLOOM, Falcon, Persimmon
    "ffn.down_proj": "ffn",  # MPT
    "fc2": "fc1",  # OPT, BART, mBART, Pegasus, Marian, M2M-100
    "output.dense": "intermediate",  # BERT, RoBERTa, ELECTRA
    "layer.1.DenseReluDense.wo": "layer.1.DenseReluDense",  # T5's encoder
    "layer.2.DenseReluDense.wo": "layer.2.DenseReluDense",  # T5's decoder
    "mlp.experts": "mlp",  # Mixtral, Qwen MoE, DeepSeek, gpt-oss
}
"""Where a block's feed-forward ends, to where it begins; that of experts, who share no projection, is one module."""


class Adapter(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A bottleneck on a frozen module, whose output it changes through hooks.

    Hooks leave the module in its place, under its name and with its weights where the network looks for them, which
    a wrapper would not (T5 reads `wo.weight`). They are bound methods, so a deep copy of the network hooks its own
    copy of the adapter.
    """

    def __init__(self, down: Tensor, activation: Callable[[Tensor], Tensor], scale: float) -> None:
        """Begin as a function that is zero everywhere.

        Args:
            down: W_down, float32 [bottleneck, width], on the device where the adapter will work.
            activation: f.
            scale: what A(x) is multiplied by.
        """
        super().__init__()
        self.down = _linear(down)
        self.up = _linear(down.new_zeros(down.shape[::-1]))
        self.activation = activation
        self.scale = scale
        self._entered: dict[int, Tensor] = {}
        """What entered the sub-layer, of each thread that is now inside: two threads may share a network."""

    def forward(self, states: Tensor) -> Tensor:
        """Give s A(x), in the weights' dtype or autocast's; the last dimension of `states` is the width."""
        return self.scale * self.up(self.activation(self.down(states.to(self.down.weight.dtype))))

    def follow(self, leaves: nn.Module) -> None:
        """Serial: work on what a module gives."""
        leaves.register_forward_hook(self._after)

    def accompany(self, enters: nn.Module, leaves: nn.Module) -> None:
        """Parallel: work on what enters one module and add to what leaves another."""
        enters.register_forward_pre_hook(self._remember)
        leaves.register_forward_hook(self._beside)

    def _after(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return self._added(output, _states(output))

    def _remember(self, _module: nn.Module, inputs: Any) -> None:
        self._entered[get_ident()] = inputs[0]

    def _beside(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return self._added(output, self._entered.pop(get_ident()))

    def _added(self, output: Any, states: Tensor) -> Any:
        given = _states(output)
        changed = given + self(states).to(given.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


class _Block(NamedTuple):
    """The modules of one block that adapters are put on."""

    attention: nn.Module
    """Its output is the attention sub-layer's."""
    enters: nn.Module
    """Its input is the feed-forward sub-layer's."""
    leaves: nn.Module
    """Its output is the feed-forward sub-layer's."""


def insert(network: nn.Module, kind: Kind, bottleneck: int, *, seed: int) -> list[str]:
    """Put adapters into every block of a network, in place.

    A block with hidden size d gets `2 d m + d + m` parameters per adapter with bottleneck m: two adapters if serial,
    one if parallel. They are float32, on the device of the module they sit on. A network that already has adapters,
    or where a sub-layer is not found, is left as it was.

    Args:
        network: a transformers network; a structural copy if its modules, not only its weights, are used elsewhere.
        kind: where the adapters go.
        bottleneck: m, the width inside an adapter.
        seed: decides W_down; the process's own random streams are not touched.

    Returns:
        Names of the new parameters in `network.named_parameters()`; they alone require gradients.

    Raises:
        ModelError: a block's attention or feed-forward sub-layer was not found, or the network has adapters already.
    """
    blocks = list(_blocks(network))
    if any(isinstance(module, Adapter) for module in network.modules()):
        raise ModelError(f"{type(network).__name__}: it has bottleneck adapters already; insert them into a fresh copy")
    network.requires_grad_(False)
    random = generator(seed, "adapter")
    for block in blocks:
        width = _width(block.attention)
        for leaves in (block.leaves,) if kind == "parallel" else (block.attention, block.leaves):
            drawn = _drawn(random, bottleneck, width).to(next(leaves.parameters()).device)
            adapter = Adapter(drawn, *SHAPES[kind])
            leaves.add_module("adapter", adapter)
            if kind == "parallel":
                adapter.accompany(block.enters, leaves)
            else:
                adapter.follow(leaves)
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def _drawn(random: np.random.Generator, bottleneck: int, width: int) -> Tensor:
    """W_down, float32 [bottleneck, width]: uniform with the bound that torch gives a linear layer."""
    bound = 1 / math.sqrt(width)
    return torch.from_numpy(random.uniform(-bound, bound, (bottleneck, width)).astype(np.float32))


def _blocks(network: nn.Module) -> Iterator[_Block]:
    """The sub-layers of every block, in order."""
    found = False
    for name, module in network.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            found = True
            yield _sub_layers(module, f"{type(network).__name__}.{name}")
    if not found:
        held = ", ".join(f"{name} ({type(child).__name__})" for name, child in network.named_children())
        raise ModelError(
            f"{type(network).__name__}: no block found; looked for transformers' GradientCheckpointingLayer, it holds "
            f"{held}; use method peft with adapter.target_modules"
        )


def _sub_layers(block: nn.Module, where: str) -> _Block:
    held = dict(block.named_modules())
    attention = next((path for path in ATTENTION_OUTPUTS if path in held and _width(held[path])), None)
    feed_forward = next((path for path in FEED_FORWARDS if path in held), None)
    if attention and feed_forward:
        ends = feed_forward.removesuffix(".experts")
        return _Block(held[attention], held[FEED_FORWARDS[feed_forward]], held[ends])
    missing, known = ("feed-forward", FEED_FORWARDS) if attention else ("attention", ATTENTION_OUTPUTS)
    # Two levels show how the block is built; a mixture of experts has thousands of modules below.
    names = ", ".join(path for path in held if path and path.count(".") < 2)
    raise ModelError(
        f"{where} ({type(block).__name__}): no {missing} sub-layer found; looked for {', '.join(known)}, it holds "
        f"{names}; use method peft with adapter.target_modules"
    )


def _width(projection: nn.Module) -> int:
    """Numbers that a linear layer, or GPT-2's transposed one, gives per token; 0 for another module."""
    return getattr(projection, "out_features", 0) or getattr(projection, "nf", 0)


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _linear(weight: Tensor) -> nn.Linear:
    """A linear layer with this weight and a bias of zero."""
    # On the meta device it draws nothing from the process's random stream.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(weight.new_zeros(len(weight)))
    return layer
