"""The processes of a served graph: a deployment per model, and one that speaks HTTP and walks a row through them."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray import exceptions, serve

from graft import runs
from graft.errors import GraftError
from graft.execution import run_node
from graft.graph import Graph
from graft.serving import routes
from graft.serving.gate import Limits
from graft.serving.keys import Keys
from graft.serving.layout import Layout, ServedRun
from graft.serving.schemas import Refusal

log = logging.getLogger(__name__)

INGRESS = "http"
BATCH_REQUESTS = 16
BATCH_WAIT_SECONDS = 0.005
READY_SECONDS = 2.0
ATTEMPTS = 2
"""Answering changes nothing, so what a dying replica has not answered is asked again."""

GONE = (
    exceptions.RayActorError,
    serve.exceptions.DeploymentUnavailableError,
    serve.exceptions.ReplicaUnavailableError,
)


@dataclass(frozen=True)
class Work:
    """Rows for one segment of one run."""

    run_id: str
    segment: int
    rows: pa.Table


@dataclass(frozen=True)
class Reply:
    """What became of them."""

    rows: pa.Table | None = None
    prompt_tokens: int = 0
    refused: str = ""
    """Why the rows cannot be answered, for whoever sent them."""


class ModelReplica:
    """One model in memory, and the nodes of every run that use it."""

    def __init__(self, name: str, served: Sequence[ServedRun]) -> None:
        """Load the graphs and this deployment's own weights, so that a replica that is ready can answer.

        Raises:
            GraftError: a run or a model is damaged, or has changed.
        """
        self.served = {run.run_id: run for run in served if any(part.deployment == name for part in run.segments)}
        self.graphs = {run_id: runs.load_graph(run.files, run.folder) for run_id, run in self.served.items()}
        for run_id, run in self.served.items():
            for segment in run.segments:
                if segment.deployment == name:
                    for node in self.graphs[run_id].nodes[segment.start : segment.stop]:
                        node.warm()

    async def ready(self) -> bool:
        """It answers."""
        return True

    @serve.batch(max_batch_size=BATCH_REQUESTS, batch_wait_timeout_s=BATCH_WAIT_SECONDS)  # type: ignore[untyped-decorator]
    async def run(self, works: list[Work]) -> list[Reply]:
        """Answer requests that came together; in a thread, so that health checks are answered meanwhile."""
        return await asyncio.to_thread(self._run, works)

    def _run(self, works: list[Work]) -> list[Reply]:
        alike: dict[Any, list[int]] = {}
        for place, work in enumerate(works):
            alike.setdefault((work.run_id, work.segment, work.rows.schema), []).append(place)
        replies = [Reply()] * len(works)
        for places in alike.values():
            for place, reply in zip(places, self._together([works[place] for place in places]), strict=True):
                replies[place] = reply
        return replies

    def _together(self, works: list[Work]) -> list[Reply]:
        """Requests for the same segment as one table; each by itself where together they fail."""
        try:
            return self._answer(works)
        except Exception as error:
            if len(works) > 1:
                return [reply for work in works for reply in self._together([work])]
            if isinstance(error, GraftError) and error.exit_code == 2:
                return [Reply(refused=str(error))]
            # Only its kind: the message may repeat what a user has sent.
            log.error("%s: segment %d failed: %s", works[0].run_id, works[0].segment, type(error).__name__)
            return [Reply()]

    def _answer(self, works: list[Work]) -> list[Reply]:
        run, graph = self.served[works[0].run_id], self.graphs[works[0].run_id]
        segment = run.segments[works[0].segment]
        rows = pa.concat_tables([work.rows for work in works])
        for node in graph.nodes[segment.start : segment.stop]:
            rows = run_node(node, rows, store=None)
        rows = rows.select([name for name in rows.column_names if name in segment.keeps])
        replies, start = [], 0
        for work in works:
            own = rows.slice(start, work.rows.num_rows)
            replies.append(Reply(own, _count_tokens(graph, run, work)))
            start += work.rows.num_rows
        return replies


def _count_tokens(graph: Graph, run: ServedRun, work: Work) -> int:
    """Tokens of the request's inputs, as the first model of the run counts them; a row is counted once."""
    handle = next((handle for node in graph.nodes for handle in node.handles().values()), None)
    if work.segment or handle is None or handle.remote or run.kind == "vector":
        return 0
    values = [value for name in run.inputs for value in work.rows[name].to_pylist()]
    if run.kind == "messages":
        # What stands beside a conversation is text.
        values = [text for one in values for text in ([one] if isinstance(one, str) else [t["content"] for t in one])]
    return int(handle.count_tokens(values).sum())


@serve.ingress()
class Ingress:
    """HTTP in front of the models."""

    def __init__(self, served: Sequence[ServedRun], keys: Keys, limits: Limits, models: Mapping[str, Any]) -> None:
        """Take what is served, who may ask, and a handle per deployment."""
        self.served, self.keys, self.limits, self.models = served, keys, limits, models

    def __serve_build_asgi_app__(self) -> Any:
        """Serve asks for the application once this object exists, in its replica."""
        return routes.build(self.served, self.keys, self.limits, self)

    async def run(self, run: ServedRun, rows: pa.Table) -> tuple[pa.Table, int]:
        """Walk the rows through the run's segments; gives the answers and the tokens of the inputs."""
        tokens = 0
        for place, segment in enumerate(run.segments):
            reply = await self._ask(segment.deployment, Work(run.run_id, place, rows))
            if reply.refused:
                raise Refusal(422, reply.refused, "invalid_input", "input")
            if reply.rows is None:
                raise Refusal(500, f"{segment.deployment} failed on these rows; its log names the error", "internal")
            rows, tokens = reply.rows, tokens + reply.prompt_tokens
        return rows, tokens

    async def _ask(self, deployment: str, work: Work) -> Reply:
        for _ in range(ATTEMPTS):
            try:
                reply: Reply = await self.models[deployment].run.remote(work)
                return reply
            except GONE as error:
                log.warning("%s is gone: %s", deployment, type(error).__name__)
        message = f"{deployment} is being restarted; try again in a few seconds"
        raise Refusal(503, message, "unavailable", headers={"Retry-After": "5"})

    async def not_ready(self) -> list[str]:
        """Names of deployments that do not answer in time."""
        answers = await asyncio.gather(*(self._answers(handle) for handle in self.models.values()))
        return [name for name, fine in zip(self.models, answers, strict=True) if not fine]

    async def _answers(self, handle: Any) -> bool:
        try:
            async with asyncio.timeout(READY_SECONDS):
                return bool(await handle.ready.remote())
        except (TimeoutError, *GONE):
            return False


def build(layout: Layout, keys: Keys, limits: Limits, resources: Mapping[str, dict[str, float]]) -> serve.Application:
    """The application to deploy.

    Args:
        layout: what is served.
        keys: hashes of the keys that are accepted.
        limits: of the HTTP interface.
        resources: `num_cpus` and `num_gpus` of each deployment.
    """
    shared = {
        # A model that dies while loading would die again: once is enough to say so.
        "max_constructor_retry_count": 1,
        "health_check_period_s": 5,
        # An update starts what is new beside what is old, which ends once it has answered all it was asked.
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": limits.seconds,
        "graceful_shutdown_wait_loop_s": 0.2,
        # The gate keeps the queue short; readiness is asked beside it.
        "max_ongoing_requests": 2 * limits.waiting_requests,
    }
    models = {
        name: serve.deployment(ModelReplica, name=name, ray_actor_options=resources[name], **shared).bind(
            name, layout.runs
        )
        for name in layout.devices
    }
    front = serve.deployment(Ingress, name=INGRESS, ray_actor_options={"num_cpus": 0}, **shared)
    return front.bind(layout.runs, keys, limits, models)
