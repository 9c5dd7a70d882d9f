"""The loss of a composed model: what its augmenting models read may come with the batch."""

from typing import Any

from torch import Tensor

from graft.models.calm.listening import Reading
from graft.models.objective import NextTokenLoss


class BridgedLoss(NextTokenLoss):
    """`NextTokenLoss` of a `CalmForCausalLM`.

    Beside its tokens a batch holds `prompt_B`, and for each augmenting model i, where its reading was worked out
    before: `ids_i` [B, S], `counts_i` [B] (how many of them are tokens), `seen_i` [B, T], and `states_i` [B, S, E of
    all its layers] where these are kept too.
    """

    def forward(  # type: ignore[override]
        self, ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor, terms_B: Tensor, **beside: Tensor
    ) -> Tensor:
        """As `NextTokenLoss.forward`."""
        prompt = beside.pop("prompt_B")
        readings = [self._reading(number, beside) for number in range(len(self.called.listening))] if beside else None
        given: dict[str, Any] = {"prompt_tokens": prompt, "readings": readings}
        return super().forward(ids_BT, mask_BT, labels_BT, terms_B, **given)

    def _reading(self, number: int, beside: dict[str, Tensor]) -> Reading:
        ids, seen = beside[f"ids_{number}"], beside[f"seen_{number}"]
        places = ids.new_tensor(range(ids.shape[1]))
        states = None
        if f"states_{number}" in beside:
            listening = self.called.listening[number]
            layers = sorted(listening.layers)
            parts = beside[f"states_{number}"].split(listening.width, -1)
            states = dict(zip(layers, parts, strict=True))
        return Reading(ids, places < beside[f"counts_{number}"][:, None], seen, states)
