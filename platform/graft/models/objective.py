"""The loss of a language model on the tokens that are to be learned.

Shapes: B sequences, T positions, V vocabulary, K terms of the loss, M positions that have a target.
"""

from typing import Any

import torch
from torch import Tensor, nn

NO_TARGET = -100
"""In labels: nothing is to be predicted here."""


class NextTokenLoss(nn.Module):  # type: ignore[misc]
    """A causal or encoder-decoder network, and what it costs to be surprised by the targets.

    The head is computed at the positions that have a target and nowhere else: with a large vocabulary, logits are
    most of the memory and much of the time of a small adapted model.

    Args:
        network: with a language-model head; its parameters are this module's, as `network.NAME`.
        terms: number of the loss's terms.
        called: what is called in its place, where that is a part of it or around it.
    """

    def __init__(self, network: nn.Module, terms: int = 1, called: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.terms = terms
        # Not a second submodule: every parameter has one name.
        object.__setattr__(self, "called", called or network)

    def forward(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        labels_BT: Tensor,
        terms_B: Tensor,
        decoder_ids_BT: Tensor | None = None,
        **beside: Any,
    ) -> Tensor:
        """Sum of the negative log-probabilities (nats) of each term's targets, float32 [K].

        Args:
            ids_BT: tokens; of an encoder-decoder model, the encoder's.
            mask_BT: 1 on tokens, 0 on padding.
            labels_BT: the token that follows each position (of the decoder, where there is one), or NO_TARGET.
            terms_B: which term a sequence belongs to.
            decoder_ids_BT: what the decoder reads.
            beside: what else the network takes.
        """
        wanted_BT = labels_BT != NO_TARGET
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, **beside}
        if decoder_ids_BT is not None:
            inputs["decoder_input_ids"] = decoder_ids_BT
        logits_MV, labels_M = logits_at(self.called, inputs, wanted_BT), labels_BT[wanted_BT]
        losses_M = nn.functional.cross_entropy(logits_MV.float(), labels_M, reduction="none")
        owners_M = terms_B[wanted_BT.nonzero()[:, 0]]
        if self.training:
            losses_M = losses_M + self.penalty(wanted_BT, labels_M) * (owners_M == 0)
        return losses_M.new_zeros(self.terms).index_add(0, owners_M, losses_M)

    def penalty(self, wanted_BT: Tensor, labels_M: Tensor) -> Tensor | float:
        """What training adds to each target's loss of the first term, [M] or one number: nothing, mostly."""
        return 0.0


def logits_at(network: nn.Module, inputs: dict[str, Any], wanted_BT: Tensor) -> Tensor:
    """Logits [M, V] of a network at the wanted positions; its head is computed nowhere else."""
    width = wanted_BT.shape[1]

    def keep_wanted(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        # Soft prompts stand before the tokens.
        return (states[:, states.shape[1] - width :][wanted_BT][None],)

    hook = network.get_output_embeddings().register_forward_pre_hook(keep_wanted)
    try:
        logits: Tensor = network(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return logits[0]


def labels_of(context: int, answer: list[int]) -> list[int]:
    """What follows each position of a context (of so many tokens) and its answer, the last token not read."""
    return [NO_TARGET] * (context - 1) + answer


def batch_of(
    contexts: list[list[int]], answers: list[list[int]], terms: list[int], decoder_start: list[int] | None
) -> dict[str, Tensor]:
    """Inputs of `NextTokenLoss.forward`, padded on the right.

    Args:
        contexts: tokens of each prompt, none empty.
        answers: tokens of each target, none empty.
        terms: which term of the loss each belongs to.
        decoder_start: what a decoder reads before an answer; None for a causal model.
    """
    if decoder_start is None:
        ids, mask = _padded([[*context, *answer[:-1]] for context, answer in zip(contexts, answers, strict=True)], 0)
        labels, _ = _padded([labels_of(len(c), a) for c, a in zip(contexts, answers, strict=True)], NO_TARGET)
        return {"ids_BT": ids, "mask_BT": mask, "labels_BT": labels, "terms_B": torch.tensor(terms)}
    ids, mask = _padded(contexts, 0)
    # The decoder is causal and its padding comes last, so that it needs no mask.
    decoder_ids, _ = _padded([[*decoder_start, *answer[:-1]] for answer in answers], 0)
    labels, _ = _padded([labels_of(len(decoder_start), answer) for answer in answers], NO_TARGET)
    return {
        "ids_BT": ids,
        "mask_BT": mask,
        "labels_BT": labels,
        "terms_B": torch.tensor(terms),
        "decoder_ids_BT": decoder_ids,
    }


def _padded(rows: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Int64 [B, T], and a mask that is 1 where the rows are."""
    width = max(map(len, rows))
    values = torch.full((len(rows), width), filler, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for place, row in enumerate(rows):
        values[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[place, : len(row)] = 1
    return values, mask
