"""The node that most methods end with: a language model answers a prompt.

    text ─► answer ─► prediction, scores

A classification is answered by the log-probability of each label's words as a continuation, over the labels alone: no
answer can be unparsable. Where one label's tokens begin another's ("1" and "10"), an end is scored too: without it the
longer one could never be the more probable. A free-text answer is written token by token (greedy).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from graft.arrays import answer_columns
from graft.errors import ModelError, SpecError
from graft.node import Node
from graft.spec import Task
from graft.tasks.dataset import Dataset
from graft.tasks.parsers import parse
from graft.tasks.templates import Template, render, template_for

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(Node):
    """The answer of a language model to a rendered prompt."""

    model: Any
    inputs: tuple[str, ...]
    kind: str
    template: str
    """Inline text: a named template is hashed by what it says."""
    max_tokens: int | None
    instruction: str | None
    length_normalize: bool
    max_new_tokens: int
    generation: bool
    parser: str | None = None
    """How a written answer is read: a name in `graft.tasks.parsers`; None takes it as it comes."""
    stops: tuple[str, ...] = ("\n",)
    """What ends an answer that is written after a plain prompt."""
    label_end: str = ""
    """What follows a label where one begins another; else nothing."""
    labels: tuple[str, ...] = ()

    chunk_rows = 64
    shorten: ClassVar[str] = "shorten the texts (task.max_tokens), instruction or max_new_tokens"
    """What to do where a prompt is too long."""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input."""
        return self.inputs

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Scores exist where the answer is one of the labels; what was written, where that is read by a parser."""
        if not self.generation:
            return ("prediction", "scores", "prompt_tokens_cut")
        return ("prediction", *(("written",) if self.parser else ()), "prompt_tokens_cut")

    @property
    def speaker(self) -> Any:
        """The model that answers: the frozen one, or what training has made of it."""
        return self.model

    @property
    def streams(self) -> bool:
        """Whether `run` is what the speaker writes after `prompts`, up to `ends`, as `read` reads it."""
        return self.generation

    def among(self, labels: tuple[str, ...] | None) -> Self:
        """The node that answers with these labels, with the end that they need; None where answers are free text."""
        node = dataclasses.replace(self, labels=labels or ())
        if self.generation or self.model.remote:
            return node
        return dataclasses.replace(node, label_end=_label_end(self.model, self._template(), node.labels))

    def prompts(self, rows: pa.Table) -> list[str]:
        """What the speaker reads of each row."""
        return self._prompts(self._template(), rows)

    def verbatim(self, prompt: str) -> str:
        """A prompt that the speaker reads as it is given.

        Raises:
            ModelError: the speaker reads more than that.
        """
        return prompt

    def read(self, text: str) -> str | None:
        """What a written answer says; None where it cannot be read."""
        return parse(text, self.parser) if self.parser else text.strip() or None

    def check(self, rows: pa.Table) -> None:
        """Every prompt with its answer fits the model's context.

        Raises:
            ModelError: one does not.
        """
        template = self._template()
        prompts = self._prompts(template, rows)
        excess = self._excess(template, prompts)
        if self.generation and "target" in rows.column_names and not self.model.remote:
            # How probable the targets are will be asked too.
            targets = [[target] for target in self._targets(template, rows)]
            excess = np.maximum(excess, self.speaker.excess(prompts, candidates=targets))
        if (excess > 0).any():
            raise ModelError(
                f"a prompt with its answer is {excess.max()} tokens too long; the context of "
                f"{self.model.source.source} holds {self.speaker.context_tokens}; {self.shorten}"
            )

    def run(self, rows: pa.Table) -> pa.Table:
        """Label log-probabilities, or greedy text."""
        template = self._template()
        prompts = self._prompts(template, rows)
        if self.generation:
            answers = self._answers(self.speaker.generate(prompts, self.max_new_tokens, stop=self.ends))
        else:
            answers = answer_columns(self._normalised(self._scores(template, prompts, rows)), self.labels)
        return answers.append_column("prompt_tokens_cut", pa.array(self._tokens_cut(rows)))

    def _answers(self, texts: Sequence[str]) -> pa.Table:
        """Columns `prediction` (null where there is nothing to read) and, with a parser, `written`."""
        found = pa.table({"prediction": pa.array([self.read(text) for text in texts], pa.string())})
        return found.append_column("written", pa.array(texts, pa.string())) if self.parser else found

    def target_log_probabilities(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """How probable the targets are: the sum over each one's tokens (nats) and their number, both [N].

        Args:
            rows: with the read columns and `target`.
        """
        template = self._template()
        prompts, targets = self._prompts(template, rows), self._targets(template, rows)
        sums = self.speaker.score(prompts, [[target] for target in targets])[:, 0]
        counts = [len(answer) for _, answer in self.speaker.continuations(prompts, targets)]
        return sums, np.array(counts, np.int64)

    def describe(self) -> str:
        """Name the model."""
        return f"{type(self).__name__.lower()}({self.model.source.source})"

    def _template(self) -> Template:
        return template_for(self.template, self.inputs, self.kind, self.generation)

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        return [self._prompt(template, self._cut(row)) for row in rows.to_pylist()]

    def _prompt(
        self, template: Template, row: Row, demonstrations: Sequence[Row] = (), instruction: str | None = None
    ) -> str:
        return render(template, row, demonstrations, instruction or self._said_first(), self.model.chat)

    def _said_first(self) -> str | None:
        """The instruction of every prompt."""
        return self.instruction

    def _targets(self, template: Template, rows: pa.Table) -> list[str]:
        """The targets as they continue their prompts."""
        found = [template.candidate(target, chat=self._chats) for target in rows["target"].to_pylist()]
        return found if self.generation else [text + self.label_end for text in found]

    def _scores(self, template: Template, prompts: Sequence[str], rows: pa.Table) -> np.ndarray:
        """Log-probabilities [N, C] of the labels' words."""
        return np.asarray(
            self.speaker.score(prompts, self._candidates(template), normalize=self.length_normalize), np.float64
        )

    @staticmethod
    def _normalised(scores: np.ndarray) -> np.ndarray:
        """Over the labels alone."""
        return np.asarray(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), np.float64)

    def _candidates(self, template: Template) -> list[str]:
        return [template.candidate(label, chat=self._chats) + self.label_end for label in self.labels]

    def _excess(self, template: Template, prompts: Sequence[str]) -> np.ndarray:
        """Tokens by which each prompt with its answer is too long."""
        if self.generation:
            return np.asarray(self.speaker.excess(prompts, max_new_tokens=self.max_new_tokens))
        return np.asarray(self.speaker.excess(prompts, candidates=self._candidates(template)))

    @property
    def _chats(self) -> bool:
        """Whether the answer is a turn of its own, which ends by itself, and not a line of the prompt's text."""
        return self.model.chat is not None or (self.model.remote and self.model.source.variant == "instruct")

    @property
    def ends(self) -> tuple[str, ...]:
        """What ends a written answer beside the model's own end token."""
        return () if self._chats else self.stops

    def _tokens_cut(self, rows: pa.Table) -> np.ndarray:
        cut = np.zeros(rows.num_rows, dtype=np.int32)
        for name in self._cuttable():
            cut += self.model.tokens_over(rows[name].to_pylist(), self.max_tokens)
        return cut

    def _cuttable(self) -> tuple[str, ...]:
        return () if self.kind == "messages" else self.inputs

    def _cut(self, row: Row) -> Row:
        """The row with its input texts cut to `max_tokens` each."""
        if self.max_tokens is None:
            return dict(row)
        return {**row, **{name: self.model.cut([row[name]], self.max_tokens)[0] for name in self._cuttable()}}


def for_labels(dataset: Dataset, **switches: bool) -> None:
    """Refuse switches that only labels have.

    Raises:
        SpecError: one is on, and the answers are free text.
    """
    for name, on in switches.items():
        if on and dataset.labels is None:
            raise SpecError(f"method.{name} is for labels; this task's answers are free text: leave it false")


def asking(method: str, role: str, model: Any, task: Task, dataset: Dataset, scores: bool = True) -> Mapping[str, Any]:
    """The fields of an `Answer` that follow from the task and the model.

    Args:
        method: name of the method.
        role: of the model.
        model: its handle.
        task: as in the spec.
        dataset: its rows.
        scores: False where the model only writes, even in a classification.

    Raises:
        SpecError: the inputs are not text.
        ModelError: the model cannot score or generate.
    """
    if dataset.kind not in ("text", "messages"):
        raise SpecError(f"method {method} reads text, the task's inputs are {dataset.kind}; use probe or a text column")
    generation = dataset.labels is None
    if model.kind == "encoder" or (model.kind == "endpoint" and scores and not generation):
        raise ModelError(
            f"models.{role}: {model.source.source} is an {model.kind}: it gives no label probabilities; "
            "name a causal or encoder-decoder model"
        )
    template = template_for(task.template, dataset.inputs, dataset.kind, generation)
    if dataset.kind == "messages" and task.max_tokens is not None:
        raise SpecError(f"task.max_tokens: {method} cuts text columns, not conversations; leave it null")
    return {
        "model": model,
        "inputs": dataset.inputs,
        "kind": dataset.kind,
        "template": template.text,
        "max_tokens": task.max_tokens,
        "generation": generation,
        "parser": task.parser if generation else None,
        "stops": task.stops,
        "label_end": _label_end(model, template, dataset.labels) if scores and dataset.labels else "",
    }


def _label_end(model: Any, template: Template, labels: tuple[str, ...]) -> str:
    """What a label ends with: nothing, unless the tokens of one begin those of another."""
    texts = [template.candidate(label, chat=model.chat is not None) for label in labels]
    tokens = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if not any(a != b and b[: len(a)] == a for a in tokens for b in tokens):
        return ""
    # A plain prompt's answers are lines; a decoder's own answers, and turns of a chat, end by a token.
    line = model.kind == "causal" and model.chat is None
    return "\n" if line else str(model.tokenizer.eos_token or "\n")
