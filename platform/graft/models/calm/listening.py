"""An augmenting model: what it reads beside the anchor, and the states that it gives.

    mirror    the anchor's text, token by token or word by word: each anchor token sees what is known by then
    prompt    the prompt alone, once
    context   a text of its own, once

Bansal et al. 2024 (CALM, arXiv:2401.02412): mirror is the paper's composition, prompt its "encoder" ablation (Table 5).

Shapes: B rows, T anchor tokens of a call, P of all calls so far, S columns of the augmenting model, E its width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graft.errors import ModelError
from graft.models.batching import padded
from graft.models.blocks import Reached, at_layer, blocks_of
from graft.models.calm.cache import Heard
from graft.models.calm.reading import Interpreter, Listener
from graft.models.local import accepted
from graft.models.prefixes import shareable

Mode = Literal["mirror", "prompt", "context"]


@dataclasses.dataclass
class Reading:
    """What one augmenting model reads beside a batch of the anchor's tokens."""

    ids_BS: Tensor
    """Its new tokens; no columns where there are none."""
    mask_BS: Tensor | None = None
    """True on tokens; None where there are no gaps."""
    seen_BT: Tensor | None = None
    """How many tokens of its row, from the first, each anchor token may see; None for all."""
    states: dict[int, Tensor] | None = None
    """States [B, S, E] of the new tokens by layer, where they are known already."""


@dataclasses.dataclass
class Call:
    """The anchor's tokens that a call brings, and what is known of the whole text."""

    ids_BT: Tensor
    mask_BP: Tensor | None
    """True on tokens, those of earlier calls included; None where there is no padding."""
    past: int
    """Columns of earlier calls."""
    prompt_B: Tensor | None
    """Tokens of each row's prompt; None where nothing is known of one."""
    context: Sequence[str] | None
    """A text per row, in mode context."""

    @property
    def own_mask(self) -> Tensor | None:
        """[B, T] of this call's tokens."""
        return None if self.mask_BP is None else self.mask_BP[:, self.past :]

    def rows(self) -> list[list[int]]:
        """This call's tokens of each row, without padding."""
        mask = self.own_mask
        if mask is None:
            return [list(row) for row in self.ids_BT.tolist()]
        return [
            [token for token, real in zip(row, keep, strict=True) if real]
            for row, keep in zip(self.ids_BT.tolist(), mask.tolist(), strict=True)
        ]

    def placed(self, counts: Sequence[Sequence[int]]) -> Tensor:
        """[B, T] numbers of each row's tokens where these stand; 0 on padding."""
        found = torch.zeros_like(self.ids_BT)
        mask = self.own_mask
        for row, values in enumerate(counts):
            where = slice(None) if mask is None else mask[row]
            found[row, where] = torch.tensor(values, dtype=found.dtype, device=found.device)
        return found


class Listening:
    """An augmenting model as the bridges read it.

    Args:
        network: a transformers model, frozen.
        name: what a message calls it.
        mode: what it reads.
        interpreter: to its tokens from the anchor's; None where no tokenizer is known.
        same: its tokens are the anchor's.
        layers: those that are read.

    Raises:
        ModelError: it is bidirectional, and shall mirror the anchor.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        mode: Mode,
        interpreter: Interpreter | None,
        same: bool,
        layers: set[int],
    ) -> None:
        self.network, self.name, self.mode, self.layers = network, name, mode, layers
        self.interpreter, self.same = interpreter, same
        decodes = getattr(network.config, "is_encoder_decoder", False)
        self.body = network.get_encoder() if decodes else getattr(network, "base_model", network)
        self.blocks = blocks_of(self.body, name)
        self.causal = not decodes and is_causal(self.body)
        if mode == "mirror" and not self.causal:
            raise ModelError(
                f"{name} reads in both directions: in mode mirror it would tell the anchor what comes next; use mode "
                "prompt or context"
            )
        if interpreter is None and not self.causal and mode == "prompt":
            raise ModelError(f"{name} needs its own tokenizer; give tokenizer= and augmenting_tokenizer=")
        self.width = int(self.body.config.get_text_config().hidden_size)
        self.context_tokens = context_tokens(self.body)

    @property
    def resumes(self) -> bool:
        """Whether it goes on from a cache exactly as it would from all that it has read.

        Its own tokens come in columns with gaps, which a window of so many columns would count.
        """
        if max(self.layers) == 0 or not self.causal or getattr(self.network, "_is_stateful", False):
            return False
        return self.same or shareable(self.body, self.body.config)

    def reading(self, call: Call, known: Heard) -> Reading:
        """What it reads beside these tokens of the anchor."""
        if self.mode == "mirror":
            return self._same(call) if self.same else self._mirrored(call, known)
        if known.ids_BS is not None:
            return Reading(call.ids_BT[:, :0])
        return self._prompt(call) if self.mode == "prompt" else self._context(call)

    def _same(self, call: Call) -> Reading:
        """The anchor's own tokens."""
        end = call.past + call.ids_BT.shape[1]
        if call.mask_BP is not None:
            return Reading(call.ids_BT, call.own_mask, call.mask_BP.long().cumsum(1)[:, call.past :])
        seen = torch.arange(call.past + 1, end + 1, device=call.ids_BT.device)[None].expand_as(call.ids_BT)
        return Reading(call.ids_BT, None, None if end == call.past + 1 else seen)

    def _mirrored(self, call: Call, known: Heard) -> Reading:
        """The words that the anchor's tokens complete."""
        assert self.interpreter is not None
        rows, first = call.rows(), known.listeners is None
        if known.listeners is None:
            known.listeners = [Listener(self.interpreter) for _ in rows]
            begun = [len(self.interpreter.lead)] * len(rows)
        else:
            begun = known.tokens(len(rows))
        prompts = [None] * len(rows) if call.prompt_B is None else call.prompt_B.tolist()
        found, counts = [], []
        for listener, row, before, prompt in zip(known.listeners, rows, begun, prompts, strict=True):
            new, seen = [], []
            for token in row:
                new += listener.hear(token, prompt)
                seen.append(before + len(new))
            found.append([*self.interpreter.lead, *new] if first else new)
            counts.append(seen)
        return _columns(found, call, call.placed(counts))

    def _prompt(self, call: Call) -> Reading:
        """The prompt alone: answers see all of it, its own tokens what is known by then."""
        if call.prompt_B is None:
            raise ModelError("mode prompt: where does the prompt end? give prompt_tokens, one number per row")
        found, counts = [], []
        for row, prompt in zip(call.rows(), call.prompt_B.tolist(), strict=True):
            given, more = row[:prompt], max(0, len(row) - prompt)
            if self.causal and self.same:
                tokens, seen = given, list(range(1, len(given) + 1))
            elif self.causal:
                assert self.interpreter is not None
                tokens, seen = self.interpreter.read(given, len(given))
            else:
                assert self.interpreter is not None  # __init__ saw to it
                # It reads the prompt in both directions, so nothing of it is known before the prompt's end.
                tokens = self.interpreter.whole(self.interpreter.text(given))
                seen = [0] * (len(given) - 1) + [len(tokens)]
            found.append(tokens)
            counts.append(seen + [len(tokens)] * more)
        return _columns(found, call, call.placed(counts))

    def _context(self, call: Call) -> Reading:
        """A text of its own, known from the first token on."""
        if call.context is None or len(call.context) != len(call.ids_BT):
            got = "none" if call.context is None else len(call.context)
            raise ModelError(f"mode context: got {got} texts for {len(call.ids_BT)} rows; give context=[...], one each")
        if self.interpreter is None:
            raise ModelError("mode context: texts need a tokenizer; give tokenizer= and augmenting_tokenizer=")
        return _columns([self.interpreter.whole(text) for text in call.context], call, None)

    def states(self, known: Heard, first: int) -> dict[int, Tensor]:
        """States [B, S - first, E] of its layers, without gradient; zeros in gaps.

        Args:
            known: all columns so far.
            first: the first column that is read now; those before are in its cache.
        """
        assert known.ids_BS is not None
        if self.context_tokens is not None and known.columns > self.context_tokens < known.longest:
            raise ModelError(
                f"a text of {known.longest} tokens for augmenting model {self.name}, whose context holds "
                f"{self.context_tokens}: shorten the prompt, or write less"
            )
        inputs: dict[str, Any] = {"input_ids": known.ids_BS[:, first:], "use_cache": known.own is not None}
        if known.own is not None:
            inputs["past_key_values"] = known.own
        if known.mask_BS is not None:
            inputs["attention_mask"] = known.mask_BS.long()
            if self.causal:
                inputs["position_ids"] = (known.mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, first:]
        device = next(self.body.parameters()).device  # which need not be the anchor's
        placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
        found = self._at_layers(accepted(self.body, **placed))
        if known.mask_BS is None:
            return found
        # What attention makes of a gap may be no number at all.
        keep = known.mask_BS[:, first:, None].to(device)
        return {layer: states.where(keep, states.new_zeros(())) for layer, states in found.items()}

    def _at_layers(self, inputs: dict[str, Any]) -> dict[int, Tensor]:
        """States by layer; blocks above the last of them are not computed."""
        found: dict[int, Tensor] = {}

        def keep(layer: int, states: Tensor) -> None:
            found[layer] = states
            if layer == max(self.layers):
                raise Reached

        hooks = [at_layer(self.blocks, layer, _bound(keep, layer)) for layer in self.layers]
        try:
            with torch.no_grad():
                self.body(**inputs)
        except Reached:
            return found
        finally:
            for hook in hooks:
                hook.remove()
        raise ModelError(f"{self.name}: layer {max(self.layers)} was not reached; name another layer in connections")


def _bound(keep: Any, layer: int) -> Any:
    return lambda states: keep(layer, states)


def _columns(rows: list[list[int]], call: Call, seen_BT: Tensor | None) -> Reading:
    """Rows of different lengths as a rectangle, padded on the right."""
    if not any(rows):
        return Reading(call.ids_BT[:, :0], None, seen_BT)
    ids, mask = padded(rows, call.ids_BT.device)
    return Reading(ids, mask.bool(), seen_BT)


def context_tokens(network: Any) -> int | None:
    """Longest text that a network's positions allow; None where it says nothing."""
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def is_causal(body: nn.Module) -> bool:
    """Whether no token's state depends on what follows it: asked of the network itself, since names say little."""
    vocabulary = int(body.config.get_text_config().vocab_size)
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=next(body.parameters()).device) % vocabulary
    with torch.no_grad():
        one, other = body(**accepted(body, input_ids=ids, use_cache=False)).last_hidden_state[:, :3].float()
    return bool(torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max())))
