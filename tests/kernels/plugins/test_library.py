"""The folder of kernels: the right one is found, a damaged one is refused."""

import json

import pytest

from tests.kernels.plugins.folders import (
    CORRELATION,
    SCAN,
    correlation_shapes,
    scan_shapes,
    write_folder,
)
from uino_deploy.errors import BuildError
from uino_deploy.kernels.plugins.library import Library

GRID = {"height": 7, "width": 7, "pool": 3}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "kernels")


def test_a_launch_for_concrete_shapes(folder):
    launch = Library.open(folder, "sm_87").launch(
        CORRELATION, GRID, correlation_shapes(2, 5, 6, 300), "float16"
    )
    assert launch.kernel.record.name == "correlation4d-p3-float16-sm_87"
    # 3 tiles of 128 queries, 9 windows in a tile of 14; layers; batch and shots.
    assert launch.grid == (3, 6, 10)
    assert launch.scalars == [6, 5, 300, 64, 7, 7, 2, 2]
    assert launch.threads == 256
    assert launch.kernel.cubin() == b"cubin of correlation4d-p3-float16-sm_87"


def test_the_scan_takes_the_better_kernel_or_the_one_that_is_there(folder):
    library = Library.open(folder, "sm_87")
    few, many = scan_shapes(1, 30, 30), scan_shapes(2000, 30, 30)
    assert library.find(SCAN, {}, few, "float32").record.config == "parallel-d16n4r2p16"
    assert library.find(SCAN, {}, many, "float32").record.config == "serial-d32n4r2p16"
    wide = scan_shapes(1, 30, 30, channels=64, rank=4)
    assert library.find(SCAN, {}, wide, "float32").record.config == "serial-d64n4r4p16"


@pytest.mark.parametrize(
    ("shapes", "dtype", "words"),
    [
        (scan_shapes(), "bfloat16", "in bfloat16 for sm_87"),
        (scan_shapes(states=16), "float16", "serial-d32n16r2p40 or parallel-d16n16r2p40"),
    ],
)
def test_a_kernel_that_is_not_there(folder, shapes, dtype, words):
    with pytest.raises(BuildError, match=words):
        Library.open(folder, "sm_87").find(SCAN, {}, shapes, dtype)


def test_another_architecture(folder):
    with pytest.raises(BuildError, match="has no kernels for sm_90, it has sm_87"):
        Library.open(folder, "sm_90")


def test_no_folder(tmp_path):
    with pytest.raises(BuildError, match="No such file"):
        Library.open(tmp_path / "none", "sm_87")


@pytest.mark.parametrize(("suffix", "read"), [(".cubin", "cubin"), (".ptx", "ptx")])
def test_a_changed_byte(folder, suffix, read):
    name = f"correlation4d-p3-float16-sm_87{suffix}"
    (folder / name).write_bytes(b"x" + (folder / name).read_bytes()[1:])
    launch = Library.open(folder, "sm_87").launch(
        CORRELATION, GRID, correlation_shapes(), "float16"
    )
    with pytest.raises(BuildError, match="has changed since it was built"):
        getattr(launch.kernel, read)()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not what `kernels build` writes"),
        ('{"kernels": [1]}', "is not what `kernels build` writes"),
        ('{"kernels": ["../secret"]}', "which is not a file beside it"),
        ('{"kernels": ["a\\u0000b"]}', "which is not a file beside it"),
    ],
)
def test_a_damaged_index(folder, text, words):
    (folder / "kernels.json").write_text(text)
    with pytest.raises(BuildError, match=words):
        Library.open(folder, "sm_87")


def test_a_damaged_record(folder):
    (name, *_) = json.loads((folder / "kernels.json").read_text())["kernels"]
    (folder / f"{name}.json").write_text("{}")
    with pytest.raises(BuildError, match="missing required field"):
        Library.open(folder, "sm_87")


def swap(record):
    """As if the kernel took two of its integers in another order."""
    parameters = record["parameters"]
    parameters[-2], parameters[-3] = parameters[-3], parameters[-2]


def retype(record):
    record["parameters"][-1]["type"] = "float64"


def drop(record):
    del record["parameters"][0]


@pytest.mark.parametrize("change", [swap, retype, drop])
def test_kernels_of_another_abi(tmp_path, change):
    folder = write_folder(tmp_path, change=change)
    with pytest.raises(BuildError, match="takes other arguments than this version passes"):
        Library.open(folder, "sm_87")
