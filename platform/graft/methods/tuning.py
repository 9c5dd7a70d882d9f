"""Tuning: a language model, or something small in it, learns to answer by gradients.

    text ─► tuned ─► prediction, scores          loss on the answer's tokens alone

Trained is what `method.adapter` says; prompts, labels and answers are the same as in-context learning's, without
demonstrations. Classification learns the words of the label and no end token, since that is what is scored.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, Field

from graft.errors import ModelError
from graft.graph import Context, Graph, Models
from graft.methods.answering import Answer, asking, for_labels
from graft.sections import Section
from graft.spec import Method, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.methods.adapting import Weights
    from graft.tasks.dataset import Dataset

Pair = tuple[list[int], list[int]]
"""Tokens of a prompt and of its target."""


class Bottleneck(Section):
    """A bottleneck adapter in every block."""

    kind: Literal["serial", "parallel"] = "serial"
    """serial: after attention and after the feed-forward (Houlsby); parallel: beside the feed-forward (He)."""
    bottleneck: int = Field(64, ge=1)
    """Width of the adapter."""


def _setting(adapter: Any) -> Any:
    if adapter == "full" or isinstance(adapter, Bottleneck):
        return adapter
    if isinstance(adapter, Mapping) and "peft_type" in adapter:
        return dict(adapter)
    if isinstance(adapter, Mapping) and set(adapter) & {"kind", "bottleneck"}:
        return Bottleneck.model_validate(dict(adapter))
    raise ValueError("give full, {peft_type: LORA, r: 8, ...} with PEFT's fields, or {kind: serial, bottleneck: 64}")


AnyAdapter = Annotated[Literal["full"] | dict[str, Any] | Bottleneck, BeforeValidator(_setting)]
"""Everything, PEFT's fields, or a bottleneck."""


def mapping_of(adapter: Any) -> dict[str, Any]:
    """What a spec says of an adapter, as `graft.methods.adapting` reads it."""
    if adapter == "full":
        return {"full": True}
    return adapter.model_dump() if isinstance(adapter, Bottleneck) else dict(adapter)


class Tuning(Method):
    """What all tuned methods have in common."""

    instruction: str | None = Field(None, max_length=2000)
    """Text before every prompt; null for none."""
    length_normalize: bool = False
    """Score a label by its mean log-probability per token instead of their sum."""
    max_new_tokens: int = Field(64, ge=1)
    """Length limit of a free-text answer, in tokens."""

    def roles(self, task: Task) -> tuple[str, ...]:
        """The model that is tuned."""
        return ("base",)

    def trained(self) -> dict[str, Any]:
        """What is trained, as `graft.methods.adapting` reads it."""
        raise NotImplementedError

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """One node.

        Raises:
            SpecError: the inputs are not text, or the adapter's settings are wrong.
            ModelError: the model cannot be tuned.
        """
        return Graph([Tuned(**self.fields(task, dataset, models))], dataset.inputs)

    def fields(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the node."""
        base = models["base"]
        if base.remote:
            raise ModelError(f"models.base: {base.source.source} is computed elsewhere; give weights to be tuned")
        if str(base.device) == "cpu" and base.dtype != "torch.float32":
            raise ModelError(
                f"models.base.dtype: got {base.source.dtype}, which cannot be trained on a CPU; leave it null"
            )
        for_labels(dataset, length_normalize=self.length_normalize)
        adapter = self.trained()
        if "peft_type" in adapter:
            from graft.methods import peft_fields

            adapter = peft_fields.checked(adapter)
        return {
            **asking(self.name, "base", base, task, dataset),
            "instruction": self.instruction,
            "length_normalize": self.length_normalize,
            "max_new_tokens": self.max_new_tokens,
            "adapter": adapter,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned(Answer):
    """The answer of a language model that was tuned."""

    adapter: dict[str, Any]
    """What is trained: see `graft.methods.adapting`."""
    seed: int = 0
    weights: "Weights" = dataclasses.field(default_factory=dict)
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
        return self.tuned(rows, context)

    def tuned(self, rows: pa.Table, context: Context, more: pa.Table | None = None) -> Self:
        """A copy that was trained on the rows, and on `more` encoded ones."""
        from graft.methods import adapting

        training = context.experiment.training
        adapter = adapting.suited(self.adapter, training)
        node = dataclasses.replace(self, labels=context.labels or (), seed=training.seed, adapter=adapter)
        found = context.train(node, rows, more)
        adapted = adapting.put_in(self.model, adapter, node.seed)
        own = {name.removeprefix("network."): value for name, value in found.items()}
        weights = adapting.taken_out(adapted, adapter, own)
        new = adapting.new_names(own, self.model)
        return dataclasses.replace(
            node,
            weights=weights,
            trained=sum(value.size for value in own.values()),
            added=sum(own[name].size for name in new),
        )

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

    def build(self) -> "nn.Module":
        """The network with what is trained in it, and its loss."""
        from graft.methods import adapting

        return adapting.with_loss(adapting.put_in(self.model, self.adapter, self.seed), self.adapter, len(self.terms))

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

    def fingerprint(self) -> str:
        """Identity by content, that of adapters which this one builds on too."""
        if "adapters" not in self.adapter:
            return super().fingerprint()
        from graft.methods import peft_fields

        return Answer.fingerprint(dataclasses.replace(self, adapter=peft_fields.by_content(self.adapter)))

    @functools.cached_property
    def speaker(self) -> Any:
        """The tuned model."""
        if self.weights:
            return self.model.around(self._open, self.fingerprint(), **self._limits())
        limits = self._limits()
        # Soft prompts take their room before they are trained.
        return self.model.around(lambda: self.model.network, self.fingerprint(), **limits) if limits else self.model

    def parameters_trained(self) -> int:
        """As many as training has set."""
        return self.trained

    def parameters_added(self) -> int:
        """Not those of the model's own that were trained."""
        return self.added

    def warm(self) -> None:
        """Load the tuned network."""
        _ = self.speaker.network

    def describe(self) -> str:
        """Name the model, and what is trained in it."""
        kind = self.adapter.get("peft_type") or self.adapter.get("kind") or "full"
        return f"{type(self).__name__.lower()}({self.model.source.source}, {str(kind).lower()})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the tuned network, which is made again where it is needed."""
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
    def _stops(self) -> tuple[str, ...]:
        """An end token is learned, where the model has one."""
        return () if self._chats or self.model.tokenizer.eos_token_id is not None else ("\n",)

    def _positions(self, pair: Pair) -> int:
        """Positions of the model that a pair takes; the last token is not read."""
        context, answer = map(len, pair)
        if self.model.kind == "seq2seq":
            return max(context, answer)
        return context + answer - 1

    def _limits(self) -> dict[str, Any]:
        """In what the tuned model differs from the frozen one, for whoever calls it."""
        from graft.methods import peft_fields

        if "peft_type" not in self.adapter or peft_fields.is_plain(self.adapter):
            return {}
        context = self.model.context_tokens
        room = None if context is None else context - peft_fields.soft_tokens(self.adapter)
        return {"plain": False, "context_tokens": room}

    def _open(self) -> "nn.Module":
        import torch

        from graft.methods import adapting

        network = adapting.put_in(self.model, self.adapter, self.seed, self.weights).network
        # It answers in the precision of the frozen model beside it.
        dtype = getattr(torch, self.model.dtype.removeprefix("torch."))
        return network.to(dtype) if "full" in self.adapter else network

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f"weights/{name}": value for name, value in self.weights.items()}

    def _write_arrays(self, directory: Path) -> None:
        from graft.methods import adapting

        if self.weights:
            adapted = adapting.put_in(self.model, self.adapter, self.seed, self.weights)
            adapting.write(adapted, self.adapter, self.weights, self.model, directory)

    @classmethod
    def load(cls, directory: Path, models: Models) -> Self:
        """The node that `save` wrote."""
        from graft.methods import adapting

        node = super().load(directory, models)
        return dataclasses.replace(node, weights=adapting.read(node.adapter, node.model, directory))
