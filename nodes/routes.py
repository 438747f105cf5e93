"""HTTP under /erase_anything/v1: everything that can be done with jobs, for the web page and any other client.

docs/routes.md tells clients of each route; whoever adds one here adds it there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from aiohttp import web
from comfy.cli_args import args
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from server import PromptServer

from ..training.concepts import Concept, WordNetMissing, download_wordnet, make_concept, phrases_of, senses
from ..training.concepts.concept import Kind
from ..training.errors import ErasureError, JobError, JobNotFound
from ..training.jobs import MAX_SLOTS, Job
from ..training.models.source import FluxSource
from ..training.request import ErasureRequest
from ..training.settings import ErasureConfig
from . import service
from .concept import labelled_presets, remarks_on
from .load import DEMO, choices_of, choose_source
from .openapi import Handler, Route, document

PREFIX = "/erase_anything/v1"
MAX_BODY = 256 * 1024  # bytes
LOG_BYTES = 64 * 1024

MAX_TEXT = 1000  # characters
MAX_EVENT = 10**15 - 1

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Words = Annotated[list[Text], Field(max_length=1000)]


class ConceptBody(BaseModel):
    """A concept; words that are not given are chosen."""

    model_config = ConfigDict(extra="forbid", strict=True)

    phrase: Text
    kind: Kind = "entity"
    template: Text | None = None
    synonyms: Words | None = None
    irrelevant: Words | None = None
    preserve: Words | None = None
    word_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    sense: Annotated[int, Field(ge=1, le=1000)] = 1
    # so that the answer of POST /concept can be sent back as it is
    remarks: Any = Field(default=None, description="Of an answer; not read.")

    def concept(self) -> Concept:
        """The complete concept. Raises ConceptError."""
        words = (self.template, self.synonyms, self.irrelevant, self.word_seed)
        return make_concept(self.phrase, self.kind, *words, preserve=self.preserve, sense=self.sense)

    def answer(self) -> dict[str, Any]:
        """The complete concept, and what there is to say about its words. Raises ConceptError."""
        concept = self.concept()
        return {**concept.to_dict(), "remarks": remarks_on(concept, self.phrase, sense=self.sense)}


class Submission(BaseModel):
    """A training. `model` and `files` are choices as the Load Flux node offers them, never paths."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text = DEMO
    precision: Text = "auto"
    files: dict[Text, Text] = Field(default_factory=dict)
    concept: ConceptBody
    config: dict[Text, Any] = Field(default_factory=dict)
    name: Text = ""

    def _parts(self) -> tuple[FluxSource, Concept, ErasureConfig]:
        source = choose_source(self.model, self.precision, self.files)
        return source, self.concept.concept(), ErasureConfig.from_dict(self.config)

    def submit(self) -> Job:
        """Queues it. Raises ErasureError's subclasses."""
        return service.submit(*self._parts(), self.name)

    def memory(self) -> dict[str, Any]:
        """What it would need: see `training.memory.overview`. Raises ErasureError's subclasses."""
        return service.memory(*self._parts())


class Nothing(BaseModel):
    """The body of an action that needs no more said."""


class Clone(BaseModel):
    """What shall differ: settings of ErasureConfig, the LoRA's name (empty: chosen)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: dict[Text, Any] = Field(default_factory=dict)
    name: Text = ""


class Move(BaseModel):
    """Where in the queue to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: Annotated[int, Field(ge=1, le=10**6)] | Literal["first", "up", "down", "last"]


class Retry(BaseModel):
    """Whether to use less memory this time."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cheaper: bool = False


class Delete(BaseModel):
    """Whether the LoRA that the job wrote shall be deleted too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora: bool = False


class Settings(BaseModel):
    """Settings of the queue; those not given stay."""

    model_config = ConfigDict(extra="forbid", strict=True)

    slots: Annotated[int, Field(ge=0, le=MAX_SLOTS)] | None = None
    wait_for_memory: bool | None = None
    lora_folder: Text | None = None


ACTIONS: dict[str, type[BaseModel]] = {
    "pause": Nothing,
    "resume": Nothing,
    "retry": Retry,
    "cancel": Nothing,
    "stop": Nothing,
    "clone": Clone,
    "move": Move,
    "delete": Delete,
}


class BadRequest(ErasureError):
    """A request that is no JSON, too large, or not what the route takes."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


# HTTP status by an error's class; the nearest of its bases counts.
STATUS: dict[type, int] = {ErasureError: 400, JobError: 409, JobNotFound: 404}


def status_of(error: ErasureError) -> int:
    """The HTTP status that an error is answered with."""
    if isinstance(error, BadRequest):
        return error.status
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def register() -> None:
    """Adds the routes to the host's server, and starts the scheduler once that server runs. Called once, at import."""
    server = PromptServer.instance
    for route in ROUTES:
        server.routes.route(route.method, PREFIX + route.path)(answers(route.handler))
    # one handler for all, so that an action which does not exist is refused with a sentence
    server.routes.post(f"{PREFIX}/jobs/{{id}}/{{action}}")(answers(act))

    async def start(_: web.Application) -> None:
        service.scheduler().start()

    server.app.on_startup.append(start)


def answers(handler: Handler) -> Handler:
    """The handler, with its errors answered as JSON, one sentence each."""

    async def wrapped(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ErasureError as error:
            missing = {"missing": "wordnet"} if isinstance(error, WordNetMissing) else {}
            return web.json_response({"error": str(error), **missing}, status=status_of(error))
        except OSError as error:
            logging.exception("Erase Anything: %s %s", request.method, request.path)
            return web.json_response({"error": f"The disk refused it ({error.strerror}): try again."}, status=409)

    return wrapped


async def body_of(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises BadRequest."""
    # The host compares Origin and Host only on a loopback address; this header is the browser's own word.
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and not args.enable_cors_header:
        raise BadRequest("Another web site has sent this: use the page of this server.", 403)
    if request.content_type != "application/json":
        raise BadRequest("Send the body as JSON (Content-Type: application/json).", 415)
    data = await request.content.read(MAX_BODY + 1)
    while len(data) <= MAX_BODY and not request.content.at_eof():
        data += await request.content.read(MAX_BODY + 1 - len(data))
    if len(data) > MAX_BODY:
        raise BadRequest(f"The body is larger than {MAX_BODY // 1024} KB.", 413)
    try:
        body = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        raise BadRequest("The body is no valid JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body


def parsed(model: type[BaseModel], body: dict[str, Any]) -> Any:
    """`body` as `model`. Raises BadRequest that names the first field that is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise BadRequest(f"The field {field[:100]} is wrong: {first['msg']}.") from None


def job_of(request: web.Request) -> Job:
    """The job that a route names. Reads its folder: only in a thread. Raises JobError."""
    return service.repository().get(request.match_info["id"])


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Disk access away from the server's event loop."""
    return await asyncio.to_thread(function, *arguments)


async def list_jobs(_: web.Request) -> web.Response:
    return web.json_response(await in_thread(service.overview))


async def submit(request: web.Request) -> web.Response:
    submission = parsed(Submission, await body_of(request))
    job = await in_thread(submission.submit)
    return web.json_response(await in_thread(service.description, job))


async def get_memory(request: web.Request) -> web.Response:
    return web.json_response(await in_thread(parsed(Submission, await body_of(request)).memory))


async def get_job(request: web.Request) -> web.Response:
    return web.json_response(await in_thread(lambda: service.description(job_of(request))))


async def get_events(request: web.Request) -> web.Response:
    since = request.query.get("since", "0")
    if not re.fullmatch(r"[0-9]{1,15}", since):  # up to MAX_EVENT
        raise BadRequest("`since` must be the number of an event.")
    events = await in_thread(lambda: job_of(request).folder.events(int(since)))
    return web.json_response({"events": events})


async def get_log(request: web.Request) -> web.Response:
    def tail() -> str:
        path = job_of(request).folder.log_file
        if not path.is_file() or path.is_symlink():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace")

    return web.json_response({"log": await in_thread(tail)})


async def get_request(request: web.Request) -> web.Response:
    def submission() -> dict[str, Any]:
        job = job_of(request)
        if job.kind != "training":
            raise JobError("The job is an evaluation: only a training has settings to copy.")
        training = ErasureRequest.from_dict(job.request)
        concept, config = training.concept.to_dict(), training.config.to_dict()
        return {**choices_of(training.source), "concept": concept, "config": config, "name": training.name}

    return web.json_response(await in_thread(submission))


async def get_lora(request: web.Request) -> web.StreamResponse:
    def lora() -> Path:
        job = job_of(request)
        path = job.product
        # Only what the job itself has written: no name of a running one, no link, no other folder.
        if job.kind != "training" or job.state.state != "completed" or path.is_symlink() or not path.is_file():
            raise BadRequest("The job has no LoRA: it is not completed, or the file was moved or deleted.", 404)
        return path

    path = await in_thread(lora)
    disposition = f"attachment; filename*=UTF-8''{quote(path.name, safe='')}"
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": disposition,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return web.FileResponse(path, headers=headers)


async def get_report(request: web.Request) -> web.StreamResponse:
    page = await in_thread(service.report, request.match_info["id"])
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        # Texts out of LoRA files are in it: as far from the host's page as a page of another site.
        "Content-Security-Policy": "sandbox allow-scripts allow-popups",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return web.FileResponse(page, headers=headers)


async def get_config(_: web.Request) -> web.Response:
    return web.json_response({"config": ErasureConfig().to_dict()})


async def get_sample(request: web.Request) -> web.StreamResponse:
    def sample() -> Path:
        name, folder = request.match_info["file"], job_of(request).folder.samples
        path = folder / name
        # Only a plain file that lies in this very folder: no path parts, no links that lead elsewhere.
        plain = re.fullmatch(r"[A-Za-z0-9_-]{1,100}\.png", name)
        if not plain or not path.is_file() or path.resolve().parent != folder.resolve():
            raise BadRequest("There is no such sample picture.", 404)
        return path

    path = await in_thread(sample)
    headers = {"Content-Type": "image/png", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return web.FileResponse(path, headers=headers)


async def act(request: web.Request) -> web.Response:
    body, action = await body_of(request), request.match_info["action"]
    if action not in ACTIONS:
        raise JobError(f"Unknown action {action[:40]!r}: use {', '.join(ACTIONS)}.")
    options = parsed(ACTIONS[action], body).model_dump()
    return web.json_response(await in_thread(lambda: service.act(request.match_info["id"], action, **options)))


async def get_settings(_: web.Request) -> web.Response:
    return web.json_response((await in_thread(lambda: service.queue().settings())).to_dict())


async def change_settings(request: web.Request) -> web.Response:
    changes = parsed(Settings, await body_of(request)).model_dump()
    return web.json_response((await in_thread(lambda: service.queue().configure(**changes))).to_dict())


async def choose_words(request: web.Request) -> web.Response:
    return web.json_response(await in_thread(parsed(ConceptBody, await body_of(request)).answer))


async def list_senses(request: web.Request) -> web.Response:
    phrases = phrases_of(request.query.get("phrase", "")[:MAX_TEXT])
    if not phrases:
        raise BadRequest("Say which phrase: /senses?phrase=crane.")
    found = await in_thread(senses, phrases[0])
    return web.json_response({"senses": [sense.to_dict() for sense in found]})


async def list_presets(_: web.Request) -> web.Response:
    found = await in_thread(labelled_presets)
    return web.json_response({"presets": [{"label": label, **preset.to_dict()} for label, preset in found.items()]})


async def fetch_wordnet(request: web.Request) -> web.Response:
    await body_of(request)  # a form is refused: no web site but the host's own may start a download
    await in_thread(download_wordnet)
    return web.json_response({"wordnet": True})


async def describe(_: web.Request) -> web.Response:
    actions = [Route("POST", f"/jobs/{{id}}/{action}", act, body) for action, body in ACTIONS.items()]
    return web.json_response(document([*ROUTES, *actions], PREFIX))


_NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_EVENT}

ROUTES = (
    Route("GET", "/openapi.json", describe),
    Route("GET", "/jobs", list_jobs),
    Route("POST", "/jobs", submit, Submission),
    Route("GET", "/jobs/{id}", get_job),
    Route("GET", "/jobs/{id}/events", get_events, query={"since": _NUMBER}),
    Route("GET", "/jobs/{id}/log", get_log),
    Route("GET", "/jobs/{id}/request", get_request),
    Route("GET", "/jobs/{id}/lora", get_lora, answer="application/octet-stream"),
    Route("GET", "/jobs/{id}/report", get_report, answer="text/html"),
    Route("GET", "/jobs/{id}/samples/{file}", get_sample, answer="image/png"),
    Route("GET", "/settings", get_settings),
    Route("POST", "/settings", change_settings, Settings),
    Route("GET", "/config", get_config),
    Route("POST", "/memory", get_memory, Submission),
    Route("POST", "/concept", choose_words, ConceptBody),
    Route("GET", "/senses", list_senses, query={"phrase": {"type": "string", "maxLength": MAX_TEXT}}),
    Route("GET", "/presets", list_presets),
    Route("POST", "/wordnet", fetch_wordnet, Nothing),
)
