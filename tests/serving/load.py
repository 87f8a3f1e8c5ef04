"""Clients that ask a service at once, in one process, each on a connection of its own.

They write HTTP/1.1 (RFC 9112) by hand: an answer has a Content-Length, as uvicorn sends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.serving.client import Reply


class Asker:
    """One kept connection of asyncio."""

    def __init__(self, address: str) -> None:
        self.host, _, self.port = address.rpartition(":")
        self.streams = None

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg"):
        """Send a request and return its reply; a connection that the service closed is renewed."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: {kind}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.host, int(self.port))
        reader, writer = self.streams
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(lines[0].split()[1]), headers, data)

    def close(self) -> None:
        """Close the connection."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


@dataclass
class Tally:
    """What clients were answered: seconds by status, what was wrong, and how long it all took."""

    elapsed: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, status: int) -> int:
        """Return how many answers had a status."""
        return len(self.seconds.get(status, ()))

    @property
    def rate(self) -> float:
        """The answers a second."""
        return self.count(200) / self.elapsed

    def quantiles(self, status: int) -> dict[str, float]:
        """Return p50, p95 and p99 of an answer's milliseconds."""
        times = sorted(self.seconds.get(status, ()))
        if not times:
            return {}
        at = {
            name: times[min(len(times) - 1, int(share * len(times)))] for name, share in QUANTILES
        }
        return {name: round(1000 * value, 1) for name, value in at.items()}


QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


async def load(
    address: str,
    clients: int,
    seconds: float,
    request: Callable[[int, int], tuple[str, str, bytes, str]],
    check: Callable[[int, int, Reply], str] = lambda client, turn, reply: "",
    pause: float = 0.0,
    tally: Tally | None = None,
    longer: Callable[[], bool] = lambda: False,
) -> Tally:
    """Let clients ask for some seconds, each one request after the other.

    Args:
        address: the service's.
        clients: how many.
        seconds: for how long.
        request: method, path, body and type, from the client's number and its turn.
        check: what is wrong with a reply; nothing if it is right.
        pause: seconds that a client waits after it was refused.
        tally: receives the answers as they come; a new one if None.
        longer: whether to go on although the time is over.
    """
    tally, begun = tally or Tally(), time.monotonic()
    until = begun + seconds

    async def one(client: int) -> None:
        asker, turn = Asker(address), 0
        while time.monotonic() < until or longer():
            start = time.perf_counter()
            try:
                reply = await asker.ask(*request(client, turn))
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                tally.wrong.append(f"lost: {type(error).__name__} {error}")
                asker.close()
                continue
            tally.seconds.setdefault(reply.status, []).append(time.perf_counter() - start)
            if wrong := check(client, turn, reply):
                tally.wrong.append(wrong)
            turn += 1
            if reply.status == 503:
                await asyncio.sleep(pause)
        asker.close()

    await asyncio.gather(*map(one, range(clients)))
    tally.elapsed = time.monotonic() - begun  # until the last answer
    return tally
