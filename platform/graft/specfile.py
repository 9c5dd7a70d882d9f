"""A spec as a user writes it, before it is checked: a YAML file and `key.path=value` words."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from graft.errors import SpecError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from a file; a key written twice is an error, since one of the two would be ignored."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file (looked in {Path.cwd()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    try:
        values = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SpecError(f"{path}: a spec is a mapping of keys to values; got {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def override(values: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """A copy of a mapping with `key.path=value` words applied; values are YAML."""
    for word in words:
        values = replaced(values, *key_and_value(word))
    return dict(values)


def key_and_value(word: str) -> tuple[str, Any]:
    """The dotted key and the YAML value of a `key.path=value` word."""
    key, sign, text = word.partition("=")
    if not sign or not key:
        raise SpecError(f"{word!r} is not an override; write key.path=value, for example regime.examples=128")
    try:
        return key, yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{key}: {text[:200]!r} is not a YAML value: {' '.join(str(error).split())}") from error


def inside(key: str, other: str) -> bool:
    """Whether a dotted key is another one or lies in it: whoever sets the other sets it too."""
    return key == other or key.startswith(f"{other}.")


def replaced(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with one dotted key set."""
    head, _, rest = key.partition(".")
    if not rest:
        return {**values, head: value}
    inner = values.get(head)
    if inner is not None and not isinstance(inner, Mapping):
        raise SpecError(f"{key}: {head!r} is {inner!r}, which has no keys inside")
    return {**values, head: replaced(inner or {}, rest, value)}
