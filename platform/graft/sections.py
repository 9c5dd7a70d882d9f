"""What every page that a user writes has in common: sections of typed fields, in a YAML file.

    file ─► key.path=value words ─► Document ─► YAML again, every default written out

A section is frozen and refuses unknown keys, with the closest known one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from graft.errors import SpecError, suggest
from graft.specfile import override, read_yaml


class Section(BaseModel):
    """A part of a spec: typed, frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key '{key}'; {cure}",
                        {"key": str(key), "cure": cls.cure(str(key))},
                    )
        return values

    @classmethod
    def cure(cls, key: str) -> str:
        """What to write in place of a key that is unknown."""
        return suggest(key, cls.model_fields)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: str = "spec") -> Self:
        """Validate a plain mapping.

        Raises:
            SpecError: one line per fault, each with its full path.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError("\n".join(describe(origin, fault) for fault in error.errors())) from error


class Document(Section):
    """A whole page, with a name."""

    name: str
    """Slug: lower-case letters, digits, dot, dash and underscore; the ids of what is made begin with it."""

    @field_validator("name")
    @classmethod
    def _a_slug(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
            raise ValueError("give a slug of at most 64 lower-case letters, digits, dots, dashes and underscores")
        return value

    @classmethod
    def from_yaml(cls, path: str | Path, *overrides: str) -> Self:
        """Read a spec and apply `key.path=value` words.

        Raises:
            SpecError: the file cannot be read, is not YAML, or is not a valid spec; one line per fault.
        """
        return cls.from_mapping(override(read_yaml(path), overrides), origin=str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The whole spec with every default written out, as plain JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The whole spec as YAML, in the order of the fields."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True)


def describe(origin: str, fault: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a line: where, what, and what was got."""
    path = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in ("unknown_key", "unknown_name", "no_name", "no_model", "no_method", "unknown_role"):
        got = ""
    elif fault["type"] == "union_tag_invalid":
        tag, known = str(fault["ctx"]["tag"]), re.findall(r"'([^']+)'", fault["ctx"]["expected_tags"])
        got, message = "", f"no kind {tag!r}; {suggest(tag, known)}"
    elif fault["type"] == "missing":
        got, message = "", "is missing"
    else:
        # A validator may have said it already, of the part that is at fault.
        said = isinstance(fault["input"], Mapping) or "got " in message
        got = "" if said else f"; got {fault['input']!r}"
    return f"{origin}: {path + ': ' if path else ''}{message}{got}"
