"""CALM: a frozen model hears another frozen model through trained bridges, and answers.

    text ─┬─► augmenting model ─► states ─► bridges (trained) ─┐
          └─► anchor ──────────────────────────────────────────(+)─► prediction, scores

Bansal et al. 2024 (arXiv:2401.02412). One node with several models inside: see `graft.models.calm`. The loss is on the
answer's tokens alone. Deviations: bridges begin as the identity, and see no future token; the paper says neither.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft.errors import ModelError, SpecError
from graft.graph import Graph
from graft.methods.learning import Learned, Learning, Weights
from graft.node import Context, Models
from graft.spec import AUGMENTING, Task
from graft.tasks.templates import Template, template_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.models.calm.listening import Listening
    from graft.tasks.dataset import Dataset

Pairs = tuple[tuple[int, int], ...]
"""Pairs [augmenting layer, anchor layer]."""

READ_TOKENS = 8192
"""Tokens of the augmenting model whose states are computed at once, where they are kept."""


class Calm(Learning):
    """Bridges between frozen language models."""

    role: ClassVar[str] = "anchor"

    name: Literal["calm"] = "calm"
    connections: Literal["paper"] | Pairs | tuple[Pairs, ...] = "paper"
    """paper (every fourth augmenting layer, evenly spaced in the anchor), pairs [augmenting layer, anchor layer] for
    every augmenting model, or a list of such lists; 0 is the embeddings, i what block i gives."""
    mode: Literal["mirror", "prompt", "context"] = "mirror"
    """What the augmenting model reads: mirror, what the anchor reads; prompt, that alone; context, its own text."""
    context_template: str | None = Field(None, max_length=10_000)
    """That text in mode context, with `{field}`s; null for the row's input alone."""
    heads: int | None = Field(None, ge=1)
    """Attention heads of each bridge; null for the anchor's, lowered to what divides its width."""
    rank: int | None = Field(None, ge=1)
    """Inner width of each projection from the augmenting model's states; null for a full one."""
    prenorm: bool = True
    """Normalise both models' states before they meet; the paper does not."""
    distance_bias: bool = False
    """Each head learns how much it looks back; it begins by looking at the newest token."""
    keep_states: bool = False
    """Compute the augmenting model's states once and keep them in memory while training: for small models and many
    epochs. Costs 4 bytes per token, layer that is read, and number of its state."""

    def roles(self, task: Task) -> tuple[str, ...]:
        """Anchor and augmenting model."""
        return (self.role, AUGMENTING[0])

    def optional_roles(self, task: Task) -> tuple[str, ...]:
        """More augmenting models."""
        return AUGMENTING[1:]

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """One node.

        Raises:
            SpecError: the inputs are not text, or a template is given that nothing reads.
            ModelError: these models cannot be composed like this.
        """
        augmenting = tuple(models[role] for role in AUGMENTING if role in models)
        if self.context_template is not None and self.mode != "context":
            raise SpecError(f"method.context_template is read in mode context, the mode is {self.mode}; leave it null")
        node = Composed(
            **self.fields(task, dataset, models),
            augmenting=augmenting,
            connections=self.connections,
            mode=self.mode,
            context_template=self.context_template,
            heads=self.heads,
            rank=self.rank,
            prenorm=self.prenorm,
            distance_bias=self.distance_bias,
            keep_states=self.keep_states,
        )
        node.refuse_unsuited()
        return Graph([node], dataset.inputs)


class Prompt(str):
    """What the anchor reads, and what the augmenting models read beside it in mode context."""

    __slots__ = ("heard",)
    heard: str

    @classmethod
    def beside(cls, text: str, heard: str) -> Self:
        """A prompt with its context."""
        prompt = cls(text)
        prompt.heard = heard
        return prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composed(Learned):
    """The answer of an anchor that hears augmenting models."""

    augmenting: tuple[Any, ...]
    connections: Any
    mode: Literal["mirror", "prompt", "context"]
    context_template: str | None = None
    heads: int | None = None
    rank: int | None = None
    prenorm: bool = True
    distance_bias: bool = False
    keep_states: bool = False

    def refuse_unsuited(self) -> None:
        """Say what is wrong with the models before any weight is loaded.

        Raises:
            ModelError: as `CalmForCausalLM`.
        """
        from graft.models.calm.bridge import heads_for
        from graft.models.calm.connections import resolved

        for role, handle in zip(("anchor", *AUGMENTING), (self.model, *self.augmenting), strict=False):
            if handle.remote or handle.kind not in (
                ("causal",) if role == "anchor" else ("causal", "encoder", "seq2seq")
            ):
                raise ModelError(
                    f"models.{role}: {handle.source.source} is of kind {handle.kind}; {CURES[role != 'anchor']}"
                )
            if role != "anchor" and handle.kind != "causal" and self.mode == "mirror":
                raise ModelError(
                    f"models.{role}: {handle.source.source} reads in both directions: in mode mirror it would tell the "
                    "anchor what comes next; set method.mode to prompt or context"
                )
        texts = [handle.config.get_text_config() for handle in (self.model, *self.augmenting)]
        anchor, *others = texts
        resolved(self.connections, [one.num_hidden_layers for one in others], anchor.num_hidden_layers)
        heads_for(self.heads, getattr(anchor, "num_attention_heads", None) or 8, anchor.hidden_size)
        if self.context_template is not None:
            self._context_template()

    def suited(self, context: Context) -> Self:
        """Refuse what has no effect.

        Raises:
            SpecError: activations shall be computed twice.
        """
        if context.experiment.training.activation_checkpointing:
            raise SpecError(
                "training.activation_checkpointing: the anchor stays as it answers, where transformers keeps all "
                "activations; leave it false"
            )
        return self

    def composed(self, weights: Weights | None = None) -> Any:
        """The composed model, with trained bridges or those that training begins with."""
        import torch

        from graft.models.calm import CalmForCausalLM
        from graft.seeds import fresh_streams, generator

        drawn = int(generator(self.seed, "bridges").integers(2**31))
        with torch.inference_mode(False), fresh_streams(drawn):
            composed = CalmForCausalLM(
                self.model,
                list(self.augmenting),
                self.connections,
                self.mode,
                heads=self.heads,
                rank=self.rank,
                prenorm=self.prenorm,
                distance_bias=self.distance_bias,
            )
        if weights is not None:
            own = {name.removeprefix("bridges."): torch.from_numpy(value) for name, value in weights.items()}
            composed.bridges.load_state_dict(own)
            composed.requires_grad_(False).eval()
        return composed

    def build(self) -> "nn.Module":
        """The composed model in training, and its loss."""
        from graft.models.calm.objective import BridgedLoss

        return BridgedLoss(self.composed()).train()

    def with_trained(self, own: Weights) -> Self:
        """A copy with trained bridges."""
        count = sum(value.size for value in own.values())
        return dataclasses.replace(self, weights=own, trained=count, added=count)

    def verbatim(self, prompt: str) -> str:
        """A prompt that all models read as it is given.

        Raises:
            ModelError: in mode context they read another text beside it.
        """
        if self.mode == "context":
            raise ModelError("prompt: in mode context the augmenting model reads a text of its own; ask about a row")
        return prompt

    def check(self, rows: pa.Table) -> None:
        """Every prompt fits the contexts of all models.

        Raises:
            ModelError: one does not.
        """
        super().check(rows)
        template = self._template()
        prompts = self._prompts(template, rows)
        for handle in self.augmenting:
            if self.mode == "context":
                excess = handle.excess([prompt.heard for prompt in prompts])
            elif self.mode == "prompt":
                excess = handle.excess(prompts)
            elif self.generation:
                excess = handle.excess(prompts, max_new_tokens=self.max_new_tokens)
            else:
                excess = handle.excess(prompts, candidates=self._candidates(template))
            if (excess > 0).any():
                raise ModelError(
                    f"what an augmenting model reads is {excess.max()} tokens too long; the context of "
                    f"{handle.source.source} holds {handle.context_tokens}; {self.shorten}"
                )

    def encode(self, rows: pa.Table) -> pa.Table:
        """As `Learned.encode`; with what the augmenting models read, where that is not the anchor's own tokens."""
        encoded = super().encode(rows)
        composed = self._blank
        if not self.keep_states and all(one.same and self.mode == "mirror" for one in composed.listening):
            return encoded
        contexts = (
            [prompt.heard for prompt in self._prompts(self._template(), rows)] if self.mode == "context" else None
        )
        for number, listening in enumerate(composed.listening):
            for name, column in self._read(listening, encoded, contexts).items():
                encoded = encoded.append_column(f"{name}_{number}", column)
        return encoded

    def _read(self, listening: "Listening", encoded: pa.Table, contexts: Sequence[str] | None) -> dict[str, pa.Array]:
        """Columns `ids`, `seen` and, where they are kept, `states` of one augmenting model."""
        import torch

        from graft.models.calm.cache import Heard
        from graft.models.calm.listening import Call

        ids, seen = [], []
        for row, ((context,), (answer,)) in enumerate(
            zip(encoded["context"].to_pylist(), encoded["answer"].to_pylist(), strict=True)
        ):
            tokens = torch.tensor([[*context, *answer[:-1]]])
            own = None if contexts is None else [contexts[row]]
            reading = listening.reading(Call(tokens, None, 0, torch.tensor([len(context)]), own), Heard())
            ids.append(reading.ids_BS[0].tolist())
            everything = [len(ids[-1])] * tokens.shape[1]
            seen.append(everything if reading.seen_BT is None else reading.seen_BT[0].tolist())
        lists = pa.list_(pa.int32())
        columns = {"ids": pa.array(ids, lists), "seen": pa.array(seen, lists)}
        if self.keep_states:
            columns["states"] = pa.array(_states(listening, ids), pa.large_binary())
        return columns

    def collate(self, encoded: pa.Table) -> dict[str, "Tensor"]:
        """The anchor's batch, and beside it the augmenting models'."""
        import torch

        from graft.models.batching import padded

        cpu = torch.device("cpu")
        batch = super().collate(encoded)
        batch["prompt_B"] = torch.tensor([len(context) for (context,) in encoded["context"].to_pylist()])
        for number in range(len(self.augmenting)):
            if f"ids_{number}" not in encoded.column_names:
                continue
            ids = encoded[f"ids_{number}"].to_pylist()
            batch[f"ids_{number}"], _ = padded(ids, cpu)
            batch[f"counts_{number}"] = torch.tensor([len(row) for row in ids])
            batch[f"seen_{number}"], _ = padded(encoded[f"seen_{number}"].to_pylist(), cpu)
            if f"states_{number}" in encoded.column_names:
                rows = [np.frombuffer(one.as_buffer(), np.float32) for one in encoded[f"states_{number}"]]
                batch[f"states_{number}"] = _padded_states(rows, [len(row) for row in ids])
        return batch

    def describe(self) -> str:
        """Name the models."""
        heard = ", ".join(handle.source.source for handle in self.augmenting)
        return f"composed({self.model.source.source} hears {heard})"

    @functools.cached_property
    def _blank(self) -> Any:
        """The composed model before training, which only reads."""
        return self.composed()

    def __getstate__(self) -> dict[str, Any]:
        """Without any network."""
        return {name: value for name, value in super().__getstate__().items() if name != "_blank"}

    def _unlearned(self) -> "nn.Module":
        network: nn.Module = self.composed().eval()
        return network

    def _open(self) -> "nn.Module":
        network: nn.Module = self.composed(self.weights)
        return network

    def _limits(self) -> dict[str, Any]:
        """What was read is kept by the composed model itself, for one text at a time."""
        return {"shares_prefixes": False, "mixes_as": self.model, "beside": self._beside}

    def _beside(self, prompts: Sequence[Any]) -> dict[str, Any]:
        return {"context": [prompt.heard for prompt in prompts]} if self.mode == "context" else {}

    def _prompts(self, template: Template, rows: pa.Table) -> list[Any]:
        """Prompts, in mode context each with its context."""
        prompts = super()._prompts(template, rows)
        if self.mode != "context":
            return prompts
        own = None if self.context_template is None else self._context_template()
        cut = [self._cut(row) for row in rows.to_pylist()]
        heard = [template.input(row) if own is None else own.query(row) for row in cut]
        return [Prompt.beside(*pair) for pair in zip(prompts, heard, strict=True)]

    def _context_template(self) -> Template:
        return template_for(f"{self.context_template}{{target}}", self.inputs, self.kind, True)

    def _write_arrays(self, directory: Path) -> None:
        if self.weights:
            self.composed(self.weights).save_pretrained(directory / "calm")

    @classmethod
    def load(cls, directory: Path, models: Models) -> Self:
        """The node that `save` wrote."""
        from safetensors.numpy import load_file

        from graft.models.calm.folder import WEIGHTS

        node, path = super().load(directory, models), directory / "calm" / WEIGHTS
        if not path.exists():
            return node
        return dataclasses.replace(node, weights={f"bridges.{name}": value for name, value in load_file(path).items()})


CURES = ("name a causal model whose weights can be loaded", "name a model of text whose weights can be loaded")
"""For an anchor, and for an augmenting model."""


def _states(listening: "Listening", ids: list[list[int]]) -> list[bytes]:
    """States [S, E of all layers] of each row, float32."""
    import torch

    from graft.models.batching import batches, padded
    from graft.models.calm.cache import Heard

    found = [b""] * len(ids)
    device = next(listening.body.parameters()).device
    for batch in batches([len(row) for row in ids], READ_TOKENS):
        rows = [ids[place] for place in batch]
        if not any(rows):
            continue
        tokens, mask = padded(rows, device)
        by_layer = listening.states(Heard(tokens, mask.bool()), 0)
        states = torch.cat([by_layer[layer].float() for layer in sorted(by_layer)], -1).cpu().numpy()
        for place, row, own in zip(batch, rows, states, strict=True):
            found[place] = own[: len(row)].tobytes()
    return found


def _padded_states(rows: list[np.ndarray], lengths: list[int]) -> "Tensor":
    """[B, S, E of all layers]."""
    import torch

    width = max(len(row) // max(length, 1) for row, length in zip(rows, lengths, strict=True))
    found = np.zeros((len(rows), max(lengths), width), np.float32)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        found[place, :length] = row.reshape(length, -1) if length else 0
    return torch.from_numpy(found)
