"""Thousands of predictions in one process: memory, handles, threads, and the same results.

The parent starts a process for each backend (`child.Child`), so that one's memory is not another's.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from uino_deploy.bundle import Bundle
from uino_deploy.bundle.support import Support
from uino_deploy.letters import draw_letter
from uino_deploy.runtime import Predictor
from uino_deploy.runtime.backends import open_backend
from uino_deploy.runtime.predictor import Result
from uino_deploy.selftest.setting import CHECKPOINT

BACKENDS = ("onnxruntime", "openvino", "torch")
THREADS = 8
# The share of the predictions that fills caches and pools first, and how often the rest is sampled.
WARM_UP = 0.1
SAMPLES = 200
FEWEST = 20
# Growth that is no leak: allocators keep pages in steps of megabytes, and 20,000
# predictions may keep 10 MB in all.
BYTES_PER_1000 = 500_000
STEP = 4 << 20

# Faults that tests plant, one at each prediction; the value that is returned is kept.
PLANTS: dict[str, Callable[[], Any]] = {
    "": lambda: None,
    "memory": lambda: os.urandom(100_000),
    "handle": lambda: os.open(os.devnull, os.O_RDONLY),
    "thread": lambda: threading.Timer(60, print).start(),
}


def soak(request: dict[str, Any], _note: Callable[[Any], None]) -> dict[str, Any]:
    """Predict `predictions` times with a bundle on a backend; the job of a child process.

    Args:
        request: `bundle`, `backend`, `predictions`, `seconds` (stop after these), and `plant`, a
            key of `PLANTS`.

    Returns:
        What was measured, and `faults`: a sentence for each thing that is not as it must be.
    """
    predictor = load(Path(request["bundle"]), request["backend"])
    turns = work(predictor)
    expected = [predictor.predict(*turn) for turn in turns]
    count, plant = int(request["predictions"]), PLANTS[request["plant"]]
    kept: list[Any] = [None] * count
    faults: list[str] = []
    warm = int(WARM_UP * count)
    every = max(1, (count - warm) // SAMPLES)
    # Made beforehand: what measures must not grow itself.
    samples = np.zeros((-(-(count - warm) // every), 4), np.int64)
    wrong, began = 0, time.monotonic()
    for number in range(count):
        which = number % len(turns)
        wrong += not same(predictor.predict(*turns[which]), expected[which])
        kept[number] = plant()
        if number >= warm and (number - warm) % every == 0:
            samples[(number - warm) // every] = (number, *used())
        if time.monotonic() - began > request["seconds"]:
            count = number + 1
            break
    seconds = time.monotonic() - began
    samples = samples[: max(0, -(-(count - warm) // every))]
    if len(samples) < FEWEST:
        return {"predictions": count, "faults": [f"only {count} predictions in {seconds:.0f} s"]}
    slope, error = trend(samples[:, 0], samples[:, 1])
    handles, threads = (sorted(set(samples[:, column].tolist())) for column in (2, 3))
    if wrong:
        faults.append(f"{wrong} predictions differ from the first of their image")
    if grows(slope, error, count - warm):
        faults.append(f"memory grows by {slope:,.0f} +- {error:,.0f} bytes per 1,000 predictions")
    for what, seen in (("file handles", handles), ("threads", threads)):
        if len(seen) > 1:
            faults.append(f"{what} vary from {min(seen)} to {max(seen)}")
    unequal = in_threads(predictor, turns, expected, max(count // 40, THREADS))
    if unequal:
        faults.append(f"{unequal} results of {THREADS} threads differ from those of one")
    forked = in_a_fork(lambda: same(predictor.predict(*turns[0]), expected[0]))
    if not forked.startswith(("the same result", "refused: ")):
        faults.append(f"in a forked process: {forked}")
    return {
        **predictor.backend.describe(),
        "backend": request["backend"],
        "predictions": count,
        "measured_predictions": count - warm,
        "bytes_per_1000": round(slope),
        "standard_error": round(error),
        "resident_first": int(samples[0, 1]),
        "resident_last": int(samples[-1, 1]),
        "handles": handles,
        "threads": threads,
        "concurrent_threads": THREADS,
        "concurrent_predictions": max(count // 40, THREADS) * THREADS,
        "concurrent_unequal": unequal,
        "forked": forked,
        "milliseconds": round(1000 * seconds / count, 3),
        "faults": faults,
    }


def load(bundle: Path, backend: str) -> Predictor:
    """Return a predictor of the bundled model."""
    if backend != "torch":
        return Predictor(Bundle.open(bundle), open_backend(backend))
    from uino_deploy.export.torch_backend import TorchBackend

    return Predictor(Bundle.open(bundle), TorchBackend(CHECKPOINT))


def work(predictor: Predictor) -> list[tuple[Any, list[Support]]]:
    """Return images of several sizes, each with its classes: one, and for every fourth two."""
    supports = [predictor.enroll([draw_letter(0, letter)], letter) for letter in "AB"]
    turns = []
    for index, letter in enumerate("ABAB"):
        image, _ = draw_letter(index + 1, letter)
        image = np.pad(image, ((0, 16 * index), (0, 24 * index), (0, 0)), mode="edge")
        turns.append((image, supports if index == 3 else supports[index % 2 :][:1]))
    return turns


def same(results: Sequence[Result], expected: Sequence[Result]) -> bool:
    """Return whether results are the same bit for bit: logits, masks, scores."""
    return all(
        a.score == b.score and np.array_equal(a.logits, b.logits) and np.array_equal(a.mask, b.mask)
        for a, b in zip(results, expected, strict=True)
    )


def in_threads(
    predictor: Predictor, turns: Sequence[Any], expected: Sequence[Any], each: int
) -> int:
    """Return how many results of threads that share a predictor differ from one thread's."""

    def one(thread: int) -> int:
        which = [(thread + number) % len(turns) for number in range(each)]
        return sum(not same(predictor.predict(*turns[i]), expected[i]) for i in which)

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(one, range(THREADS)))


def in_a_fork(predicts: Callable[[], bool], seconds: int = 30) -> str:
    """Return what happens to a prediction in a process that was forked after the load."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        signal.alarm(seconds)
        try:
            said = "the same result" if predicts() else "another result"
        except Exception as error:
            said = f"refused: {' '.join(str(error).split())}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return said or f"no answer within {seconds} s (status {status})"


def used() -> tuple[int, int, int]:
    """Return this process's resident bytes, open file handles and threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    here = Path("/proc/self")
    return (
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir(here / "fd")),
        len(os.listdir(here / "task")),
    )


def trend(numbers: Any, resident: Any) -> tuple[float, float]:
    """Return the growth of resident bytes per 1,000 predictions, and its standard error.

    The standard error is that of least squares, widened for samples that follow their neighbours:
    by the residuals' autocorrelation r they count as n (1 - r) / (1 + r) independent ones.
    """
    x, y = np.asarray(numbers, float), np.asarray(resident, float)
    centred = x - x.mean()
    slope = (centred @ y) / (centred @ centred)
    rest = y - y.mean() - slope * centred
    power = rest @ rest
    follows = float(np.clip((rest[:-1] @ rest[1:]) / power, 0, 0.99)) if power else 0.0
    independent = max(3.0, len(x) * (1 - follows) / (1 + follows))
    variance = power / len(x) / (centred @ centred) * len(x) / (independent - 2)
    return 1000 * float(slope), 1000 * math.sqrt(variance)


def grows(slope: float, error: float, predictions: int) -> bool:
    """Return whether memory grows beyond doubt, and by more than allocators keep."""
    allowed = max(BYTES_PER_1000, STEP / predictions * 1000)
    return slope - 3 * error > allowed
