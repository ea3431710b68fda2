"""The HTTP side: limits, token, validation and metrics. It knows nothing of Ray and nothing of torch."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ensemble_kd import __version__
from ensemble_kd.data.records import DataInfo
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.serving import metrics, page
from ensemble_kd.serving.answers import Question, Reply
from ensemble_kd.serving.schema import RefusedError, RequestSchema
from ensemble_kd.targets import target_of

log = logging.getLogger(__name__)
SMALL = 100_000
"""Bytes of a body that is parsed at once."""
PATHS = ("/", "/predict", "/metadata", "/healthz", "/metrics", "/openapi.json")


@dataclass(frozen=True)
class Limits:
    """What one server takes, and how it batches."""

    max_rows: int = 256
    """Of a request."""
    max_bytes: int = 4_000_000
    """Of a request's body."""
    max_batch: int = 64
    """Rows of a forward pass."""
    max_wait_ms: float = 5.0
    """For further requests, once one is there."""
    max_in_flight: int = 512
    """Requests being answered; further ones get 503."""
    max_connections: int = 512
    """Open at once; beyond them the one that was waited for longest ends."""
    max_head: int = 32_768
    """Bytes of a request's head."""
    head_seconds: float = 10.0
    """For a head to arrive, since the connection was made or the head began."""
    idle_seconds: float = 30.0
    """Between two requests of a connection."""
    body_seconds: float = 30.0
    """For a body to arrive."""
    write_seconds: float = 30.0
    """For a client to read on where it does not."""
    answer_seconds: float = 60.0
    """For the model to answer."""
    truncate: bool = False
    """Cut texts that are too long; otherwise they are bad rows."""


@dataclass(frozen=True)
class Description:
    """What the HTTP side has to know of a model."""

    info: DataInfo
    columns: list[str]
    class_names: list[str]
    form: str
    threshold: float | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, predictor: Predictor) -> Description:
        config = predictor.config
        return cls(
            predictor.info,
            predictor.columns,
            predictor.class_names,
            predictor.form,
            predictor.threshold,
            predictor.calibration,
            config.get("lineage", {}),
            config.get("model", {}),
        )


class UnavailableError(Exception):
    """No replica can answer now."""


class FailedError(Exception):
    """The model itself fails, whatever it is asked."""


Answer = Callable[[Question], Awaitable[Reply]]


class JSON(Response):
    media_type = "application/json"


def create_app(
    model: Description, answer: Answer, limits: Limits = Limits(), token: str | None = None, replicas: int = 1
) -> FastAPI:
    """The application; with a `token`, /predict and /metadata want it as bearer token."""
    app = FastAPI(
        title="ensemble-kd",
        version=__version__,
        description="A distilled model. Bodies and answers are JSON.",
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect holds what the client says that our name is
    )
    schema = RequestSchema(model.info, model.columns, limits.max_rows, limits.truncate)
    counted = app.state.metrics = metrics.Metrics()
    shown = page.render(schema, needs_token=token is not None)
    metadata = json.dumps(_metadata(model, limits, replicas)).encode()
    secret = None if token is None else f"Bearer {token}".encode()

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        scheme, _, value = given.partition(b" ")
        if secret and not hmac.compare_digest(scheme.capitalize() + b" " + value.strip(), secret):
            raise RefusedError(
                401,
                "no valid token; send the header 'Authorization: Bearer TOKEN'",
                {"WWW-Authenticate": 'Bearer realm="ensemble-kd"'},
            )

    @app.post("/predict", openapi_extra=_body_schema(schema), responses=_responses(model, token))
    async def predict(request: Request) -> Response:
        """Label and probabilities of every row, in the rows' order; of a regressor its value."""
        begin = time.perf_counter()
        check_token(request)
        if counted.in_flight._value.get() >= limits.max_in_flight:
            raise RefusedError(
                503, f"{limits.max_in_flight} requests are being answered; try again", {"Retry-After": "1"}
            )
        with counted.in_flight.track_inprogress():
            body = await read_body(request, limits)
            # A large one takes so long that others would wait for it.
            parsed = schema.parse(body) if len(body) <= SMALL else await asyncio.to_thread(schema.parse, body)
            table, keep_bad, bad = parsed
            try:
                async with asyncio.timeout(limits.answer_seconds):
                    reply = await answer(Question(table, keep_bad, bad))
            except UnavailableError as error:
                raise RefusedError(503, str(error), {"Retry-After": "1"}) from error
            except TimeoutError:
                text = f"no answer within {limits.answer_seconds:g} s; try again with fewer rows"
                raise RefusedError(503, text, {"Retry-After": "1"}) from None
        if reply.failed is not None:
            raise FailedError(reply.failed)
        counted.rows.labels("answered").inc(table.num_rows - len(reply.bad))
        counted.rows.labels("bad").inc(len(reply.bad))
        if reply.batch:
            counted.batch(*reply.batch)
        if reply.body is None:
            raise RefusedError(422, schema.row_problems(reply.bad, table.num_rows))
        counted.seconds.observe(time.perf_counter() - begin)
        return JSON(reply.body)

    @app.get("/metadata", responses=_refusals(token))
    async def metadata_(request: Request) -> Response:
        """What this model is."""
        check_token(request)
        return JSON(metadata)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answers as soon as the model can."""
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics_() -> Response:
        return Response(counted.text(), headers={"Content-Type": metrics.TYPE})

    @app.get("/", include_in_schema=False)
    async def try_it() -> Response:
        return Response(shown, media_type="text/html", headers=page.HEADERS)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return _problems(error.status, error.problems, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        known = f"there are {', '.join(PATHS)}" if error.status_code == 404 else str(error.detail)
        text = f"{request.method} {request.scope['path'][:80]}: {known}"  # its URL may be none
        return _problems(error.status_code, [text], error.headers or {})

    app.add_middleware(Counted, metrics=counted)
    return app


class Counted:
    """Counts every answer by path and status; what fails unexpectedly becomes a 500 in JSON."""

    def __init__(self, app: Any, metrics: metrics.Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        begun = False

        async def counted(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            if begun:
                log.debug("the client of %s is gone", path, exc_info=True)
            else:
                log.exception("%s failed", path)
                await _problems(500, ["the server failed at this request; its log says why"], {})(
                    scope, receive, counted
                )


async def read_body(request: Request, limits: Limits) -> bytes:
    """Raises RefusedError: 415 for another type or encoding, 413 beyond the limit, 408 for one too slow."""
    kind = request.headers.get("content-type", "none").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(
            415, f"Content-Type: {kind[:60]}; send JSON with the header 'Content-Type: application/json'"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "Content-Encoding: packed bodies are not read; send the JSON as it is")
    length = request.headers.get("content-length", "")
    if (
        length.isascii()
        and length.isdigit()
        and int(length[:20]) > limits.max_bytes
        and "expect" in request.headers
    ):
        raise _too_large(limits)  # the client waits for leave to send
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.max_bytes:
                    parts.append(chunk)
                # Read on for a while: a client that is still sending would not see the answer.
                elif size > 8 * limits.max_bytes:
                    break
    except TimeoutError:
        text = f"the body did not arrive within {limits.body_seconds:g} s"
        raise RefusedError(408, text, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise RefusedError(400, "the connection ended within the body") from None
    if size > limits.max_bytes:
        raise _too_large(limits)
    return b"".join(parts)


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413,
        f"the body has more than {limits.max_bytes:,} bytes; send fewer rows a request",
        {"Connection": "close"},
    )


def _problems(status: int, problems: list[str], headers: Mapping[str, str]) -> Response:
    body = json.dumps({"problems": problems}, ensure_ascii=False).encode("utf-8", "replace")
    return JSON(body, status, dict(headers))


# ------------------------------------------------------------------------------------ what is described


def _metadata(model: Description, limits: Limits, replicas: int) -> dict[str, Any]:
    info = model.info
    return {
        "version": __version__,
        "form": model.form,
        "kind": info.kind,
        "columns": model.columns,
        "input_shape": info.input_shape,
        "class_names": model.class_names,
        "target": info.target,
        "threshold": model.threshold,
        "model": model.model,
        "calibration": model.calibration,
        "lineage": model.lineage,
        "limits": asdict(limits),
        "replicas": replicas,
        "threads_per_replica": 1,
    }


def _body_schema(schema: RequestSchema) -> dict[str, Any]:
    content = {"schema": schema.json_schema(), "example": schema.example()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


PROBLEMS = {
    "type": "object",
    "required": ["problems"],
    "properties": {"problems": {"type": "array", "items": {"type": "string"}}},
}


def _refusals(token: str | None, *more: int) -> dict[int | str, dict[str, Any]]:
    texts = {
        400: "Not JSON",
        401: "No valid token",
        408: "The body did not arrive",
        413: "Too large a body",
        415: "Not application/json",
        422: "Rows that do not fit the schema, or cannot be read",
        503: "Overloaded; try again",
    }
    content = {"application/json": {"schema": PROBLEMS}}
    return {
        status: {"description": texts[status], "content": content}
        for status in (*((401,) if token else ()), *more)
    }


def _responses(model: Description, token: str | None) -> dict[int | str, dict[str, Any]]:
    null = "null"
    properties = target_of(model.info.target).row_schema(model.threshold)
    required = list(properties)
    properties["problem"] = {"type": ["string", null], "description": "with on_bad_row null"}
    row = {"type": "object", "required": required, "properties": properties}
    rows = {"type": "object", "required": ["rows"], "properties": {"rows": {"type": "array", "items": row}}}
    found = _refusals(token, 400, 408, 413, 415, 422, 503)
    return {200: {"description": "Answers", "content": {"application/json": {"schema": rows}}}} | found
