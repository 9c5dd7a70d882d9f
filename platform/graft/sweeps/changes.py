"""What was edited in a spec since its last sweep: the runs that both have are read, the others are carried out."""

import json
from collections.abc import Mapping
from typing import Any

import yaml
from pyarrow import fs

from graft.results.arms import flatten, value_text
from graft.spec import Experiment
from graft.storage import children, exists, read_bytes

MOST_LINES = 8


def changes(experiment: Experiment, sweep_id: str, files: fs.SubTreeFileSystem) -> list[str]:
    """What differs from the newest sweep of this name, in words; nothing where this very sweep was begun before."""
    before = _newest(experiment.name, sweep_id, files)
    if before is None:
        return []
    other, values = before
    own = dict(flatten(experiment.question()))
    keys = [key for key in dict.fromkeys([*values, *own]) if _text(values, key) != _text(own, key)]
    said = [f"{key}: {_text(values, key)} ─► {_text(own, key)}" for key in keys]
    if len(said) > MOST_LINES:
        said = [*said[:MOST_LINES], f"and {len(said) - MOST_LINES} more"]
    if not said:
        return [f"{other} had the same spec on other rows or models, or by another graft; what both have is read"]
    return [f"the spec was edited since {other}; the runs that both have are read", *(f"  {line}" for line in said)]


def _newest(name: str, sweep_id: str, files: fs.SubTreeFileSystem) -> tuple[str, dict[str, Any]] | None:
    """Id and flat spec of the newest other sweep of this name."""
    found = []
    for folder in children(files, "sweeps"):
        path = f"sweeps/{folder}/sweep.yaml"
        if not folder.startswith(f"{name}-") or not exists(files, path):
            continue
        if folder == sweep_id:
            return None
        info = files.get_file_info(path)
        try:
            values = yaml.safe_load(read_bytes(files, path))
        except (OSError, yaml.YAMLError):
            continue  # another sweep's file is no reason to stop
        if isinstance(values, Mapping) and values.get("name") == name:
            found.append(
                (
                    info.mtime_ns or 0,
                    folder,
                    {key: value for key, value in values.items() if key not in ("runs", "serve")},
                )
            )
    if not found:
        return None
    _, folder, values = max(found, key=lambda one: one[:2])
    return folder, dict(flatten(values))


def _text(values: Mapping[str, Any], key: str) -> str:
    return value_text(json.loads(json.dumps(values[key], default=str))) if key in values else "not there"
