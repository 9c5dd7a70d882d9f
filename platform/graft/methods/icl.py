"""In-context learning: a frozen language model reads labelled examples in its prompt and answers.

    text ─► (embed) ─► retrieve ─► demonstrations ─► complete ─► prediction, scores

Brown et al. 2020 (arXiv:2005.14165). A classification is answered by the log-probability of each label's words as a
continuation, over the labels alone: no answer can be unparsable. `calibrate` divides by the scores of content-free
inputs (Zhao et al. 2021, arXiv:2102.09690, section 4: "N/A", "[MASK]" and the empty text, diagonal W, b = 0).

`random` demonstrations are one draw for all rows, so that their part of the prompt is computed once; `similar` ones
are nearest by cosine, the most similar last, next to the question.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft.arrays import matrix
from graft.errors import ModelError, SpecError
from graft.graph import Context, Graph, Node
from graft.hashing import row_keys
from graft.methods.answering import Answer, Row, asking, for_labels
from graft.methods.embed import Embed
from graft.seeds import generator
from graft.spec import Method, Task
from graft.tasks.templates import Template

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset

CONTENT_FREE = ("N/A", "[MASK]", "")


class InContextLearning(Method):
    """Labelled examples in the prompt of a frozen language model."""

    name: Literal["icl"] = "icl"
    num_shots: int = Field(8, ge=0)
    """Demonstrations in each prompt, taken from the regime's examples."""
    selection: Literal["random", "similar"] = "random"
    """random: one draw for all rows; similar: the nearest to each row by the embedding of models.encoder
    (of models.base where no encoder is given)."""
    calibrate: bool = False
    """Divide label probabilities by those of content-free inputs."""
    length_normalize: bool = False
    """Score a label by its mean log-probability per token instead of their sum."""
    instruction: str | None = Field(None, max_length=2000)
    """Text before the demonstrations; null for none."""
    max_new_tokens: int = Field(64, ge=1)
    """Length limit of a free-text answer, in tokens."""

    def roles(self, task: Task) -> tuple[str, ...]:
        """A base model; an encoder is read where `similar` finds one."""
        return ("base",)

    def optional_roles(self, task: Task) -> tuple[str, ...]:
        """What is read where it is given."""
        return ("encoder",) if self.selection == "similar" else ()

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """Retrieve and complete.

        Raises:
            SpecError: the inputs are not text.
            ModelError: the model cannot score or generate.
        """
        base = models["base"]
        asked = asking("icl", "base", base, task, dataset)
        for_labels(dataset, calibrate=self.calibrate, length_normalize=self.length_normalize)
        similar = self.selection == "similar" and self.num_shots > 0
        if similar and base.remote and "encoder" not in models:
            raise SpecError("models.encoder is missing: selection: similar needs one where models.base is an endpoint")
        retrieve = Retrieve(dataset.inputs, self.num_shots, similar)
        complete = Complete(
            **asked,
            num_shots=self.num_shots,
            similar=similar,
            instruction=self.instruction,
            calibrate=self.calibrate,
            length_normalize=self.length_normalize,
            max_new_tokens=self.max_new_tokens,
        )
        embed = [Embed.of(models.get("encoder", base), task, dataset)] if similar else []
        return Graph([*embed, retrieve, complete], dataset.inputs)


@dataclasses.dataclass(frozen=True)
class Retrieve(Node):
    """Ids of the examples that a row's prompt shows, in prompt order; never one with the row's own input."""

    inputs: tuple[str, ...]
    num_shots: int
    similar: bool
    ids: tuple[str, ...] = ()
    """Ids of all examples; for random ones in the order of the draw."""
    keys: tuple[str, ...] = ()
    """What each example says, as a digest of its input."""
    vectors: np.ndarray | None = None
    """[k, D] unit vectors of the examples, for similar ones."""

    writes = ("demonstrations",)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input, and its embedding where similarity is asked for."""
        return (*self.inputs, "embedding") if self.similar else self.inputs

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples' ids and vectors, or draw the order of random ones.

        Raises:
            SpecError: there are fewer examples than a prompt shall show.
        """
        count = rows.num_rows
        if self.num_shots > count:
            raise SpecError(f"method.num_shots: got {self.num_shots}; give at most regime.examples, which is {count}")
        vectors, order = None, np.arange(count)
        if self.similar:
            vectors = _unit(matrix(rows["embedding"]))
        else:
            order = generator(context.experiment.regime.seed, "demonstrations").permutation(count)
        ids, keys = rows["id"].to_pylist(), self._keys(rows)
        return dataclasses.replace(
            self, ids=tuple(ids[i] for i in order), keys=tuple(keys[i] for i in order), vectors=vectors
        )

    def run(self, rows: pa.Table) -> pa.Table:
        """One list of ids per row."""
        if self.similar:
            assert self.vectors is not None
            ranking = np.argsort(-_unit(matrix(rows["embedding"])) @ self.vectors.T, axis=1, kind="stable")
        else:
            ranking = np.broadcast_to(np.arange(len(self.ids)), (rows.num_rows, len(self.ids)))
        shown = [self._shown(order, own) for order, own in zip(ranking, self._keys(rows), strict=True)]
        return pa.table({"demonstrations": pa.array(shown, pa.list_(pa.string()))})

    def describe(self) -> str:
        """Say how many, and how they are chosen."""
        return f"retrieve({self.num_shots} {'similar' if self.similar else 'random'})"

    def _keys(self, rows: pa.Table) -> list[str]:
        return [key.hex() for key in row_keys(rows.select(self.inputs))]

    def _shown(self, order: np.ndarray, own: str) -> list[str]:
        best = list(itertools.islice((self.ids[i] for i in order if self.keys[i] != own), self.num_shots))
        return best[::-1] if self.similar else best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Complete(Answer):
    """The answer of a frozen language model to a prompt of demonstrations and the row."""

    num_shots: int
    similar: bool
    calibrate: bool
    examples: tuple[dict[str, Any], ...] = ()
    """The regime's examples: id, input columns, target; none for zero shots, so that all regimes share the answers."""

    @property
    def storable(self) -> bool:  # type: ignore[override]
        """What a server says may change behind the same address; weights in this process do not."""
        return not self.model.remote

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row and the ids of its demonstrations."""
        return (*self.inputs, "demonstrations")

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples that prompts may show."""
        kept = rows.select(["id", *self.inputs, "target"]).to_pylist() if self.num_shots else []
        return dataclasses.replace(self, labels=context.labels or (), examples=tuple(kept))

    def check(self, rows: pa.Table) -> None:
        """Every prompt with its answer fits the model's context.

        Raises:
            ModelError: one does not; names the largest number of demonstrations with which it would.
        """
        template = self._template()
        excess = self._excess(template, self._prompts(template, rows))
        if (excess <= 0).all():
            return
        shown = self._shown(rows)
        longest = int(np.argmax(excess))
        fits = self._most_that_fit(template, [self._cut(row) for row in rows.to_pylist()], shown)
        cure = self.shorten if fits is None else f"method.num_shots={fits} fits"
        raise ModelError(
            f"method.num_shots: a prompt with {len(shown[longest])} demonstrations and its answer is {excess[longest]} "
            f"tokens too long; the context of {self.model.source.source} holds {self.model.context_tokens}; {cure}"
        )

    def _shown(self, rows: pa.Table) -> list[list[Row]]:
        """What each row's prompt demonstrates."""
        examples = {example["id"]: self._cut(example) for example in self.examples}
        return [[examples[one] for one in ids] for ids in rows["demonstrations"].to_pylist()]

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        asked, shown = rows.to_pylist(), self._shown(rows)
        return [self._prompt(template, self._cut(row), demos) for row, demos in zip(asked, shown, strict=True)]

    def _scores(self, template: Template, prompts: Sequence[str], rows: pa.Table) -> np.ndarray:
        """Log-probabilities [N, C] of the labels' words, or what they are above those of content-free inputs."""
        scores = super()._scores(template, prompts, rows)
        return scores - self._content_free(template, self._shown(rows)) if self.calibrate else scores

    def _content_free(self, template: Template, shown: Sequence[Sequence[Row]]) -> np.ndarray:
        """Log of the labels' mean probability [N, C] for inputs without content, after the same demonstrations."""
        distinct = {tuple(demo["id"] for demo in demos): demos for demos in shown}
        bias = {}
        for ids, demos in distinct.items():
            empty = [dict.fromkeys(self.inputs, self._plain_input(text)) for text in CONTENT_FREE]
            prompts = [self._prompt(template, row, demos) for row in empty]
            scores = self.model.score(prompts, self._candidates(template), normalize=self.length_normalize)
            bias[ids] = np.log(np.exp(self._normalised(scores)).mean(axis=0))
        return np.stack([bias[tuple(demo["id"] for demo in demos)] for demos in shown])

    def _plain_input(self, text: str) -> Any:
        return [{"role": "user", "content": text}] if self.kind == "messages" else text

    def _most_that_fit(self, template: Template, asked: list[Row], shown: list[list[Row]]) -> int | None:
        """The largest number of demonstrations with which every prompt fits; None where not even none does."""

        def fit(shots: int) -> bool:
            # The nearest stand last, next to the question; of one draw the first are kept.
            kept = [demos[len(demos) - shots :] if self.similar else demos[:shots] for demos in shown]
            prompts = [self._prompt(template, row, demos) for row, demos in zip(asked, kept, strict=True)]
            return bool((self._excess(template, prompts) <= 0).all())

        low, high = -1, max(len(demos) for demos in shown)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fit(middle) else (low, middle)
        return None if low < 0 else low


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
