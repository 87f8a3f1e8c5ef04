"""SBD's class numbers out of MATLAB files: what scipy writes is read, what is damaged refused."""

import io
import random
import struct
import zlib

import numpy as np
import pytest

from uino_deploy.data import matlab
from uino_deploy.data.matlab import read_field

savemat = pytest.importorskip("scipy.io").savemat
sparse = pytest.importorskip("scipy.sparse")

LABELS = np.random.default_rng(0).integers(0, 21, (7, 5), np.uint8)


def written(value, compressed=False, **others):
    file = io.BytesIO()
    # As SBD's own files, but for two classes in place of 20: a cell of sparse arrays stands before.
    boundaries = np.empty((2, 1), object)
    boundaries[:, 0] = [sparse.csc_matrix(np.eye(3, dtype=bool)) for _ in range(2)]
    present = np.array([[1], [15]], np.uint8)
    fields = {"Boundaries": boundaries, "Segmentation": value, "CategoriesPresent": present}
    savemat(file, {**others, "GTcls": fields}, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_what_scipy_writes_is_read(compressed, dtype):
    data = written(LABELS.astype(dtype), compressed, another=np.ones((3, 3)))
    found = read_field(data, "GTcls", "Segmentation")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, LABELS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.full((2, 2), 300, np.int16), "whole numbers"),
        (np.full((2, 2), 0.5), "whole numbers"),
        (np.full((2, 2), np.nan), "whole numbers"),
        (np.zeros((2, 2, 2), np.uint8), "no plane"),
        (np.zeros((0, 2), np.uint8), "no plane"),
        ("text", "no plane|whole numbers"),
    ],
)
def test_what_is_no_plane_of_class_numbers_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        read_field(written(value), "GTcls", "Segmentation")


def test_what_is_not_there_is_named():
    data = written(LABELS)
    with pytest.raises(ValueError, match="no field Other"):
        read_field(data, "GTcls", "Other")
    with pytest.raises(ValueError, match="no struct other"):
        read_field(data, "other", "Segmentation")
    with pytest.raises(ValueError, match="no MATLAB 5 file"):
        read_field(b"\x89PNG" * 50, "GTcls", "Segmentation")


def test_a_variable_that_grows_is_refused(monkeypatch):
    monkeypatch.setattr(matlab, "MOST_BYTES", 300)
    with pytest.raises(ValueError, match="more than 300 bytes"):
        read_field(written(np.zeros((90, 90), np.uint8), True), "GTcls", "Segmentation")


def test_elements_without_number_are_refused():
    with pytest.raises(ValueError, match="more than 1000 elements"):
        read_field(written(LABELS)[:128] + matrix_of(bytes(80_000)), "GTcls", "Segmentation")


def matrix_of(body):
    return struct.pack("<II", 14, len(body)) + body


def test_variables_of_any_length_stand_before_it():
    """A packed one is not filled up to eight bytes, all others are."""
    others = {f"v{length}": np.ones((1, length), np.uint8) for length in range(1, 12)}
    for compressed in (False, True):
        data = written(LABELS, compressed, **others)
        np.testing.assert_array_equal(read_field(data, "GTcls", "Segmentation"), LABELS)
    plain, packed = written(LABELS), written(LABELS, compressed=True)
    inner = zlib.compress(zlib.decompress(packed[136:]).replace(b"GTcls", b"other"))
    first = packed[:128] + struct.pack("<II", 15, len(inner)) + inner
    assert len(first) % 8
    found = read_field(first + plain[128:], "GTcls", "Segmentation")
    np.testing.assert_array_equal(found, LABELS)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_gives_numbers_or_a_refusal(compressed):
    """scipy's reader ends the process on such files."""
    valid = written(LABELS, compressed)
    chosen = random.Random(1)
    refused = 0
    for _ in range(1000):
        data = bytearray(valid)
        data[chosen.randrange(126, len(data))] ^= 1 << chosen.randrange(8)
        try:
            assert read_field(bytes(data[: chosen.randint(126, 2 * len(data))]), "GTcls",
                              "Segmentation").dtype == np.uint8  # fmt: skip
        except ValueError:
            refused += 1
    assert refused > 500
