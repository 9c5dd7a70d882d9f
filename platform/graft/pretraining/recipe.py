"""What a user may write to have a model trained from scratch.

    name, model, data, training ─► graft pretrain ─► a folder of transformers' ─► models: {base: {source: recipe:NAME}}

Nothing here imports torch or transformers.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from graft.methods.instruct import Member
from graft.sections import Document, Section
from graft.spec import Scaling, Training, check_sharding

Share = Annotated[float, Field(gt=0)]
"""Of rows, beside the other shares."""


class Transformer(Section):
    """Sizes that all models here have."""

    kind: str
    width: int = Field(ge=8, le=16384)
    """Numbers in a token's state; a multiple of `heads`."""
    layers: int = Field(ge=1, le=512)
    """Blocks."""
    heads: int = Field(ge=1)
    """Attention heads."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class Causal(Transformer):
    """A language model that continues text: a Llama with rotary positions."""

    kind: Literal["causal"] = "causal"
    kv_heads: int | None = Field(None, ge=1)
    """Heads of keys and values, which divide `heads`; null is one for each."""
    feed_forward: int | None = Field(None, ge=1)
    """Width inside the feed-forward; null is 8/3 of `width`, rounded up to a multiple of 16."""
    context: int = Field(1024, ge=8)
    """Longest text, in tokens."""
    tied: bool = Field(True, exclude_if=bool)
    """One matrix for what tokens are read as and what they are said with."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is no even multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        return self


class Masked(Transformer):
    """An encoder that fills gaps: a BERT without sentence pairs."""

    kind: Literal["masked"] = "masked"
    feed_forward: int | None = Field(None, ge=1)
    """Width inside the feed-forward; null is 4 times `width`."""
    context: int = Field(512, ge=8)
    """Longest text, in tokens."""
    share: float = Field(0.15, gt=0, lt=1)
    """Share of tokens to be guessed: 80 % of them masked, 10 % another token, 10 % left
    (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""


class Tart(Transformer):
    """A reasoning module of interleaved points and labels: GPT-2's body (TART, arXiv:2306.07536)."""

    kind: Literal["tart"] = "tart"


class Hybrid(Transformer):
    """A reasoning module that begins as logistic regression and learns to correct it."""

    kind: Literal["hybrid"] = "hybrid"
    components: int = Field(8, ge=1)
    """Principal components that it is told of, beside the scores of the regressions."""


class LogisticTasks(Section):
    """Classifications that exist nowhere: points from a normal distribution, labels from a random linear rule."""

    kind: Literal["logistic-tasks"] = "logistic-tasks"
    dimensions: int = Field(16, ge=1)
    """Of a point, in the end."""
    points: int = Field(258, ge=2)
    """Of a task, in the end."""
    weight_scale: float = Field(10.0, gt=0)
    """Standard deviation of a task's weights: the larger, the less chance is in its labels."""
    tasks_per_batch: int = Field(128, ge=1)
    """Tasks in a global batch; `training.tokens_per_device` says how many a device holds at once."""
    first_dimensions: int = Field(4, ge=1)
    """At the first step."""
    first_points: int = Field(18, ge=2)
    """At the first step."""
    more_dimensions: int = Field(4, ge=0)
    """Added at each stage of the curriculum."""
    more_points: int = Field(30, ge=0)
    """Added at each stage of the curriculum."""
    every_steps: int = Field(1000, ge=1)
    """Length of a stage."""


class MixedTasks(Section):
    """Classifications that exist nowhere, with spectra, shares, rules and noise as frozen embeddings have them."""

    kind: Literal["mixed-tasks"] = "mixed-tasks"
    least_labelled: int = Field(4, ge=2)
    """Labelled rows of a task at least; drawn by its logarithm."""
    labelled: int = Field(256, ge=2)
    """Labelled rows of a task at most."""
    queries: int = Field(64, ge=1)
    """Other rows of a task, which are asked for."""
    least_dimensions: int = Field(12, ge=2)
    """Of a vector, at least; drawn by its logarithm."""
    dimensions: int = Field(256, ge=2)
    """Of a vector, at most."""
    classes: int = Field(8, ge=2)
    """At most; half of the batches have two."""
    tasks_per_batch: int = Field(16, ge=1)
    """Tasks in a global batch; `training.tokens_per_device` says how many a device holds at once."""

    @model_validator(mode="after")
    def _least_is_least(self) -> Self:
        for least, most in (("least_labelled", "labelled"), ("least_dimensions", "dimensions")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} {getattr(self, least)} is more than {most} {getattr(self, most)}")
        return self


class Text(Section):
    """Documents to learn language from."""

    kind: Literal["text"] = "text"
    path: str
    """Parquet, CSV or JSONL with a text column, a .txt file, or a folder of .txt files."""
    column: str = "text"
    """The text column of a table."""
    join_lines: bool = False
    """Join the lines of each paragraph, for books that were set in lines of one width."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share of documents that are evaluated on and never learned; chosen by what they say."""
    vocabulary: int = Field(4096, ge=260)
    """Tokens, the 256 bytes and the special ones included; byte-level BPE learned on the same documents."""
    tokens: int | None = Field(None, ge=1)
    """Learn only so many tokens, from the beginning; null for all. The vocabulary is that of all documents."""


class KeyValue(Section):
    """Sums whose operands are names: what two models can only do together.

    Bansal et al. 2024 (CALM, arXiv:2401.02412, section 4.1), with keys and numbers of one token each.
    """

    kind: Literal["key-value"] = "key-value"
    keys: int = Field(2000, ge=8)
    """Names."""
    values: int = Field(20, ge=2)
    """A name's value is one of 0 to `values` - 1."""
    operands: int = Field(2, ge=2, le=8)
    """Names or numbers in an expression, joined by + and -."""
    parts: dict[Literal["pairs", "values", "substitute", "numbers", "solve"], Share] = Field(min_length=1)
    """Share of each kind of row: pairs `a=7`, values `a 7`, substitute `a+b=7+3`, numbers `7+3=10`, solve `a+b=10`."""
    held_in: float = Field(1.0, gt=0, le=1)
    """Share of the names that rows of `solve` are about."""
    world: int = Field(0, ge=0)
    """Draws the names' values and which are held in: the same for models that are to be composed."""


class World(Section):
    """Short texts about people, places and things that exist only here: facts, and questions that need several.

    A seeded world in the manner of PhantomWiki (Gong et al. 2025): the truth is known for every question.
    """

    kind: Literal["world"] = "world"
    people: int = Field(200, ge=8)
    """Inhabitants, each with a home, a trade and relatives."""
    hops: int = Field(2, ge=1, le=3)
    """Most relations that a question follows."""
    parts: dict[Literal["facts", "questions", "rationales"], Share] = Field(min_length=1)
    """Share of each kind of row; a rationale is a question answered step by step."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of questions that are never learned."""
    world: int = Field(0, ge=0)
    """Draws the inhabitants and what is true of them."""


class Instruction(Section):
    """A second stage: the model learns to follow instructions."""

    mixture: tuple[Member, ...] = Field(min_length=1)
    """The tasks, their templates and instructions."""
    limit: int = Field(3000, ge=1)
    """Rows of one task at most."""
    training: Training = Training()
    """The loop of this stage."""


class Recipe(Document):
    """A model that is trained from scratch."""

    model: Annotated[Causal | Masked | Tart | Hybrid, Field(discriminator="kind")]
    """What is trained."""
    data: Annotated[Text | KeyValue | World | LogisticTasks | MixedTasks, Field(discriminator="kind")]
    """What it learns from."""
    blocks: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0)]], ...] = ()
    """Lengths of the pieces that text is packed into, each for a share of the steps, in turn; empty packs to the
    whole context. Short ones are cheaper; the last should be as long as the model will be used."""
    training: Training = Training()
    """The loop."""
    instruct: Instruction | None = None
    """A second stage on instructions, which gives the variant `instruct`; null for none."""
    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are written; they are trained in float32."""
    scaling: Scaling = Scaling()
    """Where the work runs."""

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        check_sharding(self.scaling, self.training)
        if self.instruct is not None:
            check_sharding(self.scaling, self.instruct.training)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        suited = {
            "causal": ("text", "key-value", "world"),
            "masked": ("text",),
            "tart": ("logistic-tasks",),
            "hybrid": ("mixed-tasks",),
        }
        if self.data.kind not in suited[self.model.kind]:
            raise ValueError(f"data.kind: {self.model.kind} learns from {' or '.join(suited[self.model.kind])}")
        if self.instruct is not None and self.model.kind != "causal":
            raise ValueError("instruct is for model.kind causal")
        if self.training.batch_ramp_steps:
            raise ValueError(
                "training.batch_ramp_steps: batches from scratch are whole from the first step; leave it 0"
            )
        if self.instruct is not None and self.instruct.training.validate_every_steps is not None:
            raise ValueError(
                "instruct.training.validate_every_steps: all rows of the mixture are learned; leave it null"
            )
        if isinstance(self.model, Tart | Hybrid) and self.weights != "float32":
            raise ValueError("weights: a reasoning module is written as float32; leave it out")
        if self.blocks and self.data.kind != "text":
            raise ValueError("blocks are pieces of a text; leave them out")
        if isinstance(self.model, Tart | Hybrid):
            return self
        if any(length > self.model.context for length, _ in self.blocks):
            raise ValueError(f"blocks: a piece is longer than model.context, which is {self.model.context}")
        if self.blocks and abs(sum(share for _, share in self.blocks) - 1) > 1e-6:
            raise ValueError("blocks: the shares of the steps do not add up to 1")
        return self
