"""Requests that are refused: a status and one line that says why and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from uino_deploy.errors import CheckFailed, InputError, UinoDeployError

_STATUSES = {InputError: 400, CheckFailed: 500}
_LATER = {"Retry-After": "5"}


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
    if isinstance(error, MemoryError):
        return Refused(503, "out of memory; send a smaller image", _LATER)
    if isinstance(error, OSError):
        return Refused(507, f"the folder of classes cannot be used: {error.strerror or error}")
    if isinstance(error, UinoDeployError):
        known = next((each for kind, each in _STATUSES.items() if isinstance(error, kind)), 503)
        return Refused(known, str(error), _LATER if known == 503 else None)
    return Refused(500, f"unexpected {type(error).__name__}: this is a bug, see the service's log")
