"""A mapped file's pages are released only if nothing is lost."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from uino_deploy.runtime.mapped_file import give_back, map_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of pages")
SIZE = 1 << 20


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def resident(path: Path) -> int:
    """Return the kilobytes of a mapped file that lie in this process's memory."""
    sections = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    (mine,) = [section for section in sections if f"{path}\n" in section]
    return int(re.search(r"^Rss:\s+(\d+)", mine, re.MULTILINE)[1])


def test_pages_are_given_back_and_read_again(path):
    memory = map_file(path)
    assert memory[:] == path.read_bytes()
    assert resident(path) == SIZE // 1024
    assert give_back(memory)
    assert resident(path) == 0
    assert memory[:] == path.read_bytes()


def test_what_was_written_is_not_lost_and_not_in_the_file(path):
    before = path.read_bytes()
    memory = map_file(path)
    memory[:4] = b"mine"
    assert not give_back(memory)
    assert memory[:] == b"mine" + before[4:]
    assert path.read_bytes() == before
