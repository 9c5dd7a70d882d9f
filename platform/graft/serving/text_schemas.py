"""Completions and chat as OpenAI's clients ask for them; what they answer is written by `graft.serving.texts`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, StringConstraints

from graft.serving.schemas import Body

MAX_PROMPTS = 32
"""Prompts in one request."""
MAX_MESSAGES = 256
"""Messages in one conversation."""
MAX_STOPS = 4

Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""Of both, with values that ask for nothing."""


class StreamOptions(Body):
    """What a stream tells beside its text."""

    include_usage: bool = False
    """A last event with the usage."""
    include_obfuscation: bool | None = None
    """Taken and not heeded."""


class TextRequest(Body):
    """What both ask for."""

    model: str
    """A run_id; GET /v1/models lists them."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Draw texts, by probabilities sharpened or flattened; null and 0 write the most likely one, as it was measured."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw among the most likely tokens that have this probability together; null for all."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The same draws for the same seed; null for new ones."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    """The text ends before the first of these."""
    n: int | None = Field(None, ge=1)
    """Texts for each prompt; null for one."""
    stream: bool | None = None
    """Send the text as it is written, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    user: str | None = None
    """Taken and not kept."""

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(TextRequest):
    """Prompts that a run's answering model, adapted as it is, goes on with."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **UNSUPPORTED,
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    """Read verbatim; no template is put around it."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens to write; null for the run's own limit."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Tell each token's log-probability, and those of so many of the likeliest ones."""


class Message(Body):
    """A turn of a conversation."""

    # The official client sends the server's own answers back with all their fields.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "refusal": (),
        "tool_calls": ([],),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Whose turn it is."""
    content: str | Annotated[list[dict[str, JsonValue]], Field(min_length=1, max_length=64)]
    """Text, or parts: `{"type": "text", "text": ...}`, `{"type": "image_url", "image_url": {"url": "data:..."}}`,
    `{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}`."""
    name: str | None = None
    """Taken and not heeded."""


class ChatRequest(TextRequest):
    """A row, as the last word of a conversation, that the whole graph answers."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **UNSUPPORTED,
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "prompt_cache_key": (),
        "reasoning_effort": (),
        "response_format": ({"type": "text"},),
        "safety_identifier": (),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation, where the run reads conversations. Else one message of the user: the text that the run reads,
    or a JSON object of column to value where it reads several."""
    max_tokens: int | None = Field(None, ge=1)
    """As `max_completion_tokens`."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens to write; null for the run's own limit. A label is given whole."""
    logprobs: bool | None = None
    """Tell each token's log-probability."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """And those of so many of the likeliest ones."""
