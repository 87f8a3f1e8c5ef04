"""Runs the command line and kills it by SIGKILL just before its Nth change of the file system.

`python -m tests.crash.counted N COUNTS WORDS...`: 0 kills nothing; the number of changes goes into
the file COUNTS in the end. Between two changes a kill leaves the same files, so that the numbers 1
to COUNTS are all the moments that there are, but for what native libraries write.
"""

import os
import signal
import sys
from pathlib import Path

CHANGES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"),
    *("os.truncate", "fcntl.flock"),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main() -> None:
    fatal, counts = int(sys.argv[1]), Path(sys.argv[2])
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if opened or event in CHANGES:
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    from uino_deploy.cli import main as command

    sys.addaudithook(watch)
    try:
        command(sys.argv[3:])
    finally:
        total, fatal = seen, 0
        if not int(sys.argv[1]):
            counts.write_text(str(total))


if __name__ == "__main__":
    main()
