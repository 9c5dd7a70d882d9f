"""Serve config files: every key that Ray has passes, every other is named with the one that was meant."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from graft import cli
from graft.errors import SpecError
from graft.serving.checking import check_serve_config

ROOT = Path(__file__).resolve().parents[2]
POLICY = "ray.serve.autoscaling_policy:default_autoscaling_policy"
FINE: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "http_options": {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 65},
    "grpc_options": {"port": 9000},
    "logging_config": {"log_level": "INFO"},
    "applications": [
        {
            "name": "graft",
            "import_path": "graft.serving.config:application",
            "runtime_env": {"env_vars": {"ANY_NAME": "1"}},
            "args": {"runs": ["a"], "storage": "/shared", "api_keys": "/etc/keys.json"},
            "deployments": [
                {
                    "name": "http",
                    "num_replicas": "auto",
                    "user_config": {"any": "thing"},
                    "autoscaling_config": {"min_replicas": 1, "policy": {"policy_function": POLICY}},
                    "ray_actor_options": {"num_cpus": 1, "resources": {"of_mine": 1}, "runtime_env": {}},
                    "request_router_config": {"request_router_kwargs": {"any": 1}},
                    "backpressure_config": {"status_code": 429},
                }
            ],
        },
        {"name": "other", "import_path": "theirs:app", "route_prefix": "/other", "args": {"whatever": 1}},
    ],
}


def check(tmp_path: Path, config: Any) -> Any:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    return check_serve_config(file)


def changed(place: str, value: Any) -> Any:
    """FINE with a value at a dotted place; None takes the key away."""
    config = copy.deepcopy(FINE)
    *way, last = place.split(".")
    at = config
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return config


def test_what_ray_has_is_fine_and_shown(tmp_path: Path) -> None:
    checked = check(tmp_path, FINE)
    assert checked.warnings == ()
    text = "\n".join(checked.lines())
    for part in ("http://127.0.0.1:8000 on the head node", "graft.serving.config:application at /", "model    a"):
        assert part in text
    assert set(checked.served) == {"graft"}


D = "applications.0.deployments.0"


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("proxy_locatio", "HeadOnly", "proxy_locatio: unknown key; did you mean 'proxy_location'?"),
        ("http_options.prot", 8001, "http_options.prot: unknown key; did you mean 'port'?"),
        ("grpc_options.prt", 1, "grpc_options.prt: unknown key; did you mean 'port'?"),
        ("logging_config.log_levl", "INFO", "logging_config.log_levl: unknown key; did you mean 'log_level'?"),
        ("applications.0.route_prefx", "/", "applications.0.route_prefx: unknown key; did you mean 'route_prefix'?"),
        ("applications.1.arg", {}, "applications.1.arg: unknown key; did you mean 'args'?"),
        ("applications.0.runtime_env.env_var", {}, "runtime_env.env_var: unknown key; did you mean 'env_vars'?"),
        (f"{D}.num_replica", 2, f"{D}.num_replica: unknown key; did you mean 'num_replicas'?"),
        (f"{D}.ray_actor_options.num_cpu", 2, "ray_actor_options.num_cpu: unknown key; did you mean 'num_cpus'?"),
        (f"{D}.ray_actor_options.runtime_env.pipp", [], "runtime_env.pipp: unknown key; did you mean 'pip'?"),
        (f"{D}.autoscaling_config.min_replica", 1, "autoscaling_config.min_replica: unknown key; did you mean 'min"),
        (f"{D}.autoscaling_config.policy.function", "a:b", "policy.function: unknown key; did you mean 'policy_fun"),
        (f"{D}.request_router_config.backof", 1, "request_router_config.backof: unknown key"),
        (f"{D}.backpressure_config.status_cod", 1, "config.status_cod: unknown key; did you mean 'status_code'?"),
        (f"{D}.max_surge_percent", 200, f"{D}.max_surge_percent: Input should be less than or equal to 100; got 200"),
        (f"{D}.autoscaling_config.min_replicas", -1, "autoscaling_config.min_replicas: Input should be greater than"),
        ("http_options.request_timeout_s", "soon", "http_options.request_timeout_s: Input should be a valid number"),
        ("applications.0.args.alias", {}, "applications.0.args: unknown key 'alias'; did you mean 'aliases'?"),
        ("applications.0.args.api_keys", None, "applications.0.args: api_keys: is missing"),
        ("applications.0.import_path", "graft.serving.config:app", "did you mean 'graft.serving.config:application'?"),
        ("applications.1.name", "graft", "Found multiple configs for application"),
        (
            f"{D}.autoscaling_config.policy",
            {"policy_function": "no.such:f"},
            "cannot be imported here: No module named",
        ),
        ("applications", None, "applications: is missing"),
        ("applications", {}, "applications: Input should be a valid list"),
        ("http_options", "8000", "http_options: "),
    ],
)
def test_a_fault_is_named_by_its_path(tmp_path: Path, place: str, value: Any, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        check(tmp_path, changed(place, value))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(tmp_path / "serve.yaml: "))
    assert complaint in line


@pytest.mark.parametrize("place", ["proxy_locatio", "http_options.prot", f"{D}.num_replica"])
def test_ray_itself_takes_what_is_misspelt(place: str) -> None:
    """Why this check is there; once Ray refuses too, less of it is needed."""
    ServeDeploySchema.model_validate(changed(place, 1))


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    config = changed("http_options.prot", 1)
    config["applications"][0]["args"] = {"run": []}
    config["grpc_options"] = {"port": "x"}
    with pytest.raises(SpecError) as caught:
        check(tmp_path, config)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("place", "value", "warning"),
    [
        ("http_options.host", "0.0.0.0", "keys travel in clear"),
        ("http_options.host", None, "keys travel in clear"),  # Ray's own default
        ("proxy_location", "EveryNode", "listens on every node"),
        ("proxy_location", None, "listens on every node"),
        ("http_options.request_timeout_s", None, "request_timeout_s: none; give more"),
        ("http_options.request_timeout_s", 30, "request_timeout_s: 30.0; give more"),
        ("applications.0.args.storage", "runs", "'runs' counts from where Ray was started"),
        ("applications.0.args.api_keys", "keys.json", "'keys.json' counts from where Ray was started"),
    ],
)
def test_what_is_rarely_meant_is_a_warning(tmp_path: Path, place: str, value: Any, warning: str) -> None:
    (found,) = check(tmp_path, changed(place, value)).warnings
    assert warning in found


def test_a_rayservice_is_checked_by_the_text_that_it_holds(tmp_path: Path) -> None:
    inner = changed("http_options.host", "0.0.0.0")
    service = {"kind": "RayService", "spec": {"serveConfigV2": yaml.safe_dump(inner)}}
    assert check(tmp_path, service).warnings == ()
    inner["http_options"]["prot"] = 1
    service["spec"]["serveConfigV2"] = yaml.safe_dump(inner)
    with pytest.raises(SpecError, match=r"serve\.yaml: spec\.serveConfigV2: http_options\.prot: unknown key"):
        check(tmp_path, service)
    for text, complaint in ((None, "is missing"), ("{", "not valid YAML"), ("- 1", "is a mapping; got list")):
        service["spec"]["serveConfigV2"] = text
        with pytest.raises(SpecError, match=complaint):
            check(tmp_path, service)


def test_the_command_line_tells_a_serve_config_from_a_spec(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(changed("proxy_location", "EveryNode")))
    assert cli.carry_out(["validate", str(file)]) == 0
    out, err = capfd.readouterr()
    assert out.endswith(f"{file} is valid\n")
    assert "model    a" in out
    assert err.startswith("warning: proxy_location: EveryNode")
    file.write_text(yaml.safe_dump(changed("http_options.prot", 1)))
    assert cli.carry_out(["validate", str(file)]) == 2
    assert "unknown key; did you mean 'port'?" in capfd.readouterr().err


def test_the_file_that_is_shipped_is_valid() -> None:
    checked = check_serve_config(ROOT / "cluster" / "serve" / "graft.yaml")
    assert checked.warnings == ()
    assert set(checked.served) == {"graft"}
