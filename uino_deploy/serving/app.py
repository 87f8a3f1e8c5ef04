"""The service as an ASGI application: classes, segmentation, health, metrics and the page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.signature import is_required
from uino_deploy.images.opening import Received
from uino_deploy.serving.documentation import docs_page
from uino_deploy.serving.guard import Guard, answer, refuse
from uino_deploy.serving.library import Library
from uino_deploy.serving.messages import Classes, Query, State
from uino_deploy.serving.metrics import Metrics
from uino_deploy.serving.openapi import openapi
from uino_deploy.serving.pool import Pool
from uino_deploy.serving.refusals import Refused, refusal
from uino_deploy.serving.settings import Settings
from uino_deploy.serving.worker import EnrollJob, SegmentJob, describe_support

PAGE = Path(__file__).parent / "page"
"""The folder of the page: plain HTML, JavaScript and CSS."""

# A browser takes scripts and styles from the service alone, and shows it in no other page.
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(
    bundle: Bundle,
    settings: Settings,
    failed: Callable[[Exception], None],
    token: str | None = None,
    local: bool = True,
) -> Guard:
    """Return the application; its workers start and end with its lifespan.

    Args:
        bundle: the bundle that the workers load.
        settings: what they are started with.
        failed: called with the error where a worker cannot load the bundle.
        token: what requests must bring; None for nothing.
        local: whether it answers to this machine's own names alone.
    """
    metrics = Metrics()
    pool = Pool(settings, metrics, failed)
    service = Service(bundle, settings, pool)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with pool.run():
            yield

    routes = [
        Route("/v1/segment", service.segment, methods=["POST"]),
        Route("/v1/classes", service.list_classes),
        Route("/v1/classes/{name}", service.put_class, methods=["PUT"]),
        Route("/v1/classes/{name}", service.get_class, methods=["GET"]),
        Route("/v1/classes/{name}", service.delete_class, methods=["DELETE"]),
        Route("/health/live", service.live),
        Route("/health/ready", service.are_ready),
        Route("/metrics", service.figures),
        Route("/openapi.json", service.describe),
        Route("/docs", service.docs),
        Route("/", service.page),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    handlers: dict[Any, Any] = {
        Refused: _refused,
        HTTPException: _unknown,
        ClientDisconnect: _gone,
        Exception: _refused,
    }
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, settings.limits, metrics, token, local)


class Service:
    """The answers of a service.

    Args:
        bundle: the bundle that the workers load.
        settings: what they are started with.
        pool: the workers.
    """

    def __init__(self, bundle: Bundle, settings: Settings, pool: Pool) -> None:
        self._bundle = bundle
        self._limits = settings.limits
        self._pool = pool
        self._library = Library(settings.classes, bundle.manifest, bundle.require_signature)

    async def segment(self, request: Request) -> Response:
        """Segment classes in one image."""
        self._pool.refuse_if_full()
        query = read_query(request, self._limits.classes)
        kind = _type_of(request)
        if kind == "multipart/form-data":
            (picture,) = await self._pictures(request, {"image": (1, 1)})
            image = picture[0].data
        elif kind.startswith("image/") or kind == "application/octet-stream":
            image = await request.body()
        else:
            raise Refused(
                415,
                f"a body of type {kind or 'none'} is not read; send the image itself as image/jpeg "
                "or the like, or as the part `image` of multipart/form-data",
            )
        if not image:
            raise Refused(400, "the body is empty; send an image")
        start = time.perf_counter()
        done = await self._pool.ask(SegmentJob(image, query), request.scope["uino.until"])
        passed = (time.perf_counter() - start) * 1000
        timing = {"Server-Timing": f"model;dur={passed:.1f}"}
        return Response(done.body, done.status, timing, "application/json")

    async def list_classes(self, _request: Request) -> Response:
        """List the enrolled classes."""
        return answer(Classes(await run_in_threadpool(self._library.names)))

    async def put_class(self, request: Request) -> Response:
        """Enroll a class, or replace it."""
        name = request.path_params["name"]
        self._library.path(name)  # refuses what is no name
        if is_required(self._bundle.require_signature):
            raise Refused(
                403,
                "this service takes signed classes alone; enroll with `uino-deploy enroll`, sign "
                "the file and put both into the folder",
            )
        self._pool.refuse_if_full()
        most = self._limits.shots
        parts = {"image": (1, most), "mask": (1, most), "negative": (0, most)}
        images, masks, negatives = await self._pictures(request, parts)
        if len(images) != len(masks):
            raise Refused(
                400, f"{len(images)} images and {len(masks)} masks; send a mask for each image"
            )
        shots = tuple(zip(images, masks, strict=True))
        job = EnrollJob(name, shots, tuple(negatives))
        done = await self._pool.ask(job, request.scope["uino.until"])
        return Response(done.body, done.status, media_type="application/json")

    async def get_class(self, request: Request) -> Response:
        """Describe a class, whose file is read and checked."""
        name = request.path_params["name"]
        support = await run_in_threadpool(self._library.read, name)
        return answer(describe_support(support))

    async def delete_class(self, request: Request) -> Response:
        """Remove a class."""
        await run_in_threadpool(self._library.remove, request.path_params["name"])
        return Response(status_code=204)

    async def live(self, _request: Request) -> Response:
        """Say that the process answers."""
        return answer(State("live"))

    async def are_ready(self, _request: Request) -> Response:
        """Say whether a worker is loaded."""
        if not self._pool.ready:
            raise Refused(503, "no worker is loaded yet", {"Retry-After": "1"})
        return answer(State("ready"))

    async def figures(self, _request: Request) -> Response:
        """Return the metrics."""
        return Response(self._pool.metrics.text(), media_type="text/plain; version=0.0.4")

    async def describe(self, _request: Request) -> Response:
        """Return the OpenAPI document."""
        return JSONResponse(openapi())

    async def docs(self, _request: Request) -> Response:
        """Return the OpenAPI document as a page for people."""
        return HTMLResponse(docs_page(openapi()), headers=_POLICY)

    async def page(self, _request: Request) -> Response:
        """Return the page to try the service."""
        return FileResponse(PAGE / "index.html", headers=_POLICY)

    async def _pictures(
        self, request: Request, parts: dict[str, tuple[int, int]]
    ) -> Sequence[list[Received]]:
        """Return the files of each part of a form: at least, and at most, so many."""
        kind = _type_of(request)
        if kind != "multipart/form-data":
            raise Refused(415, f"a body of type {kind or 'none'}; send multipart/form-data")
        most = sum(upper for _, upper in parts.values())
        async with request.form(max_files=most, max_fields=1) as form:
            unknown = sorted(set(form) - parts.keys())
            if unknown:
                raise Refused(400, f"no part is called {unknown[0]!r}; send {', '.join(parts)}")
            found = []
            for name, (least, upper) in parts.items():
                files = [each for each in form.getlist(name) if isinstance(each, UploadFile)]
                if not least <= len(files) <= upper or len(files) < len(form.getlist(name)):
                    count = f"{least} to {upper} files" if upper > 1 else "one file"
                    raise Refused(400, f"{len(files)} files in {name!r}; send {count}")
                found.append(
                    [
                        Received(await each.read(), _named(name, number, each.filename))
                        for number, each in enumerate(files, 1)
                    ]
                )
        return found


def read_query(request: Request, most: int) -> Query:
    """Return the parameters of a segmentation.

    Raises:
        Refused: one is unknown or of another type, or there are no classes, or too many.
    """
    given = dict(request.query_params)
    names = ",".join(request.query_params.getlist("classes")).split(",")
    given["classes"] = ",".join(names)
    try:
        query = msgspec.convert(given, Query, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(400, f"parameters: {error}") from error
    if not query.classes:
        raise Refused(400, "no class is named; say which, as in /v1/segment?classes=a,b")
    if len(names) > most:
        raise Refused(400, f"{len(names)} classes; name at most {most}")
    if len(set(names)) < len(names):
        raise Refused(400, "a class is named twice")
    return query


def _type_of(request: Request) -> str:
    """Return the type of a request's body without its parameters; empty for none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _named(part: str, number: int, file: str | None) -> str:
    """Return what messages call a picture, after the word image or mask."""
    which = f"{number} of the negatives" if part == "negative" else str(number)
    return f"{which} ({file[:100]})" if file else which


async def _refused(_request: Request, error: Exception) -> Response:
    return refuse(refusal(error))


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    told = {404: f"nothing is at {path}; see /docs", 405: f"{request.method} is not for {path}"}
    why = told.get(error.status_code, error.detail)
    return refuse(Refused(error.status_code, why, error.headers))


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it
