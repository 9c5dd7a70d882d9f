"""In-context learning: a frozen language model reads labelled examples in its prompt and answers.

    text ─► (embed) ─► retrieve ─► demonstrations ─► complete ─► prediction, scores

Brown et al. 2020 (arXiv:2005.14165). A classification is answered by the log-probability of each label's words as a
continuation, over the labels alone: no answer can be unparsable.

How demonstrations are chosen: `graft.methods.retrieving` and, where a model has a say, `graft.methods.epr`; in which
order they stand: there, and `graft.methods.ordering`. Calibration: `graft.methods.completing`. Chains of thought and
self-consistency: `graft.methods.reasoning`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from graft.errors import ModelError, SpecError
from graft.graph import Graph
from graft.methods.answering import asking, for_labels
from graft.methods.completing import Complete
from graft.methods.embed import Embed
from graft.methods.epr import RetrieveEpr
from graft.methods.judging import told
from graft.methods.ordering import RetrieveOrdered
from graft.methods.reasoning import Reason, RetrieveAuto, refuse_without_rationales
from graft.methods.retrieving import Retrieve, RetrieveBm25, RetrieveSimilar
from graft.spec import Method, Task

if TYPE_CHECKING:
    from graft.tasks.dataset import Dataset


REASONING = ("num_shots", "similar", "calibrate", "chain", "max_rationale_tokens", "samples", "temperature")
"""What a node that reasons is told beside what every answer is."""


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
    chain_of_thought: Literal["none", "few_shot", "zero_shot", "auto"] = "none"
    """Reason before the answer: few_shot, as the demonstrations do (task.rationale); zero_shot, without any; auto, as
    the model itself has reasoned about one example of each of num_shots clusters."""
    max_rationale_tokens: int = Field(128, ge=1)
    """Length limit of a rationale, in tokens."""
    samples: int = Field(1, ge=1, le=1000)
    """Rationales drawn for each row, whose answers vote (self-consistency); 1 writes the most likely one."""
    temperature: float = Field(0.7, gt=0)
    """Of drawn rationales."""
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

    @model_validator(mode="after")
    def _reasons_can_be_had(self) -> Self:
        if self.chain_of_thought == "none" and self.samples > 1:
            raise ValueError("samples are of rationales: set chain_of_thought to few_shot, zero_shot or auto")
        if self.chain_of_thought != "none" and self.calibrate:
            raise ValueError("calibrate corrects answers that are given at once: leave it false with chain_of_thought")
        if self.chain_of_thought == "auto" and (self.selection, self.order) != ("random", "given"):
            raise ValueError("chain_of_thought: auto chooses and orders demonstrations itself: leave both as they are")
        if self.chain_of_thought == "zero_shot" and "num_shots" in self.model_fields_set and self.num_shots:
            raise ValueError(f"chain_of_thought: zero_shot shows no demonstrations; num_shots is {self.num_shots}")
        return self

    @property
    def _by_entropy(self) -> bool:
        return self.order in ("global_entropy", "local_entropy")

    @property
    def _ranks(self) -> bool:
        """Whether each row has its own demonstrations, the best last."""
        return self.selection != "random"

    @property
    def _embeds(self) -> bool:
        return self.selection in ("similar", "epr") or self.order == "similar" or self.chain_of_thought == "auto"

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
        complete = self._complete(asked, dataset)
        retrieve = self._retrieve(dataset, base, told(asked), complete)
        embeds = "embedding" in retrieve.reads
        if embeds and base.remote and "encoder" not in models:
            wanted = {"chain_of_thought": "auto", "order": "similar", "selection": self.selection}
            field = next(name for name, value in wanted.items() if getattr(self, name) == value)
            raise SpecError(
                f"models.encoder is missing: {field}: {getattr(self, field)} needs one where models.base is an endpoint"
            )
        embed = [Embed.of(models.get("encoder", base), task, dataset)] if embeds else []
        return Graph([*embed, retrieve, complete], dataset.inputs)

    def _complete(self, asked: dict[str, Any], dataset: "Dataset") -> Complete:
        """The node that answers.

        Raises:
            SpecError: demonstrations shall show rationales that the rows have not.
        """
        if self.chain_of_thought == "none":
            return Complete(**asked, num_shots=self.num_shots, similar=self._ranks, calibrate=self.calibrate)
        if self.chain_of_thought == "few_shot":
            refuse_without_rationales(dataset.train.column_names)
        return Reason(
            **asked,
            num_shots=0 if self.chain_of_thought == "zero_shot" else self.num_shots,
            similar=self._ranks,
            calibrate=False,
            chain=self.chain_of_thought,
            max_rationale_tokens=self.max_rationale_tokens,
            samples=self.samples,
            temperature=self.temperature,
        )

    def _retrieve(self, dataset: "Dataset", base: Any, asked: dict[str, Any], complete: Complete) -> Retrieve:
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
        plain: dict[str, Any] = {"inputs": dataset.inputs, "num_shots": complete.num_shots}
        if not complete.num_shots:  # nothing is chosen or ordered
            return Retrieve(**plain)
        if self.chain_of_thought == "auto":
            own = told({name: getattr(complete, name) for name in REASONING} | asked)
            return RetrieveAuto(**plain, kind=dataset.kind, model=base, asked=own)
        if self._by_entropy:
            return RetrieveOrdered(**plain, order=self.order, model=base, asked=asked)
        plain |= {"order": self.order}
        if self.selection == "epr":
            how = {"candidates": self.epr_candidates, "model": base, "asked": asked}
            return RetrieveEpr(**plain, **how, kind=dataset.kind)
        if self.selection == "bm25":
            return RetrieveBm25(**plain, kind=dataset.kind)
        return RetrieveSimilar(**plain) if self.selection == "similar" else Retrieve(**plain)
