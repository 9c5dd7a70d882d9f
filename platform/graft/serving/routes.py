"""The HTTP interface of served runs; it follows OpenAI's where that has a shape for it."""

import base64
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from graft.arrays import matrix
from graft.errors import DataError, suggest
from graft.serving import texts
from graft.serving.asking import Models
from graft.serving.gate import Gate, Limits, answer
from graft.serving.keys import Keys
from graft.serving.layout import ServedRun
from graft.serving.picture import picture
from graft.serving.questions import example_table, question_table
from graft.serving.schemas import (
    MAX_INPUTS,
    Answer,
    ClassifyRequest,
    ClassifyResponse,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    Refusal,
    Usage,
)
from graft.serving.text_schemas import ChatRequest, CompletionRequest
from graft.serving.wire import Examples

SVG = "image/svg+xml"


def build(runs: Sequence[ServedRun], keys: Keys, limits: Limits, models: Models) -> FastAPI:
    """The application that answers for these runs."""
    app = FastAPI(title="graft", version=version("graft-compose"), redoc_url=None)
    app.add_middleware(Gate, keys=keys, limits=limits)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_routed)
    known = {name: run for run in runs for name in run.names}
    _add_looking(app, runs, known, models)
    _add_asking(app, known, limits, models)
    return app


def _add_looking(app: FastAPI, runs: Sequence[ServedRun], known: Mapping[str, ServedRun], models: Models) -> None:
    """Routes that say what there is."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The server is alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Every deployment answers."""
        if missing := await models.not_ready():
            raise Refusal(503, f"not ready: {', '.join(missing)}", "not_ready", headers={"Retry-After": "1"})
        return {"status": "ready"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """The runs that are served, by every name that they may be asked by."""
        return {"object": "list", "data": [_model(name, run) for name, run in known.items()]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str, request: Request) -> dict[str, Any]:
        """One of them."""
        return _model(name, _find(known, name, request))

    listed = graphs(runs)

    @app.get("/v1/graph", response_model=None, responses={200: {"content": {SVG: {}}}})
    async def show_graphs(request: Request, format: Literal["json", "svg"] | None = None) -> dict[str, Any] | Response:
        """The nodes of every run and their deployments; a picture where `format` is svg, or a browser asks for one."""
        accepted = request.headers.get("accept", "")
        asked = format or ("svg" if SVG in accepted or "text/html" in accepted else "json")
        return Response(picture(listed), media_type=SVG) if asked == "svg" else {"object": "list", "data": listed}


def _add_asking(app: FastAPI, known: Mapping[str, ServedRun], limits: Limits, models: Models) -> None:
    """Routes that ask the models."""

    @app.post("/v1/classify")
    async def classify(asked: ClassifyRequest, request: Request) -> ClassifyResponse:
        """Label rows, with a probability for every label."""
        run = _find(known, asked.model, request)
        if not run.classifies:
            message = f"model: {run.run_id} answers with free text, it has no labels; ask it by /v1/chat/completions"
            raise Refusal(400, message, "no_labels", "model")
        examples = _examples(run, asked)
        rows = _rows(asked.input, run)
        answers, tokens = await models.run(run, rows, examples=examples, request_id=_request_id(request))
        texts.spend(request, tokens)
        return ClassifyResponse(model=run.run_id, data=_answers(answers), usage=Usage.of(tokens))

    @app.post("/v1/embeddings")
    async def embeddings(asked: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        """Vectors of rows, as the run's encoder gives them to what comes after it."""
        run = _find(known, asked.model, request)
        if run.embeds is None:
            raise Refusal(400, f"model: {run.run_id} has no node that embeds", "no_embedding", "model")
        items = asked.input if isinstance(asked.input, list) else [asked.input]
        if not 1 <= len(items) <= MAX_INPUTS:
            raise Refusal(422, f"input: got {len(items)} rows; give 1 to {MAX_INPUTS}", "too_large", "input")
        found, tokens = await models.run(
            run, _rows(items, run), column="embedding", segments=run.embeds + 1, request_id=_request_id(request)
        )
        texts.spend(request, tokens)
        vectors = matrix(found["embedding"]).astype("<f4")
        data = [Embedding(index=at, embedding=_vector(one, asked)) for at, one in enumerate(vectors)]
        return EmbeddingsResponse(model=run.run_id, data=data, usage=Usage.of(tokens))

    # What these two answer is in OpenAI's own documentation.
    @app.post("/v1/completions", response_model=None)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Texts that follow prompts, written by the run's answering model."""
        return await texts.complete(_find(known, asked.model, request), asked, models, limits, request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """The whole graph's answer to a row, as the answer to a message."""
        return await texts.chat(_find(known, asked.model, request), asked, models, limits, request)


def graphs(runs: Sequence[ServedRun]) -> list[dict[str, Any]]:
    """What `GET /v1/graph` lists, and `picture` draws."""
    return [
        {"model": run.run_id, "aliases": run.aliases, "inputs": run.inputs, "kind": run.kind, "nodes": run.nodes}
        for run in runs
    ]


def _model(name: str, run: ServedRun) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": run.created, "owned_by": "graft", "root": run.run_id}


def _find(known: Mapping[str, ServedRun], name: str, request: Request) -> ServedRun:
    run = known.get(name)
    if run is None:
        message = f"model: no run {name[:100]!r} is served here; {suggest(name[:100], known)}"
        raise Refusal(404, message, "model_not_found", "model")
    request.state.model = run.run_id
    return run


def _request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def _rows(items: Sequence[Any], run: ServedRun) -> pa.Table:
    try:
        return question_table(items, run.inputs, run.kind)
    except DataError as error:
        raise Refusal(422, str(error), "invalid_input", "input") from error


def _examples(run: ServedRun, asked: ClassifyRequest) -> Examples | None:
    if asked.examples is None:
        return None
    if run.learns:
        message = (
            f"examples: {run.run_id} learned from its own by gradients, which a request does not wait for; leave them "
            "out, or ask a run of probe, tart or icl"
        )
        raise Refusal(422, message, "not_supported", "examples")
    labels = [one.label for one in asked.examples]
    if len(set(labels)) < 2:
        raise Refusal(
            422, "examples: have one label only; give at least two to tell apart", "invalid_input", "examples"
        )
    try:
        return Examples.of(example_table([one.input for one in asked.examples], labels, run.inputs, run.kind))
    except DataError as error:
        raise Refusal(422, str(error), "invalid_input", "examples") from error


def _vector(numbers: np.ndarray, asked: EmbeddingsRequest) -> list[float] | str:
    if asked.encoding_format == "base64":
        return base64.b64encode(numbers.tobytes()).decode()
    return [float(number) for number in numbers]


def _answers(table: pa.Table) -> list[Answer]:
    """Labels and probabilities; the graph gives natural logarithms."""
    pairs = zip(table["prediction"].to_pylist(), table["scores"].to_pylist(), strict=True)
    return [
        Answer(index=place, label=label, scores={name: math.exp(score) for name, score in scores.items()})
        for place, (label, scores) in enumerate(pairs)
    ]


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return answer(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first fault by its path; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    # Of what may be a text or a list, the fault that goes deepest says what is wrong with what was sent.
    fault = max((one for one in faults if one["loc"][:2] == faults[0]["loc"][:2]), key=lambda one: len(one["loc"]))
    if fault["type"] == "json_invalid":
        return answer(Refusal(400, "the body is not valid JSON", "invalid_json"))
    path = ".".join(str(part) for part in fault["loc"][1:] if isinstance(part, int) or not _is_kind(part))
    message = f"{path}: {fault['msg']}" if path else f"the body: {fault['msg']}; send JSON with its Content-Type"
    return answer(Refusal(422, message, "invalid_field", path or None))


def _is_kind(part: str) -> bool:
    """Whether a part of a path is no field, but one of the kinds that a value may have."""
    return not part.isidentifier() or part in ("str", "int", "float", "bool")


async def _not_routed(request: Request, error: Exception) -> JSONResponse:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = f"{request.method} {request.url.path}: {error.detail}; GET /docs lists what there is"
    return answer(Refusal(error.status_code, message, code, headers=dict(error.headers or {})))
