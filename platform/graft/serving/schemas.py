"""What travels over HTTP: requests, answers, and the one shape of every error."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_INPUTS = 1024
"""Rows in one request."""
MAX_EXAMPLES = 1024
"""Labelled rows in one request."""


class Refusal(Exception):
    """An answer other than 200, in the shape that all of them have.

    Args:
        status: HTTP status.
        message: one line: what is wrong and what would be right.
        code: the reason in one word, for programs.
        param: the field or header that is at fault; None where there is none.
        headers: to be sent with it.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """`{"error": {...}}`."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


TYPES = {401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


class Body(BaseModel):
    """A request's body: strict about its fields."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that are known and not supported, with values that ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, values: Any) -> Any:
        """Refuse what would be ignored; a value that asks for nothing is as good as none."""
        if not isinstance(values, dict):
            return values
        for name, nothing in cls.unsupported.items():
            if values.get(name) is not None and not any(_same(values[name], one) for one in nothing):
                raise Refusal(422, f"{name}: is not supported here; leave it out", "not_supported", name)
        return {name: value for name, value in values.items() if name not in cls.unsupported}


def _same(value: Any, other: Any) -> bool:
    """Equal, where True is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


class Example(Body):
    """A labelled row."""

    input: Any
    """As in the request's `input`."""
    label: Annotated[str, Field(min_length=1, max_length=1000)]
    """Its label."""


class ClassifyRequest(Body):
    """Rows to classify with a run."""

    model: str
    """A run_id; GET /v1/models lists them."""
    input: list[Any] = Field(min_length=1, max_length=MAX_INPUTS)
    """Rows: texts where the run reads one column of text, data URIs where that is of images or sounds, else objects of
    column to value."""
    examples: list[Example] | None = Field(None, min_length=2, max_length=MAX_EXAMPLES)
    """Labelled examples of another task: the run's models and settings are fitted to these. Null answers as the run was
    fitted."""


class Answer(BaseModel):
    """The answer to one row."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: int
    """Position of the row in `input`, from 0."""
    label: str
    """The most probable label."""
    scores: dict[str, float]
    """Label to probability; they add up to 1."""


class Usage(BaseModel):
    """What was read."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    prompt_tokens: int
    """Tokens of the inputs, as the run's first model counts them; 0 where it has none."""
    total_tokens: int
    """The same: a label is not generated."""

    @classmethod
    def of(cls, tokens: int) -> "Usage":
        """Of what was read and not written."""
        return cls(prompt_tokens=tokens, total_tokens=tokens)


class ClassifyResponse(BaseModel):
    """The answers, in the order of the rows."""

    object: Literal["list"] = "list"
    model: str
    data: list[Answer]
    usage: Usage


class EmbeddingsRequest(Body):
    """Rows to embed with a run's encoder."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"dimensions": ()}

    model: str
    """A run_id; GET /v1/models lists them."""
    input: Any
    """A row or a list of up to 1,024, as in /v1/classify; mostly texts."""
    encoding_format: Literal["float", "base64"] = "float"
    """base64: of little-endian float32 numbers."""
    user: str | None = None
    """Taken and not kept."""


class Embedding(BaseModel):
    """The vector of one row."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["embedding"] = "embedding"
    index: int
    """Position of the row in `input`, from 0."""
    embedding: list[float] | str
    """Its numbers, or base64."""


class EmbeddingsResponse(BaseModel):
    """The vectors, in the order of the rows."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage
