"""Whatever is wrong with JSON is one kind of error, in one line."""

from typing import Any

import msgspec
import pytest

from uino_deploy.documents import MOST_DEPTH, DocumentError, decode_json


class Named(msgspec.Struct):
    name: str


def test_what_is_right_is_read():
    assert decode_json(b'{"name": "x", "more": [1]}', Named) == Named("x")
    assert decode_json('{"a": [1, 2.5]}', object) == {"a": [1, 2.5]}


@pytest.mark.parametrize("kind", [Named, object])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"NaN",
        b'{"name": "\xff"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"name": ' + b"1" * 5000 + b"}",
        b'{"name": "x"',
    ],
)
def test_what_is_wrong_is_one_kind_of_error(data, kind):
    with pytest.raises(DocumentError) as refused:
        decode_json(data, kind)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("ends", [("[", "]"), ('{"a": ', "}")])
def test_plain_values_are_refused_beyond_a_depth_that_all_who_handle_them_can_take(ends):
    def nested(levels):
        return ends[0] * levels + "0" + ends[1] * levels

    decode_json(nested(MOST_DEPTH), object)
    with pytest.raises(DocumentError, match="nested too deeply"):
        decode_json(nested(MOST_DEPTH + 1), object)
    with pytest.raises(DocumentError, match="nested too deeply"):
        decode_json(f'{{"x": {nested(500)}}}', dict[str, Any])
