"""`make serve-check` and `make triton-check` fail where something that they name did not run."""

import os
import subprocess
import sys
from copy import deepcopy

import pytest

pytest.importorskip("skimage")

from tests.serving.__main__ import failures
from tests.serving.conftest import ROOT
from tests.serving.figures import report
from tests.serving.triton.__main__ import not_ready


def nothing(load):
    load.update(answered=0, answered_a_second=0.0, ms={}, wrong=[])


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda found: found["clients"]["8"], "8 clients"),
        (lambda found: found["slow_clients"], "slow_clients"),
        (lambda found: found["killed_workers"], "killed_workers"),
        (lambda found: found["overload"], "overload"),
    ],
)
def test_a_load_that_was_never_answered_fails_the_check(load, said):
    found = deepcopy(report())
    assert failures(found) == []
    nothing(load(found))
    (why,) = failures(found)
    assert why == f"NOT RUN, nothing was answered: {said}"


def test_an_overload_without_a_calm_before_it_fails_the_check():
    found = deepcopy(report())
    found["overload"]["share_of_peak"] = 0.0
    assert failures(found) == ["NOT RUN, nothing was answered: before the overload"]


def test_a_skipped_test_of_the_page_fails_its_target(tmp_path):
    command = (ROOT / "Makefile").read_text("utf-8").partition("\nserve-check:")[2].split("\n\n")[0]
    assert "-m slow --no-skips tests/serving/test_page.py" in command
    path = tmp_path / "test_it.py"
    path.write_text("import pytest\n\ndef test_page():\n    pytest.skip('no browser')\n")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    codes = []
    for options in ([], ["--no-skips"]):
        done = subprocess.run(
            [*run, *options, "--rootdir", str(tmp_path), str(path)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
            check=False,
            capture_output=True,
            text=True,
        )
        codes.append(done.returncode)
    assert codes == [0, 1], done.stdout + done.stderr
    assert "NOT RUN: Skipped: no browser" in done.stdout


def test_models_that_the_server_does_not_serve_are_named():
    assert not_ready("127.0.0.1:9", ["encoder", "segment"]) == ["encoder", "segment"]
