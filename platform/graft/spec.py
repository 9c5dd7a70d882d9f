"""What a user may write: one `Experiment` for a run, a sweep, evaluation and serving.

The sections `task` and `method` belong to their families:
`TASKS` and `METHODS` map a name to `"module:Class"`, and that class is the section. Nothing here imports
torch, transformers or ray, nor does validating a spec.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator
from pydantic_core import PydanticCustomError

from graft.errors import SpecError, suggest
from graft.hosted import Serving
from graft.sections import Document, Section
from graft.swept import Sweep

if TYPE_CHECKING:
    import pyarrow as pa

    from graft.graph import Graph
    from graft.results.records import Result
    from graft.tasks.dataset import Dataset

ROLES = ("encoder", "base", "anchor", "augmenting", "teacher", "student")
"""What a model may be to a method; `models:` maps these to sources."""
AUGMENTING = ("augmenting", *(f"augmenting_{number}" for number in range(2, 10)))
"""Roles of several augmenting models: `augmenting: [a, b]` is short for `augmenting: a` and `augmenting_2: b`."""


class ModelSource(Section):
    """A frozen pre-trained model and how it is to be loaded and read."""

    source: str
    """Local folder, hub name, installed package, `recipe:NAME`, `endpoint:URL#MODEL` (OpenAI-compatible), or
    `features:pixels` and `features:log-mel` of images and sounds."""
    variant: Literal["pretrained", "instruct"] | None = None
    """Which training stage speaks: null uses a chat template where the tokenizer has one, pretrained never does."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Floating-point type; null is float32 on a CPU and bfloat16 on a GPU."""
    device_map: str | None = None
    """Where the weights go, as in transformers (`auto`); null is the whole model on `scaling.device`."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the weights quantised (GPU only); null keeps `dtype`."""
    layer: int | None = Field(None, ge=0)
    """Hidden layer that an embedding is read from: 0 the embeddings, i after block i; null the model's output."""
    pooling: Literal["model", "mean", "last", "cls", "prompteol"] = "model"
    """How token states become one vector; `model`: as the model's own files say, mean where they say nothing."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run."""


class Task(Section):
    """What is to be learned; each family under `graft.tasks` adds its own fields."""

    name: str
    """Name of the task in `graft.tasks.TASKS`."""
    test_examples: int = Field(1000, ge=1)
    """Rows in the test set, drawn once by a fixed seed; at most a third of all rows."""
    template: str = "default"
    """How a row becomes a prompt: a template's name, or inline text with `{field}`s that ends in `{target}`."""
    max_tokens: int | None = Field(None, ge=1)
    """Longer texts are cut to this many tokens and counted; null: a text that does not fit is an error."""
    parser: str | None = None
    """How a written answer is read (a name in `graft.tasks.parsers.PARSERS`: number, choice, yes_no, python); an answer
    that cannot be read is wrong. null takes it as it comes."""

    @field_validator("parser")
    @classmethod
    def _a_known_parser(cls, value: str | None) -> str | None:
        if value is not None and value not in (known := importlib.import_module("graft.tasks.parsers").PARSERS):
            raise ValueError(f"unknown parser; {suggest(value, known)}")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends an answer that is written after a plain prompt, beside the model's own end token."""
        return ("\n",)

    @property
    def kind(self) -> str:
        """Kind of the input columns, known before any row is read: text, messages, image, audio or vector."""
        raise NotImplementedError

    def read(self) -> "Dataset":
        """Read and split the rows.

        Raises:
            DataError: the rows cannot be read or do not make a task.
        """
        raise NotImplementedError

    def marked(self, rows: "pa.Table") -> "pa.Table":
        """The same rows with what only this task can tell of each answer, in columns that predictions keep.

        Args:
            rows: answered test rows: `id`, the inputs, `target`, `prediction` (null where it could not be read), and
                the columns of the test rows that only judge.
        """
        return rows

    def judged(self, rows: "pa.Table") -> dict[str, float]:
        """Metrics that only this task can tell, beside those of every classification or generation.

        Args:
            rows: as `marked` gives them.
        """
        return {}


class Regime(Section):
    """How much labelled data there is, and which draw of it."""

    examples: int = Field(64, ge=1)
    """Labelled rows, validation included; smaller regimes are contained in larger ones of the same seed."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Draws the examples and the demonstrations."""
    validation: Literal["auto"] | float | int = "auto"
    """Rows for selection, taken inside the examples: a share below 1, a number of folds, or auto (20 % from 100
    examples on, 5 folds below that). Examples of equal input or item stay on one side. A search and a probe select over
    all folds and then fit to all examples; a training that looks at held-out examples never learns those of the first.
    """

    fold: int | None = Field(None, ge=0)
    """Fold of `validation` that is answered in place of the test rows, which are then not looked at: what a search
    selects by; 0 where one share is held out. null answers the test rows."""

    @field_validator("validation")
    @classmethod
    def _a_share_or_folds(cls, value: Any) -> Any:
        if value != "auto" and not (0 < value < 1 or (2 <= value < 2**31 and value == int(value))):
            raise ValueError("give auto, a share between 0 and 1, or a number of folds from 2 on")
        return value


class Method(Section):
    """How the task is learned; each file under `graft.methods` adds its own fields and builds the graph."""

    name: str
    """Name of the method in `graft.methods.METHODS`."""

    def roles(self, task: Task) -> tuple[str, ...]:
        """The model roles that this method needs for this task."""
        raise NotImplementedError(f"{type(self).__name__} has no roles(task): return a tuple such as ('encoder',)")

    def optional_roles(self, task: Task) -> tuple[str, ...]:
        """The model roles that it reads where the spec gives them."""
        return ()

    def places(self) -> dict[str, Any]:
        """Fields that say where something lies, as pydantic's `exclude` names them: a run is known by its contents."""
        return {}

    def files(self) -> tuple[str, ...]:
        """Files and folders from which the graph is built; one that is missing is noticed before rows are read."""
        return ()

    def graph(self, task: Task, dataset: "Dataset", models: Mapping[str, Any]) -> "Graph":
        """The unfitted graph; `models` maps each of `roles` to its handle.

        Raises:
            SpecError: the method's fields do not suit this task.
            ModelError: a model cannot do what the method asks of it.
        """
        raise NotImplementedError


class Training(Section):
    """The one training loop; read by methods with gradients only."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    max_steps: int = Field(300, ge=1)
    """Optimizer steps."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up; null is 10 % of `max_steps`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to zero after the warm-up."""
    optimizer: Literal["adamw", "adafactor", "lion"] = "adamw"
    """What turns gradients into steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices, per step and relative to the learning rate; vectors are never decayed."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Longest gradient, as the norm over all trained weights; null does not clip."""
    tokens_per_batch: int = Field(8192, ge=1)
    """Tokens in a global batch, padding included."""
    tokens_per_device: int | None = Field(None, ge=1)
    """Tokens that a device holds at once: a larger share of a batch is accumulated; null for no limit."""
    batch_ramp_steps: int = Field(0, ge=0)
    """Steps in which the batch grows from an eighth to `tokens_per_batch`, doubling; 0 begins with whole batches."""
    activation_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    validate_every_steps: int | None = Field(None, ge=1)
    """Steps between two looks at held-out examples (`regime.validation`; of several folds the first); the best weights
    are then kept. null trains on all examples and keeps the last weights."""
    patience: int | None = Field(None, ge=1)
    """Looks without an improvement after which training stops; null never stops early."""
    checkpoint_steps: int = Field(50, ge=1)
    """Steps between two states to which training can go back, after a kill or a loss spike."""
    checkpoint_seconds: float = Field(20.0, ge=0)
    """Least time between two of them on storage; changes no result."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Everything random in training: adapter initialisation, batch order, dropout."""

    @model_validator(mode="after")
    def _patience_has_looks(self) -> Self:
        if self.patience is not None and self.validate_every_steps is None:
            raise ValueError("patience counts looks at held-out examples: set training.validate_every_steps too")
        return self


class Scaling(Section):
    """Where the work runs."""

    workers: int = Field(1, ge=1)
    """Processes that train together; one trains in the run's own process."""
    min_workers: int | None = Field(None, ge=1)
    """Training goes on with so many when nodes are lost, and grows back; null waits until all are there."""
    device: str = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several workers share a model: ddp keeps it whole on each, fsdp shards it."""

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        if value not in ("auto", "cpu", "cuda") and not value.removeprefix("cuda:").isdigit():
            raise ValueError(f"got {value!r}; give auto, cpu, cuda or cuda:N")
        return value

    @model_validator(mode="after")
    def _least_and_most(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}; give at most workers, which is {self.workers}")
        return self


@functools.cache
def catalogue(kind: Literal["task", "method"]) -> dict[str, str]:
    """Name to `"module:Class"` of every known task or method."""
    built_in = importlib.import_module(f"graft.{kind}s")
    known: dict[str, str] = getattr(built_in, f"{kind.upper()}S")
    return known


def section_class(kind: Literal["task", "method"], name: Any) -> type[Any]:
    """The class of a task's or a method's section.

    Raises:
        SpecError: the name is unknown, or its module cannot be imported.
    """
    known = catalogue(kind)
    if not isinstance(name, str) or name not in known:
        raise SpecError(f"unknown {kind} {name!r}; {suggest(str(name), known)}")
    module, _, attribute = known[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"{kind} {name!r} is registered as {known[name]}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method if kind == "method" else Task)):
        raise SpecError(f"{kind} {name!r} is registered as {known[name]}, which is no graft.spec.{kind.capitalize()}")
    return found


def _section(kind: Literal["task", "method"]) -> Callable[[Any], Any]:
    def validate(value: Any) -> Any:
        if isinstance(value, str):
            raise PydanticCustomError("no_name", "write {cure}", {"cure": f"{kind}: {{name: {value}}}"})
        if not isinstance(value, Mapping):
            return value
        if "name" not in value:
            raise PydanticCustomError("no_name", "name is missing; {cure}", {"cure": suggest("", catalogue(kind))})
        try:
            found = section_class(kind, value["name"])
        except SpecError as error:
            raise PydanticCustomError("unknown_name", "{error}", {"error": str(error)}) from error
        return found.model_validate(value)

    return validate


AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(_section("task"))]
"""The section of any task, by its name."""


def _models(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if isinstance(several := value.get("augmenting"), list | tuple):
        if not 1 <= len(several) <= len(AUGMENTING):
            raise PydanticCustomError("too_many", "augmenting: give one to {most} models", {"most": len(AUGMENTING)})
        value = {**value, **dict(zip(AUGMENTING, several, strict=False))}
    for role in value:
        if role not in (*ROLES, *AUGMENTING):
            raise PydanticCustomError(
                "unknown_role", "unknown role '{role}'; {cure}", {"role": str(role), "cure": suggest(str(role), ROLES)}
            )
    return value


def check_sharding(scaling: Scaling, training: Training) -> None:
    """Refuse an optimizer whose state cannot be divided among processes.

    Raises:
        ValueError: the two do not go together.
    """
    if scaling.strategy == "fsdp" and training.optimizer == "adafactor":
        raise ValueError("training.optimizer: adafactor's state cannot be sharded; use adamw, or strategy: ddp")


class Experiment(Document):
    """One question put to one method with one amount of data, and optionally the sweep around it."""

    models: Annotated[dict[str, ModelSource], BeforeValidator(_models)] = Field(default_factory=dict)
    """Role to model; each method says which roles it needs."""
    task: AnyTask
    """What is to be learned."""
    regime: Regime = Regime()
    """How much labelled data there is."""
    method: Annotated[SerializeAsAny[Method] | None, BeforeValidator(_section("method"))] = None
    """How it is learned; may be left out where an axis of the sweep gives it."""
    training: Training = Training()
    """The training loop."""
    scaling: Scaling = Scaling()
    """Where the work runs."""
    sweep: Sweep | None = None
    """Many experiments from this one; null for a single run."""
    serve: Serving = Serving()
    """What its models are given where they are hosted."""

    @classmethod
    def cure(cls, key: str) -> str:
        """A method's name begins keys in a sweep's axes and search alone."""
        if key in catalogue("method"):
            return f"a run has one method: write method.KEY for a field of {key}"
        return super().cure(key)

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        check_sharding(self.scaling, self.training)
        return self

    @model_validator(mode="after")
    def _method_has_its_models(self) -> Self:
        if self.method is None:
            if self.sweep is None or "method" not in self.sweep.axes:
                raise PydanticCustomError(
                    "no_method", "method is missing; {cure}", {"cure": suggest("", catalogue("method"))}
                )
            return self
        swept = any(key.split(".")[0] == "models" for key in self.sweep.axes) if self.sweep else False
        for role in self.method.roles(self.task):
            if role not in self.models and not swept:
                raise PydanticCustomError(
                    "no_model",
                    "models.{role} is missing: method {method} needs it for this task; add {cure}",
                    {"role": role, "method": self.method.name, "cure": f"models: {{{role}: {{source: ...}}}}"},
                )
        return self

    def resolved(self) -> Self:
        """The single experiment that is carried out, with only the models that its method reads.

        Raises:
            SpecError: it has a sweep, so it is not a single one.
        """
        if self.sweep is not None or self.method is None:
            raise SpecError("sweep: this spec stands for many experiments; carry it out with graft sweep SPEC")
        roles = (*self.method.roles(self.task), *self.method.optional_roles(self.task))
        models = {role: source for role, source in self.models.items() if role in roles}
        return self.model_copy(update={"models": models, "sweep": None})

    def question(self) -> dict[str, Any]:
        """The whole spec as plain JSON values, but for how its models are hosted: that changes no answer."""
        return self.model_dump(mode="json", exclude={"serve"})

    def run(self, storage: str | Path = ".") -> "Result":
        """Carry it out, or read the result if that was done before: see `graft.runner.run`."""
        from graft import runner

        return runner.run(self, storage)
