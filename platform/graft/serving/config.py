"""A served application as a Serve config file names it: `import_path: graft.serving.config:application` and its `args`.

    serve deploy FILE ─► Ray builds `application(args)` on a node ─► the deployments that graft serve would start

What `graft serve` decides from the cluster as it is now stands in the file here, so that the same file always means the
same: how many CPUs a replica gets, which keys are accepted.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from ray import serve
from ray.serve.exceptions import RayServeException

from graft import runs
from graft.errors import GraftError, SpecError, suggest
from graft.hosted import Serving
from graft.results.files import read_table
from graft.results.records import METRICS
from graft.sections import Section
from graft.serving.application import build
from graft.serving.deployment import fixed_resources
from graft.serving.gate import Limits
from graft.serving.keys import read_keys
from graft.serving.layout import Layout, lay_out

IMPORT_PATH = "graft.serving.config:application"
"""What a Serve config file names to be given this application."""


class ServedRuns(Section):
    """The `args` of graft's application in a Serve config file."""

    runs: list[str] = Field(min_length=1)
    """run_ids or run folders."""
    aliases: dict[str, str] = Field({})
    """Names that clients may use, each for one of `runs`: a name stays when it moves to another run."""
    storage: str = "."
    """Folder or URI that holds `runs/`; a relative one counts from where Ray was started on the node."""
    api_keys: str
    """File that `graft keys new` has made, as the node that builds the application sees it."""
    serve: Serving = Serving()
    """What the models are given, as the section `serve` of each run's own spec where nothing else is said. A replica of
    which nothing is said gets one CPU, and a GPU where the cluster has any; an update needs as many again, until what
    is old has ended."""
    timeout_seconds: float = Field(Limits.seconds, gt=0)
    """From a request's first byte to its answer."""
    waiting_requests: int = Field(Limits.waiting_requests, ge=1)
    """Requests that are being answered or wait for it; more are refused with 429."""
    body_bytes: int = Field(Limits.body_bytes, ge=1)
    """Longest body; a longer one is refused with 413."""
    output_tokens: int = Field(Limits.output_tokens, ge=1)
    """Most tokens that a request may ask to be written, for each of its choices."""
    choices: int = Field(Limits.choices, ge=1)
    """Most answers to one prompt."""
    log_prompts: bool = Limits.log_prompts
    """Write what users send into the server's log; else nothing of it is."""

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        for place, name in enumerate(self.runs):
            if name in self.runs[:place]:
                raise ValueError(f"runs: {name!r} is named twice; once is enough")
        for alias, run in self.aliases.items():
            if run not in self.runs:
                raise ValueError(f"aliases.{alias}: {run!r} is not one of runs; {suggest(run, self.runs)}")
            if alias in self.runs:
                raise ValueError(f"aliases.{alias}: is the name of a run itself; choose another")
        return self

    def limits(self) -> Limits:
        """What one server takes on."""
        return Limits(
            body_bytes=self.body_bytes,
            waiting_requests=self.waiting_requests,
            seconds=self.timeout_seconds,
            output_tokens=self.output_tokens,
            choices=self.choices,
            log_prompts=self.log_prompts,
        )


def application(args: ServedRuns | Mapping[str, Any]) -> serve.Application:
    """The application that serves these runs; Ray calls it on a node of the cluster, with the `args` of the file.

    Args:
        args: a ServedRuns, or the mapping that becomes one. Were that its whole type, Ray would check it, and tell of
            a fault in five lines.

    Raises:
        RayServeException: a fault in the args, the runs or the keys. Ray shows the message of this one error as it is
            in `serve status`, and does not build again; of any other it shows a traceback, after three more tries.
    """
    try:
        served = args if isinstance(args, ServedRuns) else ServedRuns.from_mapping(args, "args")
        keys = read_keys(Path(served.api_keys).expanduser())
        layout = _lay_out(served)
        return build(layout, keys, served.limits(), fixed_resources(layout, 1.0, _gpus()))
    except GraftError as error:
        raise RayServeException(str(error).replace("--api-keys ", "args: api_keys: ")) from error


def _lay_out(served: ServedRuns) -> Layout:
    """The layout of the runs, each with its aliases.

    Raises:
        GraftError: a run is missing, damaged, or named by its id and by its folder.
    """
    found = {name: runs.open_run(name, served.storage) for name in served.runs}
    run_ids: dict[str, str] = {}
    for name, (files, folder) in found.items():
        run_id = read_table(files, f"{folder}/metrics.parquet", METRICS)["run_id"][0].as_py()
        other = next((other for other, known in run_ids.items() if known == run_id), None)
        if other is not None:
            raise SpecError(f"args: runs: {other!r} and {name!r} are the same run; name it once")
        run_ids[name] = run_id
    aliases: dict[str, list[str]] = {}
    for alias, name in served.aliases.items():
        if alias in run_ids.values():
            raise SpecError(f"args: aliases.{alias}: is the name of a run itself; choose another")
        aliases.setdefault(run_ids[name], []).append(alias)
    layout = lay_out(list(found.values()), served.serve.model_dump(exclude_unset=True))
    named = (dataclasses.replace(run, aliases=tuple(aliases.get(run.run_id, ()))) for run in layout.runs)
    return dataclasses.replace(layout, runs=tuple(named))


def _gpus() -> float:
    """Of a replica that may use one: one where the cluster has any."""
    import ray

    return 1.0 if ray.is_initialized() and ray.cluster_resources().get("GPU", 0.0) >= 1 else 0.0
