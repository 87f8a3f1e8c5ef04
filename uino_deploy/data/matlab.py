"""A field of a MATLAB 5 file, as SBD keeps its class numbers; damaged files end scipy's process.

The format is MathWorks' "MAT-File Format", level 5: elements, each a type, a size and its bytes; a
matrix is an element that holds others.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST_BYTES = 64 << 20
"""Bytes of the largest compressed variable that is read, uncompressed."""

MOST_ELEMENTS = 1000
"""Elements side by side, in the file or in a matrix; SBD's files have five."""

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT = 2
# The element types that hold numbers.
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}


class _Element(NamedTuple):
    kind: int
    body: memoryview


class _Matrix(NamedTuple):
    """A matrix: its class, shape and name, and the elements of its values."""

    kind: int
    shape: tuple[int, ...]
    name: str
    values: list[_Element]


def read_field(data: bytes, variable: str, field: str) -> npt.NDArray[np.uint8]:
    """Return a field of a struct in a file, whole numbers from 0 to 255.

    Args:
        data: the file's bytes.
        variable: the struct's name.
        field: the field's name.

    Returns:
        uint8 [rows, columns].

    Raises:
        ValueError: the file is damaged, or holds no such field of two dimensions.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None:
        raise ValueError("it is no MATLAB 5 file")
    for element in _elements(memoryview(data)[_HEADER:], order):
        packed = element.kind == _COMPRESSED
        inner = next(_elements(_inflated(element.body), order), None) if packed else element
        matrix = _matrix(inner or element, order)
        if matrix.name == variable and matrix.kind == _STRUCT:
            return _numbers(_field(matrix, field, order), order)
    raise ValueError(f"it has no struct {variable}")


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    at = count = 0
    while at < len(data):
        count += 1
        if count > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements lie side by side")
        if len(data) - at < 8:
            raise ValueError("an element is cut short")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if kind >> 16:  # up to four bytes lie where the size usually does
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError("a small element of more than four bytes")
        if start + size > len(data):
            raise ValueError("an element reaches over the end")
        yield _Element(kind, data[start : start + size])
        at = end


def _inflated(body: memoryview) -> memoryview:
    try:
        inflating = zlib.decompressobj()
        data = inflating.decompress(body, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if inflating.unconsumed_tail:
        raise ValueError(f"a variable has more than {MOST_BYTES} bytes")
    return memoryview(data)


def _matrix(element: _Element, order: str) -> _Matrix:
    parts = list(_elements(element.body, order)) if element.kind == _MATRIX else []
    if len(parts) < 3 or len(parts[0].body) != 8 or len(parts[1].body) % 4:
        raise ValueError("what stands for a variable is none")
    (flags,) = struct.unpack_from(f"{order}I", parts[0].body)
    shape = struct.unpack(f"{order}{len(parts[1].body) // 4}i", parts[1].body)
    return _Matrix(flags & 0xFF, shape, bytes(parts[2].body).decode("latin-1"), parts[3:])


def _field(matrix: _Matrix, field: str, order: str) -> _Matrix:
    if len(matrix.values) < 2 or len(matrix.values[0].body) != 4 or prod(matrix.shape) != 1:
        raise ValueError(f"{matrix.name} is not one struct")
    (length,) = struct.unpack(f"{order}i", matrix.values[0].body)
    names = bytes(matrix.values[1].body)
    if length < 1 or len(names) > 64 * length:
        raise ValueError(f"{matrix.name} has fields without names")
    listed = [names[at : at + length].partition(b"\0")[0] for at in range(0, len(names), length)]
    fields = matrix.values[2:]
    if field.encode() not in listed or len(listed) != len(fields):
        raise ValueError(f"{matrix.name} has no field {field}")
    return _matrix(fields[listed.index(field.encode())], order)


def _numbers(matrix: _Matrix, order: str) -> npt.NDArray[np.uint8]:
    values = matrix.values[0] if matrix.values else _Element(0, memoryview(b""))
    kind = np.dtype(order + _NUMBERS[values.kind]) if values.kind in _NUMBERS else None
    shape = matrix.shape
    if kind is None or len(shape) != 2 or min(shape) < 1:
        raise ValueError("its values are no plane of numbers")
    if len(values.body) != prod(shape) * kind.itemsize:
        raise ValueError(f"it has {len(values.body)} bytes for {shape[0]} x {shape[1]} values")
    numbers = np.frombuffer(values.body, kind).reshape(shape, order="F")
    with np.errstate(invalid="ignore"):  # what is no number differs from whatever it becomes
        whole = numbers.astype(np.uint8, casting="unsafe")
    if not np.array_equal(whole, numbers):
        raise ValueError("its values are not whole numbers from 0 to 255")
    return np.ascontiguousarray(whole)
