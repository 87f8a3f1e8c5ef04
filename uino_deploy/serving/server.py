"""The service on a port: uvicorn, with a limit on connections and on how long a head may take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from uino_deploy.bundle import Bundle
from uino_deploy.errors import InputError
from uino_deploy.inputs import read_regular
from uino_deploy.serving.app import make_app
from uino_deploy.serving.guard import is_loopback
from uino_deploy.serving.settings import Settings

MOST_CONNECTIONS = 512
"""Connections that are open at once; a further one is closed."""

MOST_TOKEN_BYTES, LEAST_TOKEN = 4096, 16
"""Bytes of a token's file at most, and characters of a token at least."""

# Seconds in which a request's head must come, and an open connection its next request.
_HEAD_SECONDS = 10


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    proxied: bool = False,
    listening: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until the process is told to stop; then finish what was begun.

    Args:
        settings: the bundle, the classes' folder and the limits.
        host: the address to listen on.
        port: its port; 0 for any that is free.
        token: what requests must bring as `Authorization: Bearer`.
        proxied: whether something in front ends TLS and decides who may ask.
        listening: called with the service's URL once it listens; it may not be loaded yet.

    Raises:
        BundleError: the bundle is damaged, or the folder is not a bundle.
        InputError: the address is not this machine's alone, and there is neither a token nor
            something in front; or it is not an address of this machine, or is taken.
        DependencyError: a worker lacks what the backend needs.
    """
    local = is_loopback(host)
    check_exposure(host, token, proxied)
    bundle = Bundle.open(settings.bundle)
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = make_app(bundle, settings, failed, token, local and not proxied)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_HEAD_SECONDS,
        timeout_graceful_shutdown=int(settings.limits.deadline) + 1,
    )
    server = uvicorn.Server(config)
    with _listen(host, port) as bound:
        name = f"[{host}]" if ":" in host else host
        listening(f"http://{name}:{bound.getsockname()[1]}")
        server.run([bound])
    if failures:
        raise failures[0]


def read_token(path: Path) -> str:
    """Return the token that a file holds, without the white space around it.

    Raises:
        InputError: the file is missing or too large, or the token is too short or no ASCII text.
    """
    try:
        token = read_regular(path, "token", MOST_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        raise InputError(f"token {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"token {path} is no ASCII text") from error
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(
            f"token {path} has fewer than {LEAST_TOKEN} characters, or holds a space",
            "make one with: openssl rand -hex 32",
        )
    return token


def check_exposure(host: str, token: str | None, proxied: bool) -> None:
    """Refuse to answer whoever asks from elsewhere.

    Raises:
        InputError: the address is not this machine's alone, and nothing says who may ask.
    """
    if not is_loopback(host) and token is None and not proxied:
        raise InputError(
            f"{host} is reached from other machines, and nothing says who may ask",
            "give --token-file, or --proxied where a proxy in front ends TLS and decides that; or "
            "keep to 127.0.0.1",
        )


class Connection(H11Protocol):
    """A connection that is closed where its next request does not come, or there are too many."""

    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._expect()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other error."""
        body = b'{"error":"this is not HTTP/1.1, or its head is too large"}'
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.loop.call_later(_HEAD_SECONDS, self._look)

    def _look(self) -> None:
        """Close the connection unless a request is being answered."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"{host} is no address of this machine: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(MOST_CONNECTIONS)
    except OSError as error:
        bound.close()
        raise InputError(
            f"{host}:{port} cannot be listened on: {error.strerror}", "choose another port"
        ) from error
    return bound
