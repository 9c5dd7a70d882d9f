"""In-context learning: a frozen language model reads labelled examples in its prompt and answers.

    text ─► (embed) ─► retrieve ─► demonstrations ─► complete ─► prediction, scores

Brown et al. 2020 (arXiv:2005.14165). A classification is answered by the log-probability of each label's words as a
continuation, over the labels alone: no answer can be unparsable. `calibrate` divides by the scores of content-free
inputs (Zhao et al. 2021, arXiv:2102.09690, section 4: "N/A", "[MASK]" and the empty text, diagonal W, b = 0).

How demonstrations are chosen: `graft.methods.retrieving` and, where a model has a say, `graft.methods.epr`; in which
order they stand: there, and `graft.methods.ordering`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from graft.errors import ModelError, SpecError
from graft.graph import Context, Graph
from graft.methods.answering import Answer, Row, asking, for_labels
from graft.methods.embed import Embed
from graft.methods.epr import RetrieveEpr
from graft.methods.judging import told
from graft.methods.ordering import RetrieveOrdered
from graft.methods.retrieving import Retrieve, RetrieveBm25, RetrieveSimilar
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
    selection: Literal["random", "similar", "bm25", "epr"] = "random"
    """random: one draw for all rows; similar: the nearest to each row by the embedding of models.encoder
    (of models.base where no encoder is given); bm25: by the words they share; epr: by projections of that embedding,
    which are trained to find what models.base has found helpful."""
    order: Literal["given", "similar", "global_entropy", "local_entropy"] = "given"
    """given: as drawn, or the best last; similar: the nearest by embedding last; global_entropy, local_entropy: the
    order of one draw that leaves models.base least sure of its answers beforehand (labels only)."""
    epr_candidates: int = Field(50, ge=2)
    """Examples that models.base scores for each example, where selection is epr."""
    calibrate: bool = False
    """Divide label probabilities by those of content-free inputs."""
    length_normalize: bool = False
    """Score a label by its mean log-probability per token instead of their sum."""
    instruction: str | None = Field(None, max_length=2000)
    """Text before the demonstrations; null for none."""
    max_new_tokens: int = Field(64, ge=1)
    """Length limit of a free-text answer, in tokens."""

    @model_validator(mode="after")
    def _one_draw_is_ordered(self) -> Self:
        if self._by_entropy and self.selection != "random":
            raise ValueError(
                f"order {self.order} is of demonstrations that all rows share, selection {self.selection} gives each "
                "row its own: use selection: random, or order: given or similar"
            )
        return self

    @property
    def _by_entropy(self) -> bool:
        return self.order in ("global_entropy", "local_entropy")

    @property
    def _embeds(self) -> bool:
        return self.selection in ("similar", "epr") or self.order == "similar"

    def roles(self, task: Task) -> tuple[str, ...]:
        """A base model; an encoder is read where similarity is asked for and there is one."""
        return ("base",)

    def optional_roles(self, task: Task) -> tuple[str, ...]:
        """What is read where it is given."""
        return ("encoder",) if self._embeds else ()

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> Graph:
        """Retrieve and complete.

        Raises:
            SpecError: the inputs are not text, or the order is for labels.
            ModelError: the model cannot score or generate.
        """
        base = models["base"]
        for_labels(dataset, calibrate=self.calibrate, length_normalize=self.length_normalize)
        asked = {
            **asking("icl", "base", base, task, dataset),
            "instruction": self.instruction,
            "length_normalize": self.length_normalize,
            "max_new_tokens": self.max_new_tokens,
        }
        retrieve = self._retrieve(dataset, base, told(asked))
        complete = Complete(**asked, num_shots=self.num_shots, similar=retrieve.ranks, calibrate=self.calibrate)
        embeds = "embedding" in retrieve.reads
        if embeds and base.remote and "encoder" not in models:
            field = "order" if self.order == "similar" else "selection"
            raise SpecError(
                f"models.encoder is missing: {field}: {getattr(self, field)} needs one where models.base is an endpoint"
            )
        embed = [Embed.of(models.get("encoder", base), task, dataset)] if embeds else []
        return Graph([*embed, retrieve, complete], dataset.inputs)

    def _retrieve(self, dataset: "Dataset", base: Any, asked: dict[str, Any]) -> Retrieve:
        """The node that chooses demonstrations.

        Raises:
            SpecError: the order is for labels.
            ModelError: the model says nothing about how probable a text is.
        """
        if self._by_entropy and dataset.labels is None:
            raise SpecError(
                f"method.order: {self.order} is for labels; this task's answers are free text: use given or similar"
            )
        if self.selection == "epr" and base.remote:
            raise ModelError(
                f"method.selection: epr asks how probable answers are, which {base.source.source} does not say; use "
                "similar or bm25, or a model whose weights can be loaded"
            )
        plain: dict[str, Any] = {"inputs": dataset.inputs, "num_shots": self.num_shots}
        if not self.num_shots:  # nothing is chosen or ordered
            return Retrieve(**plain)
        if self._by_entropy:
            return RetrieveOrdered(**plain, order=self.order, model=base, asked=asked)
        plain |= {"order": self.order}
        if self.selection == "epr":
            how = {"candidates": self.epr_candidates, "model": base, "asked": asked}
            return RetrieveEpr(**plain, **how, kind=dataset.kind)
        if self.selection == "bm25":
            return RetrieveBm25(**plain, kind=dataset.kind)
        return RetrieveSimilar(**plain) if self.selection == "similar" else Retrieve(**plain)


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
