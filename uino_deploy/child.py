"""A job in a child process: a request in, notes while it works, one answer out.

A native library that aborts, hangs or prints can only harm that process. Requests arrive on stdin
and replies leave on stdout, one JSON document per line. The child keeps stdout's pipe for itself
and points descriptor 1 at stderr, so a library's output becomes part of the last words, not of the
protocol. The child leads a process group, which ends with the child, and with the parent however
that ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import IO, Any

import msgspec

Note = Callable[[Any], None]
Job = Callable[[Any, Note], Any]
_Lines = queue.SimpleQueue[bytes]

# Lines of stderr to report when a process ends, and seconds that one may take to end by itself.
_LAST_WORDS = 2
_PATIENCE = 10.0
# What a job fails with where the disk is full: the machine's fault, not the job's.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ChildFailed(Exception):
    """A child ended or was killed without an answer.

    Attributes:
        how: such as "died of SIGABRT", "died with status 3" or "took longer than 60 s".
        words: the last lines that it or a library wrote to stderr or stdout.
        timed_out: whether it exceeded its time limit.
    """

    def __init__(self, how: str, words: str, timed_out: bool = False) -> None:
        super().__init__(f"{how}: {words}")
        self.how = how
        self.words = words
        self.timed_out = timed_out


class Child:
    """A process that runs a job for each request, until `close` or the end of a `with`.

    Args:
        job: "MODULE:FUNCTION"; the function takes a request and a function that sends a note, and
            returns the answer. Requests, notes and answers must be serialisable by JSON or msgspec.
        environment: the child's environment variables; the parent's if None.
    """

    def __init__(self, job: str, environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `kill` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uino_deploy.child", job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, _Lines()
        reader = (self._process.stdout, self._replies.put)
        threading.Thread(target=_read, args=reader, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number, and its group's."""
        return self._process.pid

    def ask(
        self, request: Any, note: Note = lambda _note: None, seconds: float | None = None
    ) -> Any:
        """Send a request and wait for its answer.

        Args:
            request: the job's argument.
            note: called with each note that the job sends while it works.
            seconds: time limit, after which the child is killed; no limit if None.

        Raises:
            ChildFailed: the child ended without an answer, or was killed at the time limit.
            OSError: the job found no room on a disk.
        """
        end = None if seconds is None else time.monotonic() + seconds
        # A child that died before reading is reported below, with its last words.
        with contextlib.suppress(BrokenPipeError):
            _write(self._requests, request)
        while True:
            try:
                line = self._replies.get(timeout=end and max(0.0, end - time.monotonic()))
            except queue.Empty:
                words = self._last_words()
                self.kill()
                raise ChildFailed(f"took longer than {seconds:.0f} s", words, True) from None
            if not line:
                raise self._death()
            reply = json.loads(line)
            if "answer" in reply:
                return reply["answer"]
            if "full" in reply:
                raise OSError(*reply["full"])
            note(reply["note"])

    def close(self) -> None:
        """Let the child end by itself; kill it if it does not within seconds."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        with contextlib.suppress(queue.Empty):
            while self._process.returncode is None and self._replies.get(timeout=_PATIENCE):
                pass
        self.kill()

    def kill(self) -> None:
        """End the child and its process group at once."""
        if self._process.returncode is None:  # else its number may belong to another process by now
            if sys.platform == "win32":
                self._process.kill()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _death(self) -> ChildFailed:
        """Describe how the child ended; after the end of its replies its status is settled."""
        words = self._last_words()
        self.kill()
        return ChildFailed(_how(self._process.returncode), words)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-_LAST_WORDS:]) or "no message"


def _how(status: int) -> str:
    """Describe how a process ended: the signal or the status."""
    if status >= 0:
        return f"died with status {status}" if status else "ended without an answer"
    try:
        return f"died of {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"died of signal {-status}"


def end_with_parent(_worker: int = 0) -> None:
    """Make this worker of `multiprocessing` end when its parent has gone, however that ended.

    torch's own watch begins after a worker's start, and takes whoever is the parent then for it: a
    worker whose parent is killed before stays for ever.
    """
    if (parent := multiprocessing.parent_process()) is None:
        return  # run in the parent itself

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _read(stream: IO[bytes], receive: Callable[[bytes], None]) -> None:
    """Pass a stream on line by line, then an empty line."""
    with stream:
        for line in stream:
            receive(line)
    receive(b"")


def _write(stream: IO[bytes], value: Any) -> None:
    # Not msgspec's JSON, which has no NaN.
    stream.write(json.dumps(msgspec.to_builtins(value)).encode() + b"\n")
    stream.flush()


def main() -> None:
    """Answer the requests on stdin with the job that the command line names."""
    # Never closed by Python: the end of the pipe tells the parent that the exit status is settled.
    replies = os.fdopen(os.dup(1), "wb", closefd=False)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    asked, working = _Lines(), threading.Event()

    def receive(line: bytes) -> None:
        if line:
            working.set()
        elif working.is_set() and sys.platform != "win32":
            os.killpg(os.getpid(), signal.SIGKILL)  # the parent is gone: nobody reads the answer
        asked.put(line)

    threading.Thread(target=_read, args=(requests, receive), daemon=True).start()
    module, _, name = sys.argv[1].partition(":")
    job: Job = getattr(import_module(module), name)
    while line := asked.get():
        try:
            reply = {"answer": job(json.loads(line), lambda note: _write(replies, {"note": note}))}
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            reply = {"full": (error.errno, error.strerror, error.filename)}
        working.clear()
        _write(replies, reply)


if __name__ == "__main__":
    main()
