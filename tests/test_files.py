"""Outputs appear whole or not at all."""

import errno
import hashlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

from uino_deploy.errors import Degraded, InputError, OutputExists
from uino_deploy.files import (
    atomic_directory,
    atomic_file,
    refuse_existing,
    refuse_input,
    safetensors_bytes,
    sha256,
)


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
    (tmp_path / "out" / "old").touch()
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
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").touch()
    with pytest.raises(OutputExists), atomic_directory(tmp_path / "d"):
        (tmp_path / "theirs").rename(tmp_path / "d")
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


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("old")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file").symlink_to("f")  # which does not exist yet
    with atomic_directory(tmp_path / "folder", force=True) as folder:
        (folder / "new").touch()
    with atomic_file(tmp_path / "file") as file:
        file.write_text("through")
    assert (tmp_path / "folder").readlink() == Path("real")
    assert names(tmp_path / "real") == ["new"]
    assert (tmp_path / "file").readlink() == Path("f")
    assert (tmp_path / "f").read_text() == "through"


def test_a_bundles_manifest_replaces_a_link_into_a_cache(tmp_path):
    (tmp_path / "blob").write_text("shared")
    (tmp_path / "manifest.json").symlink_to("blob")
    with atomic_file(tmp_path / "manifest.json", force=True, through=False) as file:
        file.write_text("own")
    assert not (tmp_path / "manifest.json").is_symlink()
    assert (tmp_path / "blob").read_text() == "shared"


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


def fifo(path):
    os.mkfifo(path)


def device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def unix_socket(path):
    folder = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(folder)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("make", [fifo, device, unix_socket])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, make, linked):
    make(tmp_path / "out")
    before = os.stat(tmp_path / "out")
    path = tmp_path / "out"
    if linked:
        path = tmp_path / "link"
        path.symlink_to("out")
    for attempt in (atomic_file, atomic_directory):
        refused = pytest.raises(OutputExists, match="device, pipe or socket")
        with refused, attempt(path, force=True):
            pytest.fail("the block ran")
    after = os.stat(tmp_path / "out")
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


def test_a_folder_does_not_replace_a_file(tmp_path):
    (tmp_path / "f").write_text("dear")
    said = pytest.raises(OutputExists, match="is a file; name a folder")
    with said, atomic_directory(tmp_path / "f", force=True):
        pytest.fail("the block ran")
    assert (tmp_path / "f").read_text() == "dear"


@pytest.mark.parametrize("marker", [None, "done"])
def test_an_empty_folder_is_filled_and_keeps_its_mode(tmp_path, marker):
    (tmp_path / "out").mkdir(mode=0o700)
    (tmp_path / "out" / "lost+found").mkdir()  # as in any new volume
    with atomic_directory(tmp_path / "out", marker=marker) as folder:
        (folder / "done").touch()
    assert names(tmp_path / "out") == ["done"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("found", ["before", "after"])
def test_a_mount_point_is_filled_and_replaced_in_place(tmp_path, monkeypatch, found):
    """Whether it shows before the work (another file system) or when it is renamed (a bind)."""
    out = tmp_path / "out"
    out.mkdir()
    inode = out.stat().st_ino
    rename = os.rename

    def refuse(source, target):
        if Path(source) == out or Path(target) == out:
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os.path, "ismount", lambda path: found == "before" and Path(path) == out)
    for number in "12":
        with atomic_directory(out, force=number == "2", marker="done") as folder:
            (folder / f"of {number}").mkdir()
            (folder / f"of {number}" / "x").touch()
            (folder / "done").write_text(number)
        assert names(out) == ["done", f"of {number}"]
        assert (out / "done").read_text() == number
    assert out.stat().st_ino == inode
    assert names(tmp_path) == ["out"]


def test_a_file_that_is_a_mount_point_is_written_in_place(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old and longer")
    inode = (tmp_path / "f").stat().st_ino

    def busy(_source, _target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    with atomic_file(tmp_path / "f", force=True) as file:
        file.write_text("new")
    assert (tmp_path / "f").read_text() == "new"
    assert (tmp_path / "f").stat().st_ino == inode


@pytest.mark.parametrize("marker", [None, "done"])
def test_an_impossible_output_is_refused_before_the_work(tmp_path, marker):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for place, said in (
        ("n" * 300, "File name too long"),
        ("字" * 100, "File name too long"),
        ("file/out", "Not a directory"),
        ("loop", "symbolic links"),
        ("loop/out", "symbolic links"),
    ):
        with pytest.raises(InputError, match=f"{said}.*; choose another output"):
            refuse_existing(tmp_path / place, True, marker)


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    for name in ("n" * 255, "字" * 85):
        with atomic_file(tmp_path / name) as file:
            file.write_text("1")
        with atomic_directory(tmp_path / "inner" / name):
            pass
        assert (tmp_path / name).read_text() == "1"
        assert (tmp_path / "inner" / name).is_dir()


def test_where_files_have_no_modes_the_output_is_written_and_one_line_says_so(
    tmp_path, monkeypatch
):
    def refuse(_path, _mode, **_options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)

    def write():
        with atomic_directory(tmp_path / "d") as made:
            (made / "a").touch(mode=0o600)
            (made / "b").touch(mode=0o600)

    with pytest.warns(Degraded, match="no modes") as said:
        write()
    assert len(said) == 1
    assert names(tmp_path / "d") == ["a", "b"]


def test_outputs_are_on_the_disk_before_they_are_named(tmp_path, monkeypatch):
    events = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note(kind, act):
        def noted(*arguments):
            what = arguments[-1]
            path = Path(f"/proc/self/fd/{what}").readlink() if kind == "flush" else Path(what)
            events.append((kind, path.name))
            return act(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", note("flush", fsync))
    monkeypatch.setattr(os, "rename", note("name", rename))
    monkeypatch.setattr(os, "replace", note("name", replace))
    with atomic_directory(tmp_path / "d") as folder:
        (folder / "x").touch()
    with atomic_file(tmp_path / "f") as file:
        file.touch()
    here = ("flush", tmp_path.name)
    assert events == [
        *[("flush", "x"), ("flush", "d"), ("name", "d"), here],
        *[("flush", "f"), ("name", "f"), here],
    ]


KILLED = """
import os, sys
from uino_deploy import files
def die(*_): os._exit(9)
if sys.argv[2] == "renaming":  # between the two renames: the old is away, the new is not there
    rename = os.rename
    os.rename = lambda a, b: (rename(a, b), die())
with files.atomic_directory(sys.argv[1], force=True, marker="done") as folder:
    (folder / "done").write_text("new")
    if sys.argv[2] == "writing": die()
"""


@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_what_a_killed_run_left_is_removed_by_the_next_and_what_it_moved_comes_back(tmp_path, when):
    out = tmp_path / "out"
    out.mkdir()
    (out / "done").write_text("old")
    code = [sys.executable, "-c", KILLED, str(out), when]
    assert subprocess.run(code, check=False).returncode == 9
    assert [name[:9] for name in names(tmp_path)] == [".out.tmp-", *["out"] * (when == "writing")]
    with pytest.raises(InterruptedError), atomic_directory(out, force=True, marker="done"):
        raise InterruptedError
    assert names(tmp_path) == ["out"]
    assert (out / "done").read_text() == "old"


def test_the_working_folder_is_filled_and_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, force in (("one", False), ("two", True)):
        with atomic_directory(".", force, marker="done") as made:
            (made / "done").write_text(text)
            (made / text).mkdir()
        assert Path("done").read_text() == text  # as the user's shell sees it
    assert names(tmp_path) == ["done", "two"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that takes no files")
def test_a_folder_in_which_no_file_can_be_made_is_refused_before_the_work():
    with pytest.raises(InputError, match="output /proc/x"):
        refuse_existing("/proc/x", force=True)


def test_an_output_may_not_take_an_input_away(tmp_path):
    bundle = tmp_path / "b.uino"
    bundle.mkdir()
    (tmp_path / "link").symlink_to(bundle)
    for output, words in [
        (bundle, "is also an input"),
        (tmp_path, "holds the input"),
        (tmp_path / "link" / "manifest.json", "lies inside the input"),
    ]:
        with pytest.raises(OutputExists, match=words):
            refuse_input(output, [bundle])
    refuse_input(tmp_path / "b.uino2", [bundle])
