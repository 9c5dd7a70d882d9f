"""Causal language models: probabilities of continuations, and greedy text.

Shapes: B prompts or continuations in a batch, C candidates, T tokens, V vocabulary.

A prompt's score needs three kinds of forward pass, each as rarely as possible:

    beginning    what many prompts share (instruction, demonstrations), once, and kept
    suffix       the rest of each prompt, once; gives the first token of every candidate
    tail         the other tokens of each candidate, on a copy of its prompt's cache
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graft.errors import ModelError
from graft.models import prefixes
from graft.models.batching import LOGITS_PER_BATCH, batches, padded, token_log_probabilities
from graft.models.local import LocalModel, accepted
from graft.models.model import Candidates, Kind, Sampling, Written
from graft.models.objective import NO_TARGET, batch_of, logits_at
from graft.models.writing import write

MOST_READ = 64
"""Prompts whose tokens are remembered until others are asked about."""
CACHED_TOKENS_PER_BATCH = 32768
"""Positions of a batch whose keys and values are held at once."""


@dataclass
class Question:
    """One prompt: what is given, and the continuations to score."""

    context: list[int]
    continuations: list[list[int]]

    @property
    def tokens(self) -> int:
        """Of the prompt and its longest continuation."""
        return len(self.context) + max(map(len, self.continuations), default=0)


def _nothing(_prompts: Sequence[str]) -> dict[str, Any]:
    return {}


class CausalModel(LocalModel):
    """A decoder with a language-model head."""

    kind: Kind = "causal"
    beside: Callable[[Sequence[str]], dict[str, Any]] = staticmethod(_nothing)
    """What else the network takes with these prompts."""
    mixes_as: "CausalModel | None" = None
    """The model whose `mixes_lengths` holds here too: a composed model's anchor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prefixes = prefixes.PrefixCaches()
        # What a reading keeps may end at an inner layer, and is of no use to who scores.
        self.read_prefixes = prefixes.PrefixCaches()
        self.lead = leading_ids(self.tokenizer)
        """What the tokenizer puts before every text."""
        self._read: tuple[Any, list[Question]] | None = None
        self._vocabulary = int(self.config.get_text_config().vocab_size)

    @functools.cached_property
    def shares_prefixes(self) -> bool:
        """Whether what prompts have in common is computed once, and texts join others that are being written."""
        return self.plain and prefixes.shareable(self.network, self.config) and self._paddable(between=True)

    @functools.cached_property
    def mixes_lengths(self) -> bool:
        """Whether prompts of unequal length are written beside each other, the shorter ones padded on the left."""
        if self.mixes_as is not None:
            return self.mixes_as.mixes_lengths
        return self.plain and (self.shares_prefixes or self._paddable(between=False))

    def _paddable(self, between: bool) -> bool:
        """As `prefixes.paddable`; some networks are tried, by a few tokens that `usage` does not count."""
        with self.lock, torch.inference_mode():
            return prefixes.paddable(self.network, self.config, between)

    @property
    def packs_prompts(self) -> bool:
        """Whether several prompts may be read in one sequence."""
        return self.plain and prefixes.packable(self.network)

    @property
    def body(self) -> Any:
        """The decoder without its head."""
        return self.network.base_model

    def score(self, prompts: Sequence[str], candidates: Candidates, normalize: bool = False) -> NDArray[np.float64]:
        """Log-probabilities [N, C]; a prompt and a candidate become tokens together, as they would in one text."""
        with self.lock, torch.inference_mode():
            options = aligned(prompts, candidates)
            questions = self._questions(prompts, options)
            needs = [one.tokens for one in questions]
            self._check_fits(needs, "prompt with its continuation", lambda: TOO_LONG)
            scores = np.zeros((len(prompts), len(options[0]) if options else 0))
            if not scores.size:
                return scores
            if self.shares_prefixes:
                for group in prefixes.groups([one.context for one in questions]):
                    self._score_group(questions, group, scores)
            else:
                self._score_whole(prompts, questions, scores)
            lengths = [[len(tokens) for tokens in one.continuations] for one in questions]
            return scores / lengths if normalize else scores

    def write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Written]:
        """Continuations, without the prompt."""
        with self.lock, torch.inference_mode():
            rows = self.rows_to_write(prompts, max_new_tokens)
            return write(
                self, rows, max_new_tokens, stop, sampling, lambda batch: self.beside([prompts[row] for row in batch])
            )

    def rows_to_write(self, prompts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Tokens of each prompt, the tokenizer's first ones included."""
        with self.lock:
            rows = self._rows(prompts)
            needs = [len(row) + max_new_tokens for row in rows]
            self._check_fits(needs, "prompt with max_new_tokens", lambda: TOO_LONG)
            return rows

    def continuations(self, prompts: Sequence[str], targets: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each prompt and of its target, divided where `score` divides them for this candidate alone."""
        with self.lock:
            questions = self._questions(prompts, [[target] for target in targets])
            return [(one.context, one.continuations[0]) for one in questions]

    def _scored_tokens(self, prompts: Sequence[str], candidates: Candidates) -> list[int]:
        return [one.tokens for one in self._questions(prompts, aligned(prompts, candidates))]

    def _written_tokens(self, prompts: Sequence[str], max_new_tokens: int) -> list[int]:
        return [len(row) + max_new_tokens for row in self._rows(prompts)]

    def _rows(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of each prompt to write after."""
        return [self.never_empty(self._with_lead(ids)) for ids in self._tokenize(prompts, special=False)]

    def _with_lead(self, ids: list[int]) -> list[int]:
        """What the tokenizer puts before a text, unless a rendered chat already begins with it."""
        return ids if ids[: len(self.lead)] == self.lead else [*self.lead, *ids]

    def _questions(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[Question]:
        """Tokens of every prompt with each of its options; asked twice in a row: to check, and to score."""
        asked = (tuple(prompts), tuple(map(tuple, options)))
        if self._read is None or self._read[0] != asked:
            found = self._tokenized(prompts, options)
            if len(found) > MOST_READ:
                return found
            self._read = asked, found
        return self._read[1]

    def _tokenized(self, prompts: Sequence[str], options: Sequence[Sequence[str]]) -> list[Question]:
        joined = [prompt + option for prompt, several in zip(prompts, options, strict=True) for option in several]
        given = [self._with_lead(ids) for ids in self._tokenize(prompts, special=False)]
        whole = [self._with_lead(ids) for ids in self._tokenize(joined, special=False)]
        count = len(options[0]) if options else 0
        return [
            self._question(context, whole[index * count : (index + 1) * count], options[index])
            for index, context in enumerate(given)
        ]

    def _question(self, context: list[int], whole: list[list[int]], options: Sequence[str]) -> Question:
        """Split where the prompt's own tokens end in every candidate's text.

        A candidate's first letters may change the prompt's last tokens, so the given part is what all of them share.
        """
        shared = min((prefixes.common_length(context, tokens) for tokens in whole), default=len(context))
        if not shared:
            start = self.never_empty([])
            context, whole, shared = [*start, *context], [[*start, *tokens] for tokens in whole], 1
        for tokens, option in zip(whole, options, strict=True):
            if len(tokens) == shared:
                raise ModelError(
                    f"{self.source.source}: candidate {option!r} adds no token to its prompt; give it a text"
                )
        return Question(context[:shared], [tokens[shared:] for tokens in whole])

    def _score_group(self, questions: list[Question], group: prefixes.Group, scores: NDArray[np.float64]) -> None:
        """Score prompts that begin alike; fills their rows of `scores`."""
        start = group.shared_tokens
        beginning = self.beginning(questions[group.members[0]].context[:start])
        lengths = [len(questions[index].context) for index in group.members]
        limit = max(1, LOGITS_PER_BATCH // self._vocabulary)
        for batch in batches(lengths, CACHED_TOKENS_PER_BATCH, limit):
            members = [group.members[position] for position in batch]
            scores[members] = self._score_batch([questions[index] for index in members], beginning, start)

    def beginning(self, tokens: list[int]) -> Any:
        """The keys and values of a prefix; computed only as far as none that is kept already knows it."""
        cache, known = self.prefixes.nearest(tokens)
        cache = cache or _empty(self.config)
        if known < len(tokens):
            ids = torch.tensor([tokens[known:]], device=self.network.device)
            positions = torch.arange(known, len(tokens), device=ids.device)[None]
            mask = torch.ones(1, len(tokens), dtype=torch.long, device=ids.device)
            self._forward(self.body, ids, mask, positions, cache)
            self.usage.add(ids.numel(), 1)
            self.prefixes.keep(tokens, cache)
        return cache

    def _score_batch(self, questions: list[Question], beginning: Any, start: int) -> NDArray[np.float64]:
        """Scores [B, C] of prompts whose first `start` tokens are in `beginning`."""
        ids, own = padded([one.context[start:] for one in questions], self.network.device, left=True)
        mask_BT = torch.cat([own.new_ones(len(questions), start), own], dim=1)
        positions = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, start:]
        cache = _empty(self.config) if not start else prefixes.picked(beginning, ids.new_zeros(len(questions)))
        logits_BV = self._forward(self.network, ids, mask_BT, positions, cache, logits_to_keep=1).logits[:, -1]
        self.usage.add(int(own.sum()), len(questions))
        first = torch.tensor([[tokens[0] for tokens in one.continuations] for one in questions], device=ids.device)
        scores: NDArray[np.float64] = logits_BV.float().log_softmax(-1).gather(1, first).double().cpu().numpy()
        self._add_tails(questions, mask_BT, cache, scores)
        return scores

    def _add_tails(self, questions: list[Question], mask_BT: Tensor, cache: Any, scores: NDArray[np.float64]) -> None:
        """Add what follows each candidate's first token, on copies of the prompts' caches."""
        rows = [(b, c) for b, one in enumerate(questions) for c, t in enumerate(one.continuations) if len(t) > 1]
        lengths = [mask_BT.shape[1] + len(questions[b].continuations[c]) for b, c in rows]
        longest = max((len(questions[b].continuations[c]) for b, c in rows), default=1)
        limit = max(1, LOGITS_PER_BATCH // (self._vocabulary * longest))
        for batch in batches(lengths, CACHED_TOKENS_PER_BATCH, limit):
            chosen = [rows[index] for index in batch]
            tails = [questions[b].continuations[c] for b, c in chosen]
            ids, own = padded([tail[:-1] for tail in tails], self.network.device)
            targets, _ = padded([tail[1:] for tail in tails], self.network.device)
            prompts = torch.tensor([b for b, _ in chosen], device=self.network.device)
            mask = torch.cat([mask_BT[prompts], own], dim=1)
            positions = (mask.cumsum(1) - 1)[:, mask_BT.shape[1] :]
            logits = self._forward(self.network, ids, mask, positions, prefixes.picked(cache, prompts)).logits
            self.usage.add(int(own.sum()), len(chosen))
            sums = (token_log_probabilities(logits, targets) * own.cpu()).sum(1).numpy()
            for (b, c), value in zip(chosen, sums, strict=True):
                scores[b, c] += value

    def _score_whole(self, prompts: Sequence[str], questions: list[Question], scores: NDArray[np.float64]) -> None:
        """Score without any cache, every candidate with its whole prompt; fills `scores`."""
        rows = [(n, c) for n, one in enumerate(questions) for c in range(len(one.continuations))]
        lengths = [len(questions[n].context) + len(questions[n].continuations[c]) - 1 for n, c in rows]
        longest = max(len(questions[n].continuations[c]) for n, c in rows)
        limit = max(1, LOGITS_PER_BATCH // (self._vocabulary * longest))
        for batch in batches(lengths, rows=limit):
            chosen = [rows[index] for index in batch]
            contexts = [questions[n].context for n, _ in chosen]
            made = batch_of(contexts, [questions[n].continuations[c] for n, c in chosen], [0] * len(chosen), None)
            ids, mask, labels = (made[name].to(self.network.device) for name in ("ids_BT", "mask_BT", "labels_BT"))
            wanted = labels != NO_TARGET
            given = torch.tensor([len(context) for context in contexts], device=ids.device)
            beside = {**accepted(self.network, prompt_tokens=given), **self.beside([prompts[n] for n, _ in chosen])}
            logits = logits_at(self.network, {"input_ids": ids, "attention_mask": mask, **beside}, wanted)
            values = token_log_probabilities(logits, labels[wanted])
            sums = values.new_zeros(len(chosen)).index_add(0, wanted.nonzero()[:, 0].cpu(), values).numpy()
            self.usage.add(int(mask.sum()), len(batch))
            for (n, c), value in zip(chosen, sums, strict=True):
                scores[n, c] = value

    def _forward(
        self, network: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, **options: Any
    ) -> Any:
        extra = accepted(network, position_ids=positions, **options)
        return network(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)


TOO_LONG = "use fewer method.num_shots, or set task.max_tokens so that longer texts are cut"


def aligned(prompts: Sequence[str], candidates: Candidates) -> list[list[str]]:
    """One list of candidates per prompt, all of one length.

    Raises:
        ModelError: lists of unequal number or length.
    """
    if all(isinstance(candidate, str) for candidate in candidates):
        return [list(map(str, candidates)) for _ in prompts]
    lists = [list(several) for several in candidates]
    lengths = {len(several) for several in lists}
    if len(lists) != len(prompts) or len(lengths) > 1:
        raise ModelError(
            f"candidates: got {len(lists)} lists of {sorted(lengths)} for {len(prompts)} prompts; "
            "give one list of strings, or one list of equal length per prompt"
        )
    return lists


def leading_ids(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before every text (a begin-of-sequence token, mostly)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    places = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
    return list(full[: places[0]]) if places else []


def _empty(config: Any) -> Any:
    from transformers.cache_utils import DynamicCache

    return DynamicCache(config=config)
