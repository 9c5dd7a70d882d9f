"""Encoder-decoder language models: the encoder reads a prompt once, the decoder reads its candidates.

Shapes: B prompts or candidates in a batch, S tokens of a prompt, T of a candidate, D width.
"""

import functools
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
from graft.models.model import Candidates, Kind, Sampling, Written
from graft.models.writing import write


class Seq2SeqModel(LocalModel):
    """An encoder and a decoder with a language-model head.

    A candidate is scored as the beginning of the answer: like a causal model's continuation, without an end token.
    """

    kind: Kind = "seq2seq"

    @functools.cached_property
    def _start(self) -> list[int]:
        """What the decoder reads before an answer."""
        start = self.network.generation_config.decoder_start_token_id
        start = getattr(self.config, "decoder_start_token_id", None) if start is None else start
        # T5's configurations may leave it out: its decoder starts with padding.
        start = self.config.pad_token_id if start is None else start
        forced = getattr(self.network.generation_config, "forced_bos_token_id", None)
        return [start, *(leading_ids(self.tokenizer) or ([] if forced is None else [forced]))]

    @property
    def body(self) -> Any:
        """The encoder."""
        return self.network.get_encoder()

    def score(self, prompts: Sequence[str], candidates: Candidates, normalize: bool = False) -> NDArray[np.float64]:
        """Log-probabilities [N, C] that the decoder's answer begins with each candidate."""
        with self.lock, torch.inference_mode():
            options = aligned(prompts, candidates)
            answers = self._answers(options)
            rows = self._prompts(prompts)
            self._check_fits(self._answer_tokens(answers), "candidate", lambda: "give shorter labels")
            scores = np.zeros((len(prompts), len(options[0]) if options else 0))
            for batch in batches([len(row) for row in rows]) if scores.size else ():
                ids, mask = padded([rows[index] for index in batch], self.network.device)
                # Soft prompts are put in by the whole network only, which then reads the prompt for every candidate.
                states = self.body(input_ids=ids, attention_mask=mask).last_hidden_state if self.plain else None
                self.usage.add(int(mask.sum()), len(batch))
                scores[batch] = self._score_answers([answers[index] for index in batch], ids, mask, states)
            lengths = [[len(tokens) for tokens in several] for several in answers]
            return scores / lengths if normalize else scores

    def write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Written]:
        """Answers."""
        with self.lock, torch.inference_mode():
            return write(self, self.rows_to_write(prompts, max_new_tokens), max_new_tokens, stop, sampling)

    def rows_to_write(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Tokens of each prompt, which the encoder reads."""
        with self.lock:
            rows = self._prompts(prompts)
            needs = [self._lead_tokens + max_new_tokens for _ in rows]
            self._check_fits(needs, "answer", lambda: "set method.max_new_tokens to less")
            return rows

    def continuations(self, prompts: Sequence[str], targets: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each prompt, which the encoder reads, and of its target, which the decoder writes."""
        with self.lock:
            answers = self._answers([[target] for target in targets])
            return [(row, several[0]) for row, several in zip(self._rows(prompts), answers, strict=True)]

    @property
    def decoder_start(self) -> list[int]:
        """What the decoder reads before an answer."""
        return self._start

    def _scored_tokens(self, prompts: Sequence[str], candidates: Candidates) -> list[int]:
        answers = self._answer_tokens(self._answers(aligned(prompts, candidates)))
        return [max(len(row), answer) for row, answer in zip(self._rows(prompts), answers, strict=True)]

    def _written_tokens(self, prompts: Sequence[str], max_new_tokens: int) -> list[int]:
        return [max(len(row), self._lead_tokens + max_new_tokens) for row in self._rows(prompts)]

    def _rows(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self.never_empty(ids) for ids in self._tokenize(prompts)]

    def _prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        rows = self._rows(prompts)
        self._check_fits([len(row) for row in rows], "prompt", lambda: TOO_LONG)
        return rows

    @property
    def _lead_tokens(self) -> int:
        """Positions of the decoder that an answer takes beside its tokens: the last of these is not read."""
        return len(self._start) - 1

    def _answer_tokens(self, answers: Sequence[Sequence[list[int]]]) -> list[int]:
        """Positions of the decoder that each prompt's longest candidate takes."""
        return [self._lead_tokens + max(map(len, several), default=0) for several in answers]

    def _answers(self, options: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Tokens of each prompt's candidates, none empty."""
        answers = [self._tokenize(several, special=False) for several in options]
        for several, tokens in zip(options, answers, strict=True):
            if not all(tokens):
                empty = several[[len(ids) for ids in tokens].index(0)]
                raise ModelError(f"{self.source.source}: candidate {empty!r} has no token; give it a text")
        return answers

    def _score_answers(
        self, answers: list[list[list[int]]], ids_BS: Tensor, mask_BS: Tensor, states_BSD: Tensor | None
    ) -> NDArray[np.float64]:
        """Scores [B, C] of every prompt's candidates, given what the encoder made of the prompts, if it did."""
        rows = [(b, c) for b, several in enumerate(answers) for c in range(len(several))]
        scores = np.zeros((len(answers), len(answers[0])))
        given = len(self._start)
        lengths = [given + len(answers[b][c]) for b, c in rows]
        limit = max(1, LOGITS_PER_BATCH // (int(self.config.vocab_size) * max(lengths)))
        for batch in batches(lengths, rows=limit):
            chosen = [rows[index] for index in batch]
            tails = [answers[b][c] for b, c in chosen]
            prompts = torch.tensor([b for b, _ in chosen], device=self.network.device)
            ids, mask = padded([[*self._start, *tail[:-1]] for tail in tails], self.network.device)
            targets, own = padded(tails, self.network.device)
            read = {"input_ids": ids_BS[prompts]} if states_BSD is None else {"encoder_outputs": (states_BSD[prompts],)}
            logits = self.network(
                **read,
                attention_mask=mask_BS[prompts],
                decoder_input_ids=ids,
                decoder_attention_mask=mask,
                **accepted(self.network, use_cache=False),
            ).logits[:, given - 1 - ids.shape[1] :]
            self.usage.add(int(mask.sum()), len(chosen))
            sums = (token_log_probabilities(logits, targets) * own.cpu()).sum(1).numpy()
            for (b, c), value in zip(chosen, sums, strict=True):
                scores[b, c] = value
        return scores
