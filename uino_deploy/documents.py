"""JSON from outside, read as a known type: whatever is wrong with it is one kind of error."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")

MOST_DEPTH = 64
"""Levels of lists and objects in values of no fixed type: whatever handles them may recurse."""


class DocumentError(ValueError):
    """The bytes are not JSON, or not of the type that was asked for; the text says what."""


def decode_json(data: bytes | str | msgspec.Raw, kind: type[T]) -> T:
    """Read JSON.

    Args:
        data: from a file or a field of one.
        kind: the type to read it as; `object` for plain values.

    Raises:
        DocumentError: it is damaged, nested too deeply, not UTF-8, or of another type.
    """
    try:
        value = msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    # A wrong byte in a text is a UnicodeDecodeError, and a number too long for Python a ValueError.
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise DocumentError(str(error)) from error
    check_depth(value)
    return value


def check_depth(value: object) -> None:
    """Refuse plain values of more than `MOST_DEPTH` levels.

    Raises:
        DocumentError: it is nested too deeply.
    """
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            each
            for outer in level
            if isinstance(outer, dict | list)
            for each in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(each, dict | list)
        ]
        if not level:
            return
    raise DocumentError("it is nested too deeply")
