"""JSON from outside, read as a known type: whatever is wrong with it is one kind of error."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


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
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error
    # A wrong byte in a text is a UnicodeDecodeError, and a number too long for Python a ValueError.
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise DocumentError(str(error)) from error
