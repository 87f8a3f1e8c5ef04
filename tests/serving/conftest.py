"""A service in a process of its own, and the fake bundle that it serves.

The service is the real command; `url` is a key of what it prints with --json. A worker is known by
`spawn_main`, which CPython's multiprocessing puts into the command line of a spawned process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving.client import Client

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from tests.runtime.conftest import fake_bundle, red_files, red_square, run

__all__ = ["fake_bundle", "red_files", "red_square", "run"]

ROOT = Path(__file__).resolve().parents[2]


class Service:
    """A running service: its process, its URL and a client of it."""

    def __init__(self, process, url):
        self.process, self.url = process, url
        self.address = url.removeprefix("http://")

    def client(self):
        return Client(self.address)

    def workers(self):
        """Return the processes of the workers: the children that hold the runtime."""
        found = []
        for each in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = each.read_text().rpartition(")")[2].split()
                command = (each.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid and b"spawn_main" in command:
                found.append(int(each.parent.name))
        return found

    def wait_until_ready(self, seconds=60):
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            if self.client().ask("GET", "/health/ready").status == 200:
                return self
            time.sleep(0.1)
        raise AssertionError("the service is not ready")


@contextmanager
def served(bundle, classes, *options):
    """Run a service, and end it by SIGTERM unless it has ended."""
    command = [sys.executable, "-m", "uino_deploy", "serve", str(bundle), "--classes", str(classes)]
    command += ["--port", "0", "--json", *options]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the service ended at once"
            text += line
        yield Service(process, json.loads(text)["url"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()


@pytest.fixture(scope="module")
def service(fake_bundle, tmp_path_factory):
    """Return a service of the fake bundle; its classes' folder is `service.classes`."""
    classes = tmp_path_factory.mktemp("service") / "classes"
    limits = ["--max-body", "300kB", "--max-pixels", "100000", "--max-classes", "3"]
    with served(fake_bundle, classes, "--threads", "1", "--deadline", "20", *limits) as running:
        running.classes = classes
        yield running.wait_until_ready()
