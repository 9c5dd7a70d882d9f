"""What travels over HTTP: the request, the answers, and the one shape of every error."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_INPUTS = 1024
"""Rows in one request."""


class ClassifyRequest(BaseModel):
    """Rows to classify with a run."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A run_id; GET /v1/models lists them."""
    input: list[Any] = Field(min_length=1, max_length=MAX_INPUTS)
    """Rows: texts where the run reads one column of text, else objects of column to value."""
    examples: list[dict[str, Any]] | None = None
    """Labelled examples to fit to; must be null: a run answers as it was fitted."""


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


class ClassifyResponse(BaseModel):
    """The answers, in the order of the rows."""

    object: str = "list"
    model: str
    data: list[Answer]
    usage: Usage


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
