"""What a server counts and measures, for Prometheus: every node exports it, under these names with `ray_` before them.

| name | kind | of |
|---|---|---|
| graft_requests_total | counter | answers: `route`, `model`, `status` |
| graft_request_seconds | histogram | from the first byte to the answer: `route`, `model` |
| graft_tokens_total | counter | tokens: `model`, `kind` (prompt, completion) |
| graft_waiting_requests | gauge | requests that are being answered or wait for it |
| graft_batch_rows | histogram | rows that one call of a segment's nodes was given: `deployment`, `run` |
| graft_node_seconds | histogram | one call of a node: `deployment`, `node`, `run` |
| graft_running_texts | gauge | texts that are being generated: `deployment` |
| graft_waiting_texts | gauge | texts that wait for their turn: `deployment` |

measured (Ray 2.60): a histogram comes to Prometheus as counts per bucket, and its `_sum` as the middles of the buckets
added up. So a mean is as coarse as the buckets are, and these are fine where most answers fall.

Never a label: what a client has sent. A model that is not served and a route that does not exist count as one each,
or a stranger would fill Prometheus with names.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from time import perf_counter
from typing import Any, Literal

UNKNOWN = ""
"""The label of a model or route that is not one of ours."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True)
class Metric:
    """One name in Prometheus."""

    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


METRICS: Mapping[str, Metric] = {
    "graft_requests_total": Metric("counter", "Answers.", ("route", "model", "status")),
    "graft_request_seconds": Metric("histogram", "First byte to answer.", ("route", "model"), _SECONDS),
    "graft_tokens_total": Metric("counter", "Tokens read and written.", ("model", "kind")),
    "graft_waiting_requests": Metric("gauge", "Requests being answered or waiting for it."),
    "graft_batch_rows": Metric("histogram", "Rows of one call of a segment.", ("deployment", "run"), _ROWS),
    "graft_node_seconds": Metric("histogram", "One call of a node.", ("deployment", "node", "run"), _SECONDS),
    "graft_running_texts": Metric("gauge", "Texts being generated.", ("deployment",)),
    "graft_waiting_texts": Metric("gauge", "Texts waiting for their turn.", ("deployment",)),
}
"""Names in Prometheus, `ray_` left out."""


class Telemetry:
    """Where a process of the server tells what it does; outside a Ray process it tells nobody.

    Made wherever it is needed, and cheap: instruments are made once in a process, by the first that tells something.
    """

    def request(self, route: str, model: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the path as it is declared, never as it was sent; UNKNOWN where there is no such.
            model: run_id of the run that was asked; UNKNOWN where none was.
            status: of the answer.
            seconds: from its first byte to the answer's end.
        """
        _tell("graft_requests_total", 1, route=route, model=model, status=str(status))
        _tell("graft_request_seconds", seconds, route=route, model=model)

    def tokens(self, model: str, prompt: int, completion: int = 0) -> None:
        """Tokens that a run has read and written."""
        for kind, count in (("prompt", prompt), ("completion", completion)):
            if count > 0:  # a counter takes no zero
                _tell("graft_tokens_total", count, model=model, kind=kind)

    def waiting(self, requests: int) -> None:
        """Requests that are being answered or wait for it, in this process."""
        _tell("graft_waiting_requests", requests)

    def batch(self, deployment: str, run: str, rows: int) -> None:
        """Rows that the nodes of a segment are given in one call."""
        _tell("graft_batch_rows", rows, deployment=deployment, run=run)

    @contextmanager
    def node(self, deployment: str, node: str, run: str) -> Iterator[None]:
        """Measures one call of a node; one that fails is measured too.

        Args:
            deployment: that runs it.
            node: its place in the graph and its class: `1-classify`.
            run: its run_id.
        """
        start = perf_counter()
        try:
            yield
        finally:
            _tell("graft_node_seconds", perf_counter() - start, deployment=deployment, node=node, run=run)

    def texts(self, deployment: str, running: int, waiting: int) -> None:
        """Texts that a language model is generating, and that wait for their turn."""
        _tell("graft_running_texts", running, deployment=deployment)
        _tell("graft_waiting_texts", waiting, deployment=deployment)


def log_as_serve(log: logging.Logger) -> None:
    """In a replica only Ray Serve's own log goes to a file; have what this one tells there, off the terminal."""
    for handler in logging.getLogger("ray.serve").handlers:
        if isinstance(handler, MemoryHandler):  # Serve's way to its file; its other handler is the terminal
            log.addHandler(handler)
    if log.handlers and logging.lastResort is not None:
        log.setLevel(logging.INFO)
        log.addHandler(logging.lastResort)  # warnings are still said where the server was started


def _tell(name: str, value: float, **labels: str) -> None:
    instrument = _instruments().get(name)
    if instrument is None:
        return
    method = {"counter": "inc", "gauge": "set", "histogram": "observe"}[METRICS[name].kind]
    getattr(instrument, method)(value, tags=labels)


def _instruments() -> Mapping[str, Any]:
    """By name; none where Ray does not run, as in a test of the routes in one process."""
    import ray

    return _made() if ray.is_initialized() else {}


@functools.cache
def _made() -> Mapping[str, Any]:
    """Once per process: Ray keeps one series for each object, and two of a name would disturb each other."""
    from ray.util import metrics

    made: dict[str, Any] = {}
    for name, metric in METRICS.items():
        if metric.kind == "histogram":
            made[name] = metrics.Histogram(name, metric.says, boundaries=list(metric.bounds), tag_keys=metric.labels)
        else:
            kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
            made[name] = kind(name, metric.says, tag_keys=metric.labels)
    return made
