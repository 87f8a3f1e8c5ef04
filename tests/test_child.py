"""A job in a child process: answers, notes, crashes, noise, time limits, a killed parent."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uino_deploy.child import Child, ChildFailed

ROOT = Path(__file__).parents[1]


def job(name):
    return f"tests.child_jobs:{name}"


def running(pid):
    """Return whether a process runs; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(pids):
    end = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(running, pids))


def test_notes_come_before_the_answer_and_the_process_goes_on():
    notes = []
    with Child(job("count")) as child:
        assert child.ask(2, notes.append) == [2]
        assert notes == [{"number": 0}, {"number": 1}]
        assert child.ask(0) == [2, 0]
        assert child.pid != os.getpid()
    assert not running(child.pid)


@pytest.mark.parametrize(
    ("name", "request_", "how", "words"),
    [
        ("abort", None, "died of SIGABRT", "terminate called / what(): no kernel image"),
        ("leave", 3, "died with status 3", "no message"),
        ("leave", "why it left", "died with status 1", "why it left"),
        ("leave", 0, "ended without an answer", "no message"),
        ("kill_itself", None, f"died of signal {signal.SIGRTMIN + 3}", "no message"),
        ("count", "no number", "died with status 1", "TypeError"),
        ("fail", "ENOENT", "died with status 1", "No such file or directory: 'k.ptx'"),
        ("no_such_job", None, "died with status 1", "no_such_job"),
    ],
)
def test_an_end_without_an_answer_is_told_with_the_last_words(name, request_, how, words):
    with Child(job(name)) as child, pytest.raises(ChildFailed) as failed:
        child.ask(request_)
    assert (failed.value.how, failed.value.timed_out) == (how, False)
    assert words in failed.value.words
    assert str(failed.value) == f"{how}: {failed.value.words}"


def test_a_full_disk_is_the_parents_error():
    with Child(job("fail")) as child, pytest.raises(OSError, match="No space left") as full:
        child.ask("ENOSPC")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, "k.ptx")


def test_what_libraries_print_is_no_part_of_the_protocol():
    notes = []
    with Child(job("print_natively")) as child:
        answer = child.ask(None, notes.append)
    assert notes == ["noted"]
    assert math.isnan(answer["nan"])
    assert answer["stdin"] == ""


def test_what_libraries_print_is_part_of_the_last_words(tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(
        "import os\nos.write(1, b'loaded\\n')\ndef job(_r, _n):\n    os._exit(4)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with Child("noisy:job") as child, pytest.raises(ChildFailed, match="status 4: loaded"):
        child.ask(None)


def test_the_time_limit_ends_the_whole_group():
    pids = []
    with Child(job("sleep")) as child, pytest.raises(ChildFailed, match="longer than 2 s") as late:
        child.ask(60, pids.extend, seconds=2)
    assert late.value.timed_out
    assert late.value.words == "sleeping"
    assert len(pids) == 2
    assert all_end(pids)


def test_an_answer_within_the_time_limit_counts():
    with Child(job("sleep")) as child:
        assert child.ask(0, seconds=60) == "rested"


def test_an_error_in_the_parent_ends_the_child_at_once():
    pids, begun = [], time.monotonic()

    def interrupted(note):
        pids.extend(note)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Child(job("sleep")) as child:
        child.ask(60, interrupted)
    assert time.monotonic() - begun < 30
    assert all_end(pids)


def test_the_group_outlives_neither_the_answer_nor_the_end_of_a_with():
    pids = []
    with Child(job("sleep")) as child:
        child.ask(0, pids.extend)
        assert running(pids[1])
    assert all_end(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_group_ends_with_its_parent(number):
    code = (
        "from uino_deploy.child import Child\n"
        f"with Child({job('sleep')!r}) as child:\n"
        "    child.ask(60, lambda note: print(*note, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(map(running, pids))
        parent.send_signal(number)
        parent.wait(20)
    assert all_end(pids)


def test_the_environment_is_the_one_given():
    environment = {**os.environ, "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    with Child(job("count"), environment) as child, pytest.raises(ChildFailed):
        child.ask(0)


STARTS_A_WORKER = """
import multiprocessing, os, time
from tests.child_jobs import outlive
worker = multiprocessing.get_context("spawn").Process(target=outlive, args=(os.getpid(),))
worker.start()
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_whose_parent_is_killed_as_it_starts_ends_too():
    words = [sys.executable, "-c", STARTS_A_WORKER]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    try:
        assert all_end([worker])
    finally:
        if running(worker):
            os.kill(worker, signal.SIGKILL)
