"""The service's unit and Compose file: what their own tools say, and that their commands parse."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, check_command

UNIT = ROOT / "systemd" / "uino-deploy.service"
COMPOSE = ROOT / "docker" / "compose.yaml"
PROGRAM = "/opt/uino-deploy/bin/uino-deploy"


def verified(folder: Path, text: str) -> str:
    """Return what systemd says of a unit whose program is one that exists."""
    path = folder / UNIT.name
    path.write_text(text.replace(PROGRAM, sys.executable), "utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    text = UNIT.read_text("utf-8")
    assert verified(tmp_path, text) == ""
    assert "KilMode" in verified(tmp_path, text.replace("KillMode", "KilMode")), (
        "or it sees nothing"
    )


def test_the_units_command_parses_and_it_waits_for_the_deadline():
    text = UNIT.read_text("utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = shlex.split(line)
    assert words[0] == PROGRAM
    check_command(["uino-deploy", *words[1:]])
    from uino_deploy.serving.settings import Limits

    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    (grace,) = re.findall(r"stop_grace_period: (\d+)s", COMPOSE.read_text("utf-8"))
    assert min(int(stop), int(grace)) > Limits().deadline + 1
    # Otherwise SIGTERM would reach the workers before their requests are answered.
    assert "\nKillMode=mixed\n" in text
    assert "\nSuccessExitStatus=143\n" in text


def test_composes_command_parses():
    text = COMPOSE.read_text("utf-8")
    (block,) = re.findall(r"    command:\n((?:      - .*\n)+)", text)
    check_command(["uino-deploy", *re.findall(r"      - (.*)\n", block)])
    assert '"127.0.0.1:8000:8000"' in text, "the port of this machine alone"


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
def test_compose_takes_the_file(tmp_path):
    command = ["docker-compose", "-f", str(COMPOSE), "config"]
    given = {"UINO_BUNDLE": str(tmp_path), "UINO_TOKEN": str(tmp_path / "token")}
    environment = {name: value for name, value in os.environ.items() if name not in given}
    done = subprocess.run(
        command, env=environment | given, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"source: {tmp_path}" in done.stdout
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "the folder of the bundle" in done.stderr
