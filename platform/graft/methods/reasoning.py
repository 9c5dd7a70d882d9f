"""Chain of thought: a frozen model reasons before it answers.

    row, demonstrations ─► rationale: "... The answer is" ─► answer        (several times: the majority's)

few_shot   demonstrations show their rationales (Wei et al. 2022, arXiv:2201.11903)
zero_shot  "Let's think step by step." and no demonstration (Kojima et al. 2022, arXiv:2205.11916)
auto       demonstrations are one example of each cluster of questions, with what the model itself has reasoned about
           them, and answered, without any (Auto-CoT, Zhang et al. 2022, arXiv:2210.03493, algorithms 1 and 2)

The answer follows "The answer is" in a second pass, so that labels have probabilities, and what was cut short has an
answer too. `samples` draws several chains (self-consistency, Wang et al. 2022, arXiv:2203.11171): the answer is that of
most of them. Among answers that as many give, the label is taken that is more probable on average, and of free texts
the one that was drawn first; column `votes` says which share has given it.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa

from graft.arrays import answer_columns, matrix
from graft.errors import DataError, SpecError
from graft.execution import run_node
from graft.hashing import row_keys
from graft.methods.answering import Row
from graft.methods.completing import Complete
from graft.methods.exemplars import tidy
from graft.methods.retrieving import Retrieve, read
from graft.models.model import Sampling
from graft.node import Context
from graft.tasks.templates import THEREFORE, Template, concluding, render

Chain = Literal["few_shot", "zero_shot", "auto"]

STEP_BY_STEP = "Let's think step by step."
"""Begins a rationale that no demonstration shows how to begin (Kojima et al. 2022, section 3)."""
MOST_WORDS, MOST_STEPS = 60, 5
"""Longer questions and rationales make no good demonstrations (Zhang et al. 2022, section 4)."""
MOST_TRIED = 8
"""Questions of a cluster, from its middle on, that the model reasons about until one will do."""
SEEDS = 2**31
"""Seeds of draws are below: every server takes them (vLLM's are 64 bits with a sign, NumPy's 32 bits)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reason(Complete):
    """A frozen model's answer after its own rationale."""

    shorten: ClassVar[str] = "lower method.max_rationale_tokens, " + Complete.shorten
    chain: Chain
    max_rationale_tokens: int
    samples: int
    temperature: float

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The answer, a rationale that led to it, whether the limit left all of them whole, and who agreed."""
        votes = ("votes",) if self.samples > 1 else ()
        return (*super().writes, "rationale", "rationale_whole", *votes)

    @property
    def streams(self) -> bool:
        """A rationale comes first, and several may vote."""
        return False

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Keep the examples that prompts may show, with their rationales: the rows' own, or the model's.

        Raises:
            SpecError: the rows should have some, and have none.
        """
        fitted = super().fit(rows, context)
        if self.chain == "zero_shot" or not self.num_shots:
            return fitted
        if self.chain == "auto":
            shown = {one for several in rows["demonstrations"].to_pylist() for one in several}
            rows = rows.filter(pa.array([one in shown for one in rows["id"].to_pylist()]))
            reasoned = own_reasons(fitted, rows, context)
            kept = [{**row, "target": row["prediction"]} for row in reasoned.to_pylist() if row["prediction"]]
        else:
            refuse_without_rationales(rows.column_names)
            kept = rows.to_pylist()
        columns = ("id", *self.inputs, "target", "rationale")
        examples = (tidy({name: row[name] for name in columns}) for row in kept)
        return dataclasses.replace(fitted, examples=tuple(examples))

    def run(self, rows: pa.Table) -> pa.Table:
        """Reason, then answer."""
        template = self._template()
        asked = [prompt for prompt in self._questions(template, rows) for _ in range(self.samples)]
        sampling = drawing(rows.select(self.inputs), self.samples, self.temperature)
        begun = [self._begun(prompt) for prompt in asked]
        written = self.model.write(begun, self.max_rationale_tokens, () if self._chats else ("\n\n",), sampling)
        thoughts = [" ".join(filter(None, (self._opening, one.text.strip()))) for one in written]
        prompts = [concluding(*pair, chat=self.model.chat is not None) for pair in zip(asked, thoughts, strict=True)]
        answers, chosen, votes = self._texts(prompts) if self.generation else self._labels(template, prompts)
        first = np.arange(rows.num_rows) * self.samples
        columns = {
            "prompt_tokens_cut": pa.array(self._tokens_cut(rows)),
            "rationale": pa.array([thoughts[place] for place in first + chosen], pa.string()),
            "rationale_whole": pa.array([all(one.whole for one in written[at : at + self.samples]) for at in first]),
            "votes": pa.array(votes),
        }
        for name in self.writes[len(answers.column_names) :]:
            answers = answers.append_column(name, columns[name])
        return answers

    def target_log_probabilities(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """How probable the targets are after the rationales: sums over their tokens (nats) and their numbers, [N]."""
        template = self._template()
        pairs = zip(self._questions(template, rows), rows["rationale"].to_pylist(), strict=True)
        prompts = [concluding(*pair, chat=self.model.chat is not None) for pair in pairs]
        targets = [f" {target}" for target in rows["target"].to_pylist()]
        counts = [len(answer) for _, answer in self.model.continuations(prompts, targets)]
        return self.model.score(prompts, [[target] for target in targets])[:, 0], np.array(counts, np.int64)

    def _labels(self, template: Template, prompts: Sequence[str]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        """Answers among labels; for each row the first chain that gave it, and which share did."""
        end = "." if self.label_end else ""
        candidates = [f" {label}{end}" for label in self.labels]
        scores = self._normalised(np.asarray(self.model.score(prompts, candidates, normalize=self.length_normalize)))
        scores_NSC = scores.reshape(-1, self.samples, len(self.labels))
        votes_NSC = scores_NSC.argmax(-1)[..., None] == np.arange(len(self.labels))
        # A vote weighs more than all probabilities together, so these decide only between equals.
        weights_NC = votes_NSC.sum(1) + np.exp(scores_NSC).mean(1)
        whole = scores_NSC[:, 0] if self.samples == 1 else np.log(weights_NC / weights_NC.sum(1, keepdims=True))
        won = votes_NSC[np.arange(len(whole)), :, whole.argmax(-1)]
        return answer_columns(whole, self.labels), won.argmax(1), won.mean(1)

    def _texts(self, prompts: Sequence[str]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        """Free-text answers; for each row the first chain that gave it, and which share did."""
        texts = self.model.generate(prompts, self.max_new_tokens, stop=self.stops)
        answers = [self.read(text.strip().removesuffix(".")) for text in texts]
        chosen, votes = [], []
        for start in range(0, len(answers), self.samples):
            own = answers[start : start + self.samples]
            # An answer that cannot be read has no vote, unless there is no other.
            counts = Counter(one for one in own if one is not None)
            best = max(counts, key=counts.__getitem__) if counts else None
            chosen.append(own.index(best))
            votes.append(counts[best] / self.samples if best is not None else 0.0)
        taken = [texts[start].strip().removesuffix(".") for start in np.arange(len(chosen)) * self.samples + chosen]
        return self._answers(taken), np.array(chosen), np.array(votes)

    def _questions(self, template: Template, rows: pa.Table) -> list[str]:
        """What the model reads before it reasons."""
        return [
            render(template, self._cut(row), shown, self.instruction, self.model.chat, reasons=True)
            for row, shown in zip(rows.to_pylist(), self._shown(rows), strict=True)
        ]

    def _prompts(self, template: Template, rows: pa.Table) -> list[str]:
        return [self._begun(prompt) for prompt in self._questions(template, rows)]

    def _prompt(
        self, template: Template, row: Row, demonstrations: Sequence[Row] = (), instruction: str | None = None
    ) -> str:
        said = instruction or self.instruction
        return self._begun(render(template, row, demonstrations, said, self.model.chat, reasons=True))

    def _begun(self, prompt: str) -> str:
        """With the words that every rationale begins with."""
        return prompt + (self._opening if self.model.chat else f" {self._opening}".rstrip())

    @property
    def _opening(self) -> str:
        return "" if self.chain == "few_shot" else STEP_BY_STEP

    def _excess(self, template: Template, prompts: Sequence[str]) -> np.ndarray:
        """Tokens by which each prompt with its rationale and its answer is too long."""
        answer = self.max_new_tokens
        if not self.generation:
            answer = int(self.model.count_tokens(list(self.labels)).max())
        conclusion = int(self.model.count_tokens([f" {THEREFORE}"])[0])
        room = self.max_rationale_tokens + conclusion + answer
        return np.asarray(self.model.excess(prompts, max_new_tokens=room))


def drawing(rows: pa.Table, samples: int, temperature: float) -> Sampling | None:
    """How several texts for each row are drawn: from what it says alone; None for one, the most likely."""
    if samples == 1:
        return None
    keys = [int.from_bytes(key[:8], "little") for key in row_keys(rows)]
    return Sampling(temperature, [(key + draw) % SEEDS for key in keys for draw in range(samples)])


def own_reasons(node: Reason, rows: pa.Table, context: Context) -> pa.Table:
    """Rows with `rationale` and `prediction` as the model itself gives them, without demonstrations."""
    alone = dataclasses.replace(node, chain="zero_shot", examples=(), num_shots=0, samples=1, calibrate=False)
    none = pa.array([[] for _ in range(rows.num_rows)], pa.list_(pa.string()))
    asked = rows.select(["id", *node.inputs]).append_column("demonstrations", none)
    return run_node(alone, asked, context.store, context.progress, context.pool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieveAuto(Retrieve):
    """One example of each cluster of questions, the same for all rows, each of which the model can reason about."""

    model: Any
    asked: dict[str, Any]
    """How the model is asked: fields of a `Reason`."""
    kind: str

    selection = "auto"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The row's input; its embedding is read where the examples are chosen."""
        return (*self.inputs, "embedding")

    def fit(self, rows: pa.Table, context: Context) -> Self:
        """Cluster the examples, and take the first of each cluster, from its middle on, that will do."""
        known = super().fit(rows, context)
        order = {one: place for place, one in enumerate(rows["id"].to_pylist())}
        rows = rows.take(pa.array([order[one] for one in known.ids]))
        clusters = _clusters(matrix(rows["embedding"]), self.num_shots, context.experiment.regime.seed)
        tried = sorted({place for cluster in clusters for place in cluster[:MOST_TRIED]})
        node = Reason(model=self.model, inputs=self.inputs, **self.asked).among(context.labels)
        reasoned = own_reasons(node, rows.take(pa.array(tried)), context).to_pylist()
        texts = read(rows, self.inputs, self.kind)
        good = {
            place
            for place, row in zip(tried, reasoned, strict=True)
            if row["prediction"] and _simple(texts[place], row["rationale"])
        }
        answered = {place for place, row in zip(tried, reasoned, strict=True) if row["prediction"]}
        # A cluster none of whose questions the model answers so that it can be read shows nothing.
        chosen = [
            next(iter([*(place for place in cluster if place in good), *(p for p in cluster if p in answered)]))
            for cluster in clusters
            if answered.intersection(cluster)
        ]
        if not chosen:
            raise DataError(
                f"method.chain_of_thought: auto shows questions that the model itself answers, and none of its "
                f"{len(tried)} answers can be read; use zero_shot, or a model that can"
            )
        rest = [place for place in range(len(known.ids)) if place not in set(chosen)]
        ids, keys = ([values[place] for place in [*chosen, *rest]] for values in (known.ids, known.keys))
        return dataclasses.replace(known, num_shots=len(chosen), ids=tuple(ids), keys=tuple(keys), vectors=None)

    def run(self, rows: pa.Table) -> pa.Table:
        """The chosen ones but those that say what the row says: no other takes their place."""
        shown = [
            [one for one, key in zip(self.ids[: self.num_shots], self.keys, strict=False) if key != own]
            for own in self._keys(rows)
        ]
        return pa.table({"demonstrations": pa.array(shown, pa.list_(pa.string()))})


def _clusters(vectors: np.ndarray, count: int, seed: int) -> list[list[int]]:
    """Places of rows by cluster, those nearest to its middle first."""
    from sklearn.cluster import KMeans

    means = KMeans(count, n_init=10, random_state=seed).fit(vectors)
    distances = means.transform(vectors)
    found = []
    for cluster in range(count):
        members = np.flatnonzero(means.labels_ == cluster)
        found.append([int(place) for place in members[np.argsort(distances[members, cluster], kind="stable")]])
    return [cluster for cluster in found if cluster]


def _simple(question: str, rationale: str) -> bool:
    steps = [line for line in rationale.splitlines() if line.strip()]
    return len(question.split()) <= MOST_WORDS and 0 < len(steps) <= MOST_STEPS


def refuse_without_rationales(columns: Sequence[str]) -> None:
    """Demonstrations show rationales only where the rows have some.

    Raises:
        SpecError: they have none.
    """
    if "rationale" not in columns:
        raise SpecError(
            "method.chain_of_thought: few_shot shows the examples' rationales: name their column (task.rationale), use "
            "zero_shot or auto, or leave a request's examples null"
        )
