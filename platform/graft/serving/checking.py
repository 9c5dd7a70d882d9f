"""A Serve config file, checked before it is sent: `graft validate FILE`.

Ray takes a file whose keys are misspelt and ignores them (measured with 2.60: at every level but two), so a limit that
was meant is not there. Here every key must be one that Ray has, every value one that Ray takes, and the `args` of
graft's own applications what `graft.serving.config.ServedRuns` says. Nothing is deployed, no run is opened: the
storage may be one that only the cluster sees.
"""

import functools
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve import schema
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from graft.errors import SpecError, suggest
from graft.sections import describe
from graft.serving.config import IMPORT_PATH, ServedRuns
from graft.specfile import read_yaml

KUBERAY = "RayService"
"""Kind of the Kubernetes object that holds such a config as text, in `spec.serveConfigV2`."""

FREE = ("args", "user_config", "env_vars", "resources", "label_selector", "policy_kwargs", "request_router_kwargs")
"""Mappings whose keys are their writer's own."""

OPEN = ("0.0.0.0", "::")
"""Every address of a machine."""


@dataclass(frozen=True)
class CheckedConfig:
    """A Serve config that Ray takes and means as it is written."""

    schema: schema.ServeDeploySchema
    served: Mapping[str, ServedRuns]
    """Name of each of graft's applications to its `args`."""
    warnings: tuple[str, ...]
    """What is allowed, and rarely meant."""

    def lines(self) -> list[str]:
        """For the terminal: what will be deployed."""
        http = self.schema.http_options
        scheme = "https" if http.ssl_certfile else "http"
        lines = [f"listens    {scheme}://{http.host}:{http.port} on {_WHERE[self.schema.proxy_location.value]}"]
        for app in self.schema.applications:
            lines.append(f"{app.name:<10} {app.import_path} at {app.route_prefix}")
            served = self.served.get(app.name)
            lines += [f"  model    {run}{_also(served, run)}" for run in served.runs] if served else []
            lines += [f"  storage  {served.storage}, keys {served.api_keys}"] if served else []
        return lines


_WHERE = {"HeadOnly": "the head node", "EveryNode": "every node with a replica", "Disabled": "no node"}


def _also(served: ServedRuns, run: str) -> str:
    aliases = [alias for alias, target in served.aliases.items() if target == run]
    return f", also {', '.join(aliases)}" if aliases else ""


def check_serve_config(path: str | Path) -> CheckedConfig:
    """Read and check a Serve config file, or the `serveConfigV2` of a KubeRay RayService.

    Raises:
        SpecError: it cannot be read, or is not what Ray or graft takes; one line per fault, each with its full path.
    """
    values, origin = read_yaml(path), str(path)
    guarded = values.get("kind") == KUBERAY
    if guarded:
        values, origin = _from_rayservice(values, origin), f"{origin}: spec.serveConfigV2"
    faults = list(_misspelt(values, schema.ServeDeploySchema, ""))
    checked = None
    try:
        checked = schema.ServeDeploySchema.model_validate(values)
    except ValidationError as error:
        # An unknown key is named above, with the one that was meant.
        wrong = [dict(fault) for fault in error.errors() if fault["type"] != "extra_forbidden"]
        faults += [describe("", fault).removeprefix(": ") for fault in wrong]
    except ImportError as error:
        # Of policies and routers: Ray's own command line looks for them too, before it sends the file.
        faults.append(f"a function or class that it names cannot be imported here: {error}")
    served: dict[str, ServedRuns] = {}
    apps = values.get("applications")
    for place, app in enumerate(apps if isinstance(apps, list) else ()):
        faults += _check_application(app, f"applications.{place}", served)
    if faults or checked is None:
        raise SpecError("\n".join(f"{origin}: {fault}" for fault in faults))
    return CheckedConfig(checked, served, tuple(_warnings(checked, served, guarded)))


def _from_rayservice(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    spec = values.get("spec")
    text = spec.get("serveConfigV2") if isinstance(spec, Mapping) else None
    if not isinstance(text, str):
        raise SpecError(f"{origin}: spec.serveConfigV2 is missing; write the Serve config there, as text: |")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{origin}: spec.serveConfigV2: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise SpecError(f"{origin}: spec.serveConfigV2: a Serve config is a mapping; got {type(config).__name__}")
    return config


def _misspelt(values: Any, model: type[BaseModel] | None, path: str) -> Iterator[str]:
    """Keys that Ray does not have, at every level; `model` is what Ray reads there, None where keys are free."""
    if isinstance(values, list):
        for place, value in enumerate(values):
            yield from _misspelt(value, model, f"{path}{place}.")
    if not isinstance(values, Mapping) or model is None:
        return
    known = [name for name in model.model_fields if not name.startswith("_")]
    for key, value in values.items():
        if key not in known:
            yield f"{path}{key}: unknown key; {suggest(str(key), known)}"
        elif key == "runtime_env":
            yield from _misspelt_environment(value, f"{path}{key}.")
        elif key not in FREE:
            yield from _misspelt(value, _model_of(model, key), f"{path}{key}.")
            if key == "autoscaling_config" and isinstance(value, Mapping):
                yield from _wrong(value, AutoscalingConfig, f"{path}{key}")


def _wrong(values: Mapping[str, Any], model: type[BaseModel], path: str) -> Iterator[str]:
    """Values that Ray itself would read only when it deploys; what they import is looked for with all the rest."""
    try:
        model.model_validate({key: value for key, value in values.items() if key != "policy"})
    except ValidationError as error:
        yield from (f"{path}.{describe('', fault).removeprefix(': ')}" for fault in error.errors())


def _misspelt_environment(values: Any, path: str) -> Iterator[str]:
    """Keys of a `runtime_env`: they are no model of pydantic's."""
    known = [name for name in RuntimeEnv.known_fields if not name.startswith("_")]
    for key in values if isinstance(values, Mapping) else ():
        if key not in known:
            yield f"{path}{key}: unknown key; {suggest(str(key), known)}"


@functools.cache
def _model_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """What Ray reads under a key: the model in the field's type, however deep in unions and lists."""
    # The only mappings that Ray makes a model of later than when it reads the file.
    if key in ("policy", "autoscaling_policy"):
        return AutoscalingPolicy

    def inside(kind: Any) -> Iterator[type[BaseModel]]:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
        for argument in typing.get_args(kind):
            yield from inside(argument)

    return next(inside(model.model_fields[key].annotation), None)


def _check_application(app: Any, path: str, served: dict[str, ServedRuns]) -> Iterator[str]:
    """Faults of one application of graft's; of others only Ray knows what they take."""
    given = app.get("import_path") if isinstance(app, Mapping) else None
    if not isinstance(given, str) or re.split(r"[.:]", given)[0] != "graft":
        return
    if given.replace(":", ".") != IMPORT_PATH.replace(":", "."):
        yield f"{path}.import_path: no application is at {given!r}; did you mean {IMPORT_PATH!r}?"
        return
    args = app.get("args")
    try:
        served[str(app.get("name", schema.SERVE_DEFAULT_APP_NAME))] = ServedRuns.from_mapping(
            args or {}, f"{path}.args"
        )
    except SpecError as error:
        yield from str(error).splitlines()


def _warnings(config: schema.ServeDeploySchema, served: Mapping[str, ServedRuns], guarded: bool) -> Iterator[str]:
    """What Ray allows and rarely anyone means.

    Args:
        config: the whole file.
        served: graft's applications.
        guarded: it runs in pods: who reaches them is a NetworkPolicy's to say, and each must answer its probe.
    """
    http = config.http_options
    if not guarded and http.host in OPEN and not http.ssl_certfile:
        yield (
            f"http_options.host: {http.host} answers every network of the machine, and keys travel in clear; give "
            "127.0.0.1, or ssl_certfile and ssl_keyfile"
        )
    if not guarded and config.proxy_location.value == "EveryNode":
        yield "proxy_location: EveryNode listens on every node with a replica; give HeadOnly unless a balancer needs it"
    longest = max((one.timeout_seconds for one in served.values()), default=None)
    if longest is not None and (http.request_timeout_s is None or http.request_timeout_s <= longest):
        yield (
            f"http_options.request_timeout_s: {http.request_timeout_s or 'none'}; give more than the application's own "
            f"timeout_seconds ({longest:g}), so that its answer comes first and a replica that died is not waited for"
        )
    for name, one in served.items():
        for key, where in (("storage", one.storage), ("api_keys", one.api_keys)):
            if "://" not in where and not Path(where).expanduser().is_absolute():
                yield f"{name}: args.{key}: {where!r} counts from where Ray was started on a node; give a full path"
