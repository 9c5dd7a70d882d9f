"""What a server tells Prometheus, and the dashboard that asks for it; test_deploy.py reads it from a real node."""

import ast
import asyncio
import json
import re
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as fs
import pytest

import graft.models
from graft.hosted import Hosting
from graft.models.asked import Piece
from graft.serving import telemetry
from graft.serving.replica import ModelReplica
from graft.serving.telemetry import METRICS, Telemetry
from graft.serving.wire import Manner, Place, Segment, Writing

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "serve" / "grafana.json").read_text())
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
"""What Prometheus makes of a metric."""

QUERY = re.compile(r"\bray_(\w+?)(_bucket|_sum|_count)?(?![\w])(?:\{(.*?)\})?")


class Instrument:
    """What Ray's would be told."""

    def __init__(self, told: list[Any], name: str) -> None:
        self.told, self.name = told, name

    def __getattr__(self, method: str) -> Any:
        return lambda value, tags: self.told.append((self.name, method, value, tags))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    told: list[Any] = []
    instruments = {name: Instrument(told, name) for name in METRICS}
    monkeypatch.setattr(telemetry, "_instruments", lambda: instruments)
    return told


def tell_everything() -> None:
    tell = Telemetry()
    tell.request("/v1/classify", "run", 200, 0.25)
    tell.tokens("run", 3, 2)
    tell.waiting(4)
    tell.batch("embed", "run", 16)
    with tell.node("embed", "0-embed", "run"):
        pass
    tell.texts("complete", 2, 5)


def test_every_metric_is_told_with_just_its_labels(told: list[Any]) -> None:
    tell_everything()
    assert {name for name, *_ in told} == set(METRICS)
    methods = {"counter": "inc", "gauge": "set", "histogram": "observe"}
    for name, method, _, tags in told:
        assert method == methods[METRICS[name].kind]
        assert set(tags) == set(METRICS[name].labels)
        assert all(isinstance(value, str) for value in tags.values())
    assert ("graft_requests_total", "inc", 1, {"route": "/v1/classify", "model": "run", "status": "200"}) in told


def test_a_counter_is_never_told_of_nothing(told: list[Any]) -> None:
    Telemetry().tokens("run", 0, 0)
    assert told == []


def test_a_node_that_fails_is_measured_and_still_fails(told: list[Any]) -> None:
    with pytest.raises(ValueError, match="mine"), Telemetry().node("embed", "0-embed", "run"):
        raise ValueError("mine")
    assert [name for name, *_ in told] == ["graft_node_seconds"]


def gauges(told: list[Any]) -> list[tuple[int, int]]:
    """Texts that were running and waiting, each time that was told."""
    running, waiting = ([one[2] for one in told if one[0] == f"graft_{kind}_texts"] for kind in ("running", "waiting"))
    return list(zip(running, waiting, strict=True))


@pytest.mark.parametrize("how", ["whole", "left", "refused"])
def test_texts_are_told_of_from_their_beginning_to_their_end(told: list[Any], tiny_llama: Path, how: str) -> None:
    model = graft.models.load(str(tiny_llama))
    node = SimpleNamespace(speaker=model, verbatim=str, max_new_tokens=300 if how == "refused" else 60)
    place = Place("run", fs.SubTreeFileSystem("/", fs.LocalFileSystem()), "run")

    async def loaded(_run_id: str) -> Any:
        return run

    async def work() -> None:
        replica = ModelReplica("d", [], Hosting(), [])
        replica._run = loaded  # Serve's own asks other processes
        writing = Writing(place, Segment("d", 0, 1, ()), Manner(choices=2, whole=how == "whole"), ("The cat", "It"))
        async with aclosing(replica.write(writing)) as messages:
            async for message in messages:
                assert bool(message.refused) == (how == "refused")
                pieces.extend(piece for _, piece in message.items)
                if how == "left":
                    break

    run, pieces = SimpleNamespace(answering=node, engine=None), list[Piece]()
    asyncio.run(work())
    found = gauges(told)
    assert any(waiting for _, waiting in found)
    assert any(running for running, _ in found) == (how != "refused")
    assert found[-1] == (0, 0)
    read, written = (
        sum(one[2] for one in told if one[0] == "graft_tokens_total" and one[3]["kind"] == kind)
        for kind in ("prompt", "completion")
    )
    if how == "whole":  # each prompt is counted once, whatever follows it
        assert read == sum(map(len, model.rows_to_write(["The cat", "It"], 60)))
        assert written == sum(piece.tokens for piece in pieces) > 0


def test_without_ray_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    tell_everything()


def test_the_module_says_what_it_counts() -> None:
    text = ast.get_docstring(ast.parse(Path(telemetry.__file__).read_text())) or ""
    rows = dict(re.findall(r"^\| (graft_\w+) \| (\w+) \|", text, re.MULTILINE))
    assert rows == {name: metric.kind for name, metric in METRICS.items()}
    for name, metric in METRICS.items():
        line = next(line for line in text.splitlines() if f"| {name} |" in line)
        assert set(re.findall(r"`(\w+)`", line)) == set(metric.labels)


def expressions() -> list[str]:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*queries, *(v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query")]


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_asks_for_what_there_is(expression: str) -> None:
    found = QUERY.findall(expression)
    assert found
    for name, suffix, selector in found:
        metric = METRICS[name]
        assert suffix in SUFFIXES[metric.kind], f"{name}{suffix}"
        assert set(re.findall(r'(\w+)[=!]~?"', selector)) <= set(metric.labels)
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    labels = {label for name, *_ in found for label in METRICS[name].labels}
    assert grouped - {"le"} <= labels
    assert expression.count("(") == expression.count(")")
    # A rate of a gauge and a plain counter both mean nothing.
    for name, _, _ in found:
        assert ("rate(ray_" in expression or "label_values(" in expression) == (METRICS[name].kind != "gauge")


def test_the_dashboard_shows_everything_and_can_be_imported() -> None:
    asked = {name for expression in expressions() for name, *_ in QUERY.findall(expression)}
    assert asked == set(METRICS)
    assert DASHBOARD["uid"] == "graft-serving"
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["id"] is None  # a number would replace another dashboard
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}", "whatever the reader's Prometheus is called"
        legends = {label for target in panel["targets"] for label in re.findall(r"{{(\w+)}}", target["legendFormat"])}
        grouped = {
            g.strip() for t in panel["targets"] for b in re.findall(r"by \(([^)]*)\)", t["expr"]) for g in b.split(",")
        }
        assert legends <= grouped


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
