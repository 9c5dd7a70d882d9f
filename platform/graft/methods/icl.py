"""In-context learning: a frozen language model reads labelled examples in its prompt and answers.

    text ─► (embed) ─► retrieve ─► demonstrations ─► complete ─► prediction, scores

Brown et al. 2020 (arXiv:2005.14165). A classification is answered by the log-probability of each label's words as a
continuation, over the labels alone: no answer can be unparsable. `calibrate` divides by the scores of content-free
inputs (Zhao et al. 2021, arXiv:2102.09690, section 4: "N/A", "[MASK]" and the empty text, diagonal W, b = 0).

`random` demonstrations are one draw for all rows, so that their part of the prompt is computed once; `similar` ones
are nearest by cosine, the most similar last, next to the question.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from graft.arrays import answer_columns, matrix
from graft.errors import ModelError, SpecError
from graft.graph import Context, Graph, Node
from graft.methods.embed import Embed
from graft.seeds import generator
from graft.spec import Method, Task
from graft.tasks.templates import Template, render, template_for

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset

Row = dict[str, Any]

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
        if dataset.kind not in ("text", "messages"):
            raise SpecError(f"method icl reads text, the task's inputs are {dataset.kind}; use probe or a text column")
        base, generation = models["base"], dataset.labels is None
        if base.kind == "encoder" or (base.kind == "endpoint" and not generation):
            raise ModelError(
                f"models.base: {base.source.source} is an {base.kind}: it gives no label probabilities; "
                "name a causal or encoder-decoder model"
            )
        similar = self.selection == "similar" and self.num_shots > 0
        retrieve = Retrieve(dataset.inputs, self.num_shots, similar)
        complete = Complete(
            model=base,
            inputs=dataset.inputs,
            kind=dataset.kind,
            num_shots=self.num_shots,
            template=task.template,
            max_tokens=task.max_tokens,
            instruction=self.instruction,
            calibrate=self.calibrate,
            length_normalize=self.length_normalize,
            max_new_tokens=self.max_new_tokens,
            generation=generation,
        )
        embed = [Embed.of(models.get("encoder", base), task, dataset)] if similar else []
        return Graph([*embed, retrieve, complete], dataset.inputs)


@dataclasses.dataclass(frozen=True)
class Retrieve(Node):
    """Ids of the examples that a row's prompt shows, in prompt order; never the row itself."""

    inputs: tuple[str, ...]
    num_shots: int
    similar: bool
    ids: tuple[str, ...] = ()
    """Ids of all examples; for random ones in the order of the draw."""
    vectors: np.ndarray | None = None
    """[k, D] unit vectors of the examples, for similar ones."""

    writes = ("demonstrations",)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's id, and its embedding where similarity is asked for."""
        return ("id", "embedding") if self.similar else ("id",)

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples' ids and vectors, or draw the order of random ones."""
        ids = rows["id"].to_pylist()
        if self.similar:
            return dataclasses.replace(self, ids=tuple(ids), vectors=_unit(matrix(rows["embedding"])))
        order = generator(context.experiment.regime.seed, "demonstrations").permutation(len(ids))
        return dataclasses.replace(self, ids=tuple(ids[i] for i in order))

    def run(self, rows: pa.Table) -> pa.Table:
        """One list of ids per row."""
        if self.similar:
            assert self.vectors is not None
            ranking = np.argsort(-_unit(matrix(rows["embedding"])) @ self.vectors.T, axis=1, kind="stable")
        else:
            ranking = np.broadcast_to(np.arange(len(self.ids)), (rows.num_rows, len(self.ids)))
        shown = [self._shown(order, own) for order, own in zip(ranking, rows["id"].to_pylist(), strict=True)]
        return pa.table({"demonstrations": pa.array(shown, pa.list_(pa.string()))})

    def describe(self) -> str:
        """Say how many, and how they are chosen."""
        return f"retrieve({self.num_shots} {'similar' if self.similar else 'random'})"

    def _shown(self, order: np.ndarray, own: str) -> list[str]:
        # One more than needed, in case the row itself is among them.
        best = [self.ids[i] for i in order[: self.num_shots + 1] if self.ids[i] != own][: self.num_shots]
        return best[::-1] if self.similar else best


@dataclasses.dataclass(frozen=True)
class Complete(Node):
    """The answer of a frozen language model to a prompt of demonstrations and the row."""

    model: Any
    inputs: tuple[str, ...]
    kind: str
    num_shots: int
    template: str
    max_tokens: int | None
    instruction: str | None
    calibrate: bool
    length_normalize: bool
    max_new_tokens: int
    generation: bool
    labels: tuple[str, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    """The regime's examples: id, input columns, target; none for zero shots, so that all regimes share the answers."""

    storable = True
    chunk_rows = 64

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row and the ids of its demonstrations."""
        return (*self.inputs, "demonstrations")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Scores exist where the answer is one of the labels."""
        return ("prediction", "prompt_tokens_cut") if self.generation else ("prediction", "scores", "prompt_tokens_cut")

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples that prompts may show."""
        kept = rows.select(["id", *self.inputs, "target"]).to_pylist() if self.num_shots else []
        return dataclasses.replace(self, labels=context.labels or (), examples=tuple(kept))

    def check(self, rows: pa.Table) -> None:
        """Every prompt with its answer fits the model's context.

        Raises:
            ModelError: one does not; names the largest number of demonstrations with which it would.
        """
        limit = self.model.context_tokens
        if limit is None:
            return
        template, asked, shown, prompts = self._prompts(rows)
        answer = self.max_new_tokens
        if not self.generation:
            answer = int(max(self.model.count_tokens(self._candidates(template))))
        lengths = self.model.count_tokens(prompts) + answer
        longest = int(np.argmax(lengths))
        if lengths[longest] <= limit:
            return
        row, demos = asked[longest], shown[longest]
        shorter = [self._prompt(template, row, demos[len(demos) - shots :]) for shots in range(len(demos))]
        fitting = [
            shots for shots, prompt in enumerate(shorter) if self.model.count_tokens([prompt])[0] + answer <= limit
        ]
        cure = f"method.num_shots={max(fitting)} fits" if fitting else "cut the texts with task.max_tokens"
        raise ModelError(
            f"method.num_shots: a prompt with {len(demos)} demonstrations needs {lengths[longest]} tokens, answer "
            f"included; the context of {self.model.source.source} holds {limit}; {cure}"
        )

    def run(self, rows: pa.Table) -> pa.Table:
        """Label log-probabilities, or greedy text."""
        template, _, shown, prompts = self._prompts(rows)
        if self.generation:
            texts = self.model.generate(prompts, self.max_new_tokens, stop=() if self.model.chat else ("\n",))
            answers = pa.table({"prediction": pa.array([text.strip() or None for text in texts], pa.string())})
        else:
            answers = answer_columns(self._scores(template, prompts, shown), self.labels)
        cut = np.zeros(rows.num_rows, dtype=np.int32)
        for name in self._cuttable():
            cut += self.model.tokens_over(rows[name].to_pylist(), self.max_tokens)
        return answers.append_column("prompt_tokens_cut", pa.array(cut))

    def describe(self) -> str:
        """Name the model."""
        return f"complete({self.model.source.source})"

    def _prompts(self, rows: pa.Table) -> tuple[Template, list[Row], list[list[Row]], list[str]]:
        """The template, the rows cut to length, what each is shown, and the prompts."""
        template = template_for(self.template, self.inputs, self.kind, self.generation)
        examples = {example["id"]: self._cut(example) for example in self.examples}
        asked = [self._cut(row) for row in rows.to_pylist()]
        shown = [[examples[one] for one in row["demonstrations"]] for row in asked]
        return (
            template,
            asked,
            shown,
            [self._prompt(template, row, demos) for row, demos in zip(asked, shown, strict=True)],
        )

    def _prompt(self, template: Template, row: Row, demonstrations: Sequence[Row]) -> str:
        return render(template, row, demonstrations, self.instruction, self.model.chat)

    def _scores(self, template: Template, prompts: Sequence[str], shown: Sequence[Sequence[Row]]) -> np.ndarray:
        """Log-probabilities [N, C] over the labels."""
        candidates = self._candidates(template)
        scores = self.model.score(prompts, candidates, normalize=self.length_normalize)
        if self.calibrate:
            scores = scores - self._content_free(template, candidates, shown)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def _content_free(self, template: Template, candidates: list[str], shown: Sequence[Sequence[Row]]) -> np.ndarray:
        """Log of the labels' mean probability [N, C] for inputs without content, after the same demonstrations."""
        distinct = {tuple(demo["id"] for demo in demos): demos for demos in shown}
        bias = {}
        for ids, demos in distinct.items():
            empty = [dict.fromkeys(self.inputs, self._plain_input(text)) for text in CONTENT_FREE]
            prompts = [self._prompt(template, row, demos) for row in empty]
            scores = self.model.score(prompts, candidates, normalize=self.length_normalize)
            shares = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
            bias[ids] = np.log(shares.mean(axis=0))
        return np.stack([bias[tuple(demo["id"] for demo in demos)] for demos in shown])

    def _plain_input(self, text: str) -> Any:
        return [{"role": "user", "content": text}] if self.kind == "messages" else text

    def _candidates(self, template: Template) -> list[str]:
        return [template.candidate(label, chat=self.model.chat is not None) for label in self.labels]

    def _cuttable(self) -> tuple[str, ...]:
        return () if self.kind == "messages" else self.inputs

    def _cut(self, row: Row) -> Row:
        """The row with its input texts cut to `max_tokens` each."""
        if self.max_tokens is None:
            return dict(row)
        return {**row, **{name: self.model.cut([row[name]], self.max_tokens)[0] for name in self._cuttable()}}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
