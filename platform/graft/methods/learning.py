"""A language model, or something small in it or beside it, learns to answer by gradients.

    text ─► learned ─► prediction, scores          loss on the answer's tokens alone

Prompts, labels and answers are the same as in-context learning's, without demonstrations. Classification learns the
words of the label and no end token, since that is what is scored.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft.errors import ModelError
from graft.methods.answering import Answer, asking, for_labels
from graft.node import Context
from graft.spec import Method, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.tasks.dataset import Dataset

Pair = tuple[list[int], list[int]]
"""Tokens of a prompt and of its target."""
Weights = dict[str, np.ndarray]
"""Trained numbers by name."""


class Learning(Method):
    """What all methods that learn by gradients have in common."""

    role: ClassVar[str] = "base"
    """Of the model that writes."""

    instruction: str | None = Field(None, max_length=2000)
    """Text before every prompt; null for none."""
    length_normalize: bool = False
    """Score a label by its mean log-probability per token instead of their sum."""
    max_new_tokens: int = Field(64, ge=1)
    """Length limit of a free-text answer, in tokens."""

    def roles(self, task: Task) -> tuple[str, ...]:
        """The model that writes."""
        return (self.role,)

    def fields(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the node.

        Raises:
            SpecError: the inputs are not text.
            ModelError: the model cannot be trained.
        """
        model = models[self.role]
        if model.remote:
            raise ModelError(
                f"models.{self.role}: {model.source.source} is computed elsewhere; give weights to train on"
            )
        if str(model.device) == "cpu" and model.dtype != "torch.float32":
            raise ModelError(
                f"models.{self.role}.dtype: got {model.source.dtype}, which cannot be trained on a CPU; leave it null"
            )
        for_labels(dataset, length_normalize=self.length_normalize)
        return {
            **asking(self.name, self.role, model, task, dataset),
            "instruction": self.instruction,
            "length_normalize": self.length_normalize,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Answer):
    """The answer of a language model that was trained, or has something trained in it."""

    seed: int = 0
    weights: Weights = dataclasses.field(default_factory=dict)
    """What was trained, by name as it is saved; empty before."""
    trained: int = 0
    """Numbers that training has set."""
    added: int = 0
    """Those of them that the frozen model has not."""

    @property
    def terms(self) -> tuple[float, ...]:
        """Weights of the loss's terms: there is one."""
        return (1.0,)

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Train on the rows' targets."""
        return self.learned(rows, context)

    def learned(self, rows: pa.Table, context: Context, more: pa.Table | None = None) -> Self:
        """A copy that was trained on the rows, and on `more` encoded ones."""
        node = dataclasses.replace(self, labels=context.labels or (), seed=context.experiment.training.seed)
        node = node.suited(context)
        found = context.train(node, rows, more)
        return node.with_trained({name.removeprefix("network."): value for name, value in found.items()})

    def suited(self, context: Context) -> Self:
        """A copy with what follows from the training."""
        return self

    def with_trained(self, own: Weights) -> Self:
        """A copy with trained parameters, by their names in what `build` trains."""
        raise NotImplementedError

    def build(self) -> "nn.Module":
        """The network with what is trained in it, and its loss."""
        raise NotImplementedError

    def encode(self, rows: pa.Table) -> pa.Table:
        """Columns `context` and `answer` (tokens for each term of the loss), `length`, `tokens` and `targets`.

        Raises:
            ModelError: a prompt with its target does not fit the context.
        """
        return self.encoded(self._sequences(rows))

    def encoded(self, sequences: list[list[Pair]]) -> pa.Table:
        """What `encode` gives, from the tokens of each row's terms."""
        limit = self._limits().get("context_tokens", self.model.context_tokens)
        longest = max(self._positions(pair) for pairs in sequences for pair in pairs)
        if limit is not None and longest > limit:
            raise ModelError(
                f"a prompt with its target has {longest} tokens, the context of {self.model.source.source} holds "
                f"{limit}; {self.shorten}"
            )
        read = [[len(context) + len(answer) - 1 for context, answer in pairs if answer] for pairs in sequences]
        tokens = pa.list_(pa.list_(pa.int32()))
        return pa.table(
            {
                "context": pa.array([[context for context, _ in pairs] for pairs in sequences], tokens),
                "answer": pa.array([[answer for _, answer in pairs] for pairs in sequences], tokens),
                # A batch pads all its sequences to the longest.
                "length": pa.array([len(row) * max(row) for row in read], pa.int32()),
                "tokens": pa.array([sum(row) for row in read], pa.int32()),
                "targets": pa.array(
                    [[len(answer) for _, answer in pairs] for pairs in sequences], pa.list_(pa.int32())
                ),
            }
        )

    def collate(self, encoded: pa.Table) -> dict[str, "Tensor"]:
        """Every sequence of every row that has an answer, padded on the right."""
        from graft.models.objective import batch_of

        rows = zip(encoded["context"].to_pylist(), encoded["answer"].to_pylist(), strict=True)
        found = [
            (context, answer, term)
            for contexts, answers in rows
            for term, (context, answer) in enumerate(zip(contexts, answers, strict=True))
            if answer
        ]
        contexts, answers, terms = map(list, zip(*found, strict=True))
        start = self.model.decoder_start if self.model.kind == "seq2seq" else None
        return batch_of(contexts, answers, terms, start)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f"weights/{name}": value for name, value in self.weights.items()}

    @functools.cached_property
    def speaker(self) -> Any:
        """The trained model."""
        if self.weights:
            return self.model.around(self._open, self.fingerprint(), **self._limits())
        limits = self._limits()
        # What will be put in takes its room before it is trained.
        return self.model.around(self._unlearned, self.fingerprint(), **limits) if limits else self.model

    def _unlearned(self) -> "nn.Module":
        """The network before training."""
        network: nn.Module = self.model.network
        return network

    def _open(self) -> "nn.Module":
        """The network with what was trained in it, as it answers."""
        raise NotImplementedError

    def _limits(self) -> dict[str, Any]:
        """In what the trained model differs from the frozen one, for whoever calls it."""
        return {}

    def parameters_trained(self) -> int:
        """As many as training has set."""
        return self.trained

    def parameters_added(self) -> int:
        """Not those of the model's own that were trained."""
        return self.added

    def warm(self) -> None:
        """Load the trained network."""
        _ = self.speaker.network

    def __getstate__(self) -> dict[str, Any]:
        """Without the trained network, which is made again where it is needed."""
        return {name: value for name, value in self.__dict__.items() if name != "speaker"}

    def _sequences(self, rows: pa.Table) -> list[list[Pair]]:
        """What is learned of each row: for each term of the loss, a prompt and its target."""
        template = self._template()
        prompts, targets = self._prompts(template, rows), self._targets(template, rows)
        return [[pair] for pair in self.pairs(prompts, targets, ends=self.generation)]

    def pairs(self, prompts: Sequence[str], targets: Sequence[str], ends: bool) -> list[Pair]:
        """Tokens of prompts and targets; a target that `ends` has the end token too."""
        end = self._end if ends else []
        return [(context, [*answer, *end]) for context, answer in self.model.continuations(prompts, targets)]

    @property
    def _end(self) -> list[int]:
        """What ends a written answer."""
        end = self.model.tokenizer.eos_token_id
        return [end] if end is not None else list(self.model.tokenizer("\n", add_special_tokens=False)["input_ids"])

    @property
    def ends(self) -> tuple[str, ...]:
        """An end token is learned, where the model has one."""
        return () if self._chats or self.model.tokenizer.eos_token_id is not None else self.stops

    def _positions(self, pair: Pair) -> int:
        """Positions of the model that a pair takes; the last token is not read."""
        context, answer = map(len, pair)
        if self.model.kind == "seq2seq":
            return max(context, answer)
        return context + answer - 1
