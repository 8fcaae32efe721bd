"""The HTTP side: routes, errors as OpenAI's API tells them, and what stands around them."""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import vitalk
from vitalk.deploy.runtime import sentences
from vitalk.errors import UserError

from .guards import BodyGuard
from .metrics import Counted
from .schemas import (
    MODELS,
    Classified,
    ClassifyRequest,
    DescribeRequest,
    Faulty,
    Label,
    Manner,
    Model,
    Models,
    SpeechRequest,
    Voices,
    fault,
)
from .seeing import from_base64
from .service import Service, encoded, events
from .settings import Settings
from .sounds import MEDIA
from .workers import Late, Lost

STARTED = int(time.time())
FAULTS = {
    400: "The request cannot be understood or followed.", 401: "The bearer token is missing or wrong.",
    408: "The request did not come to its end.", 413: "The request is too long.",
    429: "Too many requests are waiting.", 500: "The server failed.", 503: "The server is not ready.",
    504: "It took too long.",
}  # fmt: skip
RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": Faulty, "description": text} for code, text in FAULTS.items()
}
SOUND = {
    "description": "The sound, sent as it is made; or server-sent events with parts of it in base64.",
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in sorted(set(MEDIA.values()))}
    | {"text/event-stream": {"schema": {"type": "string"}}},
}


async def _until_sent() -> AsyncIterator[AsyncExitStack]:
    """What is entered here is left when the answer is sent, or its client is gone."""
    async with AsyncExitStack() as stack:
        yield stack


Until = Annotated[AsyncExitStack, Depends(_until_sent)]


def create_app(settings: Settings = Settings()) -> FastAPI:
    """The application of these settings; voices and model are opened at once, workers start with it.

    Raises UserError where a voice or the model cannot be opened.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPIOffline(
        title="vitalk", version=vitalk.__version__, lifespan=lifespan, responses=RESPONSES,
        description="Speech and sight behind an OpenAI-compatible API.",
    )  # fmt: skip
    app.state.service = service
    app.include_router(_routes(service), dependencies=[Depends(_checked(settings.token))])
    app.include_router(_health(service))
    _handle_errors(app)
    app.openapi = lambda: _described(app)
    if settings.page:
        from .page import mount_page

        mount_page(app, service)
    app.add_middleware(BodyGuard, settings.body_bytes, settings.patience, settings.seconds)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Counted, service.metrics)
    return app


def _checked(token: str | None) -> Any:
    bearer = HTTPBearer(auto_error=False)

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if token is None or (given and secrets.compare_digest(given.credentials.encode(), token.encode())):
            return
        raise HTTPException(401, "send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return check if token is not None else lambda: None


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Requests can be answered."""
        if not service.ready:
            raise HTTPException(503, "the workers are not ready", {"Retry-After": "1"})
        return {"status": "ready"}

    return router


def _routes(service: Service) -> APIRouter:
    router = APIRouter()
    _listings(router, service)

    @router.post("/v1/audio/speech", response_class=StreamingResponse, responses={200: SOUND}, tags=["speech"])
    async def speech(asked: SpeechRequest, until: Until) -> StreamingResponse:
        """Say a text; the sound is sent sentence by sentence, as it is made."""
        if asked.model not in MODELS and asked.model not in service.pools:
            raise UserError(f"there is no model {asked.model[:60]!r}; there are {', '.join(MODELS)}")
        until.enter_context(service.gate.entered())
        return await _say(service, asked, asked.input, asked.lang, until)

    @router.post("/v1/vision/classify", openapi_extra=_either(ClassifyRequest), tags=["vision"])
    async def classify(request: Request) -> Classified:
        """Name what is in a picture: the file as a form's ``image``, or base64 in JSON."""
        asked, picture = await _picture(request, ClassifyRequest)
        with service.gate.entered():
            seen = await service.sight.see(picture, asked.top)
        return Classified(
            model=service.sight.eye.name, labels=[Label(label=name, probability=share) for name, share in seen]
        )

    @router.post(
        "/v1/describe", response_class=StreamingResponse, openapi_extra=_either(DescribeRequest),
        responses={200: SOUND}, tags=["vision", "speech"],
    )  # fmt: skip
    async def describe(request: Request, until: Until) -> StreamingResponse:
        """Say what is in a picture; the header X-Text has it in writing, percent-encoded."""
        asked, picture = await _picture(request, DescribeRequest)
        until.enter_context(service.gate.entered())
        text = sentences(*(await service.sight.see(picture, 1))[0])
        answer = await _say(service, asked, text, "en-us", until)
        answer.headers["X-Text"] = quote(text)
        return answer

    return router


def _listings(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models", tags=["speech"])
    async def models() -> Models:
        """The models; all speak with the voices of /v1/audio/voices."""
        return Models(data=[Model(id=name, created=STARTED) for name in MODELS])

    @router.get("/v1/models/{model}", tags=["speech"], responses={404: {"model": Faulty, "description": "Unknown."}})
    async def model(model: str) -> Model:
        """One of them."""
        if model not in MODELS:
            raise HTTPException(404, f"there is no model {model[:60]!r}; there are {', '.join(MODELS)}")
        return Model(id=model, created=STARTED)

    @router.get("/v1/audio/voices", tags=["speech"])
    async def voices() -> Voices:
        """The voices, the default first."""
        return Voices(data=service.voices())

    @router.get("/metrics", response_class=Response, tags=["health"])
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _say(
    service: Service, asked: Manner, text: str, lang: str | None, until: AsyncExitStack
) -> StreamingResponse:
    voice = asked.voice if isinstance(asked.voice, str) else asked.voice.id
    factors = {"speed": asked.speed, "pitch": asked.pitch, "energy": asked.energy}
    speech = await service.speak(text, voice, factors, lang)
    until.push_async_callback(speech.parts.aclose)
    body = encoded(speech, asked.response_format)
    media = MEDIA[asked.response_format]
    if asked.stream_format == "sse":
        body, media = events(body, text), "text/event-stream"
    return StreamingResponse(body, media_type=media, headers={"Cache-Control": "no-store"})


def _either(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body that is JSON, or a form in which image is a file."""
    json = model.model_json_schema(ref_template="#/components/schemas/{model}")
    defs = json.pop("$defs", {})
    if "VoiceId" in defs:
        json["properties"]["voice"] = {"type": "string", "default": ""}
    form = {**json, "properties": {**json["properties"], "image": {"type": "string", "format": "binary"}}}
    content = {"application/json": {"schema": json}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


async def _picture(request: Request, model: type[BaseModel]) -> tuple[Any, bytes]:
    """(What is asked, the bytes of the picture) of a request whose body is JSON or a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        asked = model.model_validate_json(await request.body())
        return asked, from_base64(asked.image)
    if kind != "multipart/form-data":
        raise UserError("send the picture as multipart/form-data with a file image, or as application/json with base64")
    async with request.form(max_files=1, max_fields=16, max_part_size=65_536) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        file = form.get("image")
        if not isinstance(file, UploadFile):
            raise UserError("the form has no file called image; attach the picture under that name")
        return model.model_validate({**fields, "image": "file"}), await file.read()


def _handle_errors(app: FastAPI) -> None:
    def answer(status: int, message: str, param: str | None = None, headers: Any = None) -> JSONResponse:
        return JSONResponse(fault(status, message, param), status, headers)

    def invalid(_: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return answer(400, "the body is no JSON")
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return answer(400, f"{where}: {first['msg'].removeprefix('Value error, ')}", where)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(UserError, lambda _, error: answer(400, str(error)))
    app.add_exception_handler(
        HTTPException, lambda _, error: answer(error.status_code, str(error.detail), headers=error.headers)
    )
    late = "it took longer than this server allows; send less at a time"
    app.add_exception_handler(Late, lambda *_: answer(504, late))
    app.add_exception_handler(TimeoutError, lambda *_: answer(504, late))
    app.add_exception_handler(
        Lost, lambda *_: answer(503, "the worker died again and again", headers={"Retry-After": "1"})
    )
    app.add_exception_handler(Exception, lambda *_: answer(500, "the server failed; its log says more"))


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI page's source; FastAPI's own 422 is a 400 here."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in found["paths"].values():
            for told in path.values():
                told["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(unused, None)
        app.openapi_schema = found
    return app.openapi_schema
