"""The args of a served application in a Serve config file, and what becomes of them; test_deploy.py deploys them."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException

from graft.errors import SpecError
from graft.serving import config
from graft.serving.config import ServedRuns, application
from graft.serving.keys import add_key

ARGS = {"runs": ["a", "b"], "api_keys": "keys.json"}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"run": ["a"]}, "args: unknown key 'run'; did you mean 'runs'?"),
        ({"runs": []}, "args: runs: List should have at least 1 item"),
        ({"runs": ["a", "b", "a"]}, "runs: 'a' is named twice"),
        ({"aliases": {"best": "c"}}, r"aliases\.best: 'c' is not one of runs; known: a, b"),
        ({"aliases": {"b": "a"}}, r"aliases\.b: is the name of a run itself"),
        ({"serve": {"cpus": -1}}, "args: serve.cpus: Input should be greater than or equal to 0; got -1"),
        ({"timeout_seconds": "soon"}, "args: timeout_seconds: Input should be a valid number.*got 'soon'"),
    ],
)
def test_a_fault_is_one_line_with_its_path(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        ServedRuns.from_mapping({**ARGS, **changed}, "args")
    assert len(str(caught.value).splitlines()) == 1


def test_the_keys_file_has_to_be_named() -> None:
    with pytest.raises(SpecError, match="args: api_keys: is missing"):
        ServedRuns.from_mapping({"runs": ["a"]}, "args")


@pytest.fixture
def args(storage: Path, run_ids: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    add_key(tmp_path / "keys.json", "test")
    runs = [run_ids["centroid"], str(storage / "runs" / run_ids["vectors"])]
    return {"runs": runs, "storage": str(storage), "api_keys": str(tmp_path / "keys.json"), "serve": {"gpus": 0}}


def test_an_alias_goes_with_its_run(args: dict[str, Any], run_ids: dict[str, str]) -> None:
    aliases = {"best": args["runs"][0], "cheap": args["runs"][1], "wine": args["runs"][1]}
    layout = config._lay_out(ServedRuns(**args, aliases=aliases))
    assert {run.run_id: run.names for run in layout.runs} == {
        run_ids["centroid"]: (run_ids["centroid"], "best"),
        run_ids["vectors"]: (run_ids["vectors"], "cheap", "wine"),
    }


def test_the_application_is_built_from_a_mapping_as_ray_gives_it(args: dict[str, Any]) -> None:
    plain = json.loads(json.dumps({**args, "serve": {"cpus": 0.5}, "timeout_seconds": 7}))
    for given in (plain, ServedRuns(**plain)):
        front = application(given)._bound_deployment
        assert front.name == "http"
        runs, _, limits, models, _ = front.init_args
        assert len(runs) == len(models) == 2
        assert limits.seconds == 7
        assert [model._bound_deployment.ray_actor_options["num_cpus"] for model in models.values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"api_keys": "/nowhere/keys.json"},
            "args: api_keys: /nowhere/keys.json: no such file; make one with graft keys",
        ),
        ({"runs": ["topics-0000000000"]}, "topics-0000000000: no finished run of this name"),
        ({"storage": "/nowhere"}, "no finished run of this name under /nowhere/runs"),
        ({"limit": 3}, "args: unknown key 'limit'"),
    ],
)
def test_what_is_wrong_is_all_that_serve_status_shows(
    args: dict[str, Any], changed: dict[str, Any], complaint: str
) -> None:
    """Ray shows the message of this one error alone, and a traceback of any other."""
    with pytest.raises(RayServeException) as caught:
        application({**args, **changed})
    assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_named_by_its_id_and_by_its_folder_is_refused(args: dict[str, Any], storage: Path) -> None:
    both = [args["runs"][0], str(storage / "runs" / args["runs"][0])]
    with pytest.raises(RayServeException, match="are the same run; name it once"):
        application({**args, "runs": both})


def test_an_alias_cannot_hide_a_run(args: dict[str, Any], run_ids: dict[str, str]) -> None:
    with pytest.raises(RayServeException, match="is the name of a run itself"):
        application({**args, "aliases": {run_ids["vectors"]: run_ids["centroid"]}})
