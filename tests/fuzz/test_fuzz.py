"""A short attack on every reader; and faults that were planted, each of which must be reported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz.harness import Case, attack, rerun
from tests.fuzz.parsers import PARSERS
from uino_deploy.errors import InputError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded through /proc"),
    # Python 3.12 warns of the threads that numpy may have; the children use none of them.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

INPUTS = 25  # of each parser: the rest is `make fuzz`'s


def test_every_reader_holds(tmp_path):
    # In a process of its own: the inputs' children are forked, which needs one without threads.
    words = [sys.executable, "-m", "tests.fuzz", "--seed", "0", "--inputs", str(INPUTS)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    words += ["--found", str(tmp_path)]
    ended = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "seed 0" in ended.stdout
    for name in PARSERS:
        assert f"{name:<14} {INPUTS:>8} inputs" in ended.stdout


def test_a_reader_that_got_no_input_is_no_pass(tmp_path):
    words = [sys.executable, "-m", "tests.fuzz", "coco", "--minutes", "0", "--found", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 1
    assert "no input was read in the time: coco" in ended.stdout


def test_an_input_counts_once_it_is_read(tmp_path):
    """The child's own time is used up before its first input."""
    tally = attack("planted", case_of(refuses), seed=1, inputs=9, seconds=1e-6, found=tmp_path)
    assert tally.inputs == 0


def test_an_empty_input_is_not_read_again(tmp_path):
    (tmp_path / "planted-0/input").mkdir(parents=True)
    with pytest.raises(ValueError, match="nothing to read again"):
        rerun(case_of(refuses), tmp_path / "planted-0")


def refuses(folder):
    if (folder / "f").read_bytes() != b"valid":
        raise InputError("it is damaged", "write it again")


def raises(folder):
    refuses_by(folder, lambda: {}["key"])


def exhausts(folder):
    refuses_by(folder, lambda: bytearray(1 << 50))


def allocates(folder):
    refuses_by(folder, lambda: b"a" * (200 << 20))


def hangs(folder):
    refuses_by(folder, lambda: time.sleep(60))


def turns(folder):
    def work():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    refuses_by(folder, work)


def crashes(folder):
    refuses_by(folder, os.abort)


def leaves(folder):
    refuses_by(folder, lambda: os._exit(3))


def writes(folder):
    refuses_by(folder, lambda: (folder.parent / "outside").write_bytes(b""))


def runs(folder):
    refuses_by(folder, lambda: subprocess.run(["true"], check=False))


def prints(folder):
    refuses_by(folder, lambda: os.write(2, b"libtiff: a warning\n"))


def obeys(folder):
    def refuse():
        raise InputError("")

    refuses_by(folder, refuse)


def refuses_by(folder, act):
    if (folder / "f").read_bytes() != b"valid":
        act()
        raise InputError("it is damaged")


def case_of(read):
    return lambda _made: Case(
        {"f": b"valid"},
        lambda random: {"f": random.randbytes(4)},
        read,
        # Short where the time is used up, else long enough for a machine that is busy.
        seconds=0.2 if read is turns else 2.0,
        patience=1.0 if read is hangs else 60.0,
    )


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (raises, "unhandled KeyError"),
        (exhausts, "runs out of memory"),
        (allocates, "takes more than 64 MB"),
        (hangs, "hangs: it took more than 1 s"),
        (turns, "takes more than 0.2 s of CPU time"),
        (crashes, "crashes the process: SIGABRT"),
        (leaves, "ends the process with code 3"),
        (writes, "it acts: open"),
        (runs, "it acts: subprocess.Popen"),
        (prints, "written to stderr"),
        (obeys, "an error of 0 letters"),
    ],
)
def test_a_planted_fault_is_reported_and_saved(read, told, tmp_path):
    tally = attack("planted", case_of(read), seed=1, inputs=2, seconds=60, found=tmp_path)
    assert tally.inputs == 2
    assert len(tally.faults) == 1
    saved = tmp_path / tally.faults[0]
    assert told in (saved / "report.txt").read_text().splitlines()[0]
    assert len((saved / "input" / "f").read_bytes()) == 4
    assert told in rerun(case_of(read), saved)
    assert rerun(case_of(refuses), saved) == ""


def test_a_seed_names_its_inputs_and_the_smallest_of_a_fault_is_kept(tmp_path):
    read = []

    def case(_made):
        def damaged(random):
            return {"f": bytes(random.randint(3, 40))}

        return Case({"f": b"valid"}, damaged, raises)

    for place in (tmp_path / "a", tmp_path / "b"):
        tally = attack("planted", case, seed=7, inputs=50, seconds=60, found=place)
        (name,) = tally.faults
        read.append((place / name / "input" / "f").read_bytes())
    assert read[0] == read[1]
    assert len(read[0]) < 6


def test_a_valid_sample_that_is_refused_attacks_nothing(tmp_path):
    def case(_made):
        return Case({"f": b"damaged"}, lambda _random: {}, refuses)

    with pytest.raises(InputError):
        attack("planted", case, seed=1, inputs=1, seconds=1, found=tmp_path)
    assert not list(Path(tmp_path).iterdir())
