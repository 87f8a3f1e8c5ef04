"""Requests that are refused: a status and one line that says why and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from uino_deploy.errors import CheckFailed, InputError, UinoDeployError


class Refused(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP's status.
        why: one line.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, why: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, why, headers)
        self.status = status
        self.why = " ".join(why.split())
        self.headers = dict(headers or {})


def refusal(error: Exception) -> Refused:
    """Return what a client is told of an error of the library, or of any other."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InputError):
        return Refused(400, str(error))
    if isinstance(error, CheckFailed):
        return Refused(500, str(error))
    if isinstance(error, MemoryError):
        return Refused(503, "out of memory; send a smaller image", {"Retry-After": "5"})
    if isinstance(error, UinoDeployError):
        return Refused(503, str(error), {"Retry-After": "5"})
    return Refused(500, f"unexpected {type(error).__name__}: this is a bug, see the service's log")
