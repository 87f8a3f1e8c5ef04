"""What every request passes first: who asks, how much is sent, and for how long."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response

from uino_deploy.serving.messages import Failure
from uino_deploy.serving.metrics import Metrics
from uino_deploy.serving.refusals import Refused
from uino_deploy.serving.settings import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# What is open to everybody: it tells nothing of the classes and takes no work.
_OPEN, _OPEN_FOLDERS = {"/", "/docs", "/openapi.json"}, ("/page/", "/health/")
# Routes that metrics tell apart; any other path is one.
_ROUTES = ("/v1/segment", "/v1/classes", "/health", "/metrics", "/page", "/docs", "/openapi.json")


@dataclass
class Guard:
    """An ASGI application around another one.

    Attributes:
        app: what answers the requests that pass.
        limits: of the bodies and the time.
        metrics: receives each answer.
        token: what `Authorization: Bearer` must say; None to ask for nothing.
        local: whether the service is for this machine alone: it then answers to its names only,
            so that a page on the web cannot have a browser ask it under a name of its own.
    """

    app: App
    limits: Limits
    metrics: Metrics
    token: str | None = None
    local: bool = True
    _held: int = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, taken, whole = time.perf_counter(), 500, 0, False
        until = asyncio.get_running_loop().time() + self.limits.deadline
        scope["uino.until"] = until

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now is the end of the connection
                return await receive()
            try:
                message = await asyncio.wait_for(
                    receive(), until - asyncio.get_running_loop().time()
                )
            except (TimeoutError, asyncio.TimeoutError) as error:
                why = f"the body did not come within {self.limits.deadline:g} s"
                raise Refused(408, why, {"Connection": "close"}) from error
            whole = not message.get("more_body", False)
            count = len(message.get("body", b""))
            taken += count
            self._hold(count)
            if taken > self.limits.body:
                raise self._too_large()
            if self._held > self.limits.held:
                raise Refused(503, "too many large requests at once", {"Retry-After": "1"})
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
            await self.app(scope, limited, noted)
        except Refused as error:
            await refuse(error)(scope, receive, noted)
        finally:
            self._hold(-taken)
            route = _route(scope["path"])
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - start)

    def _check(self, path: str, headers: Headers) -> None:
        """Refuse a request by its head alone."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local and not is_loopback(_address(f"//{host}").hostname or ""):
            raise Refused(421, f"this service is for this machine alone, not for host {host!r}")
        if origin is not None and _address(origin).netloc != host:
            raise Refused(403, f"a page of {origin} may not ask this service")
        is_open = path in _OPEN or path.startswith(_OPEN_FOLDERS)
        if self.token is not None and not is_open:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise Refused(
                    401,
                    "the token is missing or wrong; send Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.limits.body:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(413, f"a body may have {self.limits.body} bytes; send less")

    def _hold(self, count: int) -> None:
        self._held += count
        self.metrics.held.set(self._held)


def refuse(error: Refused) -> Response:
    """Return the answer that says why a request is refused."""
    return answer(Failure(error.why), error.status, error.headers)


def answer(
    value: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a value as a JSON answer."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def is_loopback(host: str) -> bool:
    """Return whether an address is reached by this machine's own programs alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:  # a bracket that is not closed
        return urlsplit("")


def _route(path: str) -> str:
    return next((each for each in _ROUTES if path.startswith(each)), "other")
