"""The HTTP interface of served runs; it follows OpenAI's where that has a shape for it."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Protocol

import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from graft.errors import DataError, suggest
from graft.serving.gate import Gate, Limits, answer
from graft.serving.keys import Keys
from graft.serving.layout import ServedRun
from graft.serving.questions import question_table
from graft.serving.schemas import Answer, ClassifyRequest, ClassifyResponse, Refusal, Usage


class Models(Protocol):
    """The deployments behind the routes."""

    async def run(self, run: ServedRun, rows: pa.Table) -> tuple[pa.Table, int]:
        """The answers to the rows, and how many tokens their inputs have.

        Raises:
            Refusal: the rows cannot be answered, or not now.
        """

    async def not_ready(self) -> list[str]:
        """Names of deployments that do not answer."""


def build(runs: Sequence[ServedRun], keys: Keys, limits: Limits, models: Models) -> FastAPI:
    """The application that answers for these runs."""
    known = {name: run for run in runs for name in run.names}
    app = FastAPI(title="graft", version=version("graft-compose"), redoc_url=None)
    app.add_middleware(Gate, keys=keys, limits=limits)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_routed)

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
        """The runs that are served."""
        data = [
            {"id": name, "object": "model", "created": run.created, "owned_by": "graft", "root": run.run_id}
            for run in runs
            for name in run.names
        ]
        return {"object": "list", "data": data}

    @app.get("/v1/graph")
    async def show_graphs() -> dict[str, Any]:
        """The nodes of every run, and the deployment that each runs in."""
        data = [{"model": run.run_id, "inputs": run.inputs, "kind": run.kind, "nodes": run.nodes} for run in runs]
        return {"object": "list", "data": data}

    @app.post("/v1/classify")
    async def classify(request: ClassifyRequest) -> ClassifyResponse:
        """Label rows, with a probability for every label."""
        run = _find(known, request)
        try:
            rows = question_table(request.input, run.inputs, run.kind)
        except DataError as error:
            raise Refusal(422, str(error), "invalid_input", "input") from error
        answers, tokens = await models.run(run, rows)
        usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
        return ClassifyResponse(model=run.run_id, data=_answers(answers), usage=usage)

    return app


def _find(known: dict[str, ServedRun], request: ClassifyRequest) -> ServedRun:
    run = known.get(request.model)
    if run is None:
        message = f"model: no run {request.model[:100]!r} is served here; {suggest(request.model, known)}"
        raise Refusal(404, message, "model_not_found", "model")
    if not run.classifies:
        message = f"model: {run.run_id} answers with free text, it has no labels; use graft predict"
        raise Refusal(400, message, "no_labels", "model")
    if request.examples is not None:
        message = "examples: must be null; a run answers as it was fitted"
        raise Refusal(422, message, "not_supported", "examples")
    return run


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
    fault = error.errors()[0]
    if fault["type"] == "json_invalid":
        return answer(Refusal(400, "the body is not valid JSON", "invalid_json"))
    path = ".".join(str(part) for part in fault["loc"][1:])
    message = f"{path}: {fault['msg']}" if path else f"the body: {fault['msg']}; send JSON with its Content-Type"
    return answer(Refusal(422, message, "invalid_field", path or None))


async def _not_routed(request: Request, error: Exception) -> JSONResponse:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = f"{request.method} {request.url.path}: {error.detail}; GET /docs lists what there is"
    return answer(Refusal(error.status_code, message, code, headers=dict(error.headers or {})))
