"""Encoder-decoder language models: the encoder reads a prompt once, the decoder reads its candidates.

Shapes: B prompts or candidates in a batch, S tokens of a prompt, T of a candidate, D width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graft.errors import ModelError
from graft.models.batching import LOGITS_PER_BATCH, batches, padded, token_log_probabilities
from graft.models.language import TOO_LONG, aligned, leading_ids
from graft.models.local import LocalModel, accepted
from graft.models.model import Candidates, Kind
from graft.models.writing import make_greedy, write


class Seq2SeqModel(LocalModel):
    """An encoder and a decoder with a language-model head.

    A candidate is scored as the beginning of the answer: like a causal model's continuation, without an end token.
    """

    kind: Kind = "seq2seq"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        make_greedy(self.network, self.tokenizer)
        start = self.network.generation_config.decoder_start_token_id
        start = getattr(self.config, "decoder_start_token_id", None) if start is None else start
        # T5's configurations may leave it out: its decoder starts with padding.
        self._start = [self.config.pad_token_id if start is None else start, *leading_ids(self.tokenizer)]

    @property
    def body(self) -> Any:
        """The encoder."""
        return self.network.get_encoder()

    def score(self, prompts: Sequence[str], candidates: Candidates, normalize: bool = False) -> NDArray[np.float64]:
        """Log-probabilities [N, C] that the decoder's answer begins with each candidate."""
        with self.lock, torch.inference_mode():
            options = aligned(prompts, candidates)
            answers = [self._tokenize(several, special=False) for several in options]
            self._refuse_empty(options, answers)
            rows = self._prompts(prompts)
            scores = np.zeros((len(prompts), len(options[0]) if options else 0))
            for batch in batches([len(row) for row in rows]) if scores.size else ():
                ids, mask = padded([rows[index] for index in batch], self.device)
                states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
                self.usage.add(int(mask.sum()), len(batch))
                scores[batch] = self._score_answers([answers[index] for index in batch], states, mask)
            lengths = [[len(tokens) for tokens in several] for several in answers]
            return scores / lengths if normalize else scores

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 64, stop: Sequence[str] = ()) -> list[str]:
        """Greedy answers."""
        with self.lock, torch.inference_mode():
            return write(self, self._prompts(prompts), max_new_tokens, stop)

    def _prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        rows = [self._never_empty(ids) for ids in self._tokenize(prompts)]
        self._check_fits([len(row) for row in rows], "prompt", TOO_LONG)
        return rows

    def _refuse_empty(self, options: Sequence[Sequence[str]], answers: Sequence[Sequence[list[int]]]) -> None:
        for several, tokens in zip(options, answers, strict=True):
            if not all(tokens):
                empty = several[[len(ids) for ids in tokens].index(0)]
                raise ModelError(f"{self.source.source}: candidate {empty!r} has no token; give it a text")

    def _score_answers(
        self, answers: list[list[list[int]]], states_BSD: Tensor, mask_BS: Tensor
    ) -> NDArray[np.float64]:
        """Scores [B, C] of every prompt's candidates, given what the encoder made of the prompts."""
        rows = [(b, c) for b, several in enumerate(answers) for c in range(len(several))]
        scores = np.zeros((len(answers), len(answers[0])))
        given = len(self._start)
        lengths = [given + len(answers[b][c]) for b, c in rows]
        limit = max(1, LOGITS_PER_BATCH // (int(self.config.vocab_size) * max(lengths)))
        for batch in batches(lengths, rows=limit):
            chosen = [rows[index] for index in batch]
            tails = [answers[b][c] for b, c in chosen]
            prompts = torch.tensor([b for b, _ in chosen], device=self.device)
            ids, mask = padded([[*self._start, *tail[:-1]] for tail in tails], self.device)
            targets, own = padded(tails, self.device)
            logits = self.network(
                encoder_outputs=(states_BSD[prompts],),
                attention_mask=mask_BS[prompts],
                decoder_input_ids=ids,
                decoder_attention_mask=mask,
                **accepted(self.network, use_cache=False),
            ).logits[:, given - 1 :]
            self.usage.add(int(mask.sum()), len(chosen))
            sums = (token_log_probabilities(logits, targets) * own.cpu()).sum(1).numpy()
            for (b, c), value in zip(chosen, sums, strict=True):
                scores[b, c] = value
        return scores
