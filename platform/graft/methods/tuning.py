"""Tuning: a language model, or something small in it, learns to answer by gradients.

    text ─► tuned ─► prediction, scores          loss on the answer's tokens alone

Trained is what `method.adapter` says.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from graft.graph import Graph
from graft.methods.answering import Answer
from graft.methods.learning import Learned, Learning, Weights
from graft.node import Context, Models
from graft.sections import Section
from graft.spec import Task

if TYPE_CHECKING:
    from torch import nn

    from graft.tasks.dataset import Dataset


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


class Tuning(Learning):
    """What all tuned methods have in common."""

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
        fields, adapter = super().fields(task, dataset, models), self.trained()
        if "peft_type" in adapter:
            from graft.methods import peft_fields

            adapter = peft_fields.checked(adapter)
        return {**fields, "adapter": adapter}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned(Learned):
    """The answer of a language model that was tuned."""

    adapter: dict[str, Any]
    """What is trained: see `graft.methods.adapting`."""

    def suited(self, context: Context) -> Self:
        """With what the adapter must know of the training."""
        from graft.methods import adapting

        return dataclasses.replace(self, adapter=adapting.suited(self.adapter, context.experiment.training))

    def with_trained(self, own: Weights) -> Self:
        """A copy with a trained adapter."""
        from graft.methods import adapting

        adapted = adapting.put_in(self.model, self.adapter, self.seed)
        weights = adapting.taken_out(adapted, self.adapter, own)
        new = adapting.new_names(own, self.model)
        trained, added = (sum(own[name].size for name in names) for names in (own, new))
        return dataclasses.replace(self, weights=weights, trained=trained, added=added)

    def build(self) -> "nn.Module":
        """The network with what is trained in it, and its loss."""
        from graft.methods import adapting

        return adapting.with_loss(adapting.put_in(self.model, self.adapter, self.seed), self.adapter, len(self.terms))

    def fingerprint(self) -> str:
        """Identity by content, that of adapters which this one builds on too."""
        if "adapters" not in self.adapter:
            return super().fingerprint()
        from graft.methods import peft_fields

        return Answer.fingerprint(dataclasses.replace(self, adapter=peft_fields.by_content(self.adapter)))

    def describe(self) -> str:
        """Name the model, and what is trained in it."""
        kind = self.adapter.get("peft_type") or self.adapter.get("kind") or "full"
        return f"{type(self).__name__.lower()}({self.model.source.source}, {str(kind).lower()})"

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
