"""Outputs appear whole or not at all."""

import hashlib

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from uino_deploy.errors import InputError, OutputExists
from uino_deploy.files import atomic_directory, atomic_file, safetensors_bytes, sha256


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256_of_more_than_one_chunk(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_safetensors_keep_arrays_and_metadata_and_repeat_their_bytes(tmp_path):
    arrays = {"b": np.arange(6.0).reshape(2, 3).T, "a": np.ones(3, np.float16)}
    metadata = {f"key {number}": "ü" * number for number in range(20)}
    data = safetensors_bytes(arrays, metadata)
    for name, array in load(data).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
    (tmp_path / "f").write_bytes(data)
    with safe_open(tmp_path / "f", framework="numpy") as file:
        assert file.metadata() == metadata
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert safetensors_bytes(arrays, dict(reversed(metadata.items()))) == data


def test_directory_appears_with_its_parents_when_the_block_ends(tmp_path):
    target = tmp_path / "a" / "b"
    with atomic_directory(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert names(target) == ["x"]
    assert names(tmp_path / "a") == ["b"]


def test_directory_has_ordinary_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), OSError(28, "full")])
@pytest.mark.parametrize("force", [False, True])
def test_a_failed_block_leaves_everything_as_it_was(tmp_path, error, force):
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").write_text("kept")

    def write_half_a_folder():
        with atomic_directory(tmp_path / "out", force) as folder:
            (folder / "half").write_text("written")
            raise error

    def write_half_a_file():
        with atomic_file(tmp_path / "f", force) as file:
            file.write_text("half")
            raise error

    for attempt in (write_half_a_folder, write_half_a_file):
        with pytest.raises(type(error)):
            attempt()
    assert names(tmp_path) == (["out"] if force else [])
    if force:
        assert (tmp_path / "out" / "old").read_text() == "kept"


def test_an_existing_output_is_refused_before_the_work(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "f").write_text("old")
    with pytest.raises(OutputExists, match="--force"), atomic_directory(tmp_path / "out"):
        pytest.fail("the block ran")
    with pytest.raises(OutputExists, match="--force"), atomic_file(tmp_path / "f"):
        pytest.fail("the block ran")
    assert (tmp_path / "f").read_text() == "old"


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    def write_a_file():
        with atomic_file(tmp_path / "f") as file:
            file.write_text("mine")
            (tmp_path / "f").write_text("theirs")

    with pytest.raises(OutputExists):
        write_a_file()
    with pytest.raises(OutputExists), atomic_directory(tmp_path / "d"):
        (tmp_path / "d").mkdir()
    assert (tmp_path / "f").read_text() == "theirs"
    assert names(tmp_path) == ["d", "f"]


def test_force_replaces_files_and_folders_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    (tmp_path / "f").write_text("old")
    with atomic_directory(tmp_path / "out", force=True) as folder:
        (folder / "new").write_text("2")
    with atomic_file(tmp_path / "f", force=True) as file:
        file.write_text("new")
    assert names(tmp_path) == ["f", "out"]
    assert names(tmp_path / "out") == ["new"]
    assert (tmp_path / "f").read_text() == "new"


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_directory(tmp_path / "link", force=True):
        pass
    assert names(tmp_path / "real") == ["old"]
    assert not (tmp_path / "link").is_symlink()


def test_force_spares_a_folder_without_the_marker(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("dear")
    output = atomic_directory(tmp_path / "photos", force=True, marker="manifest.json")
    with pytest.raises(OutputExists, match=r"manifest\.json"), output:
        pytest.fail("the block ran")
    assert names(tmp_path / "photos") == ["me.jpg"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(OutputExists, match="folder"), atomic_file(tmp_path / "d", force=True):
        pytest.fail("the block ran")


def test_outputs_are_as_readable_as_any_new_file(tmp_path):
    """Libraries that write for the owner alone must not make a bundle unreadable for others."""
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_file(tmp_path / "file") as temporary:
        temporary.touch(mode=0o600)
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch(mode=0o600)
    modes = {p.stat().st_mode for p in (tmp_path / "file", tmp_path / "folder" / "inner" / "file")}
    assert modes == {plain.stat().st_mode}


@pytest.mark.parametrize("make", [atomic_directory, atomic_file])
def test_a_place_that_cannot_be_is_named(tmp_path, make):
    (tmp_path / "file").write_text("here")
    said = pytest.raises(InputError, match=r"output .*file/out: .*; choose another output")
    with said, make(tmp_path / "file" / "out"):
        pytest.fail("it went on")
    assert names(tmp_path) == ["file"]
