"""What travels between the processes of a served graph: rows that are to be answered, texts that are to be written."""

from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from graft.hashing import table_digest
from graft.models.asked import Piece


@dataclass(frozen=True)
class Place:
    """Where a finished run lies: whoever gets work for a run that it does not know loads it from here."""

    run_id: str
    files: fs.SubTreeFileSystem
    folder: str


@dataclass(frozen=True)
class Segment:
    """Nodes `start` to `stop` (exclusive) of one graph, which one deployment runs in one go."""

    deployment: str
    start: int
    stop: int
    keeps: tuple[str, ...]
    """Columns that a later segment or the caller reads; the others stay in the replica."""


@dataclass(frozen=True)
class Examples:
    """Labelled rows that came with a request: the graph is fitted to them, and remembered as long as they are asked."""

    rows: pa.Table
    """`id`, the inputs and `target`, and in later segments what earlier ones have added."""
    labels: tuple[str, ...]
    key: str
    """Equal for equal rows in the same order."""

    @classmethod
    def of(cls, rows: pa.Table) -> "Examples":
        """From the rows alone."""
        return cls(rows, tuple(sorted(set(rows["target"].to_pylist()))), table_digest(rows))


@dataclass(frozen=True)
class Work:
    """Rows for one segment of one run."""

    place: Place
    segment: Segment
    rows: pa.Table
    examples: Examples | None = None
    column: str | None = None
    """Only this column is wanted, and no node after the one that writes it runs; None for those that are kept."""
    request_id: str = ""

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for what can be answered together."""
        key = None if self.examples is None else self.examples.key
        return self.place.run_id, self.segment.start, self.rows.schema, key, self.column


@dataclass(frozen=True)
class Reply:
    """What became of them."""

    rows: pa.Table | None = None
    prompt_tokens: int = 0
    refused: str = ""
    """Why the rows cannot be answered, for whoever sent them."""
    examples: Examples | None = None
    """For the next segment."""


@dataclass(frozen=True)
class Manner:
    """How texts are written: OpenAI's options in graft's words."""

    max_new_tokens: int | None = None
    """None for the run's own limit."""
    stop: tuple[str, ...] = ()
    """Beside what ends an answer of the run."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    choices: int = 1
    """Texts for each prompt."""
    logprobs: int | None = None
    whole: bool = True
    """All of a text at once instead of piece by piece."""


@dataclass(frozen=True)
class Writing:
    """Texts that the answering model of a run shall write: after the graph's own prompt for a row, or verbatim."""

    place: Place
    segment: Segment
    """The last one."""
    manner: Manner
    prompts: tuple[str, ...] = ()
    """Verbatim; with them there is no row."""
    rows: pa.Table | None = None
    """One row, as the segments before have left it."""
    request_id: str = ""


@dataclass(frozen=True)
class Pieces:
    """What is new of some texts."""

    items: tuple[tuple[int, Piece], ...] = ()
    """Number of the text (its prompt's number times `choices`, and its own among these), and what is new of it."""
    refused: str = ""
    failed: bool = False
