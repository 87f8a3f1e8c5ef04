"""Jobs for the tests of `uino_deploy.child`: normal ones, and every kind of failure."""

import errno
import os
import signal
import subprocess
import sys
import time

from uino_deploy.child import end_with_parent

SEEN = []


def count(request, note):
    """Send a note for each number, and answer with all requests so far."""
    for number in range(request):
        note({"number": number})
    SEEN.append(request)
    return SEEN


def fail(request, _note):
    raise OSError(getattr(errno, request), os.strerror(getattr(errno, request)), "k.ptx")


def abort(_request, _note):
    os.write(2, b"first\nterminate called\nwhat(): no kernel image\n")
    os.abort()


def leave(request, _note):
    sys.exit(request)


def kill_itself(_request, _note):
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def print_natively(_request, note):
    """Print as C does, before and after a note, and from another process."""
    os.write(1, b'{"answer": "wrong"}\n')
    sys.stdout.write("by Python\n")
    sys.stdout.flush()
    note("noted")
    subprocess.run([sys.executable, "-c", "print('by a process')"], check=True)
    os.write(1, b"no end of line")
    return {"nan": float("nan"), "stdin": sys.stdin.read()}


def sleep(request, note):
    """Start a process that sleeps too, say both numbers, sleep."""
    inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note([os.getpid(), inner.pid])
    os.write(2, b"sleeping\n")
    time.sleep(request)
    return "rested"


def outlive(parent):
    """Start to end with the parent only after it has gone."""
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent(0)
    time.sleep(60)
