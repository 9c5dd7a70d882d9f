"""The process of one model: it answers rows with the nodes of every run that uses the model, and writes texts."""

import asyncio
import logging
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pyarrow as pa
from ray import serve

from graft import runs
from graft.errors import GraftError, SpecError
from graft.execution import run_node
from graft.graph import fit_nodes
from graft.hosted import Hosting
from graft.node import Context, Node, Trains
from graft.serving.batches import Batches
from graft.serving.engine import Engine
from graft.serving.passages import Passages
from graft.serving.shapes import Counted
from graft.serving.telemetry import Telemetry, log_as_serve
from graft.serving.wire import Examples, Pieces, Place, Reply, Segment, Work, Writing
from graft.tasks.dataset import beside
from graft.tasks.split import units

log = logging.getLogger(__name__)


class Loaded:
    """A run in memory, as far as this model has a part in it."""

    def __init__(self, place: Place) -> None:
        """Read the graph, and not yet any weights."""
        self.spec = runs.read_spec(place.files, place.folder)
        self.graph = runs.load_graph(place.files, place.folder)
        self.engine: Engine | None = None

    @property
    def answering(self) -> Any:
        """The last node."""
        return self.graph.nodes[-1]

    def count_tokens(self, work: Work) -> int:
        """Tokens of the request's inputs, as the first model of the run counts them; a row is counted once."""
        handle = next((handle for node in self.graph.nodes for handle in node.handles().values()), None)
        kind = self.spec.task.kind
        if work.segment.start or handle is None or handle.remote or kind not in ("text", "messages"):
            return 0
        values = [value for name in self.graph.inputs for value in work.rows[name].to_pylist()]
        if kind == "messages":
            # What stands beside a conversation is text.
            values = [
                text for one in values for text in ([one] if isinstance(one, str) else [t["content"] for t in one])
            ]
        return int(handle.count_tokens(values).sum())


class ModelReplica:
    """One model in memory, and the parts of runs that use it: adapters, bridges and fitted nodes.

    Parts are loaded when they are asked for, the least recently used ones go; the model itself stays.
    """

    def __init__(self, name: str, models: Sequence[str], hosting: Hosting, places: Sequence[Place]) -> None:
        """Load what these runs need of the models, as many as may be kept: a replica that is ready can answer.

        Args:
            name: of the deployment.
            models: fingerprints of what it holds.
            hosting: its limits.
            places: of the runs that use it; others may be asked for later.

        Raises:
            GraftError: a run or a model is damaged, or has changed.
        """
        self.name, self.models, self.hosting = name, sorted(models), hosting
        self.telemetry = Telemetry()
        log_as_serve(log)
        self.places: dict[str, Place] = {}
        self.engines: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
        self._telling = threading.Lock()
        self.making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.tasks: OrderedDict[tuple[str, int, str], tuple[list[Node], Examples]] = OrderedDict()
        self.held: dict[str, Any] = {}
        self._run = serve.multiplexed(max_num_models_per_replica=hosting.max_runs)(self._loader())
        self.batches = Batches(self._replies, hosting.max_batch_size, hosting.batch_wait_ms / 1000)
        self.begun = {place.run_id: self._load(place) for place in places[: hosting.max_runs]}

    async def ready(self) -> bool:
        """It answers."""
        return True

    async def answer(self, works: Sequence[Work]) -> list[Reply]:
        """The segments' columns for the rows, with whatever else is asked at that moment."""
        return list(await asyncio.gather(*map(self._answer, works)))

    async def _answer(self, work: Work) -> Reply:
        try:
            run = await self._loaded(work.place)
        except GraftError as error:
            return self._failed(work, error)
        return await self.batches.ask((run, work))

    async def write(self, writing: Writing) -> AsyncGenerator[Pieces]:
        """Texts, piece by piece as they come, or all at once at the end."""
        try:
            run = await self._loaded(writing.place)
            passages = Passages(run.answering, writing, await asyncio.to_thread(self._prompts, run, writing))
        except GraftError as error:
            yield self._refusal(writing, error)
            return
        try:
            async with aclosing(passages.pieces(await self._engine(run))) as pieces:
                async for found in pieces:
                    new = Counted(writing.manner.choices)
                    new.add(found)
                    self.telemetry.tokens(writing.place.run_id, new.prompt, new.written)
                    yield Pieces(tuple(found))
        except Exception as error:  # Serve would log its message
            yield self._refusal(writing, error)

    async def write_whole(self, writing: Writing) -> Pieces:
        """As `write`, of texts that are wanted whole: one message is cheaper than a stream of one."""
        async with aclosing(self.write(writing)) as messages:
            found = [message async for message in messages]
        return found[-1]

    def _loader(self) -> Any:
        """What loads a run by its id: Serve keeps as many as it may, and asks other replicas for others."""
        replica = weakref.ref(self)

        async def load(run_id: str) -> Loaded:
            mine = replica()
            assert mine is not None
            begun = mine.begun.pop(run_id, None)
            return begun if begun is not None else await asyncio.to_thread(mine._load, mine.places[run_id])

        return load

    async def _loaded(self, place: Place) -> Loaded:
        self.places[place.run_id] = place
        run: Loaded = await self._run(place.run_id)
        return run

    def _load(self, place: Place) -> Loaded:
        """A run with the weights that it has here in memory."""
        run = Loaded(place)
        for node in run.graph.nodes:
            if sorted(handle.fingerprint for handle in node.handles().values()) == self.models:
                # Whatever goes, the frozen model stays.
                self.held |= node.handles()
                node.warm()
        log.info("%s: loaded %s", self.name, place.run_id)
        return run

    async def _engine(self, run: Loaded) -> Engine:
        """What writes with the run's model, one for all runs that answer with the same."""
        if run.engine is None:
            speaker = run.answering.speaker
            async with self.making[speaker.fingerprint]:
                engine = self.engines.get(speaker.fingerprint)
                if engine is None:
                    # It looks at the network, whose lock may be held for as long as a batch takes.
                    engine = await asyncio.to_thread(Engine.of, speaker, self.hosting.max_batch_size, self._tell_texts)
                    self.engines[speaker.fingerprint] = engine
            run.engine = engine
        return run.engine

    @staticmethod
    def _prompts(run: Loaded, writing: Writing) -> list[str]:
        """What the model reads: the graph's own prompt of a row, or what was given verbatim."""
        if writing.rows is None:
            return list(writing.prompts)
        rows = writing.rows
        for node in run.graph.nodes[writing.segment.start : writing.segment.stop - 1]:
            rows = run_node(node, rows, store=None)
        prompts: list[str] = run.answering.prompts(run.answering.given(rows))
        return prompts

    async def _replies(self, asked: Sequence[tuple[Loaded, Work]]) -> list[Reply]:
        return await asyncio.to_thread(self._computed, asked)

    def _computed(self, asked: Sequence[tuple[Loaded, Work]]) -> list[Reply]:
        alike: dict[Any, list[int]] = {}
        for place, (_, work) in enumerate(asked):
            alike.setdefault(work.alike, []).append(place)
        replies = [Reply()] * len(asked)
        for places in alike.values():
            run, works = asked[places[0]][0], [asked[place][1] for place in places]
            for place, reply in zip(places, self._as_one(run, works), strict=True):
                replies[place] = reply
        return replies

    def _as_one(self, run: Loaded, works: list[Work]) -> list[Reply]:
        """Requests for the same segment as one table; each by itself where together they fail."""
        try:
            return self._answers(run, works)
        except Exception as error:
            if len(works) > 1:
                return [reply for work in works for reply in self._as_one(run, [work])]
            return [self._failed(works[0], error)]

    def _answers(self, run: Loaded, works: list[Work]) -> list[Reply]:
        first = works[0]
        nodes, examples = self._nodes(run, first)
        rows = pa.concat_tables([work.rows for work in works])
        self.telemetry.batch(self.name, first.place.run_id, rows.num_rows)
        ids = ", ".join(work.request_id for work in works)
        log.info("%s: %d rows of %s, requests %s", self.name, rows.num_rows, first.place.run_id, ids)
        for position, node in enumerate(nodes, first.segment.start):
            with self.telemetry.node(self.name, f"{position}-{type(node).__name__.lower()}", first.place.run_id):
                rows = run_node(node, rows, store=None)
            if first.column in node.writes:
                break
        kept = first.segment.keeps if first.column is None else (*first.segment.keeps, first.column)
        rows = rows.select([name for name in rows.column_names if name in kept])
        replies, start = [], 0
        for work in works:
            own = rows.slice(start, work.rows.num_rows)
            replies.append(Reply(own, run.count_tokens(work), examples=examples))
            start += work.rows.num_rows
        return replies

    def _nodes(self, run: Loaded, work: Work) -> tuple[Sequence[Node], Examples | None]:
        """The segment's nodes: those of the run, or fitted to the examples of the request, which are remembered."""
        own = run.graph.nodes[work.segment.start : work.segment.stop]
        if work.examples is None:
            return own, None
        key = (work.place.run_id, work.segment.start, work.examples.key)
        if key not in self.tasks:
            self.tasks[key] = self._fitted(run, own, work.segment, work.examples)
        self.tasks.move_to_end(key)
        while len(self.tasks) > self.hosting.max_tasks:
            self.tasks.popitem(last=False)
        return self.tasks[key]

    @staticmethod
    def _fitted(run: Loaded, own: Sequence[Node], segment: Segment, examples: Examples) -> tuple[list[Node], Examples]:
        inputs = tuple(name for name in run.graph.inputs if name not in beside(run.graph.inputs))
        known = units(examples.rows, inputs)
        context = Context(run.spec, examples.labels, train=_refuse_to_train, units=known)
        last = segment.stop == len(run.graph.nodes)
        nodes, rows = fit_nodes(own, examples.rows, context, last)
        return nodes, Examples(rows, examples.labels, examples.key)

    def _tell_texts(self) -> None:
        # Called in several threads: the last to tell has to be the last to count, and what is counted may change.
        with self._telling:
            engines = [engine for one in self.engines.valuerefs() if (engine := one()) is not None]
            self.telemetry.texts(
                self.name, sum(engine.running for engine in engines), sum(engine.waiting for engine in engines)
            )

    def _failed(self, work: Work, error: Exception) -> Reply:
        if isinstance(error, GraftError) and error.exit_code == 2:
            return Reply(refused=str(error))
        self._log(work.place, work.request_id, error)
        return Reply()

    def _refusal(self, writing: Writing, error: Exception) -> Pieces:
        if isinstance(error, GraftError) and error.exit_code == 2:
            return Pieces(refused=str(error))
        self._log(writing.place, writing.request_id, error)
        return Pieces(failed=True)

    def _log(self, place: Place, request_id: str, error: Exception) -> None:
        # Only its kind: the message may repeat what a user has sent.
        log.error("%s: %s failed, request %s: %s", self.name, place.run_id, request_id, type(error).__name__)


def _refuse_to_train(node: Trains, rows: pa.Table, more: pa.Table | None = None) -> Any:
    raise SpecError(
        f"examples: {node.describe()} learns by gradients, which a request does not wait for; leave examples null, or "
        "carry out a run with them"
    )
