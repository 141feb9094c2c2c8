"""The web application: OpenAI's routes, health, metrics and the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from foretell.serve.answers import ChatForm, CompletionForm, Form, Stream, chunks, whole
from foretell.serve.errors import ApiError, add_handlers, as_api_error
from foretell.serve.gate import Gate
from foretell.serve.page import page
from foretell.serve.reading import Reading
from foretell.serve.schema import (
    Chat,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorAnswer,
    Models,
    ServedModel,
)
from foretell.serve.service import Service

PRODUCTION = (
    "For trying a model out. Production traffic belongs on vLLM: export the heads with "
    "`foretell export MODEL --to LAYOUT --out DIR` and serve DIR there."
)
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request cannot be used."},
    401: {"model": ErrorAnswer, "description": "No API key, or another one."},
    404: {"model": ErrorAnswer, "description": "Another model is served."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    429: {"model": ErrorAnswer, "description": "The queue is full."},
    503: {"model": ErrorAnswer, "description": "The server is stopping."},
    "default": {"model": ErrorAnswer, "description": "Any other refusal."},
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its chunks as server-sent events.",
        "content": {"text/event-stream": {}},
    },
    **REFUSALS,
}


def create_app(service: Service) -> FastAPI:
    """The application that serves it; when it ends, so does the service's engine."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.engine.close)

    middleware = [Middleware(Gate, service.metrics, service.limits.max_body_bytes, service.api_key)]
    if service.origins:  # in front of the gate: a browser asks first, without the key
        cors = Middleware(
            CORSMiddleware,
            allow_origins=service.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
        middleware.insert(0, cors)
    app = FastAPI(
        title="foretell",
        description=PRODUCTION,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        middleware=middleware,
    )
    add_handlers(app)
    _add_openai(app, service)
    _add_operation(app, service)
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses={401: REFUSALS[401]})
    async def models() -> Models:
        """The model that is served."""
        return service.models()

    @app.get("/v1/models/{name:path}", responses={n: REFUSALS[n] for n in (401, 404, "default")})
    async def model(name: str) -> ServedModel:
        """The same, by name."""
        if not service.is_called(name):
            raise ApiError(404, f"the model {name!r} is not served here.", code="model_not_found")
        return service.models().data[0]

    @app.post("/v1/completions", response_model=Completion, responses=ANSWERS)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Continue a prompt, or several."""
        return await _answer(service, asked, CompletionForm(service.name), request)

    @app.post("/v1/chat/completions", response_model=Chat, responses=ANSWERS)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await _answer(service, asked, ChatForm(service.name), request)


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={503: REFUSALS[503]})
    async def health() -> dict[str, str]:
        """Whether requests are taken and answered."""
        if not service.engine.healthy:
            raise ApiError(503, "the engine has ended.")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={401: REFUSALS[401]})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page()


async def _answer(
    service: Service, asked: CompletionRequest | ChatRequest, form: Form, request: Request
) -> Response:
    try:
        rows = await run_in_threadpool(service.rows, asked)
        reading = service.read(rows)
    except Exception as error:
        if (refused := as_api_error(error)).status_code == 500:
            raise
        raise refused from None
    show = bool(asked.show_drafts)
    if asked.stream:
        events = chunks(form, reading, show_drafts=show, usage=asked.with_usage)
        return Stream(reading, events)
    content = await _unless_gone(request, reading, whole(form, reading, show))
    return JSONResponse(content.model_dump(mode="json"))


async def _unless_gone(request: Request, reading: Reading, answer: Any) -> BaseModel:
    """The answer; its rows end where the client goes away before."""
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client has gone.")
        found: BaseModel = work.result()
        return found
    finally:
        reading.close()
        work.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
