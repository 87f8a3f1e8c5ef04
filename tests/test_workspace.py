"""Workspaces: removed in the end, or by the next run when their owner was killed."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from uino_deploy.errors import Degraded
from uino_deploy.workspace import locked, work_folder

OWNER = """
import sys, time
from pathlib import Path
from uino_deploy.workspace import work_folder
with work_folder(Path(sys.argv[1]), "out") as folder:
    (folder / "half").touch()
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def start(folder):
    code = [sys.executable, "-c", OWNER, str(folder)]
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def end(process):
    process.kill()
    process.communicate()


def test_a_folder_stays_while_its_owner_lives_and_goes_after_it_was_killed(tmp_path):
    living, lives = start(tmp_path)
    killed, dead = start(tmp_path)
    try:
        end(killed)
        (tmp_path / ".output.tmp-1").mkdir()  # another name's
        with work_folder(tmp_path, "out") as mine:
            assert set(os.listdir(tmp_path)) == {lives, mine.name, ".output.tmp-1"}
            assert dead not in {lives, mine.name}
    finally:
        end(living)
    with work_folder(tmp_path, "out"):
        pass
    assert os.listdir(tmp_path) == [".output.tmp-1"]


def test_what_is_only_named_like_a_workspace_stays(tmp_path, tmp_path_factory):
    """A link to a folder, a file, and a folder of another machine or boot."""
    precious = tmp_path_factory.mktemp("precious")
    (precious / "x").touch()
    with work_folder(tmp_path, "out") as mine:
        stem = mine.name[:-8]
    (tmp_path / f"{stem}00000000").symlink_to(precious)
    (tmp_path / f"{stem}00000001").touch()
    (tmp_path / ".out.tmp-0000000000000000").mkdir()
    before = sorted(os.listdir(tmp_path))
    with work_folder(tmp_path, "out"):
        pass
    assert sorted(os.listdir(tmp_path)) == before
    assert (precious / "x").exists()


def test_it_is_the_owners_alone_and_lies_in_the_systems_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with work_folder(None, "uino-test") as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not os.listdir(tmp_path)


def no_locks(_handle, _operation):
    raise OSError(errno.ENOTSUP, "Operation not supported")


def test_without_locks_work_goes_on_and_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    for wait in (True, False):
        with (
            pytest.warns(Degraded, match="cannot be locked") as said,
            locked(tmp_path, wait) as held,
        ):
            assert held
        assert len(said) == 1
    with work_folder(tmp_path, "out") as first, work_folder(tmp_path, "out"):
        assert first.is_dir()  # nobody can tell whose it is
    assert not os.listdir(tmp_path)


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path) as first, locked(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with pytest.raises(FileNotFoundError), locked(tmp_path / "gone"):
        pytest.fail("the block ran")
