"""CPU seconds of a bundle's pieces with the native operators and without, on a busy machine too.

Latency depends on what else runs; the processor time of a piece hardly does. The forms take turns,
and the least time of all rounds counts. Threads that wait by spinning are counted as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from uino_deploy.benchmarks.plan import PORTABLE, with_portable
from uino_deploy.bundle import Bundle
from uino_deploy.bundle.reference import inputs_of, load_example
from uino_deploy.errors import DependencyError
from uino_deploy.markdown import table
from uino_deploy.pipeline import QUERY
from uino_deploy.runtime.backends import BackendOptions, open_backend

BACKENDS = ("onnxruntime", "openvino")


def cpu_seconds(bundle: Bundle, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the pieces of a query on the example stored in a bundle.

    Args:
        bundle: opened.
        threads: of each backend.
        rounds: runs of each piece, after one that is not counted.

    Returns:
        For each backend that runs the bundle, with `PORTABLE` after its name for the portable
        form, the least CPU seconds of each piece.
    """
    example = load_example(bundle)
    sessions = {}
    for name in with_portable(BACKENDS):
        options = BackendOptions(threads=threads, portable=name.endswith(PORTABLE))
        try:
            backend = open_backend(name.removesuffix(PORTABLE), options)
            sessions[name] = backend.load_all(bundle, QUERY.pieces)
        except DependencyError:  # such as bfloat16 in ONNX Runtime
            continue
    least: dict[str, dict[str, float]] = {name: {} for name in sessions}
    for number in range(rounds + 1):
        for name, pieces in sessions.items():
            for piece, session in pieces.items():
                feeds = inputs_of(bundle.piece(piece), example)
                begun = time.process_time()
                session.run(feeds)
                spent = time.process_time() - begun
                if number:
                    least[name][piece] = min(spent, least[name].get(piece, spent))
    return least


def as_table(measured: dict[str, dict[str, float]]) -> str:
    """Return the seconds as Markdown, with their sum."""
    rows = []
    for name, pieces in measured.items():
        seconds = [*(pieces[piece] for piece in QUERY.pieces), sum(pieces.values())]
        rows.append([name.replace("/", ", "), *(f"{each:.3f}" for each in seconds)])
    return table(["CPU seconds", *QUERY.pieces, "sum"], rows, numbers=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    print(as_table(cpu_seconds(Bundle.open(asked.bundle), asked.threads, asked.rounds)))  # noqa: T201


if __name__ == "__main__":
    main()
