"""Damage to valid inputs that knows their structure: JSON, safetensors, protobuf, PNG, zip, text.

Each function takes a valid input and returns its `Damage`: a function from a random generator to a
damaged input, so that a seed names an input.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Damage = Callable[[Random], bytes]

_DEEP = 100_000
# Texts that stand where a value belongs, valid JSON or not.
_EXTREMES = [
    "null", "true", "false", "0", "-0", "1", "-1", "2", "255", "65536", "2147483648", "4294967295",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" + "0" * 30,
    "9" * 5000, "0.5", "1e308", "-1e308", "1e-320", "1e999", "NaN", "Infinity", "-Infinity",
    '""', '"0"', '"\\u0000"', '"\\ud800"', '"\\u202e\\u001b[2J"', '"\\r\\n"', '"/"', '".."',
    '"../../outside"', '"/dev/zero"', '"C:\\\\x"', '"' + "a" * 5000 + '"', '"%s{}"', '"NaN"',
    '"1e999"', "[]", "{}", "[[]]", "[null]", '{"a": null}', "[" + "0," * 9999 + "0]",
    "[" * _DEEP + "]" * _DEEP, "[" * 900 + "]" * 900, '{"a":' * 900 + "0" + "}" * 900, "[" * 200,
]  # fmt: skip
_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
            2**63, 2**64 - 1]  # fmt: skip
# From any of Unicode's corners: controls, combining marks, other digits, lone surrogates, planes.
_LETTERS = [(0, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x660, 0x669), (0x2000, 0x206F),
            (0xD800, 0xDFFF), (0xFE00, 0xFFFF), (0x1F300, 0x1F9FF),
            (0xE0000, 0x10FFFF)]  # fmt: skip
_HOLE = re.compile(r'"@@(\d+)@@"')


def one_of(*damages: Damage) -> Damage:
    """Take one of several kinds of damage, each as often as the others."""
    return lambda random: random.choice(damages)(random)


def bytes_of(valid: bytes, edits: int = 4) -> Damage:
    """Flip, set, cut, repeat and insert bytes; the first ones more often."""
    return lambda random: _bytes_of(random, valid, edits)


def _bytes_of(random: Random, valid: bytes, edits: int = 4) -> bytes:
    data = bytearray(valid)
    for _ in range(random.randint(1, edits)):
        last = max(0, len(data) - 1)
        at = random.randint(0, random.choice([last, min(64, last)]))
        kind = random.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + 1] = random.randbytes(1)
        elif kind == 2:
            number, width = random.choice(_NUMBERS), random.choice([1, 2, 4, 8])
            order = random.choice(["little", "big"])
            data[at : at + width] = (number % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + random.randint(1, 16)]
        elif kind == 5:
            length = random.randint(1, 64)
            data[at:at] = data[at : at + length] * random.choice([1, 2, 50])
        else:
            data[at:at] = random.randbytes(random.randrange(8))
    return bytes(data)


def json_of(valid: Any, edits: int = 3) -> Damage:
    """Damage a JSON document: values, keys, nesting, repeated keys, and at times its bytes."""
    text, paths = json.dumps(valid), list(_paths(valid))
    return lambda random: _json_of(random, text, paths, edits)


def _json_of(random: Random, valid: str, paths: list[tuple[Any, ...]], edits: int) -> bytes:
    document, holes = json.loads(valid), list[str]()
    for _ in range(random.randint(1, edits)):
        path, kind = random.choice(paths), random.randrange(10)
        try:
            other = _at(document, random.choice(paths)) if kind == 2 else None
            document = _edited(random, document, path, kind, holes, other)
        except (LookupError, TypeError, AttributeError):
            continue  # an earlier edit took that part away
    text = json.dumps(document, indent=random.choice([None, None, 1]))
    text = _HOLE.sub(lambda hole: holes[int(hole[1])], text)
    kind = random.randrange(20)
    if kind == 0:  # a repeated key
        key = re.search(r'"[^"\\]*":', text[random.randint(0, len(text)) :])
        if key is not None:
            text = text.replace(key[0], f"{key[0]} {_value(random)}, {key[0]}", 1)
    data = text.encode("utf-8", "surrogatepass")
    if kind == 1:
        return _bytes_of(random, data)
    if kind == 2:
        return random.choice([b"\xef\xbb\xbf" + data, text.encode("utf-16", "replace"), b""])
    return data


def _value(random: Random) -> str:
    """Return a text that stands where a value belongs."""
    kind = random.randrange(6)
    if kind == 0:
        return str(random.choice([1, -1]) * random.getrandbits(random.randint(1, 66)))
    if kind == 1:
        return json.dumps(struct.unpack("d", random.randbytes(8))[0])
    if kind == 2:
        return json.dumps(_text(random))
    return random.choice(_EXTREMES)


def _text(random: Random) -> str:
    return "".join(
        chr(random.randint(*random.choice(_LETTERS))) for _ in range(random.randrange(9))
    )


def _edited(
    random: Random, document: Any, path: tuple[Any, ...], kind: int, holes: list[str], other: Any
) -> Any:
    """Return the document with one part changed; `other` is another part of it."""
    if not path:
        holes.append(_value(random))
        return f"@@{len(holes) - 1}@@"
    *above, last = path
    parent = _at(document, above)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[_text(random)] = parent.pop(last)
    elif kind == 2:
        parent[last] = json.loads(json.dumps(other))
    elif kind == 3:
        parent[last] = [parent[last]] * random.choice([1, 2, 100])
    elif kind == 4 and isinstance(parent, list):
        parent *= random.choice([2, 2, 50])
    else:
        holes.append(_value(random))
        parent[last] = f"@@{len(holes) - 1}@@"
    return document


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, each in items:
        yield from _paths(each, (*path, key))


def _at(value: Any, path: Any) -> Any:
    for key in path:
        value = value[key]
    return value


def safetensors_of(valid: bytes) -> Damage:
    """Damage a safetensors file's header as JSON, its length, and its tensors."""
    header = json_of(header_of(valid))
    body = valid[8 + int.from_bytes(valid[:8], "little") :]

    def parts(random: Random) -> bytes:
        text = header(random)
        length = len(text) if random.randrange(8) else random.choice(_NUMBERS)
        tensors = body if random.randrange(3) else _bytes_of(random, body)
        return length.to_bytes(8, "little") + text + tensors

    return one_of(parts, parts, bytes_of(valid))


def with_header(valid: bytes, header: bytes) -> bytes:
    """Return a safetensors file with another header."""
    length = int.from_bytes(valid[:8], "little")
    return len(header).to_bytes(8, "little") + header + valid[8 + length :]


def header_of(valid: bytes) -> dict[str, Any]:
    """Return a safetensors file's header."""
    return dict(json.loads(valid[8 : 8 + int.from_bytes(valid[:8], "little")]))


def protobuf_of(valid: bytes) -> Damage:
    """Change fields of a protobuf message anywhere in its tree, with the lengths around them."""
    return lambda random: _protobuf_of(random, valid)


def _protobuf_of(random: Random, valid: bytes) -> bytes:
    tree = _tree(memoryview(valid))
    for _ in range(random.randint(1, 3)):
        fields = tree
        while fields:
            index = random.randrange(len(fields))
            number, wire, value = fields[index]
            if isinstance(value, list) and value and random.randrange(6):
                fields = value
                continue
            _edit_field(random, fields, index, number, wire, value)
            break
    data = _message(tree)
    return data if random.randrange(10) else _bytes_of(random, data)


def _edit_field(
    random: Random, fields: list[Any], index: int, number: int, wire: int, value: Any
) -> None:
    kind = random.randrange(7)
    if kind == 0:
        del fields[index]
    elif kind == 1:
        fields.insert(index, fields[index])
    elif kind == 2:
        fields[index] = (random.choice([random.randint(1, 40), *_NUMBERS]), wire, value)
    elif kind == 3:
        fields[index] = (number, random.randrange(8), value)
    elif kind == 4 and wire == 2:
        for _ in range(random.choice([1, 200, 2000])):
            value = [(number, 2, value)]
        fields[index] = (number, wire, value)
    elif wire == 0:
        fields[index] = (number, wire, random.choice(_NUMBERS))
    else:
        fields[index] = (number, wire, random.choice([random.randbytes(9), *_NAMES]))


_NAMES = [b"location", b"../outside", b"/etc/hostname", b"EPContext", b"\xff\xfe", b"", b"a" * 5000,
          b"offset", b"length"]  # fmt: skip


def _tree(message: memoryview, depth: int = 0) -> list[Any]:
    """Return a message's fields as (number, wire type, value); texts are taken for messages too."""
    from uino_deploy.bundle.protobuf import fields

    found: list[Any] = []
    for number, value, start, _ in fields(message):
        wire = message[start] & 7
        if wire == 2 and not isinstance(value, int) and depth < 6:
            try:
                inner: Any = _tree(value, depth + 1) if len(value) > 1 else bytes(value)
            except ValueError:
                inner = bytes(value)
            found.append((number, wire, inner))
        else:
            found.append((number, wire, value if isinstance(value, int) else bytes(value)))
    return found


def _message(fields: Any) -> bytes:
    parts = bytearray()
    for number, wire, value in fields:
        body = _message_of(value)
        parts += _varint(number << 3 | wire)
        if wire == 0:
            parts += _varint(value if isinstance(value, int) else len(body))
        elif wire == 2:
            parts += _varint(len(body)) + body
        else:
            parts += body
    return bytes(parts)


def _message_of(value: Any) -> bytes:
    """Return a field's bytes; a chain of messages is unrolled, for it may be deep."""
    tags: list[int] = []
    while isinstance(value, list) and len(value) == 1 and value[0][1] == 2:
        tags.append(value[0][0])
        value = value[0][2]
    body = _message(value) if isinstance(value, list) else b"" if isinstance(value, int) else value
    for number in reversed(tags):
        body = _varint(number << 3 | 2) + _varint(len(body)) + body
    return bytes(body)


def _varint(number: int) -> bytes:
    number %= 1 << 70
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def png_of(valid: bytes) -> Damage:
    """Damage a PNG's chunks, whose checksums stay right."""
    chunks, at = [], 8
    while at < len(valid):
        (length,) = struct.unpack_from(">I", valid, at)
        chunks.append((valid[at + 4 : at + 8], valid[at + 8 : at + 8 + length]))
        at += length + 12
    return lambda random: _png_of(random, valid[:8], list(chunks))


def _png_of(random: Random, start: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    for _ in range(random.randint(1, 3)):
        index = random.randrange(len(chunks))
        kind, body = chunks[index]
        what = random.randrange(6)
        if what == 0 and len(chunks) > 1:
            del chunks[index]
        elif what == 1:
            chunks.insert(index, chunks[index])
        elif what == 2:
            chunks[index] = (random.choice(_CHUNKS), body)
        elif kind == b"IDAT" and what == 3:
            chunks[index] = (kind, zlib.compress(_bytes_of(random, _inflated(body))))
        else:
            chunks[index] = (kind, _bytes_of(random, body))
    data = start
    for kind, body in chunks:
        check = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    return data if random.randrange(10) else _bytes_of(random, data)


_CHUNKS = [b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"sBIT", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"iCCP",
           b"zTXt", b"iTXt", b"IEND"]  # fmt: skip


def _inflated(body: bytes) -> bytes:
    try:
        return zlib.decompress(body)
    except zlib.error:
        return body


def zip_of(valid: bytes, part: str) -> Damage:
    """Damage a member of a zip file, whose checksum stays right, or the file's bytes."""
    with zipfile.ZipFile(io.BytesIO(valid)) as file:
        members = {each: file.read(each) for each in file.namelist()}
    (name,) = [each for each in members if each.endswith(part)]

    def packed(data: bytes) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as file:
            for each, body in (members | {name: data}).items():
                file.writestr(each, body)
        return made.getvalue()

    inner = bytes_of(members[name])
    return one_of(lambda random: packed(inner(random)), bytes_of(valid))


_TOKEN = re.compile(r"\w+|\s+|.", re.DOTALL)
_WORDS = ["0", "-1", "1" + "0" * 19, "9" * 4500, "1e999", "nan", "", ",", "\n", "\0", '"', "%", "{",
          "}", "(", ")", "[", "]", ";", ":", "../outside", "a" * 5000, "\ud800", "\u2028", "\r",
          "/*", "//", "<4000000000>", "0x", "0f", "u8", "\u0661"]  # fmt: skip


def text_of(valid: str, words: tuple[str, ...] = ()) -> Damage:
    """Take away, repeat, swap and replace words of a text; at times damage its bytes."""
    tokens, known = _TOKEN.findall(valid), [*_WORDS, *words]
    return lambda random: _text_of(random, list(tokens), known)


def _text_of(random: Random, tokens: list[str], words: list[str]) -> bytes:
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(tokens)) if tokens else 0
        kind = random.randrange(7)
        if kind == 0:
            del tokens[at : at + 1]
        elif kind == 1:
            tokens[at:at] = tokens[at : at + random.randint(1, 30)]
        elif kind == 2 and tokens:
            tokens[at] = random.choice(tokens)
        elif kind == 3 and not random.randrange(3):
            del tokens[at:]
        else:
            word = random.choice(words) if random.randrange(4) else _text(random)
            tokens[at : at + random.randrange(2)] = [word]
    data = "".join(tokens).encode("utf-8", "surrogatepass")
    return data if random.randrange(10) else _bytes_of(random, data)
