"""One call of a composed model: the augmenting models read, and the anchor hears of it at its layers.

    anchor's tokens ─► hear (before the anchor) ─► keys and values of every bridge
                                                        └─► added (inside the anchor, at its layers)

Hooks exist as long as the call: the anchor is otherwise as it was, and nothing of a call stays in memory.

Shapes: B rows, T anchor tokens of this call, S columns of an augmenting model, D the anchor's width.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from graft.errors import ModelError
from graft.models.blocks import at_layer
from graft.models.calm.cache import CalmCache, Heard
from graft.models.calm.listening import Call, Reading
from graft.models.local import accepted

if TYPE_CHECKING:
    from graft.models.calm.model import CalmForCausalLM

Prompt: TypeAlias = Tensor | Literal["first"] | None
"""[B] tokens of each row's prompt; `first`: it is what the first call brings; None: nothing is known of one."""


@dataclass
class Sight:
    """What the anchor's tokens of this call see of one augmenting model."""

    visible_BTS: Tensor | None
    """True where they may look; None for everywhere."""
    ago_BTS: Tensor | None
    """How many of its tokens were read since; None where no bridge asks."""


class Session:
    """A forward pass, or all those of one `generate`.

    Args:
        composed: the model.
        prompt: what is known of the prompt.
        context: a text per row for the augmenting models, in mode context.
        readings: what each augmenting model reads, where it is known already.
    """

    def __init__(
        self,
        composed: "CalmForCausalLM",
        prompt: Prompt = None,
        context: Sequence[str] | None = None,
        readings: Sequence[Reading] | None = None,
    ) -> None:
        self.composed, self.prompt, self.context, self.readings = composed, prompt, context, readings
        self.bridged: list[Any] = []
        self.sights: list[Sight] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Inside, the anchor hears the augmenting models; afterwards it is what it was."""
        composed, hooks = self.composed, []
        layers = sorted({connection.target for connection in composed.connections})
        try:
            hooks.append(composed.anchor.register_forward_pre_hook(self.hear, with_kwargs=True))
            for layer in layers:
                hooks.append(at_layer(composed.anchor_blocks, layer, functools.partial(self._added, layer)))  # noqa: PERF401 -- those that exist are removed
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def hear(self, anchor: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before the anchor reads its tokens: let the augmenting models read theirs.

        Raises:
            ModelError: there are no tokens, or more than a context holds.
        """
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None or not ids.shape[1]:
            raise ModelError("the prompt is empty: give input_ids of at least one token (not inputs_embeds)")
        cache = kwargs.get("past_key_values")
        cache = cache if isinstance(cache, CalmCache) else None
        past = cache.get_seq_length() if cache is not None else 0
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim != 2:
            raise ModelError(f"attention_mask: got {mask.ndim} dimensions; give [rows, tokens], 1 on tokens")
        if mask is not None and kwargs.get("position_ids") is None:
            # Most families take padding on the left for text unless they are told the positions.
            places = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
            kwargs = {**kwargs, **accepted(anchor, position_ids=places)}
        self._check_room(past + ids.shape[1], mask)
        self._listen(ids, None if mask is None else mask.bool(), past, cache)
        return args, kwargs

    def _check_room(self, columns: int, mask: Tensor | None) -> None:
        limit = self.composed.context_tokens
        if limit is None or columns <= limit:
            return
        tokens = columns if mask is None else int(mask.sum(1).max())
        if tokens > limit:
            raise ModelError(
                f"a text of {tokens} tokens; the anchor's context holds {limit}: shorten it, or write less"
            )

    def _listen(self, ids_BT: Tensor, mask_BP: Tensor | None, past: int, cache: CalmCache | None) -> None:
        """Let every augmenting model read, and make keys and values of its states."""
        composed = self.composed
        call = Call(ids_BT, mask_BP, past, self._prompt(ids_BT, mask_BP, cache), self._contexts(len(ids_BT)))
        heard = cache.heard if cache is not None else [Heard() for _ in composed.listening]
        self.bridged = cache.bridged if cache is not None else [None] * len(composed.bridges)
        self.sights = []
        for number, (listening, known) in enumerate(zip(composed.listening, heard, strict=True)):
            reading = self.readings[number] if self.readings is not None else listening.reading(call, known)
            first, before = known.ids_BS is None, known.columns
            known.add(reading.ids_BS, reading.mask_BS)
            if first or reading.ids_BS.shape[1]:
                again = first or known.own is None
                states = reading.states
                if states is None and known.columns:
                    states = listening.states(known, 0 if again else before)
                self._bridge(number, states, len(ids_BT), again)
            self.sights.append(_sight(reading, known, ids_BT, composed.settings.distance_bias))

    def _prompt(self, ids_BT: Tensor, mask_BP: Tensor | None, cache: CalmCache | None) -> Tensor | None:
        """[B] tokens of each row's prompt; a cache knows them after its rows were put in another order."""
        if cache is not None and cache.prompt is not None:
            return cache.prompt
        if isinstance(self.prompt, str):
            whole = torch.full((len(ids_BT),), ids_BT.shape[1], device=ids_BT.device)
            self.prompt = whole if mask_BP is None else mask_BP.sum(1)
        if cache is not None:
            cache.prompt = self.prompt
        return self.prompt

    def _contexts(self, rows: int) -> Sequence[str] | None:
        """A text for each row; those that are written several times stand one after the other."""
        if not self.context or rows % len(self.context):
            return self.context
        return [text for text in self.context for _ in range(rows // len(self.context))]

    def _bridge(self, number: int, states: dict[int, Tensor] | None, rows: int, again: bool) -> None:
        """Keys and values of new states, behind those that are known; or of all."""
        for place, (bridge, connection) in enumerate(
            zip(self.composed.bridges, self.composed.connections, strict=True)
        ):
            if connection.model == number:
                new = bridge.keys_values(None if states is None else states[connection.source], rows, null=again)
                old = self.bridged[place]
                self.bridged[place] = new if again else tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True))

    def _added(self, layer: int, anchor_BTD: Tensor) -> Tensor:
        """The anchor's states with what all bridges at this layer add to them."""
        composed, whole = self.composed, anchor_BTD
        for bridge, connection, (keys, values) in zip(
            composed.bridges, composed.connections, self.bridged, strict=True
        ):
            if connection.target == layer:
                sight = self.sights[connection.model]
                whole = whole + bridge(anchor_BTD, keys, values, sight.visible_BTS, sight.ago_BTS)
        return whole


def _sight(reading: Reading, known: Heard, ids_BT: Tensor, with_distance: bool) -> Sight:
    """Which of all columns the anchor's tokens of this call see, and how long ago they were read."""
    mask, seen = known.mask_BS, reading.seen_BT
    if mask is None:
        rank = torch.arange(known.columns, device=ids_BT.device)[None]
        visible = None if seen is None else rank[:, None] < seen[:, :, None]
    else:
        rank = mask.long().cumsum(1) - 1
        visible = mask[:, None].expand(-1, ids_BT.shape[1], -1)
        visible = visible if seen is None else visible & (rank[:, None] < seen[:, :, None])
    if not with_distance:
        return Sight(visible, None)
    if seen is None:
        # Of each row its own tokens: the columns beyond them are other rows'.
        seen = ids_BT.new_full(ids_BT.shape, known.columns) if mask is None else mask.sum(1)[:, None].expand_as(ids_BT)
    return Sight(visible, (seen[:, :, None] - 1 - rank[:, None]).expand(len(ids_BT), -1, -1))
