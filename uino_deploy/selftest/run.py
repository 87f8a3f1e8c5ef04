"""Runs the groups of claims, each in a process of its own, within a limit of time."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from uino_deploy import __version__
from uino_deploy.selftest.findings import Claim, Finding, Verdict, without
from uino_deploy.selftest.groups import Request, groups
from uino_deploy.selftest.setting import Setting

Say = Callable[[str], None]

_COMMAND = [sys.executable, "-m", "uino_deploy.selftest.groups"]
_LAST_WORDS = 2
_NO_GPU = "no GPU can be used here"


class Report(msgspec.Struct, kw_only=True):
    """What the self-test found.

    Attributes:
        version: of this package.
        gpu: name, architecture and CUDA release of the GPU; None where none was looked for or
            found.
        without_gpu: why nothing that needs a GPU was checked; empty where it was, or was not asked.
        findings: every claim's verdict.
        seconds: how long it all took.
    """

    version: str
    gpu: dict[str, str] | None
    without_gpu: str
    findings: list[Finding]
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """Return how many findings have a verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)


def run_selftest(
    bundle: Path | None = None,
    gpu: bool = False,
    kernels: Path | None = None,
    minutes: float = 8.0,
    say: Say = lambda _line: None,
) -> Report:
    """Check what this machine can.

    Args:
        bundle: checked instead of the bundled checkpoint's, whose export needs torch and onnx.
        gpu: check what needs an NVIDIA GPU, and only that.
        kernels: folder that `uino-deploy kernels build` wrote.
        minutes: no claim is begun, and none goes on, after that time.
        say: receives a line for each finding.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uino-selftest-") as scratch:
        setting = Setting(
            scratch=scratch,
            bundle=None if bundle is None else str(bundle.absolute()),
            kernels=None if kernels is None else str(kernels.absolute()),
        )
        device, reason = _describe_device(setting) if gpu else (None, "")
        if device is not None:
            setting.architecture, setting.cuda = device["architecture"], device["cuda"]
        findings: list[Finding] = []
        for name, make in groups(setting, gpu).items():
            claims = make()
            if reason:
                findings += _skip(name, claims, _NO_GPU)
                say(f"skipped {name}: {len(claims)} claims - {_NO_GPU}")
                continue
            request = Request(setting=setting, group=name, gpu=gpu)
            for finding in _run_group(request, claims, begun + 60 * minutes):
                findings.append(finding)
                say(line_of(finding))
    return Report(
        version=__version__,
        gpu=device,
        without_gpu=reason,
        findings=findings,
        seconds=round(time.monotonic() - begun, 1),
    )


def line_of(finding: Finding) -> str:
    """Return a finding as a line for people."""
    found = ""
    if finding.measured is not None:
        found = f": {_number(finding.measured, finding.unit)}"
        if finding.bound is not None:
            unit = "bytes" if finding.unit == "bytes" else ""
            found += f" ({finding.sense} {_number(finding.bound, unit)})"
    why = f" - {finding.reason}" if finding.reason else ""
    return f"{finding.verdict:7} {finding.group}: {finding.claim}{found}{why}"


def _number(value: float, unit: str) -> str:
    return f"{value / 1e6:.1f} MB" if unit == "bytes" else f"{value:.4g} {unit}".strip()


def _skip(group: str, claims: list[Claim], reason: str) -> list[Finding]:
    return [without(group, claim, "skipped", reason) for claim in claims]


def _describe_device(setting: Setting) -> tuple[dict[str, str] | None, str]:
    """Ask a process of its own for the GPU; return it, or None and why there is none."""
    request = msgspec.json.encode(Request(setting=setting, group=""))
    done = subprocess.run(_COMMAND, input=request, capture_output=True, check=False)
    if done.returncode:
        return None, f"its process ended with {done.returncode}: {_end_of(done.stderr)}"
    answer = msgspec.json.decode(done.stdout)
    return answer.get("device"), answer.get("missing", "")


def _run_group(request: Request, claims: list[Claim], deadline: float) -> Iterator[Finding]:
    """Check a group in a process of its own; what it did not come to is judged here."""
    name = request.group
    if time.monotonic() >= deadline:
        yield from _skip(name, claims, "the time was up")
        return
    left = {claim.name: claim for claim in claims}
    running = ""
    with _process(request) as (process, errors):
        for message in _messages(process, deadline):
            running = message.get("begin", running)
            if "findings" in message:
                left.pop(running)
                yield from msgspec.convert(message["findings"], list[Finding])
        in_time = time.monotonic() < deadline
        status = process.wait() if in_time else None
        errors.seek(0)
        words = _end_of(errors.read())
    for claim in left.values():
        if not in_time:
            was = "not done" if claim.name == running else "not begun"
            yield without(name, claim, "skipped", f"it was {was} when the time was up")
        elif claim.name == running or not running:
            yield without(name, claim, "failed", f"its process ended with {status}: {words}")
        else:
            yield without(name, claim, "skipped", f"{running!r} ended the process")


@contextlib.contextmanager
def _process(request: Request) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start a process with a request; it is gone at the end, however that comes."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as asked:
        asked.write(msgspec.json.encode(request))
        asked.seek(0)
        process = subprocess.Popen(_COMMAND, stdin=asked, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield process, errors
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _messages(process: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
    """Yield what a process says until it ends or the time is up."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield msgspec.json.decode(line)


def _end_of(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in lines[-_LAST_WORDS:])
